"""Keys of unusual objects: subclasses with their own methods, surrogates, parts of characters."""

from __future__ import annotations

import asyncio
import enum
import signal
from collections.abc import Callable
from typing import Any

import pytest

import dstore
from tests.integration.processes import PATIENCE, GlobalProcess, free_port

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


class K(str, enum.Enum):
    CONFIG = "config/a"
    same = "same"  # hash(K.same) == hash("same"), so that a dictionary finds it
    WIDE = "ключ"


class Path(str):
    """A str whose text as shown differs from its value, as some libraries have it."""

    def __str__(self) -> str:
        return f"<{str.__str__(self)}>"


class NoHash(str):
    __hash__ = None  # type: ignore[assignment]


class AnyCase(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class OddBytes(bytes):
    def __hash__(self) -> int:
        return hash(b"other")

    def __eq__(self, other: object) -> bool:
        return False


ODD: list[tuple[Any, str | bytes]] = [
    (K.CONFIG, "config/a"),
    (K.same, "same"),
    (K.WIDE, "ключ"),
    (Path("a/b"), "a/b"),
    (NoHash("no hash"), "no hash"),
    (AnyCase("Any"), "Any"),
    (OddBytes(b"odd"), "odd"),
    (OddBytes(b"\xff"), b"\xff"),
    ("\udcff", b"\xff"),
    ("\udcc3\udca9", "é"),
    ("caf\udcc3\udca9", "café"),
    (b"plain", "plain"),
]


@pytest.mark.parametrize("cached", [False, True], ids=["on a miss", "on a hit"])
@pytest.mark.parametrize(("odd", "plain"), ODD, ids=lambda key: ascii(key))
def test_a_key_is_the_value_of_the_object_on_a_miss_and_on_a_hit(
    node: MakeNode, odd: Any, plain: str | bytes, cached: bool
) -> None:
    writer, reader = node(), node()
    writer.set_many({"any": "other", "other": "other", "K.CONFIG": "other", "CONFIG": "other"})
    reader.get_many(["any", "other", "K.CONFIG", "CONFIG"])

    def bound(value: str) -> str:
        writer.set(plain, value, replace=True)
        if cached:
            assert reader.get(plain) == value
        return value

    async def asked() -> list[Any]:
        shared = dstore.AsyncNode.sharing(reader)
        lookup = await shared.lookup(odd)
        return [await shared.get(odd), lookup.value, await shared.contains(odd)]

    assert bound("1") == reader.get(odd)
    assert bound("2") == reader.lookup(odd).value
    assert bound("3") == reader.wait(odd, PATIENCE)
    assert bound("4") == bytes(reader.get_buffer(odd)).decode()
    assert bound("5")
    assert odd in reader
    bound("6")
    assert asyncio.run(asked()) == ["6", "6", True]
    if type(odd) is not NoHash:
        bound("7")
        assert list(reader.get_many([odd]).values()) == ["7"]
    with pytest.raises(dstore.KeyOccupied):
        reader.set(odd, 0)
    reader.set(odd, "8", replace=True)
    assert writer.get(plain) == "8"
    if cached:
        assert reader.lookup(odd).from_local, "the cache answers an odd key, too"
    reader.delete(odd)
    assert writer.get(plain, None) is None
    assert reader.get(odd, None) is None
    assert odd not in reader
    assert writer.get("other") == writer.get("CONFIG") == "other"
    with pytest.raises(dstore.KeyMissing):
        reader.delete(odd)


def test_an_odd_key_is_listed_as_its_plain_value(node: MakeNode) -> None:
    one = node()
    for odd, _ in ODD:
        one.set(odd, 1, replace=True)
    found = list(one.keys())
    assert {type(key) for key in found} == {str, bytes}
    assert set(found) == {key for _, key in ODD}
    assert len(found) == len(set(found))


def test_results_of_many_keys_have_the_objects_that_were_given(node: MakeNode) -> None:
    one, two = node(), node()
    assert one.set_many({K.CONFIG: 1, b"b": 2, "c": 3}) == []
    found = two.get_many([K.CONFIG, "config/a", b"b", "b", "\udcc3\udca9"])
    assert found == {K.CONFIG: 1, "config/a": 1, b"b": 2, "b": 2}
    assert any(key is K.CONFIG for key in found)
    occupied = two.set_many({K.CONFIG: 0, "d": 4})
    assert len(occupied) == 1
    assert occupied[0] is K.CONFIG
    deleted = two.delete_many([K.CONFIG, b"b", "nothing"])
    assert set(deleted) == {K.CONFIG, b"b"}
    assert one.get_many([K.CONFIG, "b"]) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([NoHash("k")], "NoHash has no hash.*'k'.*plain str or bytes"),
        ([AnyCase("A"), AnyCase("a")], "'A' and 'a' are different keys, but equal as AnyCase"),
        ([bytearray(b"k")], "not bytearray"),
        ([["k"]], "not list"),
    ],
)
def test_keys_that_cannot_name_a_result_are_refused(
    node: MakeNode, given: list[Any], said: str
) -> None:
    one = node()
    one.set_many({"A": 1, "a": 2, "k": 3})
    for call in (one.get_many, one.delete_many):
        with pytest.raises(dstore.InvalidKey, match=said):
            call(given)
    assert one.get_many(["A", "a", "k"]) == {"A": 1, "a": 2, "k": 3}


def test_a_key_given_by_two_objects_is_written_once_or_refused(node: MakeNode) -> None:
    one = node()
    for mapping in ({"é": 1, "\udcc3\udca9": 2}, {"a/b": 1, OddBytes(b"a/b"): 2}):
        with pytest.raises(dstore.InvalidKey, match="is there twice"):
            one.set_many(mapping)
    assert list(one.keys()) == []
    one.set("é", 1)
    assert set(one.delete_many(["é", "\udcc3\udca9", "é".encode()])) == {
        "é", "\udcc3\udca9", "é".encode()
    }  # fmt: skip


def test_errors_name_the_key_that_was_given(node: MakeNode) -> None:
    one = node()
    for key in (K.CONFIG, "\udcc3\udca9", b"\xff"):
        with pytest.raises(dstore.KeyMissing) as missing:
            one.get(key)
        assert missing.value.key is key
        one.set(key, 1)
        with pytest.raises(dstore.KeyOccupied) as occupied:
            one.set(key, 1)
        assert occupied.value.key is key


@pytest.mark.private
def test_an_unknown_outcome_names_keys_as_programs_see_them() -> None:
    with (
        GlobalProcess(f"tcp://127.0.0.1:{free_port()}") as place,
        dstore.Node(place.address, timeout=0.2) as one,
    ):
        assert one.get("k", None) is None  # opens a connection for requests
        place.signal(signal.SIGSTOP)
        with pytest.raises(
            dstore.OutcomeUnknown, match=r"b'\\xff', 'é' may or may not"
        ) as doubtful:
            one.set_many({b"\xff": 1, "\udcc3\udca9": 2})
        assert doubtful.value.keys == [b"\xff", "é"]
        place.signal(signal.SIGCONT)


# ---- prefixes ---------------------------------------------------------------------------------

TAGGED = [b"\xc3(", b"\xc3\xa9", b"\xc3\xa9x", b"\xc3\xbf", b"\xc3\xff"]
OTHERS = [b"\xc2\xa9", b"\xc4\x80", b"a", b"\xff", "漢".encode(), b"\xe6\xbc"]


def as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def test_keys_are_in_the_order_of_their_bytes_and_prefixes_are_bytes(node: MakeNode) -> None:
    one = node()
    one.set_many(dict.fromkeys(TAGGED + OTHERS, 1))
    assert list(map(as_bytes, one.keys())) == sorted(TAGGED + OTHERS)
    for prefix in (b"\xc3", "\udcc3", Path("\udcc3"), OddBytes(b"\xc3")):
        assert [as_bytes(key) for key in one.keys(prefix)] == sorted(TAGGED)
    assert [as_bytes(key) for key in one.keys(b"\xe6\xbc")] == [b"\xe6\xbc", "漢".encode()]
    assert list(one.keys("é")) == ["é", "éx"]
    assert list(one.keys(K.CONFIG)) == []
    one.set("config/abc", 1)
    assert list(one.keys(K.CONFIG)) == ["config/abc"]

    async def asynchronous() -> list[bytes]:
        shared = dstore.AsyncNode.sharing(one)
        return [as_bytes(key) async for key in shared.keys(b"\xc3")]

    assert asyncio.run(asynchronous()) == sorted(TAGGED)


def test_pages_of_odd_keys_are_complete(node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dstore.config, "KEYS_PAGE_DEFAULT", 2)
    one = node()
    bound = [bytes((a, b)) for a in (0x61, 0xC3, 0xE6, 0xFF) for b in (0x28, 0x80, 0xA9, 0xFF)]
    one.set_many(dict.fromkeys(bound, 1))
    assert list(map(as_bytes, one.keys())) == sorted(bound)
    for first in (0x61, 0xC3, 0xFF):
        found = [as_bytes(key) for key in one.keys(bytes((first,)))]
        assert found == sorted(key for key in bound if key[0] == first)


@pytest.mark.parametrize("prefix", [b"\xc3", "\udcc3", OddBytes(b"\xc3")], ids=ascii)
def test_a_watch_reports_all_keys_that_begin_with_its_bytes(node: MakeNode, prefix: Any) -> None:
    one, other = node(), node()
    one.set_many(dict.fromkeys(TAGGED + OTHERS, 1))
    with other.watch(prefix) as watch:
        first = watch.take(PATIENCE)
        assert first is not None
        assert first.resync
        one.delete_many(OTHERS)
        one.delete_many(TAGGED)
        told = [watch.take(PATIENCE) for _ in TAGGED]
        assert watch.take(0) is None
    assert sorted(as_bytes(event.key) for event in told if event and event.key) == sorted(TAGGED)


def test_a_deletion_is_announced_by_the_name_that_programs_see(free_global: dstore.Global) -> None:
    told: list[str | bytes] = []
    with (
        dstore.Node(free_global.address, on_deletion=told.append) as one,
        dstore.Node(free_global.address) as other,
        other.watch() as watch,
    ):
        one.set("\udcff", 1)
        one.set("\udcc3\udca9", 1)
        other.delete(b"\xff")
        other.delete("é")
        keys: list[str | bytes] = []
        while len(keys) < 2:
            event = watch.take(PATIENCE)
            assert event is not None
            keys += [event.key] if event.key is not None else []
        assert keys == [b"\xff", "é"]
        while len(told) < 2:
            one.global_stats()
    assert told == [b"\xff", "é"]

"""``dstore.Node`` as a program embeds it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.codecs import Codecs, Encoded
from dstore.protocol.messages import Get
from tests.integration.processes import RawClient

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


def test_values_come_back_as_they_were(node: MakeNode) -> None:
    writer, reader = node(), node()
    values: dict[Any, Any] = {
        "text": "v ä 漢",
        "bytes": b"\x00\xff",
        "none": None,
        "list": [1, 2.5, True, None, {"a": (1, "b")}],
        "empty": b"",
    }
    assert writer.set_many(values) == []
    assert reader.get_many(values) == values
    assert writer.get_many(values) == values
    assert reader.get("none", "default") is None
    assert "none" in reader
    assert "nothing" not in reader


def test_an_immutable_value_is_handed_out_as_one_object_a_mutable_one_afresh(
    node: MakeNode,
) -> None:
    one = node()
    one.set_many({"text": "some text", "list": [1, [2]]})
    assert one.get("text") is one.get("text")
    mine = one.get("list")
    mine[1].append("changed")
    assert one.get("list") == [1, [2]]


def test_keys_are_text_or_bytes_of_one_name_space(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("ä", 1)
    assert two.get("ä".encode()) == 1
    one.set(b"\xff\x00", 2)
    assert two.get(b"\xff\x00") == 2
    assert set(two.keys()) == {"ä", b"\xff\x00"}
    two.delete("ä".encode())
    assert one.get("ä", None) is None


@pytest.mark.parametrize("key", ["", b"", "x" * 512, "ä" * 256, "\ud800", 5, None, ("a",)])
def test_a_bad_key_is_refused(node: MakeNode, key: Any) -> None:
    one = node()
    for call in (one.get, one.delete, one.lookup, lambda key: one.set(key, 1)):
        with pytest.raises(dstore.InvalidKey):
            call(key)


@pytest.mark.private
def test_content_addresses(node: MakeNode) -> None:
    one, two = node(), node()
    uid = one.put(b"content")
    assert uid.startswith("b3:")
    assert two.put(b"content") == uid
    assert two.get(uid) == b"content"
    assert one.put("content") != uid
    with pytest.raises(dstore.InvalidKey, match="content addresses"):
        one.set(uid, b"other")
    assert two.delete(uid).confirmed == 2
    assert one.get(uid, None) is None


@pytest.mark.private
def test_occupied(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", "v")
    with pytest.raises(dstore.KeyOccupied) as known:
        one.set("k", "w")
    assert (known.value.local, known.value.updated) == (True, False)
    with pytest.raises(dstore.KeyOccupied) as asked:
        two.set("k", "w")
    assert (asked.value.local, asked.value.updated) == (False, True)
    assert two.lookup("k") == dstore.Lookup("v", from_local=True, cached=True)
    assert two.set_many({"k": 1, "l": 2}) == ["k"]
    assert one.get("l") == 2


def test_missing(node: MakeNode) -> None:
    one = node()
    with pytest.raises(KeyError) as caught:
        one.get("k")
    assert isinstance(caught.value, dstore.KeyMissing)
    assert str(caught.value) == "no value is bound to 'k'"
    with pytest.raises(dstore.KeyMissing):
        one.delete("k")
    assert one.delete_many(["k", "l"]) == {}
    assert one.get_many([]) == {}
    assert one.delete_many([]) == {}
    assert one.set_many({}) == []


def test_keys_come_page_by_page(node: MakeNode) -> None:
    one = node()
    many = 2 * config.KEYS_PAGE_DEFAULT + 5
    one.set_many({f"model/{number:05}": number for number in range(many)} | {"other": 0})
    assert list(one.keys("model/")) == [f"model/{number:05}" for number in range(many)]
    assert one.global_stats()["scans"] == 3
    assert len(list(one.keys())) == many + 1
    assert list(one.keys("none")) == []


@pytest.mark.private
def test_many_at_once(node: MakeNode) -> None:
    one, two = node(), node()
    values = {f"k{number}": bytes(1000) for number in range(12_000)}
    one.set_many(values)
    assert two.get_many(values) == values
    deletions = two.delete_many([*values, "missing"], wait=True)
    assert len(deletions) == len(values)
    assert set(deletions.values()) == {dstore.Deletion(2, 0, 0)}
    assert one.get_many(values) == {}


def test_many_large_values_are_split_over_messages(node: MakeNode) -> None:
    one, two = node(), node()
    values = {f"k{number}": bytes([number]) * (3 << 20) for number in range(9)}
    one.set_many(values)
    assert two.get_many(values) == values
    assert two.set_many(values) == list(values)


@pytest.mark.parametrize("limit", [10_000, 100_000])
def test_a_value_above_the_limit_names_the_limit(limit: int) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", value_limit=limit) as small,
        dstore.Node(small.address) as one,
    ):
        one.set("largest", bytes(limit))
        for write in (one.set, one.set_many):
            with pytest.raises(dstore.ValueTooLarge, match=f"{limit:,}"):
                write(
                    *(("k", bytes(limit + 1)) if write == one.set else ({"k": bytes(limit + 1)},))
                )
        with pytest.raises(dstore.ValueTooLarge, match=f"{limit:,}"):
            one.put(bytes(limit + 1))
        assert one.get("k", None) is None


def test_a_full_store_says_so_and_goes_on(request: pytest.FixtureRequest) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", memory_limit=10_000) as small,
        dstore.Node(small.address) as one,
    ):
        one.set("k", bytes(5_000))
        with pytest.raises(dstore.StoreFull, match="memory-limit"):
            one.set("l", bytes(9_000))
        assert len(one.get("k")) == 5_000
        one.set("l", bytes(100))


@pytest.mark.private
def test_the_cache_is_bounded(node: MakeNode) -> None:
    writer, reader = node(), node(cache_bytes=10_000)
    writer.set_many({f"k{number}": bytes(500) for number in range(50)})
    for number in range(50):
        assert len(reader.get(f"k{number}")) == 500
    metrics = reader.stats()
    assert metrics["bytes"] <= 10_000
    assert metrics["evictions"] > 30
    assert writer.delete("k0").confirmed == 2


@pytest.mark.private
def test_wait_false(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", "v")
    two.get("k")
    deletion = one.delete("k", wait=False)
    assert (deletion.confirmed, deletion.pending) == (0, 2)
    with pytest.raises(dstore.KeyMissing):
        one.delete("k")


@pytest.mark.private
def test_deletions_are_heard(node: MakeNode) -> None:
    heard: list[Any] = []
    one, two = node(on_deletion=heard.append), node()
    two.set_many({"held": 1, "not held": 2, b"\xff": 3})
    one.get_many(["held", b"\xff"])
    two.delete_many(["held", "not held", b"\xff"])
    one.close()  # a callback comes after the acknowledgement
    assert heard == ["held", b"\xff"]


@pytest.mark.private
def test_a_failing_callback_harms_nobody(node: MakeNode, caplog: pytest.LogCaptureFixture) -> None:
    def fail(key: Any) -> None:
        raise RuntimeError("callback")

    one = node(on_deletion=fail)
    one.set("k", "v")
    assert one.delete("k").confirmed == 1
    one.set("k", "w")
    assert one.get("k") == "w"
    one.close()
    assert "on_deletion" in caplog.text


@pytest.mark.private
def test_many_threads_that_miss_one_key_ask_once(node: MakeNode) -> None:
    writer, reader = node(), node()
    writer.set("k", "v")
    reader.join()
    together = threading.Barrier(16)
    got: list[Any] = []

    def ask() -> None:
        together.wait()
        got.append(reader.get("k"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["v"] * 16
    assert writer.global_stats()["gets"] == 1


def test_many_threads_with_keys_of_their_own(node: MakeNode) -> None:
    one = node()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                key = f"{number}/{turn}"
                one.set(key, turn)
                assert one.get(key) == turn
                assert one.delete(key).confirmed == 1
                assert one.get(key, None) is None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    "address", ["", "nonsense", "tcp://host", "tcp://h:0", "tcp://h:70000", "ipc://", "tcp://*:5"]
)
def test_a_bad_address_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, "also nonsense")
    with pytest.raises(dstore.AddressError):
        dstore.Node(address)


def test_a_first_deletion_of_a_new_node_waits_for_a_lease_too() -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", lease=1.0) as running,
        dstore.Node(running.address) as one,
        RawClient(running.address) as silent,
    ):
        one.set("k", "v")
        silent.join()
        silent.ask(Get(silent.epoch, silent.session, 1, ["k"]))
        with dstore.Node(running.address, timeout=0.2) as two:
            assert two.delete("k") == dstore.Deletion(1, 1, 0)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_out_of_range_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        dstore.Node(timeout=timeout)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"shm": 5}, TypeError), ({"shm_limit": "1G"}, TypeError), ({"shm_limit": -1}, ValueError)],
)
def test_a_place_for_large_values_that_is_none_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        dstore.Node(**options)


def test_the_place_for_large_values_may_be_any_path(
    free_global: dstore.Global, tmp_path: Path
) -> None:
    for place in (tmp_path, os.fsencode(tmp_path)):
        with dstore.Node(free_global.address, shm=place) as node:  # type: ignore[arg-type]
            node.set("k", bytes(100_000), replace=True)
            assert len(os.listdir(tmp_path)) == 1


def test_the_same_key_as_text_and_as_bytes_at_once_is_refused(node: MakeNode) -> None:
    with pytest.raises(dstore.InvalidKey, match="twice"):
        node().set_many({"a": 1, b"a": 2})


@pytest.mark.private
def test_hits_and_misses_are_counted(node: MakeNode) -> None:
    one, two = node(), node()
    two.set_many({"k": 1, "l": 2})
    one.get("k")
    one.get("k")
    one.get("missing", None)
    one.get_many(["k", "l", "missing"])
    metrics = one.stats()
    assert (metrics["hits"], metrics["misses"]) == (2, 4)


@pytest.mark.private
def test_a_callback_that_uses_its_own_node_is_told_so(
    node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    def use(key: Any) -> None:
        one.get("other")

    one = node(on_deletion=use)
    one.set("k", "v")
    one.delete("k")
    one.set("k", "w")
    assert one.get("k") == "w"
    one.close()
    assert "note what is to be done" in caplog.text


def test_a_destructor_in_the_middle_of_a_call_is_told_so(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    one.join()
    assert one._local is not None
    host = one._local.host
    notify = host.notify
    raised: list[BaseException] = []

    def interrupted(*arguments: Any) -> Any:
        if not raised:
            try:
                one.get("from a destructor")
            except RuntimeError as error:
                raised.append(error)
        return notify(*arguments)

    monkeypatch.setattr(host, "notify", interrupted)
    assert one.get("k", None) is None
    assert "destructor" in str(raised[0])


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_whatever_a_callback_raises_the_node_goes_on(
    node: MakeNode, error: type[BaseException]
) -> None:
    def fail(key: Any) -> None:
        raise error

    one = node(on_deletion=fail)
    for number in range(3):
        one.set("k", number)
        assert one.delete("k").confirmed == 1


@pytest.mark.parametrize("label", ["x" * 257, "\udcff", "two\nlines"])
def test_a_label_that_cannot_be_shown_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        dstore.Node(label=label)


def test_what_a_hostile_writer_stored_hurts_no_reader(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = node(), node()
    lists = b"\xdd" + (2 << 20).to_bytes(4, "big") + b"\x90" * (2 << 20)
    keys = [(n & 1, *(-1 - (n >> bit & 1) for bit in range(9))) for n in range(512)]
    for key, body in (
        ("lists", lists),
        ("keys", Codecs().encode(dict.fromkeys(keys)).joined()),
        ("time", b"\xd6\xff" + bytes(4)),
    ):
        hostile = Encoded("msgpack", (body,), len(body))
        monkeypatch.setattr(writer._commands.codecs, "encode", lambda _, hostile=hostile: hostile)
        writer.set(key, None)
        for _ in range(2):  # from Global, and from the cache
            with pytest.raises(dstore.ValueCorrupt):
                reader.get(key)
        assert reader.get_buffer(key) == body

"""What a program passes in is checked where it enters: each parameter with right and wrong values.

A wrong type raises TypeError, a wrong value ValueError (of an address AddressError), and the
message names the parameter.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import pydoc
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import dstore
from dstore import config
from dstore.cli import main
from dstore.client.settings import Settings
from dstore.codecs import Codec
from dstore.engines import MemoryEngine, PrivateBulk
from tests.integration.processes import PATIENCE

np = pytest.importorskip("numpy")

MakeNode = Callable[..., dstore.Node]
MAKERS: list[Callable[..., object]] = [dstore.Node, dstore.AsyncNode, dstore.connect]
AWAY = "tcp://127.0.0.1:1"
HUGE = 10**400
NO_NUMBERS = ["5", b"5", True, np.True_, 2j, [5], Decimal(5)]
NO_SECONDS = [*NO_NUMBERS, -1, math.nan, math.inf, -math.inf, HUGE, np.float64("nan")]
NO_COUNTS = [*NO_NUMBERS, 2000.5, 5.0, math.nan, math.inf, Fraction(5), -1, HUGE, 1 << 62]
NO_FLAGS = [1, 0, None, "yes", "", np.True_]
NO_FUNCTIONS = ["no function", 5, [print], True]
NO_PATHS = [5, True, 2.5, ["a"], "a\0b"]
NO_TEXTS = [5, b"label", None, ["a"]]
CODEC = Codec("fraction", Fraction, lambda value: str(value).encode(), bytes)

NODE: dict[str, tuple[list[Any], list[Any]]] = {
    # parameter: right values, wrong values
    "connect": ([None], [*NO_PATHS, ""]),
    "timeout": (
        [0.001, 5, 5.0, Fraction(5), np.float32(5), 86_400],
        [*NO_SECONDS, None, 0, 86_401],
    ),
    "host": ([None, "auto", "off"], [5, b"auto", True, "on", ""]),
    "cache_bytes": ([None, 0, 1 << 20, np.int64(5)], [*NO_COUNTS, "1M"]),
    "stale_ok": ([True, False], NO_FLAGS),
    "label": (["", "a worker", "ü"], [*NO_TEXTS, "x" * 257, "two\nlines", "\udcff"]),
    "on_deletion": ([None, print], NO_FUNCTIONS),
    "pickle": ([True, False], NO_FLAGS),
    "codecs": (
        [(), [], [CODEC], iter([CODEC]), {CODEC}],
        [None, 5, "abc", CODEC, [5], [None], print],
    ),
    "shm": ([None, "", b""], NO_PATHS),
    "shm_limit": ([None, 0, 1 << 30, np.int64(5)], NO_COUNTS),
}


class HalfLoading(MemoryEngine):
    """Says what it has loaded, and cannot load."""

    def loaded(self) -> list[Any]:
        return []


GLOBAL: dict[str, tuple[list[Any], list[Any]]] = {
    "publisher": ([None, "tcp://127.0.0.1:0"], [5, b"tcp://*:5", "", "nonsense", "tcp://h:70000"]),
    "lease": ([0.05, 2, Fraction(2), np.float64(2)], [*NO_SECONDS, None, 0, 0.04, 3601]),
    "log_length": ([1, 1 << 18, np.int64(5)], [*NO_COUNTS, None, 0, (1 << 18) + 1]),
    "memory_limit": ([None, 1, 1 << 40, np.int64(1 << 40)], [*NO_COUNTS, 0]),
    "value_limit": ([1, 1 << 40, (1 << 62) - 1, np.int64(1 << 40)], [*NO_COUNTS, None, 0]),
    "large_from": ([1 << 10, 1 << 20, np.int64(2000)], [*NO_COUNTS, None, 0, 1023, (1 << 20) + 1]),
    "max_clients": ([1, 100_000, np.int64(5)], [*NO_COUNTS, None, 0, 100_001]),
    "host_cache": ([None, 0, 1 << 20, np.int64(2 << 20)], [*NO_COUNTS, 1, (1 << 20) - 1]),
    "shm": ([None, ""], NO_PATHS),
    "data": ([None], [*NO_PATHS, ""]),
    "keys": ([None], [*NO_PATHS, ""]),
    "insecure": ([True, False], NO_FLAGS),
    "engine": (
        [None, MemoryEngine()],
        [5, "memory", MemoryEngine, {}, PrivateBulk(), HalfLoading()],
    ),
    "bulk": ([None, PrivateBulk()], [5, "memory", PrivateBulk, {}, MemoryEngine()]),
    # Without a database these have no meaning, and are refused whatever they are.
    "advertise": ([None], [5, b"tcp://h:5", "", "nonsense", "tcp://h:5"]),
    "ownership_lease": ([None], [*NO_SECONDS, 0, 0.1, 4.0, 3601]),
}
ADDRESSES: list[Any] = [5, 0, b"tcp://127.0.0.1:5", ["a"], True, "", "nonsense", "tcp://h:70000"]


def cases(table: dict[str, tuple[list[Any], list[Any]]], which: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "value"),
        [
            pytest.param(name, value, id=f"{name}-{type(value).__name__}-{number}")
            for name, values in table.items()
            for number, value in enumerate(values[which])
        ],
    )


def refused(name: str, do: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError, dstore.AddressError), match=name) as caught:
        do()
    assert len(str(caught.value)) < 400


@cases(NODE, 1)
@pytest.mark.parametrize("make", MAKERS)
def test_a_wrong_setting_of_a_node(make: Callable[..., object], name: str, value: Any) -> None:
    refused("codecs" if name == "codecs" else f"^{name} is ", lambda: make(AWAY, **{name: value}))


@cases(NODE, 0)
def test_a_right_setting_of_a_node(free_global: dstore.Global, name: str, value: Any) -> None:
    with dstore.Node(free_global.address, **{name: value}) as node:
        node.timeout = PATIENCE  # the shortest is shorter than a slow machine takes
        node.set("k", "v")
        assert node.get("k") == "v"


@cases(GLOBAL, 1)
def test_a_wrong_setting_of_a_global(name: str, value: Any) -> None:
    what = r"is not an address|the port" if name == "publisher" and type(value) is str else name
    refused(what, lambda: dstore.Global("tcp://127.0.0.1:0", **{name: value}))


@cases(GLOBAL, 0)
def test_a_right_setting_of_a_global(name: str, value: Any) -> None:
    """Nodes can join it, and large values travel: what it tells them is right as well."""
    small = (name == "value_limit" and value < 1 << 20) or (name == "memory_limit" and value == 1)
    with (
        dstore.Global("tcp://127.0.0.1:0", **{name: value}) as served,
        dstore.Node(served.address, timeout=PATIENCE) as node,
    ):
        node.join()
        if not small:
            node.set("k", bytes(100_000))
            assert bytes(node.get("k")) == bytes(100_000)
        node.global_stats()


def test_every_parameter_of_a_global_is_in_the_table() -> None:
    assert set(inspect.signature(dstore.Global).parameters) == {"address", *GLOBAL}


@pytest.mark.parametrize("make", [dstore.Node, dstore.AsyncNode, dstore.connect, dstore.Global])
@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_a_wrong_address(make: Callable[..., object], address: Any) -> None:
    refused(
        "address|the port" if isinstance(address, str) else "^address is a str",
        lambda: make(address),
    )


@pytest.mark.parametrize("make", MAKERS)
def test_a_wrong_address_of_the_environment_is_named(
    make: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, "nonsense")
    with pytest.raises(
        dstore.AddressError, match=r"^\$DSTORE_GLOBAL: 'nonsense' is not an address"
    ):
        make()


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, "")
    with dstore.Node() as node:
        assert node.address == config.ADDRESS_DEFAULT


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"engine": MemoryEngine(), "memory_limit": 1 << 30}, r"^memory_limit.*engine"),
        ({"engine": MemoryEngine(), "data": "folder"}, r"^data.*engine"),
        ({"bulk": PrivateBulk(), "data": "folder"}, r"^data.*bulk"),
        ({"keys": "folder", "insecure": True}, r"^insecure.*keys"),
    ],
)
def test_settings_of_a_global_that_make_no_sense_together(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        dstore.Global(**settings)


def test_a_bulk_goes_with_the_engine_that_is_there_and_with_a_memory_limit() -> None:
    settings: dict[str, Any] = {"memory_limit": 1 << 20, "shm": ""}
    with (
        dstore.Global("tcp://127.0.0.1:0", bulk=PrivateBulk(), **settings) as served,
        dstore.Node(served.address) as node,
    ):
        node.set("k", bytes(100_000))
        with pytest.raises(dstore.StoreFull):
            node.set("l", bytes(1_000_000))


@pytest.mark.parametrize("value", NODE["timeout"][1], ids=lambda value: type(value).__name__)
def test_a_wrong_timeout_is_not_set(node: MakeNode, value: Any) -> None:
    one = node(timeout=7)
    shared = dstore.AsyncNode.sharing(one)
    for each in (one, shared):
        refused("^timeout is ", lambda each=each: setattr(each, "timeout", value))  # type: ignore[misc]
        assert each.timeout == 7
    one.timeout = Fraction(1, 2)  # type: ignore[assignment]
    assert (shared.timeout, type(shared.timeout)) == (0.5, float)


@pytest.mark.parametrize("make", MAKERS)
def test_settings_that_there_are_not(make: Callable[..., object]) -> None:
    name = make.__name__
    with pytest.raises(
        TypeError, match=f"^{name}.* no setting 'time_out'; there are connect, timeout, ho"
    ):
        make(AWAY, time_out=5)
    with pytest.raises(TypeError, match=f"^{name}.* by name"):
        make(AWAY, 5)


def test_node_async_node_and_connect_take_the_same_settings() -> None:
    """In one list, which ``inspect.signature``, type hints and ``help`` show for each of them."""
    listed = inspect.signature(Settings).parameters
    kept = {name for name in vars(Settings()) if not name.startswith("_")}
    assert set(listed) == kept == {"address", *NODE}
    types = get_type_hints(Settings.__init__)
    functions = (dstore.Node.__init__, dstore.AsyncNode.__init__, dstore.connect)
    for make, function in zip(MAKERS, functions):
        assert inspect.signature(make).parameters == listed
        hints = get_type_hints(function)
        assert {name: hints[name] for name in listed} == {name: types[name] for name in listed}
        helped = pydoc.plain(pydoc.render_doc(make))
        assert [
            name for name in listed if not re.search(rf"^[ |]*{name}$", helped, re.MULTILINE)
        ] == []
    assert inspect.signature(dstore.connect).return_annotation == "Node"


@pytest.mark.parametrize("given", ["argument", "variable"])
@pytest.mark.parametrize("make", [*MAKERS, dstore.Global])
def test_a_folder_that_is_named_must_exist(
    make: Callable[..., object], given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    settings = {"shm": missing} if given == "argument" else {}
    if given == "variable":
        monkeypatch.setenv("DSTORE_SHM", str(missing))
    name = "shm" if given == "argument" else r"\$DSTORE_SHM"
    said = rf"^{name} is {missing}, which is not a folder that can be used \(No such .*create it"
    with pytest.raises(ValueError, match=said):
        make("tcp://127.0.0.1:0" if make is dstore.Global else AWAY, **settings)
    missing.touch()
    with pytest.raises(ValueError, match=r"\(Not a directory\)"):
        make("tcp://127.0.0.1:0" if make is dstore.Global else AWAY, **settings)


def test_equal_settings_are_one_node_however_written(free_global: dstore.Global) -> None:
    place = Path("/dev/shm")
    one = dstore.connect(free_global.address, timeout=5, shm=place, codecs=[CODEC])
    two = dstore.connect(
        free_global.address, timeout=np.float64(5), shm=str(place), codecs=(CODEC,)
    )
    assert one is two
    one.close()
    third = dstore.connect(free_global.address, timeout=5, shm=place, codecs=[CODEC])
    assert third is not one
    third.close()


# ---- calls ------------------------------------------------------------------------------------

FILE = Path(__file__)
Call = Callable[[Any, Any], Any]
CALLS: list[tuple[str, str, Call, list[Any]]] = [
    ("get_many", "keys", lambda node, it: node.get_many(it), ["abc", b"abc", 5, None]),
    ("get_file", "path", lambda node, it: node.get_file("k", it), [*NO_PATHS, None]),
    (
        "get_file", "progress", lambda node, it: node.get_file("k", "/no/where", progress=it),
        NO_FUNCTIONS,
    ),
    ("keys", "key", lambda node, it: node.keys(it), [5, None, ["a"], "\ud800"]),
    ("wait", "timeout", lambda node, it: node.wait("never", it), [*NO_SECONDS, 31_536_001]),
    ("watch", "limit", lambda node, it: node.watch(limit=it), [*NO_COUNTS, None, 0]),
    ("watch", "callback", lambda node, it: node.watch(callback=it), NO_FUNCTIONS),
    ("watch", "key", lambda node, it: node.watch(it), [5, None, ["a"], "\ud800"]),
    ("set", "replace", lambda node, it: node.set("k", "v", replace=it), NO_FLAGS),
    ("set_many", "mapping", lambda node, it: node.set_many(it), [["a"], [("a", 1)], "a", 5, None]),
    ("set_many", "replace", lambda node, it: node.set_many({"k": 1}, replace=it), NO_FLAGS),
    ("set_file", "path", lambda node, it: node.set_file("k", it), [*NO_PATHS, None]),
    ("set_file", "replace", lambda node, it: node.set_file("k", FILE, replace=it), NO_FLAGS),
    ("set_file", "progress", lambda node, it: node.set_file("k", FILE, progress=it), NO_FUNCTIONS),
    ("put_file", "path", lambda node, it: node.put_file(it), [*NO_PATHS, None]),
    ("put_file", "progress", lambda node, it: node.put_file(FILE, progress=it), NO_FUNCTIONS),
    ("delete", "wait", lambda node, it: node.delete("k", wait=it), NO_FLAGS),
    ("delete_many", "keys", lambda node, it: node.delete_many(it), ["abc", b"abc", 5, None]),
    ("delete_many", "wait", lambda node, it: node.delete_many(["k"], wait=it), NO_FLAGS),
    ("join", "timeout", lambda node, it: node.join(it), [*NO_SECONDS, 86_401]),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}-{call[1]}")
def test_a_wrong_argument_of_a_call(node: MakeNode, call: tuple[str, str, Call, list[Any]]) -> None:
    one = node(timeout=PATIENCE)
    for value in call[3]:
        refused(call[1], lambda value=value: call[2](one, value))  # type: ignore[misc]
    one.set("k", "v")
    assert one.get("k") == "v"
    assert one.global_stats()["keys"] == 1, "nothing was written"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}-{call[1]}")
def test_a_wrong_argument_of_a_coroutine(
    node: MakeNode, call: tuple[str, str, Call, list[Any]]
) -> None:
    shared = dstore.AsyncNode.sharing(node(timeout=PATIENCE))

    async def use() -> None:
        for value in call[3]:
            with pytest.raises((TypeError, ValueError), match=call[1]):
                await call[2](shared, value)
        await shared.set("k", "v")

    asyncio.run(use())


def test_a_wrong_time_of_a_watch(node: MakeNode) -> None:
    with node().watch() as watch:
        for value in [*NO_SECONDS, 31_536_001]:
            refused("^timeout is ", lambda value=value: watch.take(value))  # type: ignore[misc]
        event = watch.take(Fraction(PATIENCE))  # type: ignore[arg-type]
        assert event is not None
        assert event.resync
        assert watch.take(0) is None


def test_right_arguments_of_calls(node: MakeNode, tmp_path: Path) -> None:
    one = node()
    assert one.set_many(dict.fromkeys(("a", "b"), 1), replace=True) == []
    assert one.get_many(iter(["a", "b"])) == one.get_many({"a": 0, "b": 0}) == {"a": 1, "b": 1}
    assert one.get_many(np.array(["a"])) == {"a": 1}
    assert one.wait("a", 0) == one.wait("a", np.int64(1)) == one.wait("a", None) == 1
    one.join(0)
    one.join(Fraction(1, 2))  # type: ignore[arg-type]
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for given in (path, str(path), str(path).encode()):
        one.set_file("f", given, replace=True)  # type: ignore[arg-type]
        one.put_file(given, progress=lambda *_: None)  # type: ignore[arg-type]
        one.get_file("f", given)  # type: ignore[arg-type]
        assert path.read_bytes() == b"content"
    assert one.delete("a", wait=False).pending <= 1
    assert set(one.delete_many(key for key in ("b", "f"))) == {"b", "f"}


def test_an_empty_key_is_not_told_to_be_hashed(node: MakeNode) -> None:
    one = node()
    for call in (one.get, one.delete, one.lookup, lambda key: one.set(key, 1)):
        with pytest.raises(dstore.InvalidKey, match="the key is empty") as caught:
            call("")
        assert "hash" not in str(caught.value)


# ---- the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("get k --timeout nan", "between 0.001 and 86400 seconds"),
        ("get k --timeout inf", "between 0.001 and 86400 seconds"),
        ("get k --timeout -1", "between 0.001 and 86400 seconds"),
        ("get k --timeout 0", "between 0.001 and 86400 seconds"),
        ("get k --timeout five", "between 0.001 and 86400 seconds"),
        ("get k --address nonsense", "is not an address"),
        ("get k --address tcp://h:70000", "port must be between"),
        ("global --address nonsense", "is not an address"),
        ("global --publisher nonsense", "is not an address"),
        ("global --lease 0", "between 0.05 and 3600 seconds"),
        ("global --lease nan", "between 0.05 and 3600 seconds"),
        ("global --log-length 0", "is not a whole number from 1 to 262,144"),
        ("global --log-length 1e3", "is not a whole number from 1 to 262,144"),
        (f"global --log-length {'9' * 5000}", "is not a whole number from 1 to 262,144"),
        ("global --memory-limit 0", "is not a size"),
        ("global --memory-limit=-1", "is not a size"),
        ("global --memory-limit nan", "is not a size"),
        ("global --memory-limit 8388608T", "is not a size"),
        (f"global --value-limit {'9' * 5000}", "is not a size"),
        ("global --large-from 1023", "is not a size between 1,024 and 1,048,576 bytes"),
        ("global --large-from 0", "is not a size between 1,024 and 1,048,576 bytes"),
        ("global --large-from much", "is not a size between 1,024 and 1,048,576 bytes"),
        (f"global --large-from {'9' * 500}", "is not a size between 1,024 and 1,048,576 bytes"),
        ("global --shm /no/such/folder", "is not a folder"),
        ("demo --workers 0", "is not a whole number from 1 to 64"),
        ("set a b c", "unrecognized arguments: c (see dstore set --help)"),
        ("stats --frobnicate", "unrecognized arguments: --frobnicate (see dstore stats --help)"),
        ("--frobnicate", "unrecognized arguments: --frobnicate (see dstore --help)"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_wrong_address_of_the_environment_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, "nonsense")
    assert main(["get", "k"]) == 2
    assert "nonsense" in capsys.readouterr().err

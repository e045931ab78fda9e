"""Engines and bulks of a program's own: who closes them, and reads that have to be loaded."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.engines import (
    Away,
    Buffer,
    Bulk,
    Engine,
    Key,
    Large,
    Loaded,
    MemoryEngine,
    PrivateBulk,
    Stored,
)
from dstore.runtime import clock
from dstore.testing import running_global
from tests.engines import AwayEngine, LateEngine
from tests.history.linearizability import check_linearizable
from tests.history.operations import Kind, Operation, Result
from tests.integration.owners import files, until
from tests.integration.processes import PATIENCE

LARGE = bytes(range(256)) * 1000
LEASE = 1.0


@contextmanager
def serving(engine: Engine | None = None, bulk: Bulk | None = None, **more: Any) -> Iterator[str]:
    """Run a Global with an engine or a bulk. Yields its address."""
    with running_global(engine=engine, bulk=bulk, lease=LEASE, **more) as served:
        yield served.address


@pytest.fixture
def late() -> LateEngine:
    return LateEngine(MemoryEngine())


@pytest.fixture
def address(late: LateEngine) -> Iterator[str]:
    """A Global whose engine loads values in threads."""
    with serving(late) as address:
        yield address


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


# ---- reads that are loaded ----------------------------------------------------------------------


def test_what_is_loaded_is_read_cached_and_deleted(address: str) -> None:
    with dstore.Node(address) as one, dstore.Node(address) as two:
        values = {f"k{number}": f"value {number}" for number in range(100)}
        one.set_many(values)
        assert {key: two.get(key) for key in values} == values
        assert one.global_stats()["loads"] == 100
        assert {key: two.get(key) for key in values} == values, "from its cache"
        assert one.global_stats()["loads"] == 100
        with dstore.Node(address) as three:
            assert three.get_many([*values, "missing"]) == values
            assert three.get("missing", None) is None
        uid = one.put(b"content")
        assert two.get(uid) == b"content"
        assert two.wait("k5") == "value 5"
        with pytest.raises(dstore.KeyOccupied):
            two.set("k6", "other")
        assert one.delete("k7").confirmed == 2
        assert two.get("k7", None) is None
        figures = one.global_stats()
        assert (figures["loading"], figures["load_bytes"], figures["failed_loads"]) == (0, 0, 0)


def test_an_event_loop_reads_what_is_loaded(address: str) -> None:
    import asyncio

    async def main() -> None:
        async with dstore.AsyncNode(address) as node:
            await node.set_many({f"k{number}": number for number in range(50)})
            async with dstore.AsyncNode(address) as other:
                found = await asyncio.gather(*(other.get(f"k{number}") for number in range(50)))
                assert found == list(range(50))

    asyncio.run(main())


def test_a_value_that_is_replaced_while_it_is_loaded_is_not_read(
    address: str, late: LateEngine, pool: ThreadPoolExecutor
) -> None:
    with dstore.Node(address) as writer, dstore.Node(address) as reader:
        writer.set("k", "old")
        late.hold()
        reading = pool.submit(reader.get, "k")
        assert late.begun.wait(PATIENCE)
        writer.set("k", "new", replace=True)
        late.release()
        assert reading.result(PATIENCE) == "new"
        assert reader.get("k") == "new"
        assert writer.delete("k").confirmed == 2
        assert reader.get("k", None) is None


def test_other_requests_are_answered_while_a_value_is_loaded(
    address: str, late: LateEngine, pool: ThreadPoolExecutor
) -> None:
    with dstore.Node(address) as writer, dstore.Node(address) as reader:
        writer.set("k", "v")
        late.hold()
        reading = [pool.submit(reader.get, "k"), pool.submit(writer.wait, "elsewhere", PATIENCE)]
        assert late.begun.wait(PATIENCE)
        assert list(writer.keys()) == ["k"]
        writer.expire("k", 1000)
        writer.set("other", 1)
        writer.delete("other")
        assert writer.global_stats()["loading"] == 1
        late.release()
        assert reading[0].result(PATIENCE) == "v"
        writer.set("elsewhere", 1)
        assert reading[1].result(PATIENCE) == 1


@pytest.mark.usefixtures("host_mode")
def test_the_history_of_many_threads_is_linearizable(late: LateEngine) -> None:
    """Gets, sets and deletions of few keys, through caches, with late loads."""
    with serving(late) as address:
        history: list[Operation] = []
        # One of them shares nothing, so that the others have to ask for what it writes.
        off = dstore.Node(address, timeout=PATIENCE, host="off")
        nodes = [off, *(dstore.Node(address, timeout=PATIENCE) for _ in range(2))]
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(_play, node, number) for number, node in enumerate(2 * nodes)]
            for run in runs:
                history += run.result(PATIENCE)
        loads = nodes[0].global_stats()["loads"]
        for node in nodes:
            node.close()
    assert loads > 20
    verdict = check_linearizable(sorted(history, key=lambda each: each.start))
    assert verdict.ok, "\n".join(map(str, verdict.violations))


def _play(node: dstore.Node, number: int) -> list[Operation]:
    """Call a Node at random. Returns what came of it."""
    dice, done = random.Random(number), []
    for turn in range(120):
        key, value = f"k{dice.randrange(3)}", f"{number}/{turn}"
        start = time.monotonic()
        kind, result, wrote, seen = _act(node, dice.random(), key, value)
        done.append(Operation(number, key, kind, start, time.monotonic(), result, wrote, seen))
    return done


def _act(
    node: dstore.Node, chance: float, key: str, value: str
) -> tuple[Kind, Result, str | None, str | None]:
    if chance < 0.6:
        found = node.get(key, None)
        return Kind.GET, Result.MISSING if found is None else Result.VALUE, None, found
    if chance < 0.85:
        try:
            node.set(key, value)
        except dstore.KeyOccupied:
            return Kind.SET, Result.OCCUPIED, value, None
        return Kind.SET, Result.STORED, value, None
    try:
        node.delete(key)
    except dstore.KeyMissing:
        return Kind.DELETE, Result.MISSING, None, None
    return Kind.DELETE, Result.DELETED, None, None


# ---- loads that fail ----------------------------------------------------------------------------


def test_a_value_that_cannot_be_loaded_raises_for_its_key_alone_and_is_tried_again(
    address: str, late: LateEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with dstore.Node(address) as writer, dstore.Node(address) as reader:
        writer.set_many({"k": "v", "l": "w"})
        uid = writer.put(b"content")
        late.failures = dict.fromkeys(("k", uid), OSError("the disk is away"))
        for call in (
            lambda: reader.get("k"),
            lambda: reader.get_many(["l", "k"]),
            lambda: reader.lookup("k"),
            lambda: reader.get_buffer("k"),
            lambda: reader.get_file("k", tmp_path / "file"),
            lambda: reader.wait("k"),
            lambda: reader.get(uid),
        ):
            with pytest.raises(dstore.RequestRefused, match="could not load"):
                call()
        assert os.listdir(tmp_path) == []
        assert "k" in reader, "it has a value"
        assert reader.get("l") == "w"
        late.failures.clear()
        assert reader.get("k") == "v"
        assert reader.get(uid) == b"content"
    assert "the disk is away" in caplog.text


class Forgetful(MemoryEngine):
    """Has values away, and cannot load them."""

    def read(self, key: Key) -> Any:
        stored = super().read(key)
        return stored and Away(stored.token, stored.codec, stored.size)


class Broken(AwayEngine):
    """Raises where it must not, or returns what it must not."""

    def __init__(self, what: str) -> None:
        super().__init__(MemoryEngine())
        self.what = what
        self.numbers: list[tuple[int, int]] = []
        self.wake: Callable[[], None]

    def begin(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        if self.what in ("load", "both"):
            raise OSError("it cannot begin")
        self.numbers.append((number, len(wanted)))
        self.wake()

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        if self.what == "both":
            raise OSError("it cannot say")
        numbers, self.numbers = self.numbers, []
        if self.what == "loaded" and numbers:
            self.what = "size"
            self.numbers = numbers
            self.wake()
            raise OSError("it cannot say")
        ended: list[tuple[int, list[Loaded]]]
        ended = [(number, [b"of another size"] * count) for number, count in numbers]
        return [(99, []), *ended] if self.what == "unknown" and numbers else ended


@pytest.mark.parametrize(
    ("engine", "logged"),
    [
        (Forgetful(), "no LoadingEngine"),
        (Broken("load"), "it cannot begin"),
        (Broken("loaded"), "it cannot say"),
        (Broken("both"), "it cannot begin"),
        (Broken("unknown"), "KeyError"),
        (Broken("size"), "does not have its size"),
    ],
    ids=["no loader", "load", "loaded", "both", "unknown", "size"],
)
def test_an_engine_that_is_broken_is_logged_and_ends_nothing(
    engine: Engine, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(engine) as address, dstore.Node(address) as node, dstore.Node(address) as other:
        node.set("k", "v")
        with pytest.raises(dstore.RequestRefused, match="could not load"):
            other.get("k")
        assert list(other.keys()) == ["k"]
        assert node.delete("k").confirmed == 1
    assert logged in caplog.text


# ---- the end ------------------------------------------------------------------------------------


def test_a_global_that_ends_answers_what_is_being_loaded(
    late: LateEngine, pool: ThreadPoolExecutor
) -> None:
    served = dstore.Global("tcp://127.0.0.1:0", engine=late, lease=LEASE)
    served.start()
    with dstore.Node(served.address) as node, dstore.Node(served.address) as reader:
        node.set("k", "v")
        late.hold()
        reading = pool.submit(reader.get, "k")
        assert late.begun.wait(PATIENCE)
        ending = pool.submit(served.close)
        until(lambda: "stopping" in repr(served), "the end begins")
        late.release()
        assert reading.result(PATIENCE) == "v"
        ending.result(PATIENCE)
    assert late.closed == 1


@pytest.mark.long
def test_a_global_ends_in_time_though_a_load_does_not(
    late: LateEngine, pool: ThreadPoolExecutor
) -> None:
    served = dstore.Global("tcp://127.0.0.1:0", engine=late, lease=0.1)
    served.start()
    with dstore.Node(served.address, timeout=1.0) as node:
        node.set("k", "v")
        with dstore.Node(served.address, timeout=1.0) as reader:
            late.hold()
            reading = pool.submit(reader.get, "k")
            assert late.begun.wait(PATIENCE)
            served.close()
            with pytest.raises(dstore.GlobalUnavailable):
                reading.result(PATIENCE)
    assert late.closed == 1


# ---- ownership ----------------------------------------------------------------------------------


class CountingEngine(MemoryEngine):
    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


class CountingBulk(PrivateBulk):
    closed = 0
    adoptions = 0

    def adopt(self, token: bytes, size: int) -> bool:
        self.adoptions += 1
        return super().adopt(token, size)

    def close(self) -> None:
        self.closed += 1
        super().close()


def owned(**more: Any) -> tuple[dstore.Global, CountingEngine, CountingBulk]:
    engine, bulk = CountingEngine(), CountingBulk()
    return dstore.Global("tcp://127.0.0.1:0", engine=engine, bulk=bulk, **more), engine, bulk


@pytest.mark.parametrize("life", ["new", "bound", "started", "stopped before"])
def test_engine_and_bulk_are_closed_with_the_global_once(life: str) -> None:
    served, engine, bulk = owned()
    if life == "bound":
        served.bind()
    elif life == "started":
        served.start()
    elif life == "stopped before":
        served.stop()
        served.run()
    assert (engine.closed, bulk.closed) == (life == "stopped before",) * 2
    served.close()
    served.close()
    assert (engine.closed, bulk.closed) == (1, 1)


def test_a_bind_that_fails_closes_neither_and_may_be_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served, engine, bulk = owned(publisher=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        for call in (served.bind, served.start):
            with pytest.raises(dstore.AddressError):
                call()
    assert (engine.closed, bulk.closed) == (0, 0)
    with served, dstore.Node(served.address) as node:
        node.set("large", LARGE)
        assert node.get("large") == LARGE
    assert (engine.closed, bulk.closed) == (1, 1)


def test_a_global_that_is_not_made_leaves_them_to_the_caller() -> None:
    engine, bulk = CountingEngine(), CountingBulk()
    for wrong in ({"lease": 0}, {"memory_limit": 5}, {"data": "/tmp"}):
        with pytest.raises(ValueError, match=r"lease|memory_limit|data"):
            dstore.Global(engine=engine, bulk=bulk, **wrong)
    assert (engine.closed, bulk.closed) == (0, 0)


def test_the_bulk_is_closed_though_the_engine_raises() -> None:
    class Stuck(MemoryEngine):
        def close(self) -> None:
            raise OSError("it does not close")

    bulk = CountingBulk()
    served = dstore.Global("tcp://127.0.0.1:0", engine=Stuck(), bulk=bulk)
    served.bind()
    with pytest.raises(OSError, match="does not close"):
        served.close()
    assert bulk.closed == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_closes_neither() -> None:
    served, engine, bulk = owned()
    served.start()
    child = os.fork()
    if not child:
        try:
            served.close()
            os._exit(10 * engine.closed + bulk.closed)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    served.close()


# ---- large values -------------------------------------------------------------------------------


def test_large_values_are_kept_in_the_bulk_that_was_given(tmp_path: Path) -> None:
    bulk = CountingBulk()
    with serving(bulk=bulk) as address, dstore.Node(address) as node:
        node.set("large", LARGE)
        node.set("small", b"v")
        (value,) = bulk._sealed.values()
        assert value == LARGE
        with dstore.Node(address, shm="") as far:
            assert far.get("large") == LARGE
            far.set("large", LARGE[::-1], replace=True)
        (value,) = bulk._sealed.values()
        assert value == LARGE[::-1]
        assert node.get("large") == LARGE[::-1]
        node.delete("large")
        assert bulk._sealed == {}
    assert bulk.closed == 1


def test_with_a_bulk_of_its_own_the_host_of_global_shares_copies_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Global takes over no file of a Node and makes none; Nodes share theirs. It removes them."""
    monkeypatch.setenv("DSTORE_HOST", "auto")
    bulk = CountingBulk()
    with running_global(bulk=bulk, lease=LEASE) as served:
        shm = os.environ["DSTORE_SHM"]
        with dstore.Node(served.address) as one, dstore.Node(served.address) as two:
            one.set("small", b"v")
            before = files(shm)
            assert any(name.endswith(".page") for name in before), "the page of the host cache"
            one.set("large", LARGE)
            assert (bulk.adoptions > 0, len(bulk._sealed)) == (True, 1), "it was uploaded"
            copies = set(files(shm)) - set(before)
            assert two.get("large") == LARGE
            assert set(files(shm)) - set(before) == copies, "one copy for both"
            assert one.global_stats()["chunks_out"] == 0, "nobody has fetched it"
            one.delete("large")
            assert two.get("large", None) is None
            assert bulk._sealed == {}
            until(lambda: not copies & set(files(shm)), "the copy is removed")


class FullBulk(PrivateBulk):
    """Has room for nothing."""

    def reserve(self, token: bytes, size: int) -> None:
        raise dstore.StoreFull("this bulk is full")

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        raise AssertionError("nothing is reserved")


def test_a_bulk_that_is_full_refuses_large_values_alone() -> None:
    with serving(bulk=FullBulk()) as address, dstore.Node(address) as node:
        with pytest.raises(dstore.StoreFull):
            node.set("large", LARGE)
        node.set("small", b"v")
        assert node.get("small") == b"v"


# ---- an engine that has keys --------------------------------------------------------------------


def test_what_an_engine_has_at_the_start_is_kept_for_a_lease() -> None:
    """The caches of a former Global may answer it until then."""
    engine = MemoryEngine()
    engine.bind("k", Stored(bytes(16), "bytes", b"v"))
    engine.bind("large", Stored(b"1" * 16, "bytes", Large(9, bytes(32))))
    with running_global(engine=engine, lease=0.5) as served, dstore.Node(served.address) as node:
        loop = served._loop
        assert loop is not None
        assert node.get("k") == b"v"
        node.set("new", 1)
        assert node.delete("k").confirmed == 1
        assert clock.now() >= loop.state._writes.quiet_until > 0.0


def test_an_engine_without_keys_is_served_without_delay() -> None:
    with running_global(engine=MemoryEngine()) as served:
        loop = served._loop
        assert loop is not None
        assert loop.state._writes.quiet_until == 0.0

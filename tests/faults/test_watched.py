"""What watches and waits have seen is judged: good histories pass, each kind of bad one fails."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

import dstore
from tests.faults import watched
from tests.faults.client import AWAITED_SORT, Client, Keys
from tests.faults.cluster import Life, Times
from tests.faults.judge import judge
from tests.faults.records import (
    DONE,
    NOT_DONE,
    TIMED_OUT,
    UNKNOWN,
    Noticed,
    Operation,
    Recorder,
    Records,
    Waited,
    Watched,
    files_of,
    load,
    load_watches,
)
from tests.faults.tasks import TaskNode
from tests.faults.watched import NOTICED_LATE, WAIT_LATE
from tests.faults.watching import Waiter, Watcher
from tests.integration.processes import PATIENCE

SECOND = 1_000_000_000
KEY = "0.hot1"
AWAITED = f"0.{AWAITED_SORT}1"
WATCH = "worker.watcher"
FAULTS = [(20 * SECOND, 60 * SECOND), (40 * SECOND, 70 * SECOND)]
TIMES = Times(SECOND, [Life(0)], durable=True, faults=FAULTS)
END = 100.0


def at(seconds: float) -> int:
    return int(seconds * SECOND)


def did(kind: str, start: float, end: float, outcome: str = DONE, key: str = KEY) -> Operation:
    value = f"value {start}" if kind in ("set", "replace") else None
    return Operation("worker.mixer", kind, key, value, at(start), at(end), outcome)


def seen(*events: float, resyncs: tuple[float, ...] = (0.5,), end: float | None = END) -> Records:
    """What a watch says that began soon: its events, and its resyncs."""
    watch = Watched(at(0.1), None if end is None else at(end), [at(each) for each in resyncs])
    noticed = [Noticed(WATCH, KEY, at(each), True) for each in events]
    return Records(noticed=noticed, watches={WATCH: watch})


def waited(start: float, end: float, outcome: str, longest: float = END) -> Records:
    wait = Waited("worker.waiter", AWAITED, at(start), at(end), outcome, at(longest))
    return Records(waits=[wait])


SET, DELETED = did("set", 1, 2), did("delete", 3, 4)
AGAIN, DELETED_AGAIN = did("set", 5, 6), did("delete", 7, 8)
BOUND = did("set", 5, 6, key=AWAITED)
SOON, LATE = NOTICED_LATE - 0.5, NOTICED_LATE + 0.5
GOOD = {
    "an event during the call": (seen(3.5), [SET, DELETED]),
    "an event a little later": (seen(4 + SOON), [SET, DELETED]),
    "a resync a little later": (seen(resyncs=(0.5, 4 + SOON)), [SET, DELETED]),
    "two events": (seen(3.5, 7.5), [SET, DELETED, AGAIN, DELETED_AGAIN]),
    "two events, both late": (seen(8.5, 8.6), [SET, did("delete", 3, 7), DELETED_AGAIN]),
    "late because of a fault": (seen(71), [did("set", 1, 2), did("delete", 19, 19.5)]),
    "its process was killed": (seen(end=None), [SET, DELETED]),
    "just before the end": (seen(end=4 + SOON), [SET, DELETED]),
    "before the watch": (seen(), [did("set", 0.01, 0.02), did("delete", 0.05, 0.08)]),
    "not confirmed": (seen(), [SET, did("delete", 3, 4, UNKNOWN)]),
    "a replacement": (seen(3.5), [SET, did("replace", 3, 4)]),
    "a wait that was answered": (waited(1, 6.1, DONE), [BOUND]),
    "a wait for what is not bound": (waited(7, 17, TIMED_OUT), []),
    "a wait that fails before": (waited(1, 5.5, NOT_DONE), [BOUND]),
    "a wait during faults": (waited(19, 71, TIMED_OUT), [BOUND]),
}
BAD = {
    "no event": (seen(), [SET, DELETED]),
    "an event before the deletion": (seen(2.9), [SET, DELETED]),
    "an event too late": (seen(4 + LATE), [SET, DELETED]),
    "a resync too late": (seen(resyncs=(0.5, 4 + LATE)), [SET, DELETED]),
    "late, and not because of a fault": (seen(72), [did("set", 1, 2), did("delete", 17, 18.5)]),
    "one event for two deletions": (seen(8), [SET, did("delete", 3, 7), AGAIN, DELETED_AGAIN]),
    "an event without a deletion": (seen(3.5), [SET]),
    "an event before all deletions": (seen(0.9, 3.5), [SET, DELETED]),
    "a wait that is not answered": (waited(1, 6.1 + WAIT_LATE, TIMED_OUT), [BOUND]),
    "a wait that is answered late": (waited(1, 6.1 + WAIT_LATE, DONE), [BOUND]),
    "a wait that does not end": (waited(1, 17, TIMED_OUT, longest=15), []),
}


@pytest.mark.parametrize(("records", "operations"), GOOD.values(), ids=GOOD)
def test_what_should_be_seen_passes(records: Records, operations: list[Operation]) -> None:
    records.operations = operations
    assert list(watched.wrong(records, TIMES)) == []


@pytest.mark.parametrize(("records", "operations"), BAD.values(), ids=BAD)
def test_what_should_not_be_seen_is_refused(records: Records, operations: list[Operation]) -> None:
    records.operations = operations
    assert list(watched.wrong(records, TIMES))


def test_only_the_time_without_any_fault_is_quiet() -> None:
    assert TIMES.quiet(at(10), at(15)) == at(5)
    assert TIMES.quiet(at(10), at(30)) == at(10)
    assert TIMES.quiet(at(30), at(65)) == 0
    assert TIMES.quiet(at(10), at(80)) == at(20)
    assert TIMES.quiet(at(80), at(80)) == 0


@pytest.mark.parametrize("tasks", [False, True], ids=["threads", "tasks"])
def test_a_watcher_and_a_waiter_record_what_is_so(
    tasks: bool, tmp_path: Path, free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    keys, over, begin = Keys(0, hot=1, cold=1, flood=0), threading.Event(), time.monotonic_ns()
    address = free_global.address
    other, writer = TaskNode(lambda: dstore.AsyncNode(address)), node()
    made = cast(dstore.Node, other) if tasks else node()
    with other, Recorder(tmp_path, WATCH) as seen_by, Recorder(tmp_path, "worker.waiter") as waits:
        for recorder in (seen_by, waits):
            recorder.enter(0)
        rng = random.Random(1)
        watcher = Watcher(made, seen_by, tmp_path, WATCH, rng, lambda: keys)
        client = Client(made, waits, random.Random(2), "worker.waiter")
        waiter = Waiter(client, waits, random.Random(2), PATIENCE, lambda: keys)
        threads = [threading.Thread(target=each.run, args=(over,)) for each in (watcher, waiter)]
        for thread in threads:
            thread.start()
        with Recorder(tmp_path, "writer") as writes:
            writes.enter(0)
            changes = Client(writer, writes, random.Random(3), "writer")
            until = time.monotonic() + PATIENCE

            def enough() -> bool:
                there = load(files_of(tmp_path, 0))
                copies = any(each.value for each in there.operations if each.process == WATCH)
                return len(there.noticed) > 3 and bool(there.counts[f"waits {DONE}"]) and copies

            while not enough():
                assert time.monotonic() < until
                for change in (changes.set, changes.delete, changes.set_awaited):
                    change(keys)
            changes.bind_many(["0.hot0", "0.cold0"])
            while not watcher._copy:
                assert time.monotonic() < until
                time.sleep(0.01)
        over.set()
        threads[0].join()
        made.close()
        threads[1].join()
    records = load(files_of(tmp_path, 0))
    records.watches = load_watches(tmp_path)
    times = Times(SECOND, [Life(begin)], durable=True)
    assert judge(records, times).violations == []
    held = next(each for each in records.operations if each.kind == "held")
    (watch,) = records.watches.values()
    assert watch.end is not None
    assert watch.resyncs
    assert held.end is not None
    held.start = held.end - 1  # this run is shorter than a copy may be late
    assert judge(records, times).violations == []
    held.value = next(
        each.value
        for each in records.operations
        if each.kind == "set" and each.outcome == DONE and each.key == held.key
    )
    assert judge(records, times).violations

"""The judge accepts good histories and refuses each kind of bad one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dstore
from tests.faults.client import OPERATIONS, Client, Keys
from tests.faults.cluster import Life, Times
from tests.faults.judge import GLOBAL_LATE, Verdict, judge
from tests.faults.records import (
    DONE,
    MISSING,
    NOT_DONE,
    OCCUPIED,
    OCCUPIED_LOCAL,
    UNKNOWN,
    Operation,
    Recorder,
    Records,
    files_of,
    load,
)

SECOND = 1_000_000_000
LEASE = 10
TIMES = Times(LEASE * SECOND, [Life(0, 100 * SECOND), Life(105 * SECOND, None)], {"dead": SECOND})
LATE = LEASE + GLOBAL_LATE


def did(
    kind: str,
    value: str | None,
    start: float,
    end: float | None,
    outcome: str = DONE,
    *,
    local: bool | None = False,
    process: str = "worker.mixer",
) -> Operation:
    stop = None if end is None else int(end * SECOND)
    return Operation(process, kind, "k", value, int(start * SECOND), stop, outcome, local)


def verdict(*operations: Operation) -> Verdict:
    return judge(Records(list(operations)), TIMES)


WRITTEN = did("set", "v", 1, 2)
DELETED = did("delete", None, 3, 4)
CLEARED = did("clear", None, 3, 4)
UNSURE = did("set", "v", 1, 2, UNKNOWN)
FORMER = did("set", "v", 98, 99)
GOOD = {
    "a read": [WRITTEN, did("get", "v", 3, 4)],
    "missing at first": [did("get", None, 0, 1), WRITTEN],
    "occupied": [WRITTEN, did("set", "w", 3, 4, OCCUPIED)],
    "contained": [WRITTEN, did("contains", None, 3, 4, local=None)],
    "deleted": [WRITTEN, DELETED, did("get", None, 5, 6), did("delete", None, 5, 6, MISSING)],
    "replaced": [WRITTEN, did("replace", "w", 3, 5), did("get", "w", 4, 5)],
    "unknown, and done": [UNSURE, did("get", None, 3, 4), did("get", "v", 5, 6)],
    "unknown, and not done": [UNSURE, did("get", None, 3, 4)],
    "not done": [did("set", "v", 1, 2, NOT_DONE), did("get", None, 3, 4)],
    "its writer was killed": [did("set", "v", 1, None, UNKNOWN), did("get", "v", 5, 6)],
    "cleared within a lease": [WRITTEN, CLEARED, did("get", "v", 13.9, 14, local=True)],
    "cleared late by Global": [WRITTEN, CLEARED, did("get", "v", 4 + LATE - 0.1, 15)],
    "not cleared, as Global was killed": [
        did("set", "v", 90, 91),
        did("clear", None, 94, 95),
        did("get", "v", 106, 107, local=True),
    ],
    "stale": [WRITTEN, DELETED, did("stale", "v", 50, 51, local=True)],
    "stale, and of the former life": [WRITTEN, did("stale", "v", 150, 151, local=True)],
    "cached in the former life": [FORMER, did("get", "v", 109, 110, local=True)],
    "perhaps cached in the former life": [FORMER, did("get", "v", 109, 110, local=None)],
    "occupied in the former life": [FORMER, did("set", "w", 109, 110, OCCUPIED_LOCAL)],
    "answered as Global was killed": [FORMER, did("get", "v", 99, 106)],
    "lost with its Global": [FORMER, did("get", None, 106, 107)],
    "written in either life": [did("set", "v", 99, 106), did("get", "v", 110, 111)],
    "written in neither life": [did("set", "v", 99, 106, UNKNOWN), did("get", None, 110, 111)],
    "written while there was none": [did("set", "v", 101, 102, UNKNOWN)],
}
BAD = {
    "a stale read": [WRITTEN, DELETED, did("get", "v", 5, 6)],
    "a stale hit": [WRITTEN, DELETED, did("get", "v", 5, 6, local=True)],
    "a lost write": [WRITTEN, did("get", None, 3, 4)],
    "a read before the write": [WRITTEN, did("get", "v", 0.1, 0.2)],
    "never written": [did("get", "v", 3, 4)],
    "never written, and stale": [did("stale", "v", 3, 4, local=True)],
    "stale, and not yet written": [WRITTEN, did("stale", "v", 0.1, 0.2, local=True)],
    "stale_ok, but Global has answered": [WRITTEN, DELETED, did("stale", "v", 5, 6)],
    "not done, and read": [did("set", "v", 1, 2, NOT_DONE), did("get", "v", 3, 4)],
    "refused, and read": [did("set", "v", 1, 2, OCCUPIED), did("get", "v", 3, 4)],
    "occupied by nothing": [did("set", "v", 1, 2, OCCUPIED)],
    "contained, and not there": [did("contains", None, 1, 2, local=None)],
    "set while occupied": [WRITTEN, did("set", "w", 3, 4)],
    "deleted twice": [WRITTEN, DELETED, did("delete", None, 5, 6)],
    "cleared, and held for too long": [WRITTEN, CLEARED, did("get", "v", 14.1, 15, local=True)],
    "cleared far too late": [WRITTEN, CLEARED, did("get", "v", 4.1 + LATE, 15)],
    "cached for too long": [FORMER, did("get", "v", 110.1, 110.2, local=True)],
    "answered by a former life": [FORMER, did("get", "v", 105.1, 105.2)],
    "stale in the former life": [
        did("set", "v", 96, 97),
        did("delete", None, 98, 99),
        did("get", "v", 106, 107, local=True),
    ],
    "occupied by a former life": [FORMER, did("set", "w", 106, 107, OCCUPIED)],
    "unknown, and done in the next life": [
        did("set", "v", 98, 99, UNKNOWN),
        did("get", "v", 106, 107),
    ],
    "killed before the next life": [
        did("set", "v", 0.5, None, UNKNOWN, process="dead.mixer"),
        did("get", "v", 106, 107),
    ],
    "done while there was no Global": [did("set", "v", 101, 102)],
}


DURABLE = Times(
    LEASE * SECOND,
    [
        Life(0, 100 * SECOND, ready=SECOND, lease=LEASE * SECOND),
        Life(105 * SECOND, 112 * SECOND, ready=106 * SECOND, lease=SECOND),
        Life(113 * SECOND, ready=114 * SECOND, lease=SECOND),
    ],
    durable=True,
)
KEPT = {
    "kept": [FORMER, did("get", "v", 106, 107), did("set", "w", 108, 109, OCCUPIED)],
    "unknown, and done in the next life": BAD["unknown, and done in the next life"],
    "unknown, and not done": [did("set", "v", 98, 110, UNKNOWN), did("get", None, 106, 107)],
    "cleared after two restarts": [
        FORMER,
        did("clear", None, 99.1, 99.5),
        did("get", "v", 124 + GLOBAL_LATE, 130),
        did("get", None, 130, 131),
    ],
}
NOT_KEPT = {
    "lost": [FORMER, did("get", None, 106, 107)],
    "lost, and set again": [FORMER, did("set", "w", 106, 107)],
    "back": [*[WRITTEN, DELETED], did("get", "v", 106, 107)],
    "stale in the next life": [
        FORMER,
        did("delete", None, 106, 107),
        did("get", "v", 107.1, 108, local=True),
    ],
    "never cleared": [
        FORMER,
        did("clear", None, 99.1, 99.5),
        did("get", "v", 124.1 + GLOBAL_LATE, 130),
    ],
    "not done, and read": [did("set", "v", 98, 99, NOT_DONE), did("get", "v", 106, 107)],
}


@pytest.mark.parametrize("history", KEPT.values(), ids=KEPT)
def test_a_good_history_of_a_durable_global_passes(history: list[Operation]) -> None:
    assert judge(Records(history), DURABLE).violations == []


@pytest.mark.parametrize("history", NOT_KEPT.values(), ids=NOT_KEPT)
def test_a_bad_history_of_a_durable_global_is_refused(history: list[Operation]) -> None:
    assert judge(Records(history), DURABLE).violations


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_passes(history: list[Operation]) -> None:
    assert verdict(*history).violations == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_a_bad_history_is_refused(history: list[Operation]) -> None:
    assert verdict(*history).violations


def test_what_should_never_happen_is_a_violation() -> None:
    assert judge(Records(surprises=["a traceback"]), TIMES).violations == ["a traceback"]


def test_the_longest_deletion_is_of_a_caller_that_was_not_stopped() -> None:
    stopped = Times(SECOND, [Life(0)], stops={"worker": [(3 * SECOND, 5 * SECOND)]})
    short = did("delete", None, 6, 7)
    operations = [WRITTEN, DELETED, did("set", "w", 5, 6), short]
    assert judge(Records(operations), stopped).longest == SECOND
    assert judge(Records(operations), stopped).deletions == 2


def test_a_recorded_history_passes_and_with_one_stale_read_it_is_refused(
    tmp_path: Path, free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    keys = Keys(0, hot=2, cold=4, flood=100)
    times = Times(SECOND, [Life(time.monotonic_ns())])
    with Recorder(tmp_path, "one.thread") as one, Recorder(tmp_path, "other.thread") as other:
        clients = [
            Client(node(), recorder, random.Random(seed), name)
            for seed, (recorder, name) in enumerate([(one, "one"), (other, "other")])
        ]
        for recorder in (one, other):
            recorder.enter(0)
        for _ in range(5):
            for operation in OPERATIONS:
                for client in clients:
                    operation(client, keys)
        clients[0].bind_many(["0.again"])
        clients[1].burst("0.again")
        clients[0].remove_many(["0.again"], wait=True)
        clients[1].burst("0.again")
    records = load(files_of(tmp_path, 0))
    assert judge(records, times).violations == []
    *_, before, after = (each for each in records.operations if each.key == "0.again")
    (stale,) = (each for each in (before, after) if each.kind == "get" and each.value is None)
    stale.value = next(each.value for each in records.operations if each.key == "0.again")
    (violation,) = judge(records, times).violations
    assert "key '0.again': no order explains these" in violation


def test_a_line_that_is_cut_short_is_ignored(tmp_path: Path) -> None:
    with Recorder(tmp_path, "worker.mixer") as recorder:
        recorder.enter(3)
        recorder.begin("set", {"k": "v"}, 1)
        recorder.read("get", {"k": "v"}, 1, 2, True)
    (path,) = files_of(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-10])
    (left,) = load([path]).operations
    assert left == Operation("worker.mixer", "set", "k", "v", 1, None, UNKNOWN)

"""The coherence promise, with processes that are killed, stopped, disconnected and flooded."""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.cluster import Times
from tests.faults.judge import judge
from tests.faults.nemesis import FAULTS
from tests.faults.records import DONE, Operation, Records, files_of, load
from tests.faults.soak import Plan, Report, Run
from tests.leaks import Footprint, left_behind

SECONDS = 11.0
ROUNDS = 2
CORRUPTIONS = 20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8"),
    pytest.mark.timeout(180),
]


@dataclass
class Faulted:
    """A run and the folder of its histories."""

    seed: int
    folder: Path
    report: Report


@pytest.fixture(scope="module")
def faulted(tmp_path_factory: pytest.TempPathFactory) -> Faulted:
    """One run with every kind of fault, which leaves nothing but its histories."""
    before = Footprint()
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    folder = tmp_path_factory.mktemp("histories")
    plan = Plan(SECONDS, workers=4, seed=seed, round_seconds=SECONDS / ROUNDS, keep=True)
    report = Run(plan, folder).run()
    print(*report.lines(), sep="\n")
    assert left_behind(before) == []
    return Faulted(seed, folder, report)


def test_no_promise_is_broken_under_faults(faulted: Faulted) -> None:
    report = faulted.report
    assert report.wrong == [], f"seed {faulted.seed}, histories in {faulted.folder}"
    assert set(report.faults) == set(FAULTS)
    assert report.lives > 1
    assert report.verdict.deletions
    assert report.verdict.cleared
    assert report.verdict.counts["joins"]


def test_one_stale_read_in_such_a_history_is_refused(faulted: Faulted) -> None:
    rng = random.Random(faulted.seed)
    times = Times.load(faulted.folder)
    rounds = [load(files_of(faulted.folder, number)) for number in range(ROUNDS)]
    records, stale = max(
        ((each, list(_stale_reads(each, times))) for each in rounds), key=lambda pair: len(pair[1])
    )
    for read, value in rng.sample(stale, min(CORRUPTIONS, len(stale))):
        seen, read.value = read.value, value
        key = [each for each in records.operations if each.key == read.key]
        violations = judge(Records(key), times).violations  # more than one check may notice
        assert any(repr(value) in violation for violation in violations)
        read.value = seen
    assert stale
    assert judge(records, times).violations == []


def _stale_reads(records: Records, times: Times) -> Iterator[tuple[Operation, str]]:
    """Yield reads, each with a value of its key that had been deleted before the read began."""
    latest: dict[str, str] = {}  # the last value that was written and has not been deleted
    deleted: dict[str, tuple[str, int]] = {}  # what was deleted last, and by when
    done = (each for each in records.operations if each.outcome == DONE and each.end is not None)
    for operation in sorted(done, key=lambda each: each.end or 0):
        key, value = operation.key, operation.value
        if operation.kind in ("set", "replace"):
            assert value is not None
            latest[key] = value
        elif operation.kind == "delete" and key in latest:
            written = next(each for each in records.operations if each.value == latest[key])
            assert operation.end is not None
            if written.end is not None and written.end < operation.start:
                deleted[key] = (latest.pop(key), operation.end)
        elif operation.kind == "get" and key in deleted:
            old, since = deleted[key]
            if operation.start > since and _life(operation.start, times) == _life(since, times):
                yield operation, old


def _life(time: int, times: Times) -> int:
    """The life of Global that had begun last at a time."""
    return sum(life.begin < time for life in times.lives)

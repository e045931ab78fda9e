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
READER = "a reader that is wrong"

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
    assert stale
    assert judge(records, times).violations == []
    for read in rng.sample(stale, min(CORRUPTIONS, len(stale))):
        key = [each for each in records.operations if each.key == read.key]
        assert judge(Records(key), times).violations == []
        violations = judge(Records([*key, read]), times).violations  # more than one may notice
        assert any(repr(read.value) in violation for violation in violations)


def _stale_reads(records: Records, times: Times) -> Iterator[Operation]:
    """Yield reads that nobody has made: of values that had been deleted just before."""
    latest: dict[str, Operation] = {}  # the last write of a value that has not been deleted
    done = (each for each in records.operations if each.outcome == DONE and each.end is not None)
    for operation in sorted(done, key=lambda each: each.end or 0):
        key, end = operation.key, operation.end
        assert end is not None
        if operation.kind in ("set", "replace"):
            latest[key] = operation
        elif operation.kind == "delete" and key in latest:
            written = latest[key]
            assert written.end is not None
            if written.end < operation.start:
                del latest[key]
                if _life(end + 1, times) == _life(written.start, times):
                    yield Operation(READER, "get", key, written.value, end + 1, end + 2, DONE)


def _life(time: int, times: Times) -> int:
    """The life of Global that had begun last at a time."""
    return sum(life.begin < time for life in times.lives)

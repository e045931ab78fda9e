"""Judges the recorded history of a round: ``python -m tests.faults.judge FOLDER ROUND``.

For each life of Global (:mod:`tests.faults.lives`) and each key it checks that operations are
linearizable, that deletions without waiting take effect within a lease, and that stale reads return
a value that was current once; and what watches and waits have seen (:mod:`tests.faults.watched`). A
durable Global has one history over all its lives. The process prints its verdict as one JSON
object. As a process of its own it disturbs the run little, and it can judge an old history again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import watched
from tests.faults.cluster import Times
from tests.faults.lives import by_life, client_of
from tests.faults.records import (
    DONE,
    MISSING,
    UNKNOWN,
    Operation,
    Records,
    files_of,
    load,
    load_watches,
)
from tests.history.linearizability import check_linearizable
from tests.history.operations import Kind, Result
from tests.history.operations import Operation as Judged
from tests.history.sweep import Undecided
from tests.history.weaker import check_pending, check_stale
from tests.integration.processes import ROOT

KINDS = {
    "get": Kind.GET,
    "wait": Kind.GET,
    "held": Kind.GET,
    "stale": Kind.GET,
    "contains": Kind.SET,
    "set": Kind.SET,
    "replace": Kind.REPLACE,
    "delete": Kind.DELETE,
    "clear": Kind.DELETE,
}
WATCHED = ("wait", "held")
"""What takes its time by its nature."""
RESULTS = {
    Kind.SET: Result.STORED,
    Kind.REPLACE: Result.WRITTEN,
    Kind.DELETE: Result.DELETED,
}
GLOBAL_LATE = 0.5
"""Seconds by which Global may act late because other processes had the processor.

This applies to answers of Global, and not to those of a Local from its cache.
"""
NICE = 5
"""Added to the niceness of the judge."""
JUDGE_TIMEOUT = 300.0
"""Seconds for a judge to end."""
REPORTED_MAX = 10
"""Violations of a round that are reported; the others are in the same files."""


@dataclass
class Verdict:
    """Counts of what was done, and the violations.

    ``longest`` is the duration in ns of the longest confirmed deletion of a caller that was not
    stopped meanwhile, ``longest_read`` that of the longest read. ``unclear`` counts operations that
    overlap two lives of Global and so prove nothing.
    """

    rounds: int = 0
    operations: int = 0
    deletions: int = 0
    cleared: int = 0
    longest: int = 0
    longest_read: int = 0
    unclear: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        self.rounds += other.rounds
        self.operations += other.operations
        self.deletions += other.deletions
        self.cleared += other.cleared
        self.longest = max(self.longest, other.longest)
        self.longest_read = max(self.longest_read, other.longest_read)
        self.unclear += other.unclear
        self.counts.update(other.counts)
        self.violations += other.violations

    def __str__(self) -> str:
        return (
            f"{self.operations:,} operations, {self.deletions:,} confirmed deletions, "
            f"{len(self.violations)} violations"
        )


def judge(records: Records, times: Times) -> Verdict:
    """Judge the merged records of one round."""
    placed = by_life(records.operations, times.in_one_life() if times.durable else times)
    violations = [*records.surprises, *placed.wrong, *watched.wrong(records, times)]
    for number, operations in placed.by_life.items():
        translation = _Translation(times, number)
        keys: dict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            keys[operation.key].append(operation)
        for key, history in keys.items():
            wrong = _wrong(history, translation)
            where = "all lives" if times.durable else f"life {number}"
            violations += [f"{where} of Global, key {key!r}: {each}" for each in wrong]
    return _summary(records, times, placed.unclear, violations)


def _wrong(history: list[Operation], translation: _Translation) -> Iterator[str]:
    """The violations in the history of one key in one life of Global."""
    judged = [translation.judged(operation) for operation in history]
    try:
        verdicts = [check_linearizable(judged)]
    except Undecided as undecided:
        yield str(undecided)
        return
    if translation.durable:
        late = [translation.delayed(each) for each in judged]
        verdicts.append(check_pending(late, 0.0, GLOBAL_LATE))
    elif any(each.result is Result.PENDING for each in judged):
        cached = [
            each
            for operation, each in zip(history, judged)
            if operation.local or each.kind is not Kind.GET
        ]
        verdicts.append(check_pending(cached, translation.lease))
        verdicts.append(check_pending(judged, translation.lease, GLOBAL_LATE))
    if any(each.stale_ok for each in judged):
        verdicts.append(check_stale(judged))
    for verdict in verdicts:
        yield from map(str, verdict.violations)


class _Translation:
    """Translates recorded operations of one life for the checkers; times in seconds."""

    def __init__(self, times: Times, number: int) -> None:
        self.lease = times.lease / 1e9
        self.durable = times.durable
        self._times = times
        self._lease_ns = times.lease
        self._origin = times.lives[0].begin
        self._life_end = None if times.durable else times.lives[number].end
        self._looks = 0

    def judged(self, operation: Operation) -> Judged:
        kind, result = self._meaning(operation)
        value = operation.value if not operation.reads else None
        if operation.kind == "contains":  # like a SET that finds the key occupied
            self._looks += 1
            value = f"look {self._looks}"
        return Judged(
            operation.process,
            operation.key,
            kind,
            self._seconds(operation.start),
            None if result is Result.UNKNOWN else self._seconds(operation.end),
            result,
            value,
            operation.value if result is Result.VALUE else None,
            operation.kind == "stale" and operation.local is True,
        )

    def delayed(self, judged: Judged) -> Judged:
        """The same operation; a deletion that was not waited for ends when it is carried out."""
        if judged.result is not Result.PENDING:
            return judged
        assert judged.end is not None
        by = self._times.deleted_by(int(judged.end * 1e9) + self._origin)
        return judged._replace(end=math.inf if by is None else self._seconds(by))

    def _seconds(self, time: int | None) -> float:
        assert time is not None
        return (time - self._origin) / 1e9

    def _meaning(self, operation: Operation) -> tuple[Kind, Result]:
        kind, outcome = KINDS[operation.kind], operation.outcome
        if outcome == UNKNOWN:
            return kind, Result.UNKNOWN
        if operation.kind == "clear" and outcome == DONE:
            return kind, self._pending(operation)
        if operation.kind == "contains":
            return kind, Result.OCCUPIED
        if operation.reads:
            return kind, Result.MISSING if operation.value is None else Result.VALUE
        if outcome != DONE:
            return kind, Result.MISSING if outcome == MISSING else Result.OCCUPIED
        return kind, RESULTS[kind]

    def _pending(self, operation: Operation) -> Result:
        """A deletion that has begun; it need not have ended if Global was killed meanwhile."""
        assert operation.end is not None
        cut_off = self._life_end is not None and operation.end + self._lease_ns > self._life_end
        return Result.UNKNOWN if cut_off else Result.PENDING


def _summary(records: Records, times: Times, unclear: int, violations: list[str]) -> Verdict:
    deletions = [
        operation
        for operation in records.operations
        if operation.kind == "delete" and operation.outcome == DONE
    ]
    writes = (op for op in records.operations if not op.reads)
    records.counts["acknowledged"] = sum(op.outcome == DONE for op in writes)
    cleared = (op.kind == "clear" and op.outcome == DONE for op in records.operations)
    reads = (op for op in records.operations if op.reads and op.kind not in WATCHED)
    return Verdict(
        1,
        len(records.operations),
        len(deletions),
        sum(cleared),
        _longest(deletions, times),
        _longest(reads, times),
        unclear,
        records.counts,
        violations,
    )


def _longest(operations: Iterable[Operation], times: Times) -> int:
    return max(
        (
            op.end - op.start
            for op in operations
            if op.end and not times.disturbed(client_of(op), op.start, op.end)
        ),
        default=0,
    )


class JudgeProcess:
    """Judges a round in a process of its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._files = files_of(folder, number)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.judge", str(folder), str(number)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def verdict(self) -> Verdict:
        """Wait for the judge and return its verdict."""
        try:
            said, _ = self._process.communicate(timeout=JUDGE_TIMEOUT)
        finally:
            self._process.kill()
            self._process.communicate()
        if self._process.returncode:
            return Verdict(1, violations=[f"the judge of round {self.number} failed"])
        verdict = Verdict(**json.loads(said))
        verdict.counts = Counter(verdict.counts)
        return verdict

    def remove_files(self) -> None:
        """Remove the files of the judged records."""
        for path in self._files:
            path.unlink()


def main(folder: str, number: str) -> None:
    os.nice(NICE)
    records = load(files_of(Path(folder), int(number)))
    records.watches = load_watches(Path(folder))
    verdict = judge(records, Times.load(Path(folder)))
    omitted = len(verdict.violations) - REPORTED_MAX
    if omitted > 0:
        verdict.violations[REPORTED_MAX:] = [f"round {number}: {omitted} more violations"]
    print(json.dumps(vars(verdict)))


if __name__ == "__main__":
    main(*sys.argv[1:])

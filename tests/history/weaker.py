"""Checks the guarantees beside linearizability: deletions with ``wait=False``, and stale reads.

- A deletion with ``wait=False`` takes effect at most one lease after its answer: a read that
  starts later than that does not return a value that was bound when the deletion began.
- A read with ``stale_ok`` may be outdated by any amount, but returns only a value that was current
  once: some write had bound it before the read ended.

Both need unique values: a value that is gone does not come back. Each check is one pass over the
history of a key::

    assert (verdict := check_pending(history.operations(), lease=2.0, slack=0.1)).ok, verdict
    assert (verdict := check_stale(history.operations())).ok, verdict

``check_linearizable(..., pending_within=lease + slack)`` implies the first guarantee and requires
more: that all other operations agree with one moment at which the deletion took effect.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial

from tests.history.operations import Operation, Result, Verdict, Violation, by_key

BINDING = {Result.STORED, Result.REPLACED, Result.WRITTEN}
"""Results of a write that has bound its value."""


def check_pending(operations: Iterable[Operation], lease: float, slack: float = 0.0) -> Verdict:
    """Check deletions with ``wait=False``: they take effect within ``lease + slack`` seconds.

    ``slack`` is for delays of Global itself, and for the margin between clocks. Raises
    ValueError if the history contradicts itself or two writes of one key have the same value.
    """
    return checked(operations, partial(_undead, within=lease + slack))


def check_stale(operations: Iterable[Operation]) -> Verdict:
    """Check reads with ``stale_ok``: the value was bound at some time before their end.

    Raises ValueError as :func:`check_pending` does.
    """
    return checked(operations, _never_current)


def checked(
    operations: Iterable[Operation], find: Callable[[list[Operation]], Iterator[Violation]]
) -> Verdict:
    """Return the verdict on a history: the first violation that is found for each key."""
    keys = by_key(operations)
    first = (next(find(history), None) for history in keys.values())
    violations = tuple(violation for violation in first if violation is not None)
    return Verdict(sum(map(len, keys.values())), len(keys), violations)


# ---- deletions with wait=False ----------------------------------------------------------------


def _undead(history: list[Operation], within: float) -> Iterator[Violation]:
    """Reads that return a value although its deletion must have taken effect."""
    deletions = _Deadlines(history, within)
    evidence = _evidence(history)
    for read in history:
        if read.seen is None or read.stale_ok:
            continue
        bound = evidence[read.seen]
        assert bound.end is not None
        deletion = deletions.first(after=bound.end)
        if deletion is not None and read.start > _end(deletion) + within:
            why = f"the deletion was to take effect by {_end(deletion) + within:.6f}"
            yield _violation("is read for too long", [bound, deletion, read], why)


def _evidence(history: list[Operation]) -> dict[Hashable, Operation]:
    """For each value, the operation that proves first that it was bound."""
    proofs: dict[Hashable, Operation] = {}
    for operation in history:
        value = operation.value if operation.result in BINDING else operation.seen
        if value is not None and (value not in proofs or _end(operation) < _end(proofs[value])):
            proofs[value] = operation
    return proofs


class _Deadlines:
    """The deletions of a key with ``wait=False``, by the time at which they must take effect."""

    def __init__(self, history: list[Operation], within: float) -> None:
        pending = [each for each in history if each.result is Result.PENDING]
        pending.sort(key=lambda deletion: deletion.start)
        self._starts = [deletion.start for deletion in pending]
        for index in reversed(range(len(pending) - 1)):
            pending[index] = min(pending[index], pending[index + 1], key=_end)
        self._soonest = pending  # the one that ends first of those from here on

    def first(self, after: float) -> Operation | None:
        """Of the deletions that start after a time, the one that has to take effect first."""
        index = bisect_right(self._starts, after)
        return self._soonest[index] if index < len(self._soonest) else None


# ---- reads that may be stale ------------------------------------------------------------------


def _never_current(history: list[Operation]) -> Iterator[Violation]:
    """Stale reads of a value that was not bound when they ended."""
    writes = {each.value: each for each in history if each.value is not None}
    for read in history:
        if not read.stale_ok or read.seen is None:
            continue
        write = writes.get(read.seen)
        if write is None:
            yield _violation("was never current", [read], "no operation wrote this value")
        elif write.result is Result.OCCUPIED:
            yield _violation("was never current", [write, read], "the SET of it was refused")
        elif write.start > _end(read):
            yield _violation("was never current", [read, write], "it was written only later")


def _violation(what: str, operations: list[Operation], why: str) -> Violation:
    shown = list(dict.fromkeys(operations))
    lines = [f"key {shown[0].key!r}: a value {what}: {why}", *(f"  {each}" for each in shown)]
    return Violation(shown[0].key, tuple(shown), tuple(lines))


def _end(operation: Operation) -> float:
    return math.inf if operation.end is None else operation.end

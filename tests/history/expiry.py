"""What a history says about keys that expire: from when on a value may go, and by when it must.

A value expires at one moment at or after its deadline, as if it were deleted then. The deadline
comes from the write of the value, or from an EXPIRE that took effect while the value was bound.
Which one was the last is not always known. So both bounds are those of the deadlines that may have
been in force: a deadline surely was not if another EXPIRE, with an answer, came wholly after it and
in time::

    assert (verdict := check_expired(history.operations(), within=2.1)).ok, verdict

:func:`expires_from` is the other half; :mod:`~tests.history.linearizability` uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from tests.history.operations import Kind, Operation, Result, Verdict, Violation
from tests.history.weaker import checked

TOLERANCE = 1e-6
"""Seconds by which the times of a history may differ from those of the store."""
WRITES = (Kind.SET, Kind.REPLACE)


def expires_from(write: Operation, expires: Iterable[Operation]) -> float:
    """Return the time from which on the value of a write may expire, infinity if it does not.

    ``expires`` are the EXPIREs of its key.
    """
    expires = list(expires)
    times = [math.inf]
    for origin in _origins(write, expires):
        if origin.ttl is not None:
            time = origin.start + origin.ttl
            if not _superseded(origin, expires, time):
                times.append(time - TOLERANCE)
    return min(times)


def check_expired(operations: Iterable[Operation], within: float) -> Verdict:
    """Check that no value is read more than ``within`` seconds after its deadline.

    Raises ValueError if the history contradicts itself or two writes of one key have the same
    value.
    """
    return checked(operations, partial(_outlived, within=within))


def _origins(write: Operation, expires: Iterable[Operation]) -> Iterator[Operation]:
    """Yield the operations that may have given the value of ``write`` its deadline."""
    yield write
    for expire in expires:
        if expire.result is not Result.MISSING and _end(expire) >= write.start:
            yield expire


def _superseded(
    origin: Operation, expires: Sequence[Operation], time: float, after: float = -math.inf
) -> bool:
    """Whether an EXPIRE has surely taken the place of a deadline before ``time``.

    It has to begin after the time ``after``, too.
    """
    return any(
        each.result is Result.CHANGED
        and each.start > max(_end(origin), after)
        and _end(each) < time
        for each in expires
    )


def _outlived(history: list[Operation], within: float) -> Iterator[Violation]:
    expires = [each for each in history if each.kind is Kind.EXPIRE]
    writes = {each.value: each for each in history if each.kind in WRITES}
    for read in history:
        write = writes.get(read.seen)
        if read.seen is None or read.stale_ok or write is None:
            continue
        before = [each for each in expires if each.start <= _end(read)]
        limit = -math.inf
        for origin in _origins(write, before):
            if not _superseded(origin, before, read.start, after=_end(write)):
                limit = max(limit, _until(origin))
        if read.start > limit + within:
            shown = tuple(dict.fromkeys([write, *_origins(write, before), read]))
            why = f"it was to expire by {limit + within:.6f}"
            lines = [f"key {read.key!r}: a value is read for too long: {why}"]
            yield Violation(read.key, shown, (*lines, *(f"  {each}" for each in shown)))


def _until(origin: Operation) -> float:
    """Return the latest deadline that an operation may have given."""
    return math.inf if origin.ttl is None else _end(origin) + origin.ttl


def _end(operation: Operation) -> float:
    return math.inf if operation.end is None else operation.end

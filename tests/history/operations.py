"""What clients saw of a store: operations with their times and results, and verdicts on them.

A history is a list of :class:`Operation`, in any order. The checkers,
:mod:`~tests.history.linearizability` and :mod:`~tests.history.weaker`, judge it and know nothing
of how it came about. :class:`History` records one. All times are seconds on one clock that all
clients share, such as ``time.monotonic()`` on one machine or the clock of a simulation.
"""

from __future__ import annotations

import math
import reprlib
import threading
from collections.abc import Hashable, Iterable
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What was asked. REPLACE is a SET with ``replace=True``."""

    GET = "get"
    SET = "set"
    REPLACE = "replace"
    DELETE = "delete"


class Result(Enum):
    """What was answered.

    WRITTEN: a replacement that was not told whether it was STORED or REPLACED. PENDING: a deletion
    with ``wait=False`` that was begun. UNKNOWN: no answer; a write may take effect at any moment
    from its start on, or never.
    """

    VALUE = "value"
    MISSING = "missing"
    STORED = "stored"
    OCCUPIED = "occupied"
    REPLACED = "replaced"
    WRITTEN = "written"
    DELETED = "deleted"
    PENDING = "pending"
    UNKNOWN = "unknown"


RESULTS = {
    Kind.GET: {Result.VALUE, Result.MISSING, Result.UNKNOWN},
    Kind.SET: {Result.STORED, Result.OCCUPIED, Result.UNKNOWN},
    Kind.REPLACE: {Result.STORED, Result.REPLACED, Result.WRITTEN, Result.UNKNOWN},
    Kind.DELETE: {Result.DELETED, Result.MISSING, Result.PENDING, Result.UNKNOWN},
}
"""Which answers there are to what."""

NOT_TOLD = None
"""``seen`` of a SET that was told OCCUPIED, but not by which value."""


class Operation(NamedTuple):
    """One call of one client.

    ``end`` is None if and only if the result is UNKNOWN. ``value`` is what a SET or REPLACE was to
    bind; no two of one key may have the same. ``seen`` is the value that a GET returned, or that
    was in the way of a SET. Values are anything hashable except None: tokens, numbers, texts.
    ``stale_ok`` marks a GET that may be out of date.

    A request that was refused and certainly not executed does not belong into a history.
    """

    process: int | str
    key: str
    kind: Kind
    start: float
    end: float | None
    result: Result
    value: Hashable = None
    seen: Hashable = None
    stale_ok: bool = False

    def __str__(self) -> str:
        end = "..." if self.end is None else f"{self.end:.6f}"
        asked = self.kind.value + (f" {reprlib.repr(self.value)}" if self.value is not None else "")
        told = self.result.value if self.result is not Result.VALUE else ""
        told += f" {reprlib.repr(self.seen)}" if self.seen is not None else ""
        stale = " (stale_ok)" if self.stale_ok else ""
        times = f"[{self.start:.6f}, {end}]"
        return f"{times:<28} {self.process!s:>4}: {asked}{stale} -> {told.strip()}"


class Violation(NamedTuple):
    """A broken promise: the operations that contradict each other, and the account of it."""

    key: str
    operations: tuple[Operation, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Verdict(NamedTuple):
    """What a checker found. Its text is the account of all violations."""

    operations: int
    keys: int
    violations: tuple[Violation, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        judged = f"{self.operations} operations on {self.keys} keys"
        if self.ok:
            return f"{judged}: no violation"
        heading = f"{judged}: {len(self.violations)} keys with a violation"
        return "\n".join([heading, *map(str, self.violations)])


class History:
    """Records operations as they happen. Safe to use from many threads.

    Call :meth:`begin` before the operation and :meth:`end` after it. The times that end up in the
    history strictly increase in the order of these calls, by less than a nanosecond if need be, so
    that the order is kept even where the clock stands still, as it does in a simulation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = -math.inf
        self._operations: dict[int, Operation] = {}
        self._begun = 0

    def __repr__(self) -> str:
        return f"<History of {len(self._operations)} operations>"

    def begin(
        self,
        process: int | str,
        kind: Kind,
        key: str,
        now: float,
        value: Hashable = None,
        *,
        stale_ok: bool = False,
    ) -> int:
        """Note that an operation is about to start; the ticket for its end."""
        with self._lock:
            start = self._stamp(now)
            self._begun += 1
            self._operations[self._begun] = Operation(
                process, key, kind, start, None, Result.UNKNOWN, value, stale_ok=stale_ok
            )
            return self._begun

    def end(self, ticket: int, now: float, result: Result, seen: Hashable = None) -> None:
        """Note the answer. An operation that never gets one stays UNKNOWN."""
        with self._lock:
            end = None if result is Result.UNKNOWN else self._stamp(now)
            begun = self._operations[ticket]
            self._operations[ticket] = begun._replace(end=end, result=result, seen=seen)

    def discard(self, ticket: int) -> None:
        """Leave out an operation that was refused: it certainly had no effect."""
        with self._lock:
            del self._operations[ticket]

    def operations(self) -> list[Operation]:
        """All operations, in the order of their starts."""
        with self._lock:
            return list(self._operations.values())

    def _stamp(self, now: float) -> float:
        self._last = max(now, math.nextafter(self._last, math.inf))
        return self._last


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each key. ValueError if one contradicts itself or a value is not unique."""
    keys: dict[str, list[Operation]] = {}
    written: set[tuple[str, Hashable]] = set()
    for operation in operations:
        _validate(operation)
        if operation.kind in (Kind.SET, Kind.REPLACE):
            name = (operation.key, operation.value)
            if name in written:
                raise ValueError(f"another write of this key has the same value: {operation}")
            written.add(name)
        keys.setdefault(operation.key, []).append(operation)
    return keys


def _validate(operation: Operation) -> None:
    kind, result = operation.kind, operation.result
    if result not in RESULTS[kind]:
        raise ValueError(f"{kind.value} is never answered with {result.value}: {operation}")
    if (operation.end is None) != (result is Result.UNKNOWN):
        raise ValueError(f"an end without a result, or a result without an end: {operation}")
    if operation.end is not None and not operation.start <= operation.end:
        raise ValueError(f"it ends before it starts: {operation}")
    if (kind in (Kind.SET, Kind.REPLACE)) != (operation.value is not None):
        raise ValueError(f"a SET or REPLACE has a value, and nothing else has: {operation}")
    if (result is Result.VALUE) > (operation.seen is not None):
        raise ValueError(f"a value was read, but which is not said: {operation}")
    if operation.seen is not None and result not in (Result.VALUE, Result.OCCUPIED):
        raise ValueError(f"a value was seen where none can be: {operation}")
    if operation.stale_ok and kind is not Kind.GET:
        raise ValueError(f"only a GET may be stale: {operation}")

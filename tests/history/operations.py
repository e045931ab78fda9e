"""Histories: the operations of clients with their times and results, and verdicts on them.

A history is a list of :class:`Operation`, in any order. The checkers
:mod:`~tests.history.linearizability` and :mod:`~tests.history.weaker` judge it, wherever it was
recorded. All times are seconds on one clock that all clients share, such as ``time.monotonic()`` on
one machine or the clock of a simulation.
"""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Iterable
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What the client asked for. REPLACE is a SET with ``replace=True``, EXPIRE also a PERSIST."""

    GET = "get"
    SET = "set"
    REPLACE = "replace"
    DELETE = "delete"
    EXPIRE = "expire"


class Result(Enum):
    """What the client was answered.

    WRITTEN is a replacement whose answer did not say whether it was STORED or REPLACED. PENDING is
    a deletion with ``wait=False`` that was begun, CHANGED an EXPIRE of a key that had a value.
    UNKNOWN means that there was no answer; then a write may take effect at any moment after its
    start, or never.
    """

    VALUE = "value"
    MISSING = "missing"
    STORED = "stored"
    OCCUPIED = "occupied"
    REPLACED = "replaced"
    WRITTEN = "written"
    DELETED = "deleted"
    PENDING = "pending"
    CHANGED = "changed"
    UNKNOWN = "unknown"


RESULTS = {
    Kind.GET: {Result.VALUE, Result.MISSING, Result.UNKNOWN},
    Kind.SET: {Result.STORED, Result.OCCUPIED, Result.UNKNOWN},
    Kind.REPLACE: {Result.STORED, Result.REPLACED, Result.WRITTEN, Result.UNKNOWN},
    Kind.DELETE: {Result.DELETED, Result.MISSING, Result.PENDING, Result.UNKNOWN},
    Kind.EXPIRE: {Result.CHANGED, Result.MISSING, Result.UNKNOWN},
}
"""The possible results of each kind of operation."""


class Operation(NamedTuple):
    """One call of one client.

    ``end`` is None if and only if the result is UNKNOWN. ``value`` is what a SET or REPLACE was to
    bind; no two of one key may have the same value. ``seen`` is the value that a GET returned, or
    by which a SET was OCCUPIED (None if its answer did not say). Values are anything hashable but
    None: tokens, numbers, texts. ``stale_ok`` marks a GET that may return an outdated value.
    ``ttl`` has the seconds after which a SET, REPLACE or EXPIRE lets the key expire; None: never.

    A request that was refused and certainly not executed does not belong in a history.
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
    ttl: float | None = None

    def __str__(self) -> str:
        end = "..." if self.end is None else f"{self.end:.6f}"
        asked = self.kind.value + (f" {reprlib.repr(self.value)}" if self.value is not None else "")
        asked += f" for {self.ttl:.6f} s" if self.ttl is not None else ""
        answer = self.result.value if self.result is not Result.VALUE else ""
        answer += f" {reprlib.repr(self.seen)}" if self.seen is not None else ""
        stale = " (stale_ok)" if self.stale_ok else ""
        times = f"[{self.start:.6f}, {end}]"
        return f"{times:<28} {self.process!s:>4}: {asked}{stale} -> {answer.strip()}"


class Violation(NamedTuple):
    """A broken guarantee: the operations that contradict each other, and a description."""

    key: str
    operations: tuple[Operation, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Verdict(NamedTuple):
    """The result of a checker. Its text describes all violations."""

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


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations by key. Raises ValueError if one is malformed or a value is not unique."""
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
        raise ValueError(f"a value was read, but not which one: {operation}")
    if operation.seen is not None and result not in (Result.VALUE, Result.OCCUPIED):
        raise ValueError(f"an operation of this kind and result sees no value: {operation}")
    if operation.ttl is not None and kind not in (Kind.SET, Kind.REPLACE, Kind.EXPIRE):
        raise ValueError(f"an operation of this kind has no time to live: {operation}")
    if operation.stale_ok and kind is not Kind.GET:
        raise ValueError(f"only a GET may be stale: {operation}")

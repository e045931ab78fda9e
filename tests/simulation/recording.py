"""What a thread of a simulated process has done, as the history has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dstore.core.local.membership import Entry
from dstore.core.local.operations import SetOutcome
from dstore.protocol.messages import (
    DelResult,
    DelStatus,
    ExpireStatus,
    Key,
    Large,
    SetStatus,
    Stored,
)
from tests.history.operations import Kind, Result
from tests.history.operations import Operation as Recorded
from tests.simulation.scenario import EXPIRY

READS = ("get", "get_many", "wait")
SETS = ("set", "set_many", "replace")
SET_RESULTS = {
    SetStatus.STORED: Result.STORED,
    SetStatus.REPLACED: Result.REPLACED,
    SetStatus.OCCUPIED: Result.OCCUPIED,
}
DEL_RESULTS = {
    DelStatus.DELETED: Result.DELETED,
    DelStatus.MISSING: Result.MISSING,
    DelStatus.PENDING: Result.PENDING,
}
EXPIRE_RESULTS = {ExpireStatus.DONE: Result.CHANGED, ExpireStatus.MISSING: Result.MISSING}
NOT_DONE = (
    SetStatus.FULL,
    SetStatus.FAILED,
    DelStatus.FAILED,
    ExpireStatus.FULL,
    ExpireStatus.FAILED,
)
"""Outcomes of writes that have changed nothing."""
Seen = tuple[Result, str | None]
"""What is recorded for one key: the result, and the value that was seen."""


class Recorder:
    """Records the operations of a thread. ``kind`` and the rest are those of the present one."""

    kind: str
    keys: list[Key]
    values: Mapping[Key, str]
    ttl: float | None
    start: float

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: list[Recorded] = []

    def record(self, key: Key, name: str, end: float | None, seen: Seen) -> None:
        """Record what has become of one key, which is ``name`` in the history."""
        self.done.append(
            Recorded(
                self.name,
                name,
                self._recorded_kind(),
                self.start,
                end,
                *(seen[0], self.values[key] if self.kind in SETS else None, seen[1]),
                ttl=self.ttl if self.kind in (*SETS, *EXPIRY) else None,
            )
        )

    def _recorded_kind(self) -> Kind:
        if self.kind in READS:
            return Kind.GET
        if self.kind == "replace":
            return Kind.REPLACE
        if self.kind in EXPIRY:
            return Kind.EXPIRE
        return Kind.SET if self.kind in SETS else Kind.DELETE

    def seen(self, result: Any) -> Seen:
        """Return what a result says: of a read, the answer or None."""
        if isinstance(result, SetOutcome):
            if result.found and self.kind == "replace":
                return Result.WRITTEN, None
            return SET_RESULTS[result.status], None
        if isinstance(result, DelResult):
            return DEL_RESULTS[result.status], None
        if isinstance(result, ExpireStatus):
            return EXPIRE_RESULTS[result], None
        return (Result.MISSING, None) if result is None else (Result.VALUE, text_of(result))


def is_done(result: Any) -> bool:
    """Whether the outcome of a write is not a refusal."""
    status = getattr(result, "status", result)
    return not any(status is each for each in NOT_DONE)  # numbers of several kinds are equal


def text_of(answer: Entry | Stored) -> str:
    """Return the value that was read, as text."""
    value = answer.value if isinstance(answer, Entry) else answer
    assert isinstance(value, Stored)
    assert not isinstance(value.body, Large)
    return bytes(value.body).decode()

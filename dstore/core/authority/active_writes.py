"""A write of a Local from its arrival until all its items have an outcome.

The outcomes are kept for as long as the Local may repeat the write, packed into few bytes: a reply
of 10,000 items takes 2 MB as Python objects and 210 KB packed.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from struct import Struct
from typing import Any, cast

from dstore.config import BATCH_BYTES_MAX
from dstore.core.authority.sessions import Session
from dstore.protocol.messages import (
    DelReply,
    DelResult,
    DelStatus,
    Route,
    SetReply,
    SetResult,
    SetStatus,
)

WRITE_BYTES, WRITE_ITEM_BYTES = 600, 900
"""What an active write takes at most, and what each of its items takes beside its key and value:
its outcome, its place in a queue, the names of its value.
"""
_SET, _DEL = b"S", b"D"
_OUTCOME = Struct(">BQIII")
"""Status, seq, confirmed, expired, pending."""


@dataclass(slots=True, eq=False, repr=False)
class ActiveWrite:
    """Collects the outcomes of a SET or DEL of ``size`` items and makes its reply.

    ``number`` is that of the write within its session. ``route`` and ``request`` are those of its
    latest repeat. ``cost`` is in bytes.
    """

    route: Route
    request: int
    session: Session
    number: int
    is_set: bool
    cost: int
    size: InitVar[int]
    _left: int = field(init=False)
    _results: list[SetResult | DelResult | None] = field(init=False)
    _room: int = BATCH_BYTES_MAX

    def __post_init__(self, size: int) -> None:
        self._left = size
        self._results = [None] * size

    def __repr__(self) -> str:
        return f"<ActiveWrite {self.number} of session no. {self.session.number} left={self._left}>"

    def reserve(self, size: int) -> bool:
        """Reserve room in the reply for a value of ``size`` bytes. Returns whether it fits.

        A single value always fits.
        """
        self._room -= size
        return self._room >= 0 or self._room + size == BATCH_BYTES_MAX

    def note(self, index: int, result: SetResult | DelResult) -> bool:
        """Record the outcome of one item. Returns whether it was the last one to come."""
        self._results[index] = result
        self._left -= 1
        return not self._left

    def reply(self, epoch: int) -> SetReply | DelReply:
        """Return the reply, when all items have outcomes."""
        kind = SetReply if self.is_set else DelReply
        return kind(epoch, self.session.id, self.request, cast("list[Any]", self._results))


def recorded(reply: SetReply | DelReply) -> bytes:
    """Pack the outcomes of a reply, without values and without leave to cache anything.

    By the time a repeat is answered the value may have been deleted, and its writer, which has
    acknowledged that deletion, is no longer one of its holders.
    """
    pack = _OUTCOME.pack
    if type(reply) is DelReply:
        if len(reply.items) == 1:
            return _DEL + pack(*reply.items[0])
        return _DEL + b"".join([pack(*each) for each in reply.items])
    packed = [pack(each.status, each.seq, each.confirmed, each.expired, 0) for each in reply.items]
    return _SET + b"".join(packed)


def repeated(outcomes: bytes, envelope: tuple[int, int, int]) -> SetReply | DelReply:
    """Return the reply to a repeat of a finished write. ``envelope`` is that of the repeat."""
    rows = _OUTCOME.iter_unpack(outcomes[1:])
    if outcomes[:1] == _DEL:
        return DelReply(*envelope, [DelResult(DelStatus(status), *rest) for status, *rest in rows])
    items = [
        SetResult(SetStatus(status), seq, False, None, confirmed, expired)
        for status, seq, confirmed, expired, _ in rows
    ]
    return SetReply(*envelope, items)

"""One write of a Local that is at work at Global, until all its items have an outcome.

The outcomes are kept, for as long as its Local may ask for them again, as what a repeat is told,
packed into few bytes: a reply of 10,000 items takes 2 MB as Python has it, and 210 KB so.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, cast

from dstore.config import BATCH_BYTES_MAX
from dstore.protocol.messages import (
    Del,
    DelReply,
    DelResult,
    DelStatus,
    Route,
    Set,
    SetReply,
    SetResult,
    SetStatus,
)

if TYPE_CHECKING:
    from dstore.core.authority.sessions import Session

CALL_BYTES, CALL_ITEM_BYTES = 600, 900
"""What a write at work takes at most, and each of its items beside its key and its value: its
outcome, its place in a queue, the names of its value.
"""
_SET, _DEL = b"S", b"D"
_OUTCOME = Struct(">BQIII")
"""Status, seq, confirmed, expired, pending."""


class Call:
    """Collects the outcomes of a SET or DEL and makes its reply.

    ``route`` and ``request`` are those of the latest repeat; ``cost`` is in bytes.
    """

    __slots__ = (
        "_left",
        "_results",
        "_room",
        "cost",
        "is_set",
        "request",
        "route",
        "session",
        "write",
    )

    def __init__(
        self, route: Route, session: Session, message: Set | Del, size: int, cost: int
    ) -> None:
        self.cost = cost
        self.route = route
        self.session = session
        self.request = message.request
        self.write = message.write
        self.is_set = isinstance(message, Set)
        self._results: list[SetResult | DelResult | None] = [None] * size
        self._left = size
        self._room = BATCH_BYTES_MAX

    def __repr__(self) -> str:
        return f"<Call write={self.write} session no. {self.session.number} left={self._left}>"

    def takes(self, size: int) -> bool:
        """Whether the reply has room for a value of ``size`` bytes beside those it has."""
        self._room -= size
        return self._room >= 0 or self._room + size == BATCH_BYTES_MAX

    def note(self, index: int, result: SetResult | DelResult) -> bool:
        """Keep the outcome of one item. Whether it was the last."""
        self._results[index] = result
        self._left -= 1
        return not self._left

    def reply(self, epoch: int) -> SetReply | DelReply:
        if self.is_set:
            items = cast("list[SetResult]", self._results)
            return SetReply(epoch, self.session.id, self.request, items)
        results = cast("list[DelResult]", self._results)
        return DelReply(epoch, self.session.id, self.request, results)


def recorded(reply: SetReply | DelReply) -> bytes:
    """What is kept of a reply: how it was decided. Nothing that comes of it may be cached.

    By the time a repeat is answered the value may have been deleted, and its writer, long since
    acknowledged, is no longer one of its holders.
    """
    pack = _OUTCOME.pack
    if type(reply) is DelReply:
        if len(reply.items) == 1:
            return _DEL + pack(*reply.items[0])
        return _DEL + b"".join([pack(*each) for each in reply.items])
    packed = [pack(each.status, each.seq, each.confirmed, each.expired, 0) for each in reply.items]
    return _SET + b"".join(packed)


def repeated(kept: bytes, envelope: tuple[int, int, int]) -> SetReply | DelReply:
    """The reply to a repeat of a write that is done. ``envelope`` is that of the repeat."""
    rows = _OUTCOME.iter_unpack(kept[1:])
    if kept[:1] == _DEL:
        return DelReply(*envelope, [DelResult(DelStatus(status), *rest) for status, *rest in rows])
    items = [
        SetResult(SetStatus(status), seq, False, None, confirmed, expired)
        for status, seq, confirmed, expired, _ in rows
    ]
    return SetReply(*envelope, items)

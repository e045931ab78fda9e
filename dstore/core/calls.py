"""One write of a Local that is at work at Global, until all its items have an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dstore.config import BATCH_BYTES_MAX
from dstore.messages import Del, DelReply, DelResult, Route, Set, SetReply, SetResult

if TYPE_CHECKING:
    from dstore.core.sessions import Session


class Call:
    """Collects the outcomes of a SET or DEL and makes its reply.

    ``route`` and ``request`` are those of the latest repeat.
    """

    __slots__ = ("_left", "_results", "_room", "is_set", "request", "route", "session", "write")

    def __init__(self, route: Route, session: Session, message: Set | Del, size: int) -> None:
        self.route = route
        self.session = session
        self.request = message.request
        self.write = message.write
        self.is_set = isinstance(message, Set)
        self._results: list[SetResult | DelResult | None] = [None] * size
        self._left = size
        self._room = BATCH_BYTES_MAX

    def __repr__(self) -> str:
        return f"<Call write={self.write} session={self.session.id} left={self._left}>"

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

    @staticmethod
    def recorded(reply: SetReply | DelReply) -> SetReply | DelReply:
        """The reply as a repeat gets it: nothing in it may be cached.

        By the time it goes out the value may have been deleted, and its writer, long since
        acknowledged, is no longer one of its holders.
        """
        if isinstance(reply, DelReply):
            return reply
        items = [item._replace(cacheable=False, found=None) for item in reply.items]
        return reply._replace(items=items)

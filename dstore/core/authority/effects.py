"""What comes out of the events at Global: the effects, its counters, and when the next tick is due.

The host of a Global carries out the effects in the order given.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.core.engine import Change
from dstore.protocol.messages import (
    Broadcast,
    Committed,
    Key,
    Refusal,
    Refused,
    Route,
    ToGlobal,
    ToLocal,
)

NEVER = float("inf")
COUNTERS = (
    "gets", "waits", "ttls", "sets", "dels", "expires", "scans", "offers", "chunks_in",
    "bytes_in", "chunks_out", "bytes_out", "revalidated", "syncs", "targeted_invalidations",
    "reminders", "flushes", "refused", "malformed", "cut", "loads", "failed_loads",
)  # fmt: skip
"""Reminders are targeted invalidations that repeat what a silent holder was sent."""


class Send(NamedTuple):
    """Send a message to one DEALER. If its connection has ended, the message is dropped."""

    route: Route
    message: ToLocal


class Publish(NamedTuple):
    """Send a message to all Locals that subscribe to it."""

    message: Broadcast | Committed


class Commit(NamedTuple):
    """Make changes durable, in their order; then call ``GlobalState.committed`` with ``number``."""

    number: int
    changes: list[Change]


class Load(NamedTuple):
    """Have the engine load values, each named by key and token, or a ``part`` of a single one.

    Then call ``GlobalState.loaded`` with ``number`` and a result for each of them. A part is the
    offset and the length of bytes of a large value.
    """

    number: int
    wanted: list[tuple[Key, bytes]]
    part: tuple[int, int] | None = None


GlobalEffect: TypeAlias = Send | Publish | Commit | Load


class Refuse(Exception):
    """Raised by the handler of a message that is not executed. ``text`` is for people."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(refusal, text)


class Outbox:
    """The effects of one event: first what is sent to single Locals, then what is broadcast.

    A Local that is answered in the event that broadcasts an invalidation did not wait for any of
    the Locals that the broadcast reaches. So its answer need not wait until ZeroMQ has written the
    broadcast to every Local.
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._sends: list[GlobalEffect] = []
        self._broadcasts: list[GlobalEffect] = []

    def commit(self, batch: Commit) -> None:
        self._sends.append(batch)

    def load(self, wanted: Load) -> None:
        self._sends.append(wanted)

    def send(self, route: Route, message: ToLocal) -> None:
        self._sends.append(Send(route, message))

    def publish(self, message: Broadcast | Committed) -> None:
        self._broadcasts.append(Publish(message))

    def refuse(self, route: Route, message: ToGlobal, refusal: Refusal, text: str) -> None:
        """Answer that nothing was done. The answer names the session, or the secret, and
        the request of the message."""
        self.counters["refused"] += 1
        epoch, request = getattr(message, "epoch", 0), getattr(message, "request", 0)
        session = getattr(message, "session", 0) or getattr(message, "secret", 0)
        self.send(route, Refused(epoch, session, request, refusal, text))

    def take(self) -> list[GlobalEffect]:
        """Return the effects since the last call."""
        effects, self._sends = self._sends, []
        if self._broadcasts:
            effects += self._broadcasts
            self._broadcasts = []
        return effects


class Alarm:
    """The earliest moment at which some part of the state has something to do.

    A part that schedules something brings the moment forward. So nothing has to be asked after
    each message when it is next due. Only a tick moves the alarm to a later moment.
    """

    __slots__ = ("moment",)

    def __init__(self) -> None:
        self.moment = NEVER

    def at(self, moment: float) -> None:
        """Make sure that a tick comes at ``moment`` or earlier."""
        if moment < self.moment:
            self.moment = moment

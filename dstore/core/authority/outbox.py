"""The effects that Global has decided on, until the host takes them; and Global's counters."""

from __future__ import annotations

from dstore.core.authority.effects import GlobalEffect, Publish, Send
from dstore.protocol.messages import (
    Broadcast,
    Committed,
    Refusal,
    Refused,
    Route,
    ToGlobal,
    ToLocal,
)

COUNTERS = (
    "gets",
    "waits",
    "sets",
    "dels",
    "scans",
    "chunks_in",
    "bytes_in",
    "chunks_out",
    "bytes_out",
    "syncs",
    "targeted_invalidations",
    "reminders",  # targeted invalidations that repeat what a silent holder was sent
    "flushes",
    "refused",
    "malformed",
    "cut",
)


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

    def send(self, route: Route, message: ToLocal) -> None:
        """Send a message to one Local."""
        self._sends.append(Send(route, message))

    def publish(self, message: Broadcast | Committed) -> None:
        """Send a message to all Locals that subscribe to it."""
        self._broadcasts.append(Publish(message))

    def refuse(self, route: Route, message: ToGlobal, refusal: Refusal, text: str) -> None:
        """Answer that nothing was done. The answer names the session and request of the message."""
        self.counters["refused"] += 1
        epoch, session, request = (
            getattr(message, name, 0) for name in ("epoch", "session", "request")
        )
        self.send(route, Refused(epoch, session, request, refusal, text))

    def take(self) -> list[GlobalEffect]:
        """Return the effects since the last call."""
        effects, self._sends = self._sends, []
        if self._broadcasts:
            effects += self._broadcasts
            self._broadcasts = []
        return effects

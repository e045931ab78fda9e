"""What Global has decided to send, until the host takes it; and its counters."""

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
    "pushes",
    "flushes",
    "refused",
    "malformed",
    "cut",
)


class Outbox:
    """Effects: what is sent to one Local, in its order, and then what is published, in its order.

    Whoever is answered in the event that publishes a deletion waited for nobody who hears of it.
    So it need not wait until ZeroMQ has written the publication to every Local.
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._sends: list[GlobalEffect] = []
        self._broadcasts: list[GlobalEffect] = []

    def send(self, route: Route, message: ToLocal) -> None:
        self._sends.append(Send(route, message))

    def publish(self, message: Broadcast | Committed) -> None:
        self._broadcasts.append(Publish(message))

    def refuse(self, route: Route, message: ToGlobal, refusal: Refusal, text: str) -> None:
        """Answer that nothing was done, with what the message says of its sender."""
        self.counters["refused"] += 1
        epoch, session, request = (
            getattr(message, name, 0) for name in ("epoch", "session", "request")
        )
        self.send(route, Refused(epoch, session, request, refusal, text))

    def take(self) -> list[GlobalEffect]:
        effects, self._sends = self._sends, []
        if self._broadcasts:
            effects += self._broadcasts
            self._broadcasts = []
        return effects

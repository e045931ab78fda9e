"""What the host of a Global is to do, in the order given, after an event."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.protocol.messages import Broadcast, Committed, Route, ToLocal


class Send(NamedTuple):
    """Send a message to one DEALER. One that has gone away is nobody's loss."""

    route: Route
    message: ToLocal


class Publish(NamedTuple):
    """Send a message to everybody who listens."""

    message: Broadcast | Committed


GlobalEffect: TypeAlias = Send | Publish

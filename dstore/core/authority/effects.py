"""The effects of an event at Global: what the host of a Global carries out, in the order given."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.protocol.messages import Broadcast, Committed, Route, ToLocal


class Send(NamedTuple):
    """Send a message to one DEALER. If its connection has ended, the message is dropped."""

    route: Route
    message: ToLocal


class Publish(NamedTuple):
    """Send a message to all Locals that subscribe to it."""

    message: Broadcast | Committed


GlobalEffect: TypeAlias = Send | Publish

"""What a host is to do, in the order given, after an event."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.core.cache import Entry
from dstore.core.watching import Removal
from dstore.messages import Key, Publication, Route, Settled, ToGlobal, ToLocal

# ---- at Global --------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send a message to one DEALER. One that has gone away is nobody's loss."""

    route: Route
    message: ToLocal


class Publish(NamedTuple):
    """Send a message to everybody who listens."""

    message: Publication | Settled


GlobalEffect: TypeAlias = Send | Publish

# ---- at a Local -------------------------------------------------------------------------------


class Tell(NamedTuple):
    """Send a message to Global on the control channel. If it cannot be sent, it is dropped."""

    message: ToGlobal


class Subscribe(NamedTuple):
    """A session has begun: hear the deletions of this life of Global, at this endpoint alone."""

    epoch: int
    publisher: str


class Dropped(NamedTuple):
    """These keys were held and have been deleted. ``tokens``: of values that the host shares and
    that are not to be had any more, or not to be kept. ``entries`` have held such values: whoever
    lets go of the last view of much memory has to wait until the system has taken it back.
    """

    keys: list[Key]
    tokens: list[bytes]
    entries: list[Entry]


class Announce(NamedTuple):
    """Tell those who watch; one number of a watcher, or ALL, with each."""

    removals: list[Removal]


LocalEffect: TypeAlias = Tell | Subscribe | Dropped | Announce

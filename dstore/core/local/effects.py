"""What the host of a Local is to do, in the order given, after an event."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.core.local.cache import Entry
from dstore.core.local.watching import Removal
from dstore.protocol.messages import Key, ToGlobal


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

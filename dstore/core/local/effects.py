"""The effects of the events at a Local. Its host carries them out in the order given."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dstore.core.local.cache import FormerLarge
from dstore.core.local.membership import Entry, Membership
from dstore.core.local.watching import Removal
from dstore.protocol.messages import Found, Key, ToGlobal


class Tell(NamedTuple):
    """Send a message to Global on the control channel. If it cannot be sent, it is dropped."""

    message: ToGlobal


class Subscribe(NamedTuple):
    """A session has begun: receive the broadcasts of this epoch at this endpoint, and no others."""

    epoch: int
    publisher: str


class Look(NamedTuple):
    """Look for a page of this host: of this epoch or, if it is 0, of Global's address.

    If there is one, it is given to ``attach``.
    """

    epoch: int


class Dropped(NamedTuple):
    """These keys were cached and have been invalidated.

    ``tokens`` name values in shared memory that are not to be kept; ``entries`` have held such
    values, whose memory may take long to release.
    """

    keys: list[Key]
    tokens: list[bytes]
    entries: list[Entry]


class Announce(NamedTuple):
    """Pass removals to the watches; each has the number of a watcher, or ALL."""

    removals: list[Removal]


class TakenBack(NamedTuple):
    """A large value of a former session that is still bound, by the answer to an offer.

    ``found`` is how it is bound, with the :class:`~dstore.protocol.messages.Large` of ``former``.
    """

    key: Key
    found: Found
    former: FormerLarge


class TakeBack(NamedTuple):
    """Find these values in shared memory, and give those that are there to ``taken_back``."""

    membership: Membership
    values: list[TakenBack]


LocalEffect: TypeAlias = Tell | Subscribe | Look | Dropped | Announce | TakeBack
"""What the host has to do after an event, in the order given."""

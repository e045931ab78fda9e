"""Rules that the workers of a run with several Globals may break, and the owners of their hosts.

A run that does not notice a broken rule proves nothing. Those of Globals are in
:mod:`tests.faults.members.broken_member`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from dstore.core.local.owner import OwnerState
from dstore.core.local.watching import Watching
from dstore.protocol.messages import Key

FORGOTTEN_EVERY = 10
"""Removals of which one is forgotten."""
NOTHING = "nothing"


def nothing() -> None:
    """All rules are kept."""


def deaf_watch() -> None:
    """Watches forget some deletions."""
    note, count = Watching.applied, itertools.count(1)

    def forget_some(self: Watching, seq: int, key: Key) -> None:
        if next(count) % FORGOTTEN_EVERY:
            note(self, seq, key)

    Watching.applied = forget_some  # type: ignore[method-assign]


def early_watch() -> None:
    """Watches announce deletions when this Local has applied them, and not when all have."""
    note = Watching.applied

    def note_and_announce(self: Watching, seq: int, key: Key) -> None:
        note(self, seq, key)
        self.committed(seq)

    Watching.applied = note_and_announce  # type: ignore[method-assign]


def stale_page() -> None:
    """The owner of a host acknowledges deletions that it has not written into its page."""
    OwnerState._note = lambda self, key, seq: None  # type: ignore[method-assign]


def no_page() -> None:
    """The owner of a host makes no page."""
    OwnerState._publish = lambda self, message: None  # type: ignore[method-assign]


BROKEN_CLIENTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (nothing, deaf_watch, early_watch, stale_page, no_page)
}
"""The ways in which a worker or ``dstore host`` can be broken, by name."""

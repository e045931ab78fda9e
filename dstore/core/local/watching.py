"""Deletions that a Local has applied and that are not committed yet, for its watchers.

A Local drops a value when it applies the invalidation; until all holders have done so, Global still
answers with the value, so a program that read it again at once would get the old value. So a
deletion is announced to watchers when it is committed. Global reports the number up to which
all deletions are committed.

Where deletions may have been missed, one removal without a key takes their place: any value may
have changed. A new watcher begins with one.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dstore.protocol.messages import Key

UNCOMMITTED_MAX = 65_536
"""Deletions that may be uncommitted; beyond this they are replaced by one removal without a key."""
ALL = 0
"""Stands for all watchers."""


class Removal(NamedTuple):
    """The value of a key is gone; without a key, any value may be. For one watcher, or ALL."""

    seq: int
    key: Key | None
    watcher: int


class Watching:
    """The watchers of one Local, by number, and the removals that are to be announced to them."""

    def __init__(self) -> None:
        self.watchers: set[int] = set()
        self._committed = 0
        self.uncommitted: deque[Removal] = deque()

    def begin(self, watcher: int, applied: int | None) -> None:
        """Add a watcher; its first removal has no key, since it has heard of nothing.

        ``applied`` is None without a session: when one begins, everything counts as missed.
        """
        self.watchers.add(watcher)
        if applied is not None:
            self.uncommitted.append(Removal(applied, None, watcher))

    def end(self, watcher: int) -> None:
        """Remove a watcher."""
        self.watchers.discard(watcher)

    def void(self) -> None:
        """Forget all numbers: the session has ended."""
        self._committed = 0
        self.uncommitted.clear()

    def missed(self, seq: int) -> None:
        """Note that deletions up to ``seq`` were missed."""
        if self.watchers:
            self.uncommitted = deque([Removal(seq, None, ALL)])

    def applied(self, seq: int, key: Key) -> None:
        """Note an invalidation that was applied."""
        if not self.watchers:
            return
        self.uncommitted.append(Removal(seq, key, ALL))
        if len(self.uncommitted) > UNCOMMITTED_MAX:
            self.missed(seq)

    def committed(self, seq: int) -> None:
        """Note that all deletions up to ``seq`` are committed."""
        self._committed = max(self._committed, seq)

    @property
    def due(self) -> bool:
        """Whether :meth:`take` would return something."""
        return bool(self.uncommitted) and self.uncommitted[0].seq <= self._committed

    def take(self) -> list[Removal]:
        """Return the removals that are committed, in order, and forget them."""
        taken = []
        while self.due:
            taken.append(self.uncommitted.popleft())
        return taken

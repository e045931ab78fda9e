"""Deletions that a Local has applied, until they have taken effect, for whoever watches them.

A Local drops a value when the deletion begins; until all who hold the value have done so, Global
still answers with it, so that whoever read it again on the spot would get the old value. So a
watcher is told of a deletion when it is *settled*: complete at Global, which says up to which
number all are.

Where something may have been missed there stands, in the place of the keys, one note to look at
everything anew; and a new watcher begins with one.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dstore.protocol.messages import Key

UNCOMMITTED_MAX = 65_536
"""Deletions that wait for their end; if there are more, everything has to be looked at anew."""
ALL = 0
"""Stands for all watchers."""


class Removal(NamedTuple):
    """The value of a key is gone; without a key: any may be. For one watcher, or ALL."""

    seq: int
    key: Key | None
    watcher: int


class Watching:
    """What the watchers of one Local, by number, are still to be told."""

    def __init__(self) -> None:
        self.watchers: set[int] = set()
        self._settled = 0
        self.uncommitted: deque[Removal] = deque()

    def __repr__(self) -> str:
        return f"<Watching {len(self.watchers)} unsettled={len(self.uncommitted)}>"

    def begin(self, watcher: int, applied: int | None) -> None:
        """From now on this one is told everything; what was before it has to look at itself.

        ``applied`` is None without a session: when that comes everything is missed anyway.
        """
        self.watchers.add(watcher)
        if applied is not None:
            self.uncommitted.append(Removal(applied, None, watcher))

    def end(self, watcher: int) -> None:
        self.watchers.discard(watcher)

    def void(self) -> None:
        """The session has ended; the numbers begin anew."""
        self._settled = 0
        self.uncommitted.clear()

    def missed(self, seq: int) -> None:
        """Deletions up to ``seq``, whichever, are not known."""
        if self.watchers:
            self.uncommitted = deque([Removal(seq, None, ALL)])

    def applied(self, seq: int, key: Key) -> None:
        if not self.watchers:
            return
        self.uncommitted.append(Removal(seq, key, ALL))
        if len(self.uncommitted) > UNCOMMITTED_MAX:
            self.missed(seq)

    def committed(self, seq: int) -> None:
        """Global says that all deletions up to ``seq`` are complete."""
        self._settled = max(self._settled, seq)

    @property
    def due(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self.uncommitted) and self.uncommitted[0].seq <= self._settled

    def take(self) -> list[Removal]:
        """What has settled since the last call, in its order."""
        taken = []
        while self.due:
            taken.append(self.uncommitted.popleft())
        return taken

"""What a member has seen of the beats of others, by its own clock.

No clock is compared with another one. A member is *dead* when its beat was not seen to rise for as
long as its ownership lease lasts, and a margin. That time is counted from when an answer with that
beat came: the beat was begun before that, and the member counts its lease from then. Whether the
beat is still the same is decided in the database, in the transaction that deletes the row. So it
does not matter how old the last sighting is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dstore.core.cluster.messages import Member, View

MARGIN = 1 / 30
"""The part of an ownership lease by which its owner ends it earlier, and others wait longer. It
covers clocks that run at different rates."""
STALLED = 1 / 2
"""The part of its ownership lease for which the beat of a member may stand still. Then it gets no
partitions, and it counts as new when it goes on."""


@dataclass
class _Sighting:
    beat: int
    at: float  # when this beat was first seen
    since: float  # the member has not stalled since then
    lease: float


class Sightings:
    """The other members of the newest View, and since when each has its beat."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._seen: dict[bytes, _Sighting] = {}

    def take(self, view: View, now: float) -> None:
        """Take a View that came at ``now``."""
        others = {name: row for name, row in view.members.items() if name != self._me}
        for name, row in others.items():
            known = self._seen.get(name)
            if known is None or known.beat != row.beat:
                self._seen[name] = self._next(known, row, now)
        for name in self._seen.keys() - others.keys():
            del self._seen[name]

    def _next(self, known: _Sighting | None, row: Member, now: float) -> _Sighting:
        going = known is not None and not _stalled(known, now)
        since = known.since if known is not None and going else now
        return _Sighting(row.beat, now, since, row.lease)

    def dead(self, now: float) -> tuple[tuple[bytes, int], ...]:
        """Return the members that may answer nothing any more if their beats are still these."""
        seen = self._seen.items()
        return tuple(sorted((name, each.beat) for name, each in seen if now >= _ends(each)))

    def dead_at(self) -> float:
        """Return when :meth:`dead` next returns something, unless beats rise."""
        return min(map(_ends, self._seen.values()), default=float("inf"))

    def live(self, now: float) -> Iterator[bytes]:
        """Return the members whose beats have not stalled."""
        return (name for name, each in self._seen.items() if not _stalled(each, now))

    def settled(self, now: float) -> Iterator[bytes]:
        """Return the members that have not stalled for at least their ownership lease."""
        return (
            name
            for name in self.live(now)
            if now >= self._seen[name].since + self._seen[name].lease
        )


def _stalled(sighting: _Sighting, now: float) -> bool:
    return now >= sighting.at + sighting.lease * STALLED


def _ends(sighting: _Sighting) -> float:
    return sighting.at + sighting.lease * (1 + MARGIN)

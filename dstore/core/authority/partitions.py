"""The partitions of a Global that is a member of a cluster: which it owns, and until when.

A member answers only for keys of partitions that it owns, and nothing at all when its *ownership
lease* has ended: from then on another member may own them. A message that names a key of another
partition is refused as a whole, with NOT_MINE, before anything of it is executed.

Within one epoch partitions are gained and never given up: a member gives one up by ending its
epoch. So what is parked, queued or pending here needs no second look at who owns its key.

A partition that is gained is *quiet* for a while: caches may answer with its values under leases of
the former owner, and none of them can be asked to acknowledge. Meanwhile it is read, and new keys
are bound; nothing in it is removed or replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

from dstore.core.authority.effects import Refuse
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.messages import Key, Refusal
from dstore.protocol.partitions import PARTITIONS, partition_of

NO_MAP: tuple[int, list[str], bytes] = (0, [], b"")
"""The map where there is no cluster."""


class Partitions:
    """The partitions that a Global owns during one epoch.

    ``ends`` is the end of the ownership lease, in seconds of Global's clock. Its host moves it on.
    It is 0.0 until the first lease begins.
    ``map`` has the version, the members and the owners that :class:`~.messages.MapReply` has, and
    ``cluster`` is the id of the cluster; its host sets both before the first lease begins.
    """

    def __init__(self, ends: float, cluster: bytes = NO_CLUSTER) -> None:
        self.ends = ends
        self.map = NO_MAP
        self.cluster = cluster
        self._lapsed = False
        self._quiet: list[float | None] = [None] * PARTITIONS  # None: not owned

    def __repr__(self) -> str:
        return f"<Partitions owned={len(self)} ends={self.ends:.3f} lapsed={self._lapsed}>"

    def __len__(self) -> int:
        """Return how many partitions are owned."""
        return PARTITIONS - self._quiet.count(None)

    def lapsed(self, now: float) -> bool:
        """Whether the ownership lease has ended. Once it has it stays so, whatever ``ends`` is.

        What came in between was not applied, so that this epoch has to end.
        """
        if now >= self.ends:
            self._lapsed = self._lapsed or self.ends > 0.0  # else nothing was missed
            return True
        return self._lapsed

    def owns(self, key: Key) -> bool:
        """Whether the partition of a key is owned."""
        return self._quiet[partition_of(key)] is not None

    def check(self, keys: Iterable[Key]) -> None:
        """Raise Refuse unless the partitions of all these keys are owned."""
        for key in keys:
            if not self.owns(key):
                raise not_mine(partition_of(key))

    def check_numbers(self, numbers: Iterable[int]) -> None:
        """Raise Refuse unless all these partitions are owned."""
        for number in numbers:
            if self._quiet[number] is None:
                raise not_mine(number)

    def gain(self, numbers: Iterable[int], quiet_until: float) -> None:
        """From now on own these partitions, in which nothing is removed before ``quiet_until``."""
        for number in numbers:
            self._quiet[number] = max(quiet_until, self._quiet[number] or 0.0)

    def quiet_until(self, key: Key) -> float:
        """Return until when the partition of a key is quiet. 0.0: it is not owned."""
        return self._quiet[partition_of(key)] or 0.0

    @property
    def all_quiet_until(self) -> float:
        """Until when any partition is quiet."""
        return max([until or 0.0 for until in self._quiet])


def not_mine(number: int) -> Refuse:
    """Make the refusal of a message that names a partition which is not owned."""
    text = f"partition {number} is not owned by this Global; the map of the cluster says by which"
    return Refuse(Refusal.NOT_MINE, text)

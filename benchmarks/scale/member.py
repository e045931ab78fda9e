"""One Global of several, with the sessions of all Locals, over a database that is a parameter.

It is a :class:`~benchmarks.scale.cluster.Cluster` whose Global is a member: it owns some of the
partitions, and a change takes place when the database has committed it. The members share nothing
but the database, and each Local has a session of its own with each of them. So they are simulated
one after the other, each in a virtual time of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from benchmarks.scale.cluster import Cluster
from dstore.config import LEASE_DEFAULT
from dstore.core.authority.effects import Commit
from dstore.core.authority.partitions import Partitions
from dstore.core.cluster.assignment import assignment
from dstore.core.engine import Outcome
from dstore.protocol.partitions import PARTITIONS, partition_of

NEVER = float("inf")


class Database(NamedTuple):
    """What a database costs, in seconds. Nothing here is measured by this benchmark.

    ``round_trip``: from the beginning of a group of changes until its commit is known, with a
    synchronous standby, while nothing else happens. ``row``: of each change in the group, which
    the primary does one after the other, for all Globals together.
    """

    round_trip: float = 2e-3
    row: float = 11e-6  # 89,000 rows a second, measured in batches of 100 with PostgreSQL 15


def members(count: int) -> tuple[bytes, ...]:
    """Return the ids of members. A greater number of them has the smaller one's, too."""
    return tuple(number.to_bytes(16, "big") for number in range(count))


def owned(ids: tuple[bytes, ...]) -> list[list[int]]:
    """Return the partitions of each member, by rendezvous hashing."""
    owners = assignment(ids, PARTITIONS)
    return [[number for number in range(PARTITIONS) if owners[number] == each] for each in ids]


class Member(Cluster):
    """One Global of several, and all Locals, each with a session here.

    It owns the partitions with these ``numbers``, and can :meth:`gain` more. Its changes are
    committed in groups, one at a time, as its journal does.
    """

    def __init__(
        self,
        size: int,
        numbers: Collection[int],
        database: Database,
        lease: float = LEASE_DEFAULT,
        *,
        at_once: bool = False,
    ) -> None:
        self.database = database
        self.owned: set[int] = set()
        self.groups = 0
        self._waiting: list[Commit] = []
        self._committing = False
        self._keys = 0
        super().__init__(size, lease, at_once=at_once, partitions=Partitions(ends=NEVER))
        self.gain(numbers)

    def gain(self, numbers: Collection[int]) -> None:
        """Own these partitions, too; they are not quiet."""
        self.owned.update(numbers)
        self.state.gain(numbers, [], 0.0, self.now)

    def next_key(self) -> str:
        """Return a new key in a partition that is owned here."""
        while True:
            self._keys += 1
            key = f"config/{self._keys:06}"
            if partition_of(key) in self.owned:
                return key

    # ---- the database ---------------------------------------------------------------------

    def _commit(self, batches: Sequence[Commit]) -> None:
        self._waiting += batches
        if self._waiting and not self._committing:
            group, self._waiting = self._waiting, []
            self._committing = True
            self.groups += 1
            rows = sum(len(each.changes) for each in group)
            took = self.database.round_trip + self.database.row * rows
            self.at(self.now + took, lambda now: self._committed(group))

    def _committed(self, group: Sequence[Commit]) -> None:
        self._committing = False
        for batch in group:
            outcomes = [Outcome.DONE] * len(batch.changes)
            self._inbox.append(
                lambda number=batch.number, outcomes=outcomes: self._step(  # type: ignore[misc]
                    lambda: self.state.committed(number, outcomes, self.now)
                )
            )
        self._commit([])

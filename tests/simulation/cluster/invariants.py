"""Conditions that must hold after every step of a simulated cluster, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from dstore.protocol.messages import Key, Stored
from dstore.protocol.partitions import partition_of
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.node import SimNode
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Database
from tests.simulation.cluster.tables import KEPT, PARTITION


class Caller(Protocol):
    """A thread of a client."""

    name: str

    @property
    def idle(self) -> bool: ...


class Run(Protocol):
    """What is looked at of a run."""

    scenario: ClusterScenario
    database: Database
    members: dict[str, SimMember]
    nodes: list[SimNode]
    keys: list[Key]

    @property
    def threads(self) -> Sequence[Caller]: ...


def broken(run: Run) -> Iterator[str]:
    """The conditions that do not hold now, one line each."""
    yield from _one_owner(run)
    yield from _caches_are_current(run)


def _one_owner(run: Run) -> Iterator[str]:
    """No two members would answer for one partition, and who would is its owner by the database."""
    rows, owners = run.database.primary.durable, dict[int, SimMember]()
    for member in run.members.values():
        for number in member.serving():
            other = owners.setdefault(number, member)
            if other is not member:
                yield f"{other.name} and {member.name} answer for partition {number}"
            row = rows[PARTITION, number]
            if row.owner != member.ownership.me:
                yield f"{member.name} would answer for partition {number}, and {row}"


def _caches_are_current(run: Run) -> Iterator[str]:
    """Each value that a hit could answer with is the one that the database has."""
    rows = run.database.primary.durable
    for node in run.nodes:
        now = node.clock()
        for local in node.locals.values():
            state = local.state
            if not state.cache.entries or now >= state.lease_end:
                continue
            for key, entry in state.cache.entries.items():
                row = rows.get((KEPT, key))
                assert isinstance(entry.value, Stored)
                if row is not None and row.token == entry.value.token:
                    continue
                visited = entry.visited
                if state.hit(key, now) is not None:
                    yield f"{local.name} may answer {key} with a value that is gone"
                entry.visited = visited


def left_over(run: Run) -> Iterator[str]:
    """What is not well at the end of a run, one line each."""
    for number in range(run.scenario.partitions):
        if not any(number in each.serving() for each in run.members.values()):
            yield f"nobody answers for partition {number}"
    for member in run.members.values():
        if member.state is not None and not member.state.idle:
            yield f"{member.name} has not ended what it has begun"
        if member.giving:
            yield f"{member.name} has not handed over {member.giving}"
        if member.state is not None:
            yield from _rows_are_in_memory(run, member)
    for caller in run.threads:
        if not caller.idle:
            yield f"{caller.name} still waits"


def _rows_are_in_memory(run: Run, member: SimMember) -> Iterator[str]:
    """Memory and database have the same keys and values."""
    rows = run.database.primary.durable
    for key in run.keys:
        if partition_of(key) not in member.serving():
            continue
        row, bound = rows.get((KEPT, key)), member.engine.read(key)
        if (row.token if row else None) != (bound.token if bound else None):
            yield f"{member.name} has another value of {key} than the database"

"""Conditions that must hold after every step of a simulated cluster, and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dstore.protocol.messages import Stored
from dstore.protocol.partitions import partition_of
from tests.simulation.cluster.tables import KEPT, PARTITION

if TYPE_CHECKING:
    from tests.simulation.cluster.simulation import ClusterSimulation


def broken(run: ClusterSimulation) -> Iterator[str]:
    """The conditions that do not hold now, one line each."""
    yield from _one_owner(run)
    yield from _caches_are_current(run)
    yield from _alarms_are_in_time(run)


def _one_owner(run: ClusterSimulation) -> Iterator[str]:
    """No two members would answer for one partition, and who would is its owner by the database."""
    for number in range(run.scenario.partitions):
        serving = [each for each in run.members.values() if each.serves(number)]
        if len(serving) > 1:
            yield f"{[each.name for each in serving]} answer for partition {number}"
        for member in serving:
            row = run.database.primary.durable[PARTITION, number]
            if row.owner != member.ownership.me:
                yield f"{member.name} would answer for partition {number}, and {row}"


def _caches_are_current(run: ClusterSimulation) -> Iterator[str]:
    """Each value that a hit could answer with is the one that the database has."""
    rows = run.database.primary.durable
    for node in run.nodes:
        now = node.clock()
        for local in node.locals.values():
            if now >= local.state.lease_end:
                continue
            for entry in local.state.cache:
                visited = entry.visited
                found = local.state.hit(entry.key, now)
                entry.visited = visited
                if found is not None:
                    assert isinstance(found.value, Stored)
                    row = rows.get((KEPT, entry.key))
                    if row is None or row.token != found.value.token:
                        yield f"{local.name} may answer {entry.key} with a value that is gone"


def _alarms_are_in_time(run: ClusterSimulation) -> Iterator[str]:
    for member in run.members.values():
        state, now = member.state, member.clock()
        if state is None or now >= member.partitions.ends:
            continue
        if state.wake_at > state._next_moment(now):
            yield f"{member.name} wakes at {state.wake_at}, which is too late for {state!r}"


def left_over(run: ClusterSimulation) -> Iterator[str]:
    """What is not well at the end of a run, one line each."""
    for number in range(run.scenario.partitions):
        if sum(each.serves(number) for each in run.members.values()) != 1:
            yield f"nobody answers for partition {number}"
    for member in run.members.values():
        if member.state is not None and not member.state.idle:
            yield f"{member.name} has not ended what it has begun"
        if member.giving:
            yield f"{member.name} has not handed over {member.giving}"
        if member.state is not None:
            yield from _rows_are_in_memory(run, member.name)
    for caller in run.callers:
        if not caller.idle:
            yield f"{caller.name} still waits"


def _rows_are_in_memory(run: ClusterSimulation, name: str) -> Iterator[str]:
    """Memory and database have the same keys and values."""
    (member,) = (each for each in run.members.values() if each.name == name)
    rows = run.database.primary.durable
    for key in run.keys:
        if not member.serves(partition_of(key)):
            continue
        row, bound = rows.get((KEPT, key)), member.engine.read(key)
        if (row.token if row else None) != (bound.token if bound else None):
            yield f"{name} has another value of {key} than the database"

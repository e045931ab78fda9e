"""Conditions that must hold after every step of a simulated cluster, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from dstore.core.local.membership import Entry
from dstore.protocol.messages import Key, Stored
from dstore.protocol.partitions import partition_of
from dstore.server.postgres import large
from tests.simulation.cluster.machine import Machine
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.node import NodeLocal, SimNode
from tests.simulation.cluster.pieces import is_large
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Database
from tests.simulation.cluster.tables import KEPT, PARTITION, PIECE
from tests.simulation.pages import VOID, ReadPage, SimPage


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
    machines: list[Machine]
    nodes: list[SimNode]
    keys: list[Key]

    @property
    def threads(self) -> Sequence[Caller]: ...


def broken(run: Run) -> Iterator[str]:
    """The conditions that do not hold now, one line each."""
    yield from _one_owner(run)
    yield from _caches_are_current(run)
    yield from _indexes_are_current(run)
    yield from _host_caches_are_current(run)
    yield from _pages_end_with_their_epochs(run)
    yield from _large_values_are_whole(run)


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
    for node in run.nodes:
        now = node.clock()
        for local in node.locals.values():
            state = local.state
            if isinstance(state.page, ReadPage):
                yield from _shared_entries_are_current(run, local, state.page.page)
            elif state.cache.entries and now < state.lease_end:
                for key, entry in state.cache.entries.items():
                    visited = entry.visited
                    if not _is_current(run, key, entry) and state.hit(key, now) is not None:
                        yield f"{local.name} may answer {key} with a value that is gone"
                    entry.visited = visited


def _indexes_are_current(run: Run) -> Iterator[str]:
    """What a hit finds in an index is stored by a Local: the rules above are enough for it."""
    for node in run.nodes:
        present = {id(each.state.membership) for each in node.locals.values()}
        for key, entry in node.index.items():
            home = entry.home
            if home is None or id(home) not in present or home.entries.get(key) is not entry:
                yield f"the index of {node.name} has {entry!r}, which is not stored"


def _shared_entries_are_current(run: Run, local: NodeLocal, page: SimPage) -> Iterator[str]:
    """The same of the entries of one process, by the words and the lease of the page."""
    if local.clock() >= page.lease_end:
        return
    words, bucket_of = page.vector.words, page.vector.bucket
    for key, entry in local.state.membership.entries.items():
        if words[bucket_of(key)] <= entry.seq and not _is_current(run, key, entry):
            yield f"{local.name} may answer {key} of {page!r} with a value that is gone"


def _is_current(run: Run, key: Key, entry: Entry) -> bool:
    assert isinstance(entry.value, Stored)
    return _token_of(run, key) == entry.value.token


def _token_of(run: Run, key: Key) -> bytes | None:
    row = run.database.primary.durable.get((KEPT, key))
    return None if row is None else row.token


def _host_caches_are_current(run: Run) -> Iterator[str]:
    """The same of the values in the memory of hosts, also those of former owners of pages."""
    for machine in run.machines:
        now = machine.clock()
        for page in [page for host in machine.hosts() for page in host.pages]:
            if page.table is None or now >= page.lease_end:
                continue
            for key in run.keys:
                hashed = page.vector.hashed(key)
                record = page.table.find(key, hashed)
                word = page.vector.words[page.vector.bucket(key)]
                if record is None or word > record.seq:
                    continue
                if record.token != _token_of(run, key):
                    yield f"{page!r} may answer {key} with a value that is gone"


def _pages_end_with_their_epochs(run: Run) -> Iterator[str]:
    """The page of a member that has begun another epoch is void, unless that failed."""
    for member in run.members.values():
        if not member.frozen and member.alive and not run.scenario.page_faults:
            for page in member.ended:
                if page.lease_word[0] != VOID:
                    yield f"{page!r} of {member.name} outlives its epoch"


def _large_values_are_whole(run: Run) -> Iterator[str]:
    """Each large value that a key has in the database is there, with all its pieces."""
    if not run.scenario.large:
        return
    rows = run.database.primary.durable
    for key in run.keys:
        row = rows.get((KEPT, key))
        if row is not None and is_large(row.stored):
            numbers = range(-(-row.stored.size // large.PIECE_BYTES))
            if any((PIECE, (partition_of(key), row.token, each)) not in rows for each in numbers):
                yield f"not all pieces of {key} are in the database"


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
    yield from _pieces_are_named(run)
    for caller in run.threads:
        if not caller.idle:
            yield f"{caller.name} still waits"


def _pieces_are_named(run: Run) -> Iterator[str]:
    """All pieces belong to the value of a key."""
    rows = run.database.primary.durable
    named = {(partition_of(key), _token_of(run, key)) for key in run.keys}
    for _, place in [name for name in rows if name[0] == PIECE]:
        if place[:2] not in named:
            yield f"piece {place[2]} of a value of partition {place[0]} belongs to no key"


def _rows_are_in_memory(run: Run, member: SimMember) -> Iterator[str]:
    """Memory and database have the same keys and values."""
    rows = run.database.primary.durable
    for key in run.keys:
        if partition_of(key) not in member.serving():
            continue
        row, bound = rows.get((KEPT, key)), member.engine.read(key)
        if (row.token if row else None) != (bound.token if bound else None):
            yield f"{member.name} has another value of {key} than the database"
        if row is not None and is_large(row.stored) and row.token not in member.values:
            yield f"{member.name} does not know that {key} has a large value"

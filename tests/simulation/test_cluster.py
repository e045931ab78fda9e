"""Several Globals over PostgreSQL, simulated: many seeds pass, and what is broken is caught."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from dstore.core.cluster.messages import Beat, Member, Partition, View
from dstore.core.engine import NO_DEADLINE, Change, ChangeKind, Kept, Outcome
from dstore.protocol.messages import Stored
from dstore.protocol.partitions import partition_of
from tests.history.operations import Kind, Operation, Result
from tests.simulation.catch import CAUGHT, has_failed, run_simulation, run_test
from tests.simulation.cluster.journal import FENCED, ClusterJournal
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.run import run
from tests.simulation.cluster.scans import Scan, broken
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Client, Connection, Database, Server, Transaction
from tests.simulation.cluster.tables import KEPT, MEMBER, PARTITION, RowName, carry_out
from tests.simulation.identities import Identities
from tests.simulation.loop import Loop
from tests.simulation.mutants import MUTANTS, Mutant

SEEDS = 9
"""Seeds of the default run; ``scripts/simulate --cluster --seeds N`` plays more."""
SEEDS_OF_A_MUTANT = 40
"""Seeds within which the mutants of the default run have to be caught."""
QUICK = {
    "member that is declared dead before its lease has ended",
    "key of another partition read",
}
"""Mutants of the default run; ``scripts/simulate --mutants`` plays all."""
REACHED = {
    "GlobalUnavailable",
    "OutcomeUnknown",
    "batches in doubt",
    "commits that a crash has shown",
    "commits that a failover has lost",
    "commits with a warning",
    "database: cancel",
    "database: crash",
    "database: failover",
    "database: lag",
    "database: loss",
    "former primaries that were not believed",
    "hits",
    "ownership: Gained",
    "ownership: HandOver",
    "ownership: Left",
    "ownership: Lost",
    "strangers by themselves",
    "strangers of another cluster",
    "transactions in doubt",
    "transactions that came late",
    "transactions that waited for a lock",
    "transactions that were aborted",
    "writes that a fence has stopped",
}
"""What happens in some of the first scenarios."""
ROW: RowName = (PARTITION, 0)
BEFORE, AFTER = Partition(None, 0, 0.0), Partition(b"me", 1, 2.0)


@pytest.mark.parametrize("part", range(0, SEEDS, 3))
def test_no_seed_fails(part: int) -> None:
    first = int(os.environ.get("DSTORE_SEED", "0")) + part
    for seed in range(first, first + 3):
        outcome = run(ClusterScenario.draw(seed))
        assert outcome.ok, f"seed {seed}: {outcome.scenario}\n" + "\n".join(outcome.violations)


def test_the_same_seed_gives_the_same_trace() -> None:
    one, other = run(ClusterScenario.draw(2)), run(ClusterScenario.draw(2))
    assert len(one.trace) > 100
    assert one.trace == other.trace


STRANGERS = ClusterScenario(
    seed=0,
    locals=2,
    threads=2,
    operations=25,
    weights=(8, 2, 4, 1, 2, 4, 1, 1, 1, 1, 1),
    think=0.1,
    members=2,
    members_max=2,
    member_crashes=1.0,
    strangers=1.0,
)
"""Whenever a member has crashed another Global has its address."""


def test_no_call_goes_to_another_global_at_the_address_of_a_member() -> None:
    counts: Counter[str] = Counter()
    for seed in range(3):
        outcome = run(replace(STRANGERS, seed=seed))
        assert outcome.ok, f"seed {seed}\n" + "\n".join(outcome.violations)
        counts += outcome.counts
    assert counts["strangers by themselves"]
    assert counts["strangers of another cluster"]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_scenarios_reach_what_members_and_databases_do() -> None:
    counts: Counter[str] = Counter()
    calm = 0
    for seed in range(100):
        scenario = ClusterScenario.draw(seed)
        calm += scenario.calm
        counts += run(scenario).counts
        if calm and set(counts) >= REACHED:
            break
    assert calm
    assert not REACHED - set(counts)


@pytest.mark.parametrize(
    "mutant", [pytest.param(each, id=each.name) for each in MUTANTS if each.name in QUICK]
)
def test_mutants_are_caught(mutant: Mutant) -> None:
    ended = run_simulation(mutant, SEEDS_OF_A_MUTANT)
    assert ended.returncode == CAUGHT, ended.stdout + ended.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.cluster and each.test])
def test_mutants_that_a_test_catches(mutant: Mutant) -> None:
    assert has_failed(run_test(mutant))


# ---- the simulated database -----------------------------------------------------------------


class World:
    """A database of one partition, and two connections of one process that is never paused."""

    def __init__(self) -> None:
        self.loop = Loop(1)
        self.scenario = ClusterScenario(seed=1, partitions=1, late=0.0, patience=5.0)
        self.database = Database(self.loop, self.scenario)
        self.client = Client(self.loop, "C")
        self.one, self.other = (Connection(self.database, self.client, each) for each in "ab")
        self.results: list[object] = []

    def write(self, connection: Connection) -> None:
        connection.run(_write, self.results.append)

    def read(self) -> object:
        """Return the row as another transaction sees it now."""
        found: list[object] = []
        self.other.run(lambda rows: [rows.get(ROW)], found.append)
        self.wait()
        (rows,) = found
        assert isinstance(rows, list)
        return rows[0]

    def wait(self, seconds: float = 0.5) -> None:
        until = self.loop.now + seconds
        self.loop.run(until, lambda: False)
        self.loop.now = until


def _write(rows: Transaction) -> str:
    rows.lock(ROW)
    rows.put(ROW, AFTER)
    return "written"


@pytest.fixture
def world() -> World:
    return World()


def _flushed(world: World) -> None:
    """Begin a write that the standby does not get for a while."""
    world.database.primary.lags_until = world.loop.now + 3.0
    world.write(world.one)
    world.wait()
    assert len(world.database.primary.flushed) == 1
    assert not world.results


def test_a_commit_is_acknowledged_when_the_standby_has_it(world: World) -> None:
    _flushed(world)
    assert world.read() == BEFORE
    world.wait(3.0)
    assert world.results == ["written"]
    assert world.read() == AFTER
    assert world.database.primary.durable[ROW] == AFTER


def test_a_cancelled_wait_shows_what_a_failover_takes_back(world: World) -> None:
    _flushed(world)
    world.database.primary.cancel()
    world.wait(0.1)
    assert world.results == [None]
    assert world.read() == AFTER
    world.database._fail_over()
    world.other.cut()
    world.wait(6.0)
    assert world.database.former is None, "it has ended by then"
    assert world.read() == BEFORE


def test_a_crash_shows_what_was_not_replicated(world: World) -> None:
    _flushed(world)
    world.database._cut(world.database.primary)
    world.database.primary.crash(0.1)
    world.wait(0.2)
    assert world.results == [None]
    assert world.read() == AFTER
    assert world.database.primary.durable[ROW] == BEFORE


def test_a_transaction_in_doubt_may_be_carried_out(world: World) -> None:
    world.write(world.one)
    world.wait(0.012)
    world.one.cut()
    assert world.results == [None]
    world.wait()
    assert world.read() in (BEFORE, AFTER)


def test_a_row_stays_locked_until_the_standby_has_the_change(world: World) -> None:
    _flushed(world)
    tried: list[object] = []

    def try_lock(rows: Transaction) -> list[bool]:
        return [rows.lock_at_once(ROW)]

    world.other.run(try_lock, tried.append)
    world.wait()
    assert tried == [[False]]
    world.write(world.other)
    world.wait()
    assert not world.results
    assert world.loop.counts["transactions that waited for a lock"] == 1
    world.wait(3.0)
    assert world.results == ["written", "written"]


def test_a_former_primary_is_read_and_acknowledges_nothing(world: World) -> None:
    world.read()
    former = world.database.primary
    world.database._fail_over()
    while world.database.former is None:  # by chance
        former = world.database.primary
        world.database._fail_over()
    world.database.primary.durable[ROW] = world.database.primary.visible[ROW] = AFTER
    world.other.server = world.one.server = former
    assert world.read() == BEFORE
    world.write(world.one)
    world.wait(6.0)
    assert world.results == [None]
    assert len(former.flushed) == 1


# ---- listings -------------------------------------------------------------------------------


def _operation(
    kind: Kind, start: float, end: float | None, result: Result, ttl: float | None = None
) -> Operation:
    value = f"{start}" if kind in (Kind.SET, Kind.REPLACE) else None
    seen = "1.0" if result is Result.VALUE else None
    return Operation("t", "k", kind, start, end, result, value, seen, ttl=ttl)


SET = _operation(Kind.SET, 1.0, 2.0, Result.STORED)
SCAN = Scan("t", 10.0, 20.0, ("k",))
EMPTY = SCAN._replace(keys=())


@pytest.mark.parametrize(
    ("scan", "history", "fine"),
    [
        (SCAN, [SET], True),
        (EMPTY, [SET], False),
        (EMPTY, [], True),
        (SCAN, [_operation(Kind.SET, 21.0, 22.0, Result.STORED)], False),
        (SCAN, [_operation(Kind.SET, 19.0, 22.0, Result.STORED)], True),
        (EMPTY, [_operation(Kind.SET, 1.0, 11.0, Result.STORED)], True),
        (EMPTY, [SET, _operation(Kind.DELETE, 3.0, 4.0, Result.DELETED)], True),
        (EMPTY, [SET, _operation(Kind.DELETE, 3.0, 4.0, Result.MISSING)], False),
        (EMPTY, [SET, _operation(Kind.DELETE, 19.0, 24.0, Result.DELETED)], True),
        (EMPTY, [SET, _operation(Kind.DELETE, 21.0, 24.0, Result.DELETED)], False),
        (EMPTY, [SET, _operation(Kind.DELETE, 3.0, None, Result.UNKNOWN)], True),
        (EMPTY, [SET, _operation(Kind.DELETE, 3.0, 4.0, Result.PENDING)], True),
        (EMPTY, [_operation(Kind.SET, 1.0, 2.0, Result.STORED, ttl=9.0)], True),
        (
            EMPTY,
            [
                SET,
                _operation(Kind.DELETE, 3.0, 4.0, Result.DELETED),
                _operation(Kind.SET, 5.0, 6.0, Result.STORED),
            ],
            False,
        ),
        (SCAN._replace(keys=("k", "k")), [SET], False),
    ],
)
def test_a_listing_has_what_was_bound_all_the_time(
    scan: Scan, history: list[Operation], fine: bool
) -> None:
    assert (not list(broken([scan], history))) == fine


# ---- the simulated journal ------------------------------------------------------------------

KEY = next(name for name in map(str, range(10_000)) if partition_of(name) == 0)
BIND = Change(ChangeKind.BIND, KEY, b"", Stored(b"t" * 16, "bytes", b"value"))
REMOVE = Change(ChangeKind.REMOVE, KEY, b"t" * 16)


class Writer(World):
    """A member that owns the one partition by the database, and writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = self.database.primary
        for rows in (self.primary.durable, self.primary.visible):
            rows[PARTITION, 0] = Partition(b"me", 5, 2.0)
            rows[MEMBER, b"me"] = Member("tcp://me:1", 1, 1.0, 1.0, False)
        self.reports: list[tuple[int, list[Outcome]]] = []
        self.fenced = 0
        self.journal = ClusterJournal(
            self.database, self.client, b"me", self._report, self._on_fenced
        )
        self.journal.own(0, 5)

    def _report(self, number: int, outcomes: list[Outcome]) -> None:
        self.reports.append((number, outcomes))

    def _on_fenced(self) -> None:
        self.fenced += 1

    def kept(self) -> Kept | None:
        found = self.database.primary.durable.get((KEPT, KEY))
        assert found is None or isinstance(found, Kept)
        return found

    def claim(self) -> Partition:
        """Another member claims the partition. Returns the row that it sees."""
        views: list[View] = []
        row = Member("tcp://other:1", 1, 1.0, 1.0, False)
        ask = Beat(b"other", 1, row, dead=((b"me", 1),), claim=((0, 5),))
        self.other.run(partial(carry_out, ask), views.append)
        self.wait()
        (view,) = views
        return view.partitions[0]


def test_a_stalled_writer_keeps_others_from_its_partition() -> None:
    """It has compared the fence, and stands still before its COMMIT: nobody can claim meanwhile."""
    world = Writer()
    world.journal.commit(1, [BIND])
    while not world.primary._open:
        world.wait(0.001)
    world.client.pause(0.9)
    claimed = Connection(world.database, Client(world.loop, "D"), "c")
    world.other = claimed
    row = world.claim()
    assert row.owner == b"me", "it is locked"
    assert world.kept() is None
    world.wait(2.0)
    assert world.kept() is not None
    assert world.reports == [(1, [Outcome.DONE])]


def test_a_writer_whose_fence_has_risen_writes_nothing() -> None:
    world = Writer()
    assert world.claim() == Partition(b"other", 6, 2.0)
    world.journal.commit(1, [BIND])
    world.wait()
    assert world.fenced == 1
    assert world.kept() is None
    assert not world.reports


def test_a_write_in_doubt_that_lands_late_does_nothing() -> None:
    """What was in doubt is done under another fence, and undone again before the first comes."""
    world = Writer()
    late: list[tuple[Any, ...]] = []
    arrive = world.journal._connection._arrive
    world.journal._connection._arrive = lambda *sent: late.append(sent)  # type: ignore[method-assign]
    world.journal.commit(1, [BIND])
    world.wait(0.1)
    assert len(late) == 1
    world.journal._connection._arrive = arrive  # type: ignore[method-assign]
    world.journal._connection.cut()
    world.wait()
    assert world.reports == [(1, [Outcome.DONE])]
    assert world.database.primary.durable[PARTITION, 0].fence == 6
    world.journal.commit(2, [REMOVE])
    world.wait()
    assert world.reports[1:] == [(2, [Outcome.DONE])]
    assert world.kept() is None
    server, _, body = late[0]
    server.begin(body, world.results.append, world.client, lambda: True)
    world.loop.dice.seed(3)  # it commits
    world.wait(2.0)
    assert world.kept() is None


def test_an_attempt_that_lands_late_does_nothing() -> None:
    """The second attempt comes after the third one has been carried out."""
    world = Writer()
    late: list[tuple[Any, ...]] = []
    connection = world.journal._connection
    arrive = connection._arrive
    connection._arrive = lambda *sent: late.append(sent)  # type: ignore[method-assign]
    world.journal.commit(1, [BIND])
    for count in (1, 2, 3):
        world.wait(0.1)
        assert len(late) == count
        if count == 3:
            connection._arrive = arrive  # type: ignore[method-assign]
        connection.cut()
    world.wait()
    assert world.reports == [(1, [Outcome.DONE])]
    world.journal.commit(2, [REMOVE])
    world.wait()
    before = world.database.primary.durable[PARTITION, 0]
    for server, _, body in late:
        server.begin(body, world.results.append, world.client, lambda: False)
    world.wait()
    assert world.results == [FENCED] * 3
    assert world.kept() is None
    assert world.database.primary.durable[PARTITION, 0] == before


def test_doubt_after_doubt_ends_when_an_answer_comes() -> None:
    """Each attempt may have raised the fence."""
    world = Writer()
    world.journal.commit(1, [BIND])
    for _ in range(3):
        while not world.primary.flushed:
            world.wait(0.001)
        world.journal._connection.cut()
    world.wait()
    assert world.reports == [(1, [Outcome.DONE])]
    assert world.journal.fences[0] == world.database.primary.durable[PARTITION, 0].fence
    assert 6 <= world.journal.fences[0] <= 8


# ---- the simulated member -------------------------------------------------------------------


def test_rows_of_a_former_primary_are_not_believed() -> None:
    """A member claims at the new primary, and loads over a connection to the old one."""
    loop, scenario = Loop(1), ClusterScenario(seed=1, partitions=1)
    database = Database(loop, scenario)
    member = SimMember(loop, scenario, database, Identities(loop, scenario), 0)
    member.start()
    loop.run(2.0, lambda: False)
    assert member.serving() == [0]
    former, database.primary = database.primary, Server(loop, scenario, database.primary.durable)
    former.has_standby = False
    row = Kept(KEY, b"t" * 16, Stored(b"t" * 16, "bytes", b"value"), NO_DEADLINE)
    for rows in (database.primary.durable, database.primary.visible):
        rows[KEPT, KEY] = row
    member._directory.cut()
    member._directory.server = database.primary
    found = iter([former, former])
    database.pick = lambda: next(found, database.primary)  # type: ignore[method-assign]
    member._act(member.ownership.lose("a test", member.clock()))
    loop.run(5.0, lambda: False)
    assert member.serving() == [0]
    assert loop.counts["former primaries that were not believed"]
    assert member.engine.read(KEY) == row.stored

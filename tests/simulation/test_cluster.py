"""Several Globals over PostgreSQL, simulated: many seeds pass, and what is broken is caught."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from dstore.core.cluster.messages import Partition
from tests.history.operations import Kind, Operation, Result
from tests.simulation.catch import CAUGHT, has_failed, run_simulation, run_test
from tests.simulation.cluster.run import run
from tests.simulation.cluster.scans import Scan, broken
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Client, Connection, Database, Transaction
from tests.simulation.cluster.tables import PARTITION, RowName
from tests.simulation.loop import Loop
from tests.simulation.mutants import MUTANTS, Mutant

SEEDS = 12
"""Seeds of the default run; ``scripts/simulate --cluster --seeds N`` plays more."""
SEEDS_OF_A_MUTANT = 40
"""Seeds within which the mutants of the default run have to be caught."""
QUICK = {
    "member that is declared dead before its lease has ended",
    "no wait for the leases of the owner before",
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
    "hits",
    "ownership: Gained",
    "ownership: HandOver",
    "ownership: Left",
    "ownership: Lost",
    "transactions in doubt",
    "transactions that came late",
    "transactions that waited for a lock",
    "transactions that were aborted",
    "writes that a fence has stopped",
}
"""What happens in some of the first scenarios."""
ROW: RowName = (PARTITION, 0)
BEFORE, AFTER = Partition(None, 0, 0.0), Partition(b"me", 1, 2.0)


@pytest.mark.parametrize("part", range(0, SEEDS, 4))
def test_no_seed_fails(part: int) -> None:
    first = int(os.environ.get("DSTORE_SEED", "0")) + part
    for seed in range(first, first + 4):
        outcome = run(ClusterScenario.draw(seed))
        assert outcome.ok, f"seed {seed}: {outcome.scenario}\n" + "\n".join(outcome.violations)


def test_the_same_seed_gives_the_same_trace() -> None:
    one, other = run(ClusterScenario.draw(2)), run(ClusterScenario.draw(2))
    assert len(one.trace) > 100
    assert one.trace == other.trace


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
        self.loop.run(self.loop.now + seconds, lambda: False)


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
    world.database._kill(world.database.former or world.database.primary)
    world.other.cut()
    world.wait(1.0)
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
    world.wait(1.0)
    assert not world.results
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
        (SCAN, [], False),
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

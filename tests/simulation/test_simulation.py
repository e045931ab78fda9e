"""The real core passes over many seeds, and its broken variants are caught."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from dstore.core.authority import sessions
from dstore.core.local import state
from tests.history.linearizability import check_linearizable
from tests.simulation.catch import (
    CAUGHT,
    UNCAUGHT,
    has_failed,
    run_simulation,
    run_test,
)
from tests.simulation.hits import READING
from tests.simulation.mutant import module_of
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import run
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

SEEDS = 30
"""Seeds of the default run; ``scripts/simulate --seeds N`` plays more."""
SEEDS_OF_A_PART = 15
"""Seeds of one test: a run takes about a third of a second."""
SEEDS_OF_A_MUTANT = 60
"""Seeds within which the mutants below have to be caught."""
QUICK = {
    "removal before acknowledgement",
    "confirmation without waiting",
    "look-up of an operation that does not compare the word",
    "hit that does not compare the word",
    "value of a pending key cached",
    "repeated DEL that removes a newer value",
    "forked child that uses its parent's lease",
    "hit of a shared entry that does not compare the word",
    "expiry that does not wait for holders",
    "loaded value cacheable though its deletion is pending",
}
"""Mutants of the default run; ``scripts/simulate --mutants`` plays all."""


@pytest.mark.parametrize("part", range(0, SEEDS, SEEDS_OF_A_PART))
def test_no_seed_fails(part: int) -> None:
    first = int(os.environ.get("DSTORE_SEED", "0")) + part
    for seed in range(first, first + SEEDS_OF_A_PART):
        outcome = run(Scenario.draw(seed))
        assert outcome.ok, f"seed {seed}: {outcome.scenario}\n" + "\n".join(outcome.violations)


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in (3, 5):
        one, other = run(Scenario.draw(seed)), run(Scenario.draw(seed))
        assert len(one.trace) > 100
        assert one.trace == other.trace


def test_the_scenarios_have_every_fault_and_every_operation() -> None:
    missing = {
        "cut off",
        "stands still",
        "dies",
        "goodbye",
        "crashes",
        "gives up",
        "keys=None",
        "OutcomeUnknown",
        "GlobalUnavailable",
        "Refused(",
        "serial=0",
        "pending",
        "replaced",
        "occupied",
        "delete_many",
        "set_many",
        "get_many",
        "changed",
        "persist",
    }
    for seed in range(40):
        simulation = Simulation(Scenario.draw(seed))
        simulation.run()
        trace = "\n".join(simulation.loop.trace)
        missing = {event for event in missing if event not in trace}
        if not missing:
            break
    assert not missing


REACHED = {
    "attaches",
    "bridged reads",
    "calls that stood still",
    "detaches",
    "hits of shared entries",
    "hits without the lock",
    "host hits",
    "host hits of many",
    "inheritances",
    "loads",
    "loads of values that were gone",
    "loads that failed",
    "owner restarts",
    "owners that died in a call",
    "pages",
    "pages of Global",
    "private fallbacks",
    "promotions",
    "threads that stood still",
}
"""What happens in some of the first scenarios: of memberships that hosts share, and of engines."""


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_scenarios_reach_what_hosts_and_engines_do() -> None:
    counts: Counter[str] = Counter()
    for seed in range(60):
        simulation = Simulation(Scenario.draw(seed))
        simulation.run()
        counts += simulation.loop.counts
        if set(counts) >= REACHED:
            break
    assert not REACHED - set(counts)


def test_what_a_run_changes_in_the_core_is_restored() -> None:
    before = state.PRIVATE_AFTER, sessions.WRITER_IDLE, [each.clock for each in READING]
    Simulation(Scenario(seed=1, sharing=1.0, global_page=True, private_after=0.1)).run()
    after = state.PRIVATE_AFTER, sessions.WRITER_IDLE, [each.clock for each in READING]
    assert after == before


def test_a_history_of_the_simulation_is_not_trivially_linearizable() -> None:
    """The checker refuses the history with a read that comes after the deletion of its value."""
    simulation = Simulation(Scenario(seed=1, locals=3, threads=2, operations=20, keys=1))
    simulation.run()
    history = simulation.history
    assert check_linearizable(history).ok
    reads = [each for each in history if each.seen is not None]
    stale, later = reads[0], history[-1].start + 100.0
    deleted = [each for each in history if each.result.value == "deleted"]
    assert deleted
    history.append(stale._replace(start=later, end=later + 1))
    history.append(deleted[0]._replace(start=later - 2, end=later - 1))
    assert not check_linearizable(history).ok


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name) for each in MUTANTS])
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    """A mutant whose text is no longer in the source changes nothing. It has to be Python, too."""
    from pathlib import Path

    import dstore
    from tests.simulation.patched import source

    root = Path(dstore.__file__).parents[1]
    for name, _, _ in mutant.edits:
        module = module_of(name)
        text = root.joinpath(*module.split(".")).with_suffix(".py").read_text()
        changed = source(mutant, module, text)
        assert changed != text
        compile(changed, name, "exec")


@pytest.mark.parametrize(
    "mutant", [pytest.param(each, id=each.name) for each in MUTANTS if each.name in QUICK]
)
def test_mutants_are_caught(mutant: Mutant) -> None:
    if mutant.test:
        ended = run_test(mutant)
        caught = has_failed(ended)
    else:
        ended = run_simulation(mutant, SEEDS_OF_A_MUTANT)
        caught = ended.returncode == CAUGHT
    assert caught, ended.stdout + ended.stderr


def test_the_mutants_of_the_default_run_exist() -> None:
    names = [each.name for each in MUTANTS]
    assert set(names) >= QUICK
    assert len(set(names)) == len(names)


def test_a_crash_does_not_count_as_caught() -> None:
    broken = Mutant("no such mutant", (), "tests/unit/test_keys.py")
    assert run_simulation(broken, 1).returncode not in (0, CAUGHT, UNCAUGHT)
    assert not has_failed(run_test(broken))

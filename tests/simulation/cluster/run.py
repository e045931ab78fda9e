"""Plays scenarios of a cluster, and judges their histories."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from tests.history.linearizability import check_linearizable
from tests.history.sweep import Undecided
from tests.simulation.cluster import scans
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.simulation import ClusterSimulation
from tests.simulation.course import Outcome, plainer, play, smaller, without
from tests.simulation.scenario import Scenario

SHRINK_TRIES = 20
"""Seeds that are tried for each simpler scenario."""
FAULTS = (
    "member_pauses",
    "member_crashes",
    "strangers",
    "isolations",
    "joins",
    "drains",
    "database_faults",
    "late",
    "slow",
    "lost_broadcasts",
    "cuts",
    "pauses",
    "ttl",
    "member_drift",
    "drift",
    "linger",
    "large",
    "owner_faults",
    "page_faults",
    "deaths",
    "freezes",
    "sharing",
)
SIZES = ("locals", "threads", "operations", "keys", "many", "partitions", "members")


def run(scenario: ClusterScenario) -> Outcome:
    """Play one scenario and check the invariants at each step, then the history."""
    return play(ClusterSimulation(scenario), _check_history)


def _check_history(simulation: ClusterSimulation, outcome: Outcome) -> None:
    history = simulation.history
    try:
        verdict = check_linearizable(history)
    except Undecided:
        outcome.undecided = True
    else:
        outcome.violations += [str(each) for each in verdict.violations]
    outcome.violations += scans.broken(simulation.scans, history)


def draw_and_run(seed: int) -> Outcome:
    """Play the scenario of a seed."""
    return run(ClusterScenario.draw(seed))


def shrink(outcome: Outcome) -> Outcome:
    """Return a run that fails too, and is as small as could be found: with fewer kinds of faults,
    clients, members, threads and operations."""
    smallest, improved = outcome, True
    while improved:
        improved = False
        for simpler in _simpler(smallest.scenario):
            shorter = _first_failure(simpler)
            if shorter is not None:
                smallest, improved = shorter, True
                break
    return smallest


def _first_failure(scenario: ClusterScenario) -> Outcome | None:
    dice = random.Random(scenario.seed)
    seeds = [scenario.seed, *(dice.randrange(2**32) for _ in range(SHRINK_TRIES))]
    played = (run(replace(scenario, seed=seed)) for seed in seeds)
    return next((each for each in played if not each.ok), None)


def _simpler(scenario: Scenario) -> Iterator[ClusterScenario]:
    assert isinstance(scenario, ClusterScenario)
    yield from without(scenario, FAULTS)
    yield from smaller(scenario, SIZES)
    yield from plainer(scenario)

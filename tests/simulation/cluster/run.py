"""Plays scenarios of a cluster, and judges their histories."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.history.linearizability import check_linearizable
from tests.history.sweep import Undecided
from tests.simulation.cluster import scans
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.simulation import ClusterSimulation
from tests.simulation.run import Outcome
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
)


def run(scenario: ClusterScenario) -> Outcome:
    """Play one scenario and check the invariants at each step, then the history."""
    simulation = ClusterSimulation(scenario)
    try:
        simulation.run()
    except Exception as error:  # in the code under test, which is a finding
        simulation.violations.append(f"{type(error).__name__}: {error}")
    history = simulation.history
    outcome = Outcome(scenario, simulation.violations, simulation.loop.steps, len(history))
    outcome.trace = simulation.loop.trace
    outcome.counts = simulation.loop.counts
    if outcome.ok:
        try:
            verdict = check_linearizable(history)
        except Undecided:
            outcome.undecided = True
        else:
            outcome.violations += [str(each) for each in verdict.violations]
        outcome.violations += scans.broken(simulation.scans, history)
        if outcome.violations:
            outcome.trace = outcome.trace[: simulation.busy_lines]
    return outcome


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
    changes: list[dict[str, Any]] = [{name: 0.0} for name in FAULTS if getattr(scenario, name)]
    counts = ("locals", "threads", "operations", "keys", "many", "partitions", "members")
    for name in counts:
        value = getattr(scenario, name)
        smaller = sorted({(value + 1) // 2, value - 1} - {0, value})
        changes += [{name: each} for each in smaller]
    for index, weight in enumerate(scenario.weights):
        if weight and sum(map(bool, scenario.weights)) > 1:
            weights = (*scenario.weights[:index], 0, *scenario.weights[index + 1 :])
            changes.append({"weights": weights})
    return (replace(scenario, **change) for change in changes)

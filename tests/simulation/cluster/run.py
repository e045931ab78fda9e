"""Plays scenarios of a cluster, and judges their histories."""

from __future__ import annotations

from tests.history.linearizability import check_linearizable
from tests.history.sweep import Undecided
from tests.simulation.cluster import scans
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.simulation import ClusterSimulation
from tests.simulation.run import Outcome


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

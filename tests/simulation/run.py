"""Plays scenarios, checks their histories, and reduces one that fails to a small one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from tests.history.expiry import check_expired
from tests.history.linearizability import check_linearizable
from tests.history.sweep import Undecided
from tests.history.weaker import check_pending
from tests.simulation.course import Outcome, plainer, play, smaller, without
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

SLACK = 0.01
"""Seconds after its lease in which a deletion with ``wait=False`` may take effect."""
COMMITS = 8
"""Commits of a durable Global that such a deletion waits for at most, each with those before it."""
SMALL_TRIES = 600
"""Small scenarios that are tried first to reduce a failing run."""
SHRINK_TRIES = 15
"""Seeds that are tried for each simpler scenario."""
FAULTS = (
    "crashes",
    "goodbyes",
    "global_crashes",
    "global_pauses",
    "cuts",
    "pauses",
    "give_up",
    "evictions",
    "large",
    "slow",
    "load_failures",
    "away",
    "lost_broadcasts",
    "words",
    "drift",
    "forks",
    "ttl",
    "owner_faults",
    "page_faults",
    "deaths",
    "freezes",
    "sharing",
    "revocations",
    "keyed",
)
"""What is left out, one after the other, to reduce a failing run."""


def run(scenario: Scenario) -> Outcome:
    """Play one scenario and check the invariants at each step, then the history."""
    return play(Simulation(scenario), _check_history)


def draw_and_run(seed: int) -> Outcome:
    """Play the scenario of a seed."""
    return run(Scenario.draw(seed))


def _check_history(simulation: Simulation, outcome: Outcome) -> None:
    scenario, history = simulation.scenario, simulation.history
    faults = (scenario.page_faults, scenario.deaths, scenario.freezes)
    prompt = not (scenario.global_pauses or scenario.global_crashes)
    prompt = prompt and not (scenario.global_page and any(faults))
    if scenario.durable:  # a removal waits for the disk; one that the disk refuses does not happen
        prompt = prompt and not scenario.failing
    slack = SLACK + COMMITS * scenario.commit * scenario.durable
    within = scenario.lease + slack if prompt else None
    try:
        verdicts = [check_linearizable(history, pending_within=within)]
    except Undecided:
        outcome.undecided = True
        verdicts = []
    if within is not None:
        verdicts.append(check_pending(history, scenario.lease, slack))
        verdicts.append(check_expired(history, within))
    for verdict in verdicts:
        outcome.violations += [str(violation) for violation in verdict.violations]


def shrink(outcome: Outcome) -> Outcome:
    """A smaller run that fails too: with fewer kinds of faults, Locals, threads and operations.

    Small scenarios are tried first, which often fail as well in far fewer steps. Then one thing
    after the other is left out of the smallest one, while a shorter run still fails.
    """
    smallest = _shortest(outcome, (_small(seed) for seed in range(SMALL_TRIES)))
    improved = True
    while improved:
        improved = False
        for simpler in _simpler(smallest.scenario):
            shorter = _shortest(smallest, _reseeded(simpler))
            if shorter is not smallest:
                smallest, improved = shorter, True
                break
    return smallest


def _small(seed: int) -> Scenario:
    size = random.Random(f"small {seed}")
    return replace(
        Scenario.draw(seed),
        locals=size.choice((1, 2)),
        threads=size.choice((1, 1, 2)),
        operations=size.choice((1, 2, 3, 4)),
        keys=1,
        many=1,
    )


def _reseeded(scenario: Scenario) -> Iterator[Scenario]:
    dice = random.Random(scenario.seed)
    yield scenario
    for _ in range(SHRINK_TRIES):
        yield replace(scenario, seed=dice.randrange(2**32))


def _shortest(known: Outcome, scenarios: Iterable[Scenario]) -> Outcome:
    """The failing run with the shortest trace, ``known`` if none is shorter."""
    failing = (each for each in map(run, scenarios) if not each.ok)
    return min([known, *failing], key=lambda each: len(each.trace))


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    yield from without(scenario, FAULTS)
    yield from smaller(scenario, ("locals", "threads", "operations", "keys", "many"))
    yield from plainer(scenario)

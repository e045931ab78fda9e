"""``python -m tests.simulation --seeds N --seed S``: play seeds and report failures."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.simulation import run as one_global
from tests.simulation.cluster import run as cluster
from tests.simulation.course import Outcome

TRACE_LINES = 60
"""Lines of a failing run's trace that are shown."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="Play seeds over the real core."
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--cluster", action="store_true", help="several Globals over PostgreSQL")
    parser.add_argument("--trace", action="store_true", help="print the whole trace of the first")
    parser.add_argument("--no-shrink", action="store_true", help="show a failing seed as it is")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1: no seed proves nothing")
    if arguments.trace:
        kind = cluster if arguments.cluster else one_global
        print("\n".join(kind.draw_and_run(arguments.seed).trace))
        return 0
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    shrinking = not arguments.no_shrink
    if arguments.cluster:
        return _play(seeds, cluster.draw_and_run, cluster.shrink if shrinking else None)
    return _play(seeds, one_global.draw_and_run, one_global.shrink if shrinking else None)


def _play(
    seeds: range, play: Callable[[int], Outcome], shrink: Callable[[Outcome], Outcome] | None
) -> int:
    began = time.perf_counter()
    steps = operations = undecided = 0
    counts: Counter[str] = Counter()
    for count, seed in enumerate(seeds, 1):
        outcome = play(seed)
        steps += outcome.steps
        operations += outcome.operations
        undecided += outcome.undecided
        counts += outcome.counts
        if not outcome.ok:
            _report(seed, outcome)
            if shrink is not None:
                print("\nreduced to:")
                _report(outcome.scenario.seed, shrink(outcome))
            return 1
        if sys.stderr.isatty() and count % 20 == 0:
            print(f"\r{count} of {len(seeds)} seeds", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    print(
        f"{len(seeds)} seeds, {steps:,} steps, {operations:,} operations: no violation "
        f"({undecided} that could not be decided); {len(seeds) / seconds:.1f} seeds/s, "
        f"{steps / seconds:,.0f} steps/s"
    )
    print(", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)))
    return 0


def _report(seed: int, outcome: Outcome) -> None:
    print(f"seed {seed} fails: {outcome.scenario}")
    shown = outcome.trace[-TRACE_LINES:]
    if len(shown) < len(outcome.trace):
        print(f"  ... {len(outcome.trace) - len(shown)} lines before these")
    print("\n".join(f"  {line}" for line in shown))
    print("\n".join(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.simulation.catch [PARTS OF NAMES]``: how many seeds catch each mutant."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.patched import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
SEEDS_MAX = 1000
"""Seeds within which a mutant has to be caught."""
CAUGHT, UNCAUGHT = 4, 3
"""Exit codes of a simulation: of a violation, and of none. A crash of it has another code."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate --mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names (default: all mutants)")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="at most (default: 1000)")
    parser.add_argument("--trace", action="store_true", help="show the smallest failing trace")
    arguments = parser.parse_args()
    if os.environ.get(VARIABLE):
        return _play(arguments.seeds, arguments.trace)
    chosen = [
        each
        for each in MUTANTS
        if not arguments.names or any(part in each.name for part in arguments.names)
    ]
    if not chosen:
        parser.error(f"no mutant has {' or '.join(arguments.names)} in its name")
    missed = [each.name for each in chosen if not _caught(each, arguments.seeds, arguments.trace)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutants caught")
    return 1 if missed else 0


def _caught(mutant: Mutant, seeds: int, trace: bool) -> bool:
    if mutant.test:
        ended = run_test(mutant)
        caught = has_failed(ended)
        what = f"`{mutant.test.rpartition('::')[2]}`: {mutant.why}"
    else:
        ended = run_simulation(mutant, seeds, trace)
        caught = ended.returncode == CAUGHT
        what = ended.stdout.strip()
    print(
        f"| {mutant.name} | {what if caught else 'NOT CAUGHT ' + ended.stderr[-500:]} |", flush=True
    )
    return caught


def run_test(mutant: Mutant) -> subprocess.CompletedProcess[str]:
    """Run the test of a mutant against it. It is caught if the test fails: see has_failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.simulation.patched"]
    return _run([*command, "-p", "no:cacheprovider", mutant.test], mutant)


def has_failed(ended: subprocess.CompletedProcess[str]) -> bool:
    """Whether pytest ran a test and it failed; an error before that proves nothing."""
    return ended.returncode == 1 and " failed" in ended.stdout


def run_simulation(
    mutant: Mutant, seeds: int, trace: bool = False
) -> subprocess.CompletedProcess[str]:
    """Play seeds against a mutant until one fails. Exit code CAUGHT means that one did."""
    command = [sys.executable, "-m", "tests.simulation.catch", "--seeds", str(seeds)]
    return _run([*command, *(["--trace"] if trace else [])], mutant)


def _run(command: list[str], mutant: Mutant) -> subprocess.CompletedProcess[str]:
    # Compiled code does not have the changes.
    changed = {VARIABLE: mutant.name, "PYTHONPATH": str(ROOT), "DSTORE_PURE": "1"}
    environment = {**os.environ, **changed}
    environment.pop("DSTORE_TEST_NATIVE", None)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _play(seeds: int, trace: bool) -> int:
    (mutant,) = (each for each in MUTANTS if each.name == os.environ[VARIABLE])
    if mutant.cluster:
        from tests.simulation.cluster.run import draw_and_run as play
        from tests.simulation.cluster.run import shrink
    else:
        from tests.simulation.run import draw_and_run as play
        from tests.simulation.run import shrink

    for seed in range(seeds):
        outcome = play(seed)
        if not outcome.ok:
            print(f"{seed + 1} seeds: {outcome.violations[0].splitlines()[0]}")
            if trace:
                smallest = shrink(outcome)
                print(f"{smallest.scenario}\n" + "\n".join(smallest.trace + smallest.violations))
            return CAUGHT
    return UNCAUGHT


if __name__ == "__main__":
    sys.exit(main())

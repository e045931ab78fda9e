"""Compare the goals of source trees of dstore, measured in turns, or of runs that are over.

``python -m benchmarks.compare BEFORE AFTER`` measures the dstore of each source tree by the
benchmarks of this one: one run of ``--goals`` for each tree in each turn, and every second turn in
the opposite order, so that a machine that drifts disturbs all trees alike. ``--only hit miss``
measures less, and ``--pure`` has all processes run without the compiled part. A file of results
(``results.json``) may stand for a tree; it is shown, and not measured.

``taskset -c 0 python -m benchmarks.compare ...`` puts all processes on one core. Ratios are then
those of CPU time, and repeat within a few percent even on a busy machine.

The table has for each goal the median of the turns, the lowest and the highest one in brackets, the
ratio of the fastest rounds, and the median of dstore's own numbers. The results of all runs stay in
build/benchmarks/compare, or in ``--out``.

A tree with a compiled part needs it built in its folder ``dstore``. The environment must not have
dstore installed with an import hook (``pip install -e`` without ``--config-settings
editable_mode=compat``): the hook would lend a tree the modules that it lacks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.goals import GOALS, Goal
from benchmarks.machine import ROOT
from benchmarks.processes import PURE
from benchmarks.report import digits, quantity, table
from benchmarks.results import GoalResult, Results
from benchmarks.settings import GOALS as SCALE
from benchmarks.settings import SCALES
from benchmarks.workloads import NAMES

OUT = ROOT / "build" / "benchmarks" / "compare"
RESULTS = "results.json"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parsed(arguments)
    found: dict[str, list[Results]] = {str(each): [] for each in options.trees}
    turns = [each for each in options.trees if each.is_dir()]
    for each in options.trees:
        if not each.is_dir():
            found[str(each)].append(_results(each))
    for number in range(1, options.turns + 1 if turns else 1):
        for tree in turns if number % 2 else turns[::-1]:
            folder = options.out / f"{options.trees.index(tree) + 1}-{number}"
            load = os.getloadavg()[0]
            measure(tree.resolve(), folder.resolve(), _passed_on(options), options.pure)
            found[str(tree)].append(_results(folder / RESULTS))
            print(f"turn {number} of {tree}: load before {load:.2f}", flush=True)
    print("\n".join(render(found)))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument(
        "trees", nargs="+", type=Path, metavar="TREE", help="a source tree, or a results.json"
    )
    parser.add_argument(
        "--turns", type=int, default=2, metavar="N", help="runs of each tree (default: 2)"
    )
    parser.add_argument("--scale", choices=SCALES, default=SCALE.name, help="as of scripts/bench")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", default=[])
    parser.add_argument(
        "--pure", action="store_true", help="run without the compiled part in all processes"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=OUT)
    return parser.parse_args(arguments)


def _passed_on(options: argparse.Namespace) -> list[str]:
    only = ["--only", *options.only] if options.only else []
    return ["--scale", options.scale, *only]


def measure(tree: Path, folder: Path, options: Sequence[str], pure: bool = False) -> None:
    """Run the benchmarks of this source tree over the dstore of another one."""
    environment = {**os.environ, **({PURE: "1"} if pure else {})}
    command = [sys.executable, "-m", "benchmarks", *options, "--out", str(folder)]
    with tempfile.TemporaryDirectory(prefix="dstore-bench-") as place:
        # Python looks for modules in the current folder first.
        for name, source in (("dstore", tree), ("benchmarks", ROOT), ("tests", ROOT)):
            os.symlink(source / name, Path(place, name))
        done = subprocess.run(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nThe run of {tree} has failed.")


def _results(path: Path) -> Results:
    return Results.from_json(path.read_text(encoding="utf-8"))


def render(found: dict[str, list[Results]]) -> Iterator[str]:
    """Yield a line about each tree, and the table of the goals."""
    for number, (name, runs) in enumerate(found.items(), 1):
        about = runs[0].about
        hit = about.get("hit", "pure Python")
        yield f"{number}: {name}, revision {about['revision'] or 'unknown'}; hit: {hit}"
    heading = ["what", "reference", "goal"]
    for number in range(1, len(found) + 1):
        heading += [f"{number}", f"dstore {number}"]
    yield table(heading, _lines(found))


def _lines(found: dict[str, list[Results]]) -> Iterator[list[str]]:
    for goal in GOALS:
        of_trees = [
            [each for run in runs for each in run.goals if each.name == goal.name]
            for runs in found.values()
        ]
        if any(of_trees):
            cells = [cell for results in of_trees for cell in _cells(goal, results)]
            yield [goal.what, goal.reference or "—", goal.words, *cells]


def _cells(goal: Goal, results: Sequence[GoalResult]) -> tuple[str, str]:
    if not results:
        return "", ""
    ratios = [each.ratio.median for each in results]
    best = [each.fastest for each in results if each.fastest is not None]
    shown = goal.shown.format(median(ratios)) if results[0].theirs else digits(median(ratios))
    if len(ratios) > 1:
        shown += f" ({digits(min(ratios))} … {digits(max(ratios))})"
    if best:
        shown += f"; fastest {digits(median(best))}"
    return shown, quantity(median(each.ours.median for each in results), results[0].unit)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks``: measure, and write the report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import interrupt, machine, report
from benchmarks.measure import describe
from benchmarks.peers import BY_NAME
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.settings import FULL, GOALS, QUICK, SCALES
from benchmarks.workloads import NAMES, WORKLOADS, Workload

DOCS = machine.ROOT / "docs" / "benchmarks"
BUILD = machine.ROOT / "build" / "benchmarks"
JSON = "results.json"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parsed(arguments)
    if options.list:
        for workload in WORKLOADS:
            print(f"{workload.name:14} {workload.what}")
        return 0
    if options.render:
        found = (options.render / JSON).read_text(encoding="utf-8")
        _write(Results.from_json(found), options.render)
        return 0
    scale = SCALES[options.scale]
    only = options.only or scale.only or NAMES
    chosen = [each for each in WORKLOADS if each.name in only]
    complete = options.scale == FULL.name and not options.only and not options.without
    folder = options.out or (DOCS if complete else BUILD)
    interrupt.install()
    results = Results(options.scale, machine.about())
    try:
        run = Run(scale, results, _say, frozenset(options.without))
        failed = _measure(run, chosen)
        _write(results, folder)
    except KeyboardInterrupt:
        print("Interrupted; there is no report.", file=sys.stderr)
        return INTERRUPTED
    return 1 if failed else 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure dstore against its goals and its peers, on Linux. A complete run "
        "writes to docs/benchmarks, any other to build/benchmarks.",
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default=FULL.name,
        help="how much is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const=QUICK.name,
        help="take about two minutes",
    )
    parser.add_argument(
        "--goals",
        dest="scale",
        action="store_const",
        const=GOALS.name,
        help="measure the goals of small values, of the processes of one host and of durable data "
        "alone, against their references, in many short rounds: about seven minutes",
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help="run these workloads alone"
    )
    parser.add_argument(
        "--without", nargs="+", choices=sorted(BY_NAME), metavar="PEER", default=[],
        help="leave out these peers: " + ", ".join(sorted(BY_NAME)),
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write results and report to this folder"
    )
    parser.add_argument(
        "--render",
        type=Path,
        metavar="DIR",
        help="measure nothing, and write the report of the results in this folder again",
    )
    parser.add_argument("--list", action="store_true", help="list the workloads")
    return parser.parse_args(arguments)


def _measure(run: Run, chosen: Sequence[Workload]) -> bool:
    """Run the workloads. Returns whether any of them failed as a whole."""
    failed = False
    began = time.monotonic()
    for number, workload in enumerate(chosen, 1):
        start = time.monotonic()
        _say(f"[{number}/{len(chosen)}] {workload.name}: {workload.what}")
        try:
            workload.measure(run)
            interrupt.check()
        except Exception as error:
            failed = True
            run.skip(workload.name, "the workload", describe(error))
        _say(f"  {time.monotonic() - start:.1f} s")
        time.sleep(run.scale.settle)
    run.results.seconds = time.monotonic() - began
    return failed


def _write(found: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = found.to_json()
    (folder / JSON).write_text(text, encoding="utf-8")
    results = Results.from_json(text)  # rounded, as --render has them
    (folder / "README.md").write_text(report.render(results), encoding="utf-8")
    _say(f"Written to {folder}, after {results.seconds:.0f} s.")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

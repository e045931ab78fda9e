"""``python -m benchmarks.scale``: measure, count, derive, print, write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.scale import (
    conclusions,
    core_costs,
    experiments,
    memory,
    reality,
    socket_costs,
    tables,
)

SIZES = (100, 1_000, 10_000)
SIZES_QUICK = (100, 1_000)
REPEATS, REPEATS_QUICK = 5, 1
OUT = "docs/scale"


def measured(sizes: list[int], quick: bool) -> dict[str, Any]:
    repeats = REPEATS_QUICK if quick else REPEATS
    sockets = socket_costs.measure(quick)
    prices = sockets["prices"]
    about = machine.about()
    results: dict[str, Any] = {
        "machine": {**about["machine"], **about["versions"]},
        "quick": quick,
        "sockets": {**sockets, "prices": prices._asdict()},
        "core": core_costs.measure(sizes, quick),
        "counts": {str(size): experiments.counts(size) for size in sizes},
        "costs": {str(size): experiments.costs(size, prices, repeats) for size in sizes},
        "reality": reality.measure(prices, quick),
        "memory": memory.measure(sizes, quick),
    }
    results["conclusions"] = conclusions.derive(results, prices)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="scale", description="How one Global scales.")
    parser.add_argument("--quick", action="store_true", help="measure fewer Locals, less exactly")
    parser.add_argument(
        "--locals",
        type=int,
        nargs="+",
        metavar="N",
        help="the numbers of Locals to measure, one after the other",
    )
    parser.add_argument("--out", type=Path, default=Path(OUT), help="write the numbers to OUT.json")
    options = parser.parse_args()
    sizes = options.locals or (SIZES_QUICK if options.quick else SIZES)
    results = measured(sorted(set(sizes)), options.quick)
    print("\n".join(tables.report(results)))
    out = options.out.with_name(options.out.name + ".json")
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

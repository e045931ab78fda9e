"""Memory of several processes of a host that have read the same values, against one process.

Counted is the growth of their proportional set size (PSS), in which a page that several processes
map counts in part for each, between the moment at which all have a Node and that at which each has
read all values twice. The caches have the sizes that they have by default.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack

from benchmarks.measure import Block
from benchmarks.peers import OURS, Client, connected
from benchmarks.processes import Crew, proportional
from benchmarks.run import Run
from benchmarks.workloads.host_reads import elsewhere
from benchmarks.workloads.reads import load, names

STEP = 1_000
"""Keys in one call."""


def host_memory(run: Run) -> None:
    """Measure it once: it varies little, and takes long."""
    keys = names("shared", run.scale.shared_keys)
    grown: dict[int, Block] = {}
    for count in (1, run.scale.clients):
        grown[count] = [float(_growth(keys, count))]
        at = {"processes": count}
        run.record("host_memory", OURS.name, "bytes", grown[count], at)
    one, all_of_them = grown[1], grown[run.scale.clients]
    run.goal(
        "host-memory", [all_of_them[0] / one[0]], [all_of_them], [one], unit="bytes"
    )  # fmt: skip


def _growth(keys: list[str], count: int) -> int:
    """Return by how many bytes the processes grow together."""
    with ExitStack() as stack:
        place = stack.enter_context(OURS.serve_on_host())
        load(OURS, elsewhere(place), keys)
        crew = stack.enter_context(Crew())
        crew.grow(count, connected, OURS, place)
        crew.each(count, read_all, 1)  # they have joined
        before = sum(proportional(worker.pid) for worker in crew.workers)
        crew.each(count, read_all, len(keys))
        return sum(proportional(worker.pid) for worker in crew.workers) - before


def read_all(client: Client, count: int) -> None:
    """Read keys twice: what is read again may be kept closer.

    The keys are made here, and not kept, so that their memory is not counted.
    """
    for start in range(0, count, STEP):
        client.hold(names("shared", min(STEP, count), start))
    for number in range(count):
        client.get(*names("shared", 1, number))
    gc.collect()

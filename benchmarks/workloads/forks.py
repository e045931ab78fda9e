"""The first hit of a child that a process with a warm cache has forked."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Block, Contender, flat
from benchmarks.peers import OURS, connected
from benchmarks.peers.ours import OurClient
from benchmarks.processes import Place, Worker
from benchmarks.run import Run
from benchmarks.settings import HOT_KEYS
from benchmarks.workloads.host_reads import REQUESTS, elsewhere, hold_twice
from benchmarks.workloads.reads import load, names


def forks(run: Run) -> None:
    """Measure it with few and with many keys in the cache of the parent."""
    for count in run.scale.hit_keys:
        with ExitStack() as stack:
            keys = names("fork", count)
            place: Place = stack.enter_context(OURS.serve_on_host())
            load(OURS, elsewhere(place), keys)
            parent = stack.enter_context(Worker(connected, OURS, place))
            parent.call(hold_twice, keys)
            missed: list[float] = []
            block = partial(_forks, parent, keys[: run.scale.forks], missed)
            found = run.turns("fork", [Contender(OURS.name, block)], run.scale.host_rounds)
        for blocks in found.values():
            run.record("fork", OURS.name, "s", flat(blocks), {"keys": count}, tail=True)
            run.record(REQUESTS, OURS.name, "keys", missed, {"what": "fork", "keys": count})
            samples = flat(blocks)
            run.goal("fork" if count == HOT_KEYS else "fork-many", samples, blocks)


def _forks(parent: Worker, keys: list[str], missed: list[float], _: int) -> Block:
    found = [parent.call(in_a_child, key) for key in keys]
    missed.append(sum(missing for _, missing in found) / len(found))
    return [seconds for seconds, _ in found]


def in_a_child(client: OurClient, key: str) -> tuple[float, int]:
    """Fork. Returns the seconds of the child's first read, and how many misses it had."""
    before = int(client.node.stats()["misses"])
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            began = time.perf_counter()
            client.get(key)
            seconds = time.perf_counter() - began
            after = int(client.node.stats()["misses"])
            # The counters of the child begin at zero, or at those of its parent.
            missed = after - before if after >= before else after
            os.write(theirs, f"{seconds} {missed}".encode())
            client.close()
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().split()
    os.waitpid(pid, 0)
    if not said:
        raise RuntimeError("a forked child could not read")
    return float(said[0]), int(said[1])

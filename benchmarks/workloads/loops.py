"""Several processes in closed loops: each sends its next request after the answer to the last.

All of them start together and are measured over the same window; the rates are added up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

from benchmarks.measure import Block, Contender, flat, paired
from benchmarks.peers import BY_NAME, ECHO, OURS, Client, Peer
from benchmarks.peers.base import connected
from benchmarks.processes import ChildFailed, Crew, Place, wait_until
from benchmarks.run import Blocks, Run
from benchmarks.settings import VALUE
from benchmarks.workloads.reads import RATE, load, names

COLD_RATE = 20_000
"""Cold keys for one client and second: more than a client can read."""
DRAWS = 20_000
LOOKS = 0.0005
"""About how many seconds pass between two looks at the clock."""
PACE_MAX = 64
REFERENCES = {
    "mixed-redis": "redis-py",
    "mixed-cache": "redis-py, client-side cache",
    "mixed-manager": "multiprocessing.Manager",
}
RANK_EXPONENT = 1.0
"""The exponent s of Zipf's law: the key of rank n is read in proportion to n ** -s."""


class Loop:
    """The loop of one process."""

    def __init__(self, client: Client, keys: list[str], number: int) -> None:
        self.client = client
        self.keys = [client.key(name) for name in keys]
        self.number = number
        self.at = 0
        self.pace = 1
        """Operations between two looks at the clock."""

    def run(self, start_ns: int, seconds: float, some: Callable[[int], None]) -> float:
        """Call ``some(pace)`` until the window is over. Returns operations per second."""
        wait_until(start_ns)
        clock = time.perf_counter
        began = now = clock()
        end = began + seconds
        done = 0
        while now < end:
            some(self.pace)
            done += self.pace
            now = clock()
        rate = done / (now - began)
        self.pace = max(1, min(PACE_MAX, int(rate * LOOKS)))
        return rate


@contextmanager
def looping(name: str, place: Place, keys: list[str], number: int) -> Iterator[Loop]:
    peer = BY_NAME[name]
    with connected(peer, place) as client:
        client.get(client.key(keys[0]))  # it is connected
        yield Loop(client, keys, number)


def read_cold(loop: Loop, start_ns: int, seconds: float) -> float:
    """Read keys in turn, none of them twice. Returns reads per second."""

    def some(count: int) -> None:
        end = loop.at + count
        if end > len(loop.keys):
            raise RuntimeError("there were not enough cold keys")
        get = loop.client.get
        for key in loop.keys[loop.at : end]:
            get(key)
        loop.at = end

    return loop.run(start_ns, seconds, some)


def clients(run: Run) -> None:
    """Measure misses of several processes at once."""
    count = run.scale.clients
    windows = run.scale.window * (run.each_sitting(run.scale.window_rounds) + 1)
    keys = names("cold", int(windows * COLD_RATE) + 1)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve())
        load(peer, place, keys)
        crew = stack.enter_context(Crew())
        crew.grow(count, looping, peer.name, place, keys)
        return Contender(
            peer.name, lambda _: [sum(crew.together(count, read_cold, run.scale.window))]
        )

    blocks = run.compete("clients", prepare, run.scale.window_rounds)
    for who, found in blocks.items():
        run.record("clients", who, RATE, flat(found), {"processes": count})
    run.compare("clients", blocks, ECHO.name, RATE)


# Mixed reads and deletions -----------------------------------------------------------------------


@contextmanager
def mixing(name: str, place: Place, keys: list[str], number: int) -> Iterator[Loop]:
    """Yield a loop over keys drawn by Zipf's law, the same ones for the same number."""
    weights = [1 / rank**RANK_EXPONENT for rank in range(1, len(keys) + 1)]
    drawn = random.Random(number).choices(keys, weights, k=DRAWS)
    with looping(name, place, drawn, number) as loop:
        if BY_NAME[name].caches:
            loop.client.hold(list(dict.fromkeys(drawn)))  # so that the first window is like others
        yield loop


def read_and_delete(loop: Loop, start_ns: int, seconds: float, share: float) -> float:
    """Read keys; the given share of operations deletes a key and binds it again."""
    period = round(1 / share) if share else 0
    since = loop.number * 7 % period if period else 1
    get: Callable[[Any], object] = loop.client.get
    rebind = loop.client.rebind

    def some(count: int) -> None:
        nonlocal since
        if loop.at + count > len(loop.keys):
            loop.at = 0
        for key in loop.keys[loop.at : loop.at + count]:
            since += 1
            try:
                if since == period:
                    since = 0
                    rebind(key, VALUE)
                else:
                    get(key)
            except KeyError:  # another process is about to bind it
                pass
        loop.at += count

    return loop.run(start_ns, seconds, some)


def mixed(run: Run) -> None:
    """Measure Zipf reads with deletions, in 1 to 8 processes of one host."""
    keys = names("mixed", run.scale.mixed_keys)
    cells: dict[str, Blocks] = {}
    with ExitStack() as stack:
        crews: dict[str, tuple[Peer, Crew, Place]] = {}

        def prepare(stack: ExitStack, peer: Peer) -> Contender:
            place = stack.enter_context(peer.serve_on_host())
            load(peer, place, keys)
            crews[peer.name] = peer, stack.enter_context(Crew()), place
            return Contender(peer.name, lambda _: [])

        run.prepared("mixed", stack, run.peers("mixed"), prepare)
        for count in run.scale.processes:
            contenders = []
            for name, (peer, crew, place) in list(crews.items()):
                try:
                    crew.grow(count, mixing, name, place, keys)
                except ChildFailed as failure:
                    run.skip("mixed", name, str(failure))
                    del crews[name]
                    continue
                contenders += [
                    Contender(f"{name}|{share}", partial(_window, run, crew, count, share))
                    for share in run.scale.shares
                    if peer.deletes or not share
                ]
            blocks = run.turns("mixed", contenders, run.scale.mixed_rounds)
            for label, found in blocks.items():
                name, _, share = label.rpartition("|")
                at = {"processes": count, "deletions": float(share)}
                run.record("mixed", name, RATE, flat(found), at)
                cells.setdefault(f"processes {count}, deletions {share}", {})[name] = found
    for goal, reference in REFERENCES.items():
        compare_worst(run, goal, cells, reference)


def _window(run: Run, crew: Crew, count: int, share: float, _: int) -> Block:
    return [sum(crew.together(count, read_and_delete, run.scale.mixed_window, share))]


def compare_worst(run: Run, goal: str, cells: Mapping[str, Blocks], reference: str) -> None:
    """Judge a goal for all cells by the one in which dstore is furthest behind."""
    ratios = {
        where: median(paired(blocks[OURS.name], blocks[reference]))
        for where, blocks in cells.items()
        if OURS.name in blocks and reference in blocks
    }
    if ratios:
        where = min(ratios, key=ratios.__getitem__)
        run.compare(goal, cells[where], reference, RATE, where=where)

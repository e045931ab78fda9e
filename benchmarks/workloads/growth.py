"""Growth of a hit, a miss, a SET, and a DEL without holders, over keys and over Locals.

Over keys: Global has that number of keys, and the Node has all of them in its cache. Over Locals:
that number of processes with a Node each have joined, and hold nothing. All should cost the same
everywhere. The ``dict.get`` of as many keys and the bare echo show what the machine itself does: a
dict that no longer fits into the processor's caches is slower, too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Block, Contender, flat, mean_time, timed
from benchmarks.peers import ECHO, OURS, connected
from benchmarks.peers.ours import LOAD, OurClient
from benchmarks.processes import Crew, Place, running_seconds
from benchmarks.run import Run
from benchmarks.settings import VALUE
from benchmarks.workloads.deletions import look
from benchmarks.workloads.reads import load, names

CPU, RESTED_DEL = "DEL, CPU of Global", "DEL after a rest"
SAMPLE = 10_000
"""Different keys in a block of hits."""
LOCALS_KEYS = 10_000
BLOCK = 100
RESTED, REST = 20, 0.02
"""DELs in a block that come after a rest, and the seconds of that rest."""
ASKED = [""] * BLOCK
"""The keys for the echo, which looks at none."""


class Store:
    """A Global with a number of keys, all of them in the cache of one Node."""

    def __init__(self, stack: ExitStack, keys: int) -> None:
        self.place: Place = stack.enter_context(OURS.serve())
        kept = names("kept", keys)
        with connected(OURS, self.place) as loader:
            loader.load(dict.fromkeys(kept, VALUE))
        client = stack.enter_context(connected(OURS, self.place))
        assert isinstance(client, OurClient)
        self.node = client.node
        self.cpu: list[float] = []
        """Seconds that Global's process ran for each DEL, one sample a round."""
        for start in range(0, keys, LOAD):
            self.node.get_many(kept[start : start + LOAD])
        # Other objects than those that are stored, as in a program.
        numbers = random.Random(1).sample(range(keys), min(keys, SAMPLE))
        self.asked = [f"kept/{number:06}" for number in numbers]

    def contenders(self, stage: str, rounds: int) -> Iterable[tuple[str, Callable[[int], Block]]]:
        """Yield each operation by name, on keys of this stage alone."""
        kinds = ("miss", "SET", "DEL", RESTED_DEL)
        fresh = {kind: names(f"{stage}/{kind}", (rounds + 1) * BLOCK) for kind in kinds}
        load(OURS, self.place, [key for kind in kinds if kind != "SET" for key in fresh[kind]])
        node = self.node

        def part(kind: str, number: int) -> list[str]:
            return fresh[kind][number * BLOCK : (number + 1) * BLOCK]

        def delete(key: str) -> None:
            if (found := node.delete(key)) != (0, 0, 0):
                raise RuntimeError(f"a key without holders was confirmed by {found}")

        def deletions(number: int) -> Block:
            before = running_seconds(self.place.pid)
            times = timed(delete, part("DEL", number))
            if number:
                self.cpu.append((running_seconds(self.place.pid) - before) / BLOCK)
            return times

        def after_a_rest(number: int) -> Block:
            times = []
            for key in part(RESTED_DEL, number)[:RESTED]:
                time.sleep(REST)
                times += timed(delete, [key])
            return times

        self.cpu.clear()
        yield "hit", lambda _: [mean_time(node.get, self.asked)]
        yield "miss", lambda number: timed(node.get, part("miss", number))
        yield "SET", lambda number: timed(lambda key: node.set(key, VALUE), part("SET", number))
        yield "DEL", deletions
        yield RESTED_DEL, after_a_rest


def growth_of_keys(run: Run) -> None:
    """Measure growth over keys. All sizes take turns, so that a drift of the machine hits all."""
    rounds = run.scale.growth_rounds
    contenders: list[Contender] = []
    stores: dict[int, Store] = {}
    with ExitStack() as stack:
        for count in run.scale.growth_keys:
            run.say(f"  {count:,} keys are loaded")
            store = stores[count] = Store(stack, count)
            contenders += [
                Contender(f"{kind}|{count}", block)
                for kind, block in store.contenders("keys", rounds)
            ]
            plain = {name: bytes(bytearray(VALUE)) for name in names("kept", count)}
            contenders.append(Contender(f"dict.get|{count}", partial(_look_up, plain, store)))
        _record(run, "growth_keys", "keys", contenders, rounds, stores)


def _look_up(plain: dict[str, bytes], store: Store, _: int) -> Block:
    return [mean_time(plain.get, store.asked)]


def growth_of_locals(run: Run) -> None:
    """Measure growth over Locals that join and hold nothing."""
    rounds = run.scale.growth_rounds
    with ExitStack() as stack:
        store = Store(stack, min(LOCALS_KEYS, max(run.scale.growth_keys)))
        echo = stack.enter_context(connected(ECHO, stack.enter_context(ECHO.serve())))
        crew = stack.enter_context(Crew())
        for count in run.scale.growth_locals:
            crew.grow(count - 1, connected, OURS, store.place)  # and the one that measures
            crew.each(count - 1, look, "nothing")
            contenders = [
                Contender(f"{kind}|{count}", block)
                for kind, block in store.contenders(f"locals{count}", rounds)
            ]
            contenders.append(Contender(f"bare echo|{count}", lambda _: echo.timed(ASKED)))
            _record(run, "growth_locals", "locals", contenders, rounds, {count: store})


def _record(
    run: Run, workload: str, axis: str, contenders: list[Contender], rounds: int,
    stores: dict[int, Store],
) -> None:  # fmt: skip
    for label, found in run.turns(workload, contenders, rounds).items():
        kind, _, count = label.rpartition("|")
        run.record(workload, kind, "s", flat(found), {axis: int(count)})
    for number, store in stores.items():
        if store.cpu:
            run.record(workload, CPU, "s", store.cpu, {axis: number})

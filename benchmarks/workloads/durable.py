"""A Global that keeps its data on a disk: SET, reads while others write, and its start.

All data are on a real disk, and one fdatasync of that disk is measured in the same run. A durable
Global is measured against one in memory alone, and beside peers that sync each write, too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from statistics import median

import dstore
from benchmarks.disk import data_folder, disk_kind, no_disk
from benchmarks.measure import Block, Contender, flat, p99, paired, timed
from benchmarks.peers import (
    BY_NAME,
    DURABLE,
    FDATASYNC,
    OURS,
    REDIS_DURABLE,
    Client,
    Peer,
    connected,
)
from benchmarks.peers.ours import address
from benchmarks.peers.over_redis import DURABLE_SERVER
from benchmarks.processes import Crew, Place, hosts, program, temporary_folder, wait_until
from benchmarks.run import Run
from benchmarks.settings import VALUE
from benchmarks.workloads.loops import Loop
from benchmarks.workloads.reads import RATE, load, names
from dstore.core.engine import Change, ChangeKind
from dstore.protocol.messages import Stored
from dstore.server.data import open_data

VOLATILE = "Global in memory"
SHOWN = {DURABLE.name: OURS.name, OURS.name: VOLATILE}
"""The names in the report of those who have another one there."""
READ_KEYS = 1_000
ALONE, DURABLY, IN_MEMORY = "nobody writes", "8 write durably", "8 write in memory"
PART = 10_000
"""Keys in one transaction, while a folder is filled."""
KEPT = "kept"


def _place(run: Run, workload: str) -> dict[str, float | str]:
    """Return the kind of the disk as a place of measurements; none if there is no disk."""
    if why := no_disk():
        run.skip(workload, "the workload", f"needs {why}")
        return {}
    folder = data_folder()
    kind = disk_kind(folder)
    run.say(f"  data are in {folder}, on {kind}")
    return {"data on": f"data on {kind}"}


# SET -------------------------------------------------------------------------------------------


def sets(run: Run) -> None:
    """Measure SETs of one writer, each after the answer to the last."""
    at = _place(run, "durable_set")
    if not at:
        return
    size = run.scale.durable_sets

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve())
        client = stack.enter_context(connected(peer, place))
        keys = [client.key(name) for name in names("set", (run.scale.rounds + 1) * size)]

        def block(number: int) -> Block:
            part = keys[number * size : (number + 1) * size]
            return timed(lambda key: client.set(key, VALUE), part)

        return Contender(peer.name, block)

    blocks = run.compete("durable_set", prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.record("durable_set", SHOWN.get(who, who), "s", flat(found), at, tail=True)
    three = [blocks.get(peer.name, []) for peer in (DURABLE, OURS, FDATASYNC)]
    if all(three):
        beyond = [
            (median(durable) - median(volatile)) / median(sync)
            for durable, volatile, sync in zip(*three)
        ]
        run.goal("durable-set", beyond, three[0], three[2])


@contextmanager
def writing(name: str, place: Place, number: int) -> Iterator[Loop]:
    with connected(BY_NAME[name], place) as client:
        client.set(client.key(f"begin/{number}"), VALUE)  # it is connected
        yield Loop(client, [], number)


def write(loop: Loop, start_ns: int, seconds: float) -> float:
    """Bind new keys, one after the other. Returns SETs per second."""
    client = loop.client

    def some(count: int) -> None:
        for number in range(loop.at, loop.at + count):
            client.set(client.key(f"write/{loop.number}/{number:07}"), VALUE)
        loop.at += count

    return loop.run(start_ns, seconds, some)


def writers(run: Run) -> None:
    """Measure SETs of several processes at once."""
    at = _place(run, "durable_writers")
    if not at:
        return
    count = run.scale.clients

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve())
        crew = stack.enter_context(Crew())
        crew.grow(count, writing, peer.name, place)
        return Contender(peer.name, lambda _: [sum(crew.together(count, write, run.scale.window))])

    blocks = run.compete("durable_writers", prepare, run.scale.window_rounds)
    for who, found in blocks.items():
        places = {**at, "processes": count}
        run.record("durable_writers", SHOWN.get(who, who), RATE, flat(found), places)
    run.compare("durable-writers", blocks, OURS.name, RATE, who=DURABLE.name)


# Reads while others write ------------------------------------------------------------------------


class Reader:
    """A Global with keys that a Node without a cache reads, and a crew that binds other keys."""

    def __init__(self, stack: ExitStack, peer: Peer, writers: int) -> None:
        place = stack.enter_context(peer.serve())
        self.keys = names("read", READ_KEYS)
        load(peer, place, self.keys)
        self.node = stack.enter_context(
            dstore.Node(address(place), shm="", cache_bytes=0, host="off")
        )
        self.crew = stack.enter_context(Crew())
        self.crew.grow(writers, writing, peer.name, place)

    def read(self, start_ns: int, seconds: float) -> Block:
        """Read until the window is over. Returns the seconds of each read."""
        wait_until(start_ns)
        times: Block = []
        clock, get = time.perf_counter, self.node.get
        now = clock()
        end = now + seconds
        while now < end:
            for key in self.keys:
                start = now
                get(key)
                now = clock()
                times.append(now - start)
                if now >= end:
                    break
        return times

    def alone(self, seconds: float) -> Block:
        return self.read(time.monotonic_ns(), seconds)

    def while_others_write(self, seconds: float) -> Block:
        times: Block = self.crew.beside(
            lambda start_ns: self.read(start_ns, seconds), write, seconds
        )
        return times


def reads(run: Run) -> None:
    """Measure the 99th percentile of reads that Global answers while 8 processes bind keys."""
    at = _place(run, "durable_reads")
    if not at:
        return
    window = run.scale.window
    with ExitStack() as stack:
        durable, volatile = (Reader(stack, peer, run.scale.clients) for peer in (DURABLE, OURS))
        contenders = [
            Contender(ALONE, lambda _: durable.alone(window)),
            Contender(DURABLY, lambda _: durable.while_others_write(window)),
            Contender(IN_MEMORY, lambda _: volatile.while_others_write(window)),
        ]
        blocks = run.turns("durable_reads", contenders, run.scale.window_rounds)
    for who, found in blocks.items():
        run.record("durable_reads", who, "s", flat(found), at, tail=True)
    if len(blocks) == len(contenders):
        tails = {who: [[p99(each)] for each in found] for who, found in blocks.items()}
        for goal, reference in (("durable-reads", ALONE), ("durable-reads-writing", IN_MEMORY)):
            ratios = paired(blocks[DURABLY], blocks[reference], p99)
            run.goal(goal, ratios, tails[DURABLY], tails[reference])


# The start ---------------------------------------------------------------------------------------


def fill(folder: str, keys: Sequence[str]) -> None:
    """Bind keys in a data folder, in fewer transactions than a Global would make."""
    data = open_data(folder, lambda _: None)
    try:
        for start in range(0, len(keys), PART):
            data.database.apply([
                Change(ChangeKind.BIND, key, stored=Stored(os.urandom(16), "bytes", VALUE))
                for key in keys[start : start + PART]
            ])  # fmt: skip
    finally:
        data.close()


def starts(run: Run) -> None:
    """Measure the time from the start of a server that has a folder to a client's first answer."""
    at = _place(run, "durable_start")
    if not at:
        return
    keys = names(KEPT, run.scale.durable_keys)
    with ExitStack() as stack:
        shm = stack.enter_context(hosts())("one")

        def prepare(stack: ExitStack, peer: Peer) -> Contender:
            folder = stack.enter_context(temporary_folder(data_folder()))
            run.say(f"  {len(keys):,} keys are loaded into {peer.name}")
            if peer is REDIS_DURABLE:
                command: Sequence[str] = DURABLE_SERVER
                with program(command, folder=folder) as place:
                    load(peer, place, keys)
            else:
                command = _command(shm)
                fill(folder, keys)

            def block(number: int) -> Block:
                start = time.perf_counter()
                with program(command, folder=folder) as place, _first(peer, place) as client:
                    if client.get(client.key(keys[number])) != VALUE:
                        raise RuntimeError("the value is another one after the start")
                    return [time.perf_counter() - start]

            return Contender(peer.name, block)

        contenders = run.prepared("durable_start", stack, run.peers("durable_start"), prepare)
        blocks = run.turns("durable_start", contenders, run.scale.starts)
    for who, found in blocks.items():
        places = {**at, "keys": len(keys)}
        run.record("durable_start", SHOWN.get(who, who), "s", flat(found), places)
    if DURABLE.name in blocks:
        run.goal("durable-start", flat(blocks[DURABLE.name]), blocks[DURABLE.name])


def _command(shm: str) -> Sequence[str]:
    """Return the command that starts a durable Global on a host with that shared memory."""
    listening = "--address", "tcp://127.0.0.1:{port}", "--shm", shm
    return sys.executable, "-m", "dstore", "global", *listening, "--data", "{folder}"


def _first(peer: Peer, place: Place) -> AbstractContextManager[Client]:
    return connected(peer, place._replace(folder=""))  # which is for data, and not shared memory

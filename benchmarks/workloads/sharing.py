"""One copy per host: several processes need one large value at once.

Measured are the time until all of them have it, how much their private memory grows, and how many
bytes the server has sent; and for dstore the peak of private memory while a file is uploaded from
one host and read on another one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import Block, Contender
from benchmarks.peers import BY_NAME, OURS, Client, connected
from benchmarks.peers.ours import OurClient, serve
from benchmarks.processes import Crew, Place, Worker, hosts, resident, wait_until
from benchmarks.results import At
from benchmarks.run import Run
from benchmarks.workloads.large import delete, our_client, seconds_of_set

REDIS = "redis-py"
POLL_SECONDS = 0.01
"""Seconds between two looks at the memory of processes."""
TIME, MEMORY, SENT = "until all have it", "private memory of each", "sent by the server"
UNITS = {TIME: "s", MEMORY: "bytes", SENT: "bytes"}
Samples = dict[str, list[float]]


def sharing(run: Run) -> None:
    """Measure several processes of a host that read one large value at once."""
    samples: dict[str, Samples] = {OURS.name: {}, REDIS: {}}
    with ExitStack() as stack:
        contenders = [_ours(stack, run, samples[OURS.name])]
        if run.allows("sharing", BY_NAME[REDIS]):
            contenders.append(_redis(stack, run, samples[REDIS]))
        left = run.turns("sharing", contenders, run.scale.moving_rounds)
    for who in left:
        for what, found in samples[who].items():
            at: At = {"bytes": run.scale.large, "processes": run.scale.clients, "what": what}
            run.record("sharing", who, UNITS[what], found, at)
    for who, grown in _peaks(run.scale.moving).items():
        run.record("peak", who, "bytes", [grown], {"bytes": run.scale.moving})


# Many readers -----------------------------------------------------------------------------------


def _ours(stack: ExitStack, run: Run, samples: Samples) -> Contender:
    host = stack.enter_context(hosts())
    place = stack.enter_context(serve(host("one")))
    writer = stack.enter_context(Worker(our_client, place, host("one")))
    crew = stack.enter_context(Crew())
    crew.grow(run.scale.clients, our_client, place, host("two"))
    return _readers(OURS.name, run.scale.large, writer, crew, samples)


def _redis(stack: ExitStack, run: Run, samples: Samples) -> Contender:
    peer = BY_NAME[REDIS]
    place = stack.enter_context(peer.serve())
    writer = stack.enter_context(Worker(connected, peer, place))
    crew = stack.enter_context(Crew())
    crew.grow(run.scale.clients, connected, peer, place)
    return _readers(REDIS, run.scale.large, writer, crew, samples)


def _readers(who: str, size: int, writer: Worker, crew: Crew, samples: Samples) -> Contender:
    count = len(crew.workers)

    def private() -> int:
        return sum(resident(worker.pid) for worker in crew.workers)

    def block(number: int) -> Block:
        key = f"shared/{number}"
        writer.call(seconds_of_set, key, size)
        memory, sent = private(), writer.call(bytes_sent)
        seconds: float = max(crew.together(count, read_and_keep, key))
        found = {
            TIME: seconds,
            MEMORY: (private() - memory) / count,
            SENT: writer.call(bytes_sent) - sent,
        }
        crew.each(count, drop)
        writer.call(delete, key)
        if number:
            for what, value in found.items():
                samples.setdefault(what, []).append(value)
        return [seconds]

    return Contender(who, block)


def read_and_keep(client: Client, start_ns: int, name: str) -> float:
    """Return the seconds until this process has the value."""
    wait_until(start_ns)
    began = time.perf_counter()
    client.kept = client.get(client.key(name))
    return time.perf_counter() - began


def drop(client: Client) -> None:
    client.kept = None


def bytes_sent(client: Client) -> int:
    """Return the bytes that the server has sent since it started."""
    return client.bytes_sent()


# Peaks ------------------------------------------------------------------------------------------


def _peaks(size: int) -> dict[str, int]:
    """Return by how many bytes the private memory of each process grew at most."""
    with ExitStack() as stack:
        host = stack.enter_context(hosts())
        place: Place = stack.enter_context(serve(host("one")))
        writer = stack.enter_context(Worker(our_client, place, host("two"))).ready()
        reader = stack.enter_context(Worker(our_client, place, host("three"))).ready()
        source = Path(host("source")) / "file"
        with source.open("wb") as file:
            file.truncate(size)
        pids = {"Global": place.pid, "uploading": writer.pid, "reading": reader.pid}
        with watched(pids) as most:
            writer.call(upload, str(source))
            reader.call(read_buffer)
        return most


@contextmanager
def watched(pids: dict[str, int]) -> Iterator[dict[str, int]]:
    """Measure by how much the private memory of processes grows at most, until the block ends."""
    before = {name: resident(pid) for name, pid in pids.items()}
    most = dict.fromkeys(pids, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            for name, pid in pids.items():
                most[name] = max(most[name], resident(pid) - before[name])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def upload(client: OurClient, path: str) -> None:
    client.node.set_file("peak", path)


def read_buffer(client: OurClient) -> int:
    return len(client.node.get_buffer("peak"))

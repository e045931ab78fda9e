"""Measure the CPU time of a request: in the client's process, and in that of the server.

``python -m benchmarks.costs`` measures a GET miss, ``get_many`` of 100 cold keys and a DEL that
nobody holds against a bare echo and redis-py, one client at a time, in short turns; then eight
clients that miss, against the echo and redis-py with eight clients. On a machine with few cores the
rate of eight clients is the number of cores divided by the CPU time of a request.

The *calling thread* of a client is the one that asks, and the *loop* is the server's busiest
thread; all others, the I/O threads of ZeroMQ above all, are counted together. *in the kernel* is
the share of the whole that was spent in system calls.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import BY_NAME, ECHO, OURS, Peer, connected
from benchmarks.processes import Crew, Place
from benchmarks.report import table
from benchmarks.workloads.loops import COLD_RATE, looping, read_cold
from benchmarks.workloads.reads import BATCH, load, names

REDIS = BY_NAME["redis-py"]
REQUESTS, ROUNDS = 20_000, 40
CLIENTS, WINDOW = 8, 0.5
CROWD_ROUNDS = 6
TICK = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Seconds that the threads of a process have run, and its seconds in user code and kernel."""

    threads: dict[int, float]
    user: float
    system: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        threads = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            threads[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(threads, int(words[11]) / TICK, int(words[12]) / TICK)


@dataclass
class Spent:
    """What the requests of one kind took, in seconds."""

    requests: int = 0
    wall: float = 0.0
    client: dict[int, float] = field(default_factory=dict)
    server: dict[int, float] = field(default_factory=dict)
    user: float = 0.0
    system: float = 0.0

    def add(self, side: dict[int, float], before: Usage, after: Usage) -> None:
        for thread, seconds in after.threads.items():
            taken = seconds - before.threads.get(thread, 0.0)
            side[thread] = side.get(thread, 0.0) + taken
        self.user += after.user - before.user
        self.system += after.system - before.system

    def line(self, name: str, callers: set[int]) -> list[str]:
        asking = sum(seconds for thread, seconds in self.client.items() if thread in callers)
        loop = max(self.server.values(), default=0.0)
        client, server = sum(self.client.values()), sum(self.server.values())
        seconds = (self.wall, asking, client - asking, loop, server - loop, client + server)
        kernel = self.system / ((self.user + self.system) or 1)
        return [
            name, *(f"{1e6 * each / self.requests:.1f}" for each in seconds), f"{kernel:.0%}",
        ]  # fmt: skip


HEADING = (
    "µs for each request", "time", "client: calling thread", "client: other threads",
    "server: loop", "server: other threads", "CPU time in all", "in the kernel",
)  # fmt: skip


class Subject(NamedTuple):
    """One kind of request: ``ask`` sends the requests of one round."""

    name: str
    place: Place
    requests: int
    ask: Callable[[int], None]


def subjects(stack: ExitStack, requests: int) -> Iterator[Subject]:
    """Yield each kind of request, with servers and clients that have started."""
    size = requests // ROUNDS
    some = max(1, size // 10)
    for peer in (ECHO, OURS, REDIS):
        if peer.missing():
            continue
        place = stack.enter_context(peer.serve())
        client = stack.enter_context(connected(peer, place))
        cold, gone = (names(kind, size * (ROUNDS + 1)) for kind in ("cold", "gone"))
        if peer is ECHO:
            yield Subject(f"{peer.name}, round trip", place, size, in_turn(client.get, cold, size))
            continue
        many = names("many", BATCH * some * (ROUNDS + 1))
        load(peer, place, [*cold, *gone, *many])
        batches = [many[start : start + BATCH] for start in range(0, len(many), BATCH)]
        yield Subject(f"{peer.name}, GET", place, size, in_turn(client.get, cold, size))
        yield Subject(f"{peer.name}, DEL", place, size, in_turn(client.delete, gone, size))
        many_at_once = in_turn(client.get_many, batches, some)
        yield Subject(f"{peer.name}, {BATCH} keys", place, some, many_at_once)


def in_turn(call: Callable[[Any], object], each: Sequence[Any], size: int) -> Callable[[int], None]:
    """Return a function that makes the calls of one round."""

    def ask(number: int) -> None:
        for argument in each[number * size : (number + 1) * size]:
            call(argument)

    return ask


def one_client(requests: int) -> Iterator[list[str]]:
    """Measure single clients. Yields the lines of the table."""
    spent: dict[str, Spent] = {}
    with ExitStack() as stack:
        here = list(subjects(stack, requests))
        for number in range(ROUNDS + 1):
            for each in here[number % len(here) :] + here[: number % len(here)]:
                found = spent.setdefault(each.name, Spent()) if number else Spent()
                client, server = Usage.of(os.getpid()), Usage.of(each.place.pid)
                began = time.perf_counter()
                each.ask(number)
                found.wall += time.perf_counter() - began
                found.add(found.client, client, Usage.of(os.getpid()))
                found.add(found.server, server, Usage.of(each.place.pid))
                found.requests += each.requests
    for each in here:
        yield spent[each.name].line(each.name, {os.getpid()})


def many_clients(count: int, window: float) -> Iterator[list[str]]:
    """Measure several clients that miss. Yields the lines of the table."""
    keys = names("cold", int((CROWD_ROUNDS + 1) * window * COLD_RATE) + 1)
    spent: dict[str, Spent] = {}
    callers: set[int] = set()
    with ExitStack() as stack:
        crews: list[tuple[Peer, Place, Crew]] = []
        for peer in (ECHO, OURS, REDIS):
            if not peer.missing():
                place = stack.enter_context(peer.serve())
                load(peer, place, keys)
                crew = stack.enter_context(Crew())
                crew.grow(count, looping, peer.name, place, keys)
                callers.update(worker.pid for worker in crew.workers)
                crews.append((peer, place, crew))
        for number in range(CROWD_ROUNDS + 1):
            for peer, place, crew in crews:
                found = spent.setdefault(peer.name, Spent()) if number else Spent()
                pids = [worker.pid for worker in crew.workers]
                clients, server = [Usage.of(pid) for pid in pids], Usage.of(place.pid)
                rate = sum(crew.together(count, read_cold, window))
                for pid, before in zip(pids, clients):
                    found.add(found.client, before, Usage.of(pid))
                found.add(found.server, server, Usage.of(place.pid))
                found.requests += int(rate * window)
                found.wall += window
    for name, found in spent.items():
        yield found.line(f"{name}, {count} clients", callers)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="of each kind (default: %(default)d)"
    )
    parser.add_argument(
        "--clients", type=int, default=CLIENTS, help="that miss at once (default: %(default)d)"
    )
    parser.add_argument(
        "--window", type=float, default=WINDOW, help="seconds of a round (default: %(default)g)"
    )
    options = parser.parse_args()
    lines = [
        *one_client(max(ROUNDS, options.requests)),
        *many_clients(options.clients, options.window),
    ]
    print(table(HEADING, lines))


if __name__ == "__main__":
    main()

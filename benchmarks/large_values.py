"""What large values cost: time, memory, and what goes through Global's sockets.

A *host* is a folder in shared memory here: Global runs on host ``one``, and Nodes on host ``two``
reach it over a socket and share among themselves, as on a machine of their own.

- The first read of a value on a host, and the first one by a second process there, against the same
  bytes as one bare pyzmq frame between two processes, in turns in the same run.
- The time of small reads while a large value moves, against the same without, in the same run.
- Eight processes that read one array at once: bytes sent by Global, files, memory.
- The peak private memory of Global and of Nodes while a value is uploaded and read.
- What is left in shared memory after everything was killed, and after the next Node.

Run it as ``PYTHONPATH=. python benchmarks/large_values.py``; it needs NumPy, Linux, and about four
times the largest value in memory. ``--quick`` takes small values, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zmq

import dstore
from tests.integration.processes import PATIENCE, GlobalProcess

MIB = 1 << 20
SHARED = "/dev/shm"
SMALL = b"x" * 100
PAUSE = 0.01
"""Seconds between two looks at the memory of a process."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure large values.")
    parser.add_argument("--quick", action="store_true", help="small values, few rounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    scale = 1 if not options.quick else 64
    rounds = options.rounds if not options.quick else 2
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for size in (64 * MIB // scale, 1024 * MIB // scale):
        figures[f"first read, {size // MIB} MiB"] = first_reads(size, rounds)
    figures["small reads meanwhile"] = small_reads(1024 * MIB // scale, 3000 // scale)
    figures["eight readers"] = eight_readers(256 * MIB // scale)
    figures["peak private memory"] = peak_memory(2048 * MIB // scale)
    figures["after kill -9 of all"] = killed(64 * MIB // scale)
    for name, found in figures.items():
        print(f"{name}: {found}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


# Hosts and processes --------------------------------------------------------------------------


@contextmanager
def cluster() -> Iterator[tuple[GlobalProcess, Callable[[str], str]]]:
    """A Global on host ``one``, and the folder of each host."""
    former = os.environ.get("DSTORE_SHM")
    with tempfile.TemporaryDirectory(prefix="hosts-of-dstore-", dir=SHARED) as base:

        def host(name: str) -> str:
            path = os.path.join(base, name)
            os.makedirs(path, exist_ok=True)
            return path

        os.environ["DSTORE_SHM"] = host("one")
        try:
            with GlobalProcess(lease=2.0) as place:
                yield place, host
                if place.process.poll() is None:
                    place.stop()
        finally:
            if former is None:
                del os.environ["DSTORE_SHM"]
            else:
                os.environ["DSTORE_SHM"] = former


def files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "lock"]


def _obey(connection: Connection, address: str, shm: str) -> None:
    """Carry out calls of a Node: (name, arguments); answer with seconds and a count of bytes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with dstore.Node(address, shm=shm) as node:
        node.join()
        connection.send("ready")
        kept: list[Any] = []
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                return
            if name == "set of zeros":
                name, arguments = "set", (arguments[0], np.zeros(arguments[1], np.uint8))
            if name == "touch":
                kept[-1].sum()
                connection.send((0.0, 0))
                continue
            start = time.perf_counter()
            result = getattr(node, name)(*arguments)
            seconds = time.perf_counter() - start
            if isinstance(result, np.ndarray):
                kept = [result]
            connection.send((seconds, getattr(result, "nbytes", 0)))
            del result


class Worker:
    """A process with a Node on a host."""

    def __init__(self, address: str, shm: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, far = spawn.Pipe()
        self.process = spawn.Process(target=_obey, args=(far, address, shm))
        self.process.start()
        far.close()
        assert self.hear() == "ready"

    def begin(self, name: str, *arguments: Any) -> None:
        self._connection.send((name, arguments))

    def busy(self) -> bool:
        return not self._connection.poll()

    def hear(self) -> Any:
        assert self._connection.poll(4 * PATIENCE)
        return self._connection.recv()

    def seconds(self, name: str, *arguments: Any) -> float:
        self.begin(name, *arguments)
        return float(self.hear()[0])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self.process.join()
        self.process.close()


def memory(pid: int | None) -> dict[str, int]:
    """What the kernel counts for a process, in KiB."""
    found = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            words = line.split()
            if words[-1] == "kB":
                found[words[0].rstrip(":")] = int(words[1])
    return found


# Measurements ---------------------------------------------------------------------------------


def _bare(connection: Connection, size: int) -> None:
    body = os.urandom(MIB) * (size // MIB) if size >= MIB else os.urandom(size)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        connection.send(router.bind_to_random_port("tcp://127.0.0.1"))
        router.linger = 0
        while True:
            route, asked = router.recv_multipart()
            if not asked:
                return
            router.send_multipart((route, body), copy=False)


@contextmanager
def bare_frames(size: int) -> Iterator[Callable[[], float]]:
    """A function that has one frame sent, and says how many seconds it took."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=_bare, args=(far, size))
    process.start()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"tcp://127.0.0.1:{near.recv()}")

        def seconds() -> float:
            start = time.perf_counter()
            dealer.send(b"x")
            frame = dealer.recv(copy=False)
            taken = time.perf_counter() - start
            assert len(frame.buffer) == size
            return taken

        seconds()
        yield seconds
        dealer.send(b"")
        process.join()


def first_reads(size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, and the rate of the first read on another host against the bare frame's."""
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        bare = stack.enter_context(bare_frames(size))
        place, host = stack.enter_context(cluster())
        writer, near, first, second = (
            stack.enter_context(Worker(place.address, host(name)))
            for name in ("one", "one", "two", "two")
        )
        for number in range(rounds):
            key = f"k{number}"
            sample = {
                "bare frame": bare(),
                "set on Global's host": writer.seconds("set of zeros", key, size),
                "first read there": near.seconds("get", key),
                "first read on another host": first.seconds("get", key),
                "second process there": second.seconds("get", key),
            }
            writer.seconds("delete", key)
            for name, seconds in sample.items():
                times.setdefault(name, []).append(seconds)
    found: dict[str, Any] = {name: round(median(t) * 1e3, 2) for name, t in times.items()}
    ratios = [b / f for b, f in zip(times["bare frame"], times["first read on another host"])]
    found["rate against the bare frame"] = round(median(ratios), 2)
    return found


def small_reads(size: int, least: int) -> dict[str, Any]:
    """Microseconds of a GET of 100 bytes that Global answers: alone, and while a value moves."""
    with ExitStack() as stack:
        place, host = stack.enter_context(cluster())
        node = stack.enter_context(dstore.Node(place.address, shm="", cache_bytes=0))
        near = stack.enter_context(Worker(place.address, host("one")))
        far = stack.enter_context(Worker(place.address, host("two")))
        node.set("small", SMALL)

        def times(busy: Callable[[], bool]) -> list[float]:
            taken: list[float] = []
            while len(taken) < least or busy():
                start = time.perf_counter()
                node.get("small")
                taken.append(time.perf_counter() - start)
                if not busy() and len(taken) >= least:
                    break
            return sorted(taken)

        alone = times(lambda: False)
        near.seconds("set of zeros", "down", size)
        far.begin("get", "down")
        down = times(far.busy)
        far.hear()
        far.begin("set of zeros", "up", size)
        up = times(far.busy)
        far.hear()
    found: dict[str, Any] = {}
    for name, sample in (("alone", alone), ("download", down), ("upload", up)):
        found[name] = {
            "median": round(median(sample) * 1e6),
            "p99": round(sample[int(len(sample) * 0.99)] * 1e6),
            "samples": len(sample),
        }
        found[name]["p99 ratio"] = round(found[name]["p99"] / found["alone"]["p99"], 2)
    return found


def eight_readers(size: int) -> dict[str, Any]:
    """One array, read by eight processes of a host at once."""
    with ExitStack() as stack:
        place, host = stack.enter_context(cluster())
        writer = stack.enter_context(Worker(place.address, host("one")))
        writer.seconds("set of zeros", "array", size)
        readers = [stack.enter_context(Worker(place.address, host("two"))) for _ in range(8)]
        before = [memory(each.process.pid) for each in readers]
        for each in readers:
            each.begin("get", "array")
        seconds = max(each.hear()[0] for each in readers)
        # Each process touches all of it, so that its pages count.
        for each in readers:
            each.seconds("touch")
        after = [memory(each.process.pid) for each in readers]
        with dstore.Node(place.address, shm="") as node:
            sent = node.global_stats()["bytes_out"]
        return {
            "bytes of the value": size,
            "bytes sent by Global": sent,
            "files": [path.stat().st_size for path in files(host("two"))],
            "seconds until all have it": round(seconds, 3),
            "private KiB more, each": [b["RssAnon"] - a["RssAnon"] for a, b in zip(before, after)],
            "sum of Pss_Shmem, KiB": sum(each.get("Pss_Shmem", 0) for each in after),
            "mapped files' KiB, each": [each["RssShmem"] for each in after],
        }


class Peak:
    """The largest private memory of processes while it watches, in MiB."""

    def __init__(self, **processes: int | None) -> None:
        self._pids = processes
        self._start = {name: memory(pid)["RssAnon"] for name, pid in processes.items()}
        self.most = dict(self._start)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(PAUSE):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], memory(pid)["RssAnon"])

    def end(self) -> dict[str, int]:
        self._done.set()
        self._thread.join()
        return {name: (most - self._start[name]) // 1024 for name, most in self.most.items()}


def peak_memory(size: int) -> dict[str, Any]:
    """MiB of private memory beyond what the processes had before."""
    with ExitStack() as stack:
        place, host = stack.enter_context(cluster())
        writer = stack.enter_context(Worker(place.address, host("two")))
        reader = stack.enter_context(Worker(place.address, host("three")))
        source = Path(host("source")) / "file"
        with source.open("wb") as file:
            file.truncate(size)
        pids = {"Global": place.process.pid, "writer": writer.process.pid}
        watch = Peak(**pids, reader=reader.process.pid)
        up = writer.seconds("set_file", "k", str(source))
        down = reader.seconds("get_buffer", "k")
        source.unlink()
        return {"value": size // MIB, **watch.end(), "upload s": up, "download s": down}


def killed(size: int) -> dict[str, Any]:
    """Files in shared memory, in order."""
    with cluster() as (place, host):
        workers = [Worker(place.address, host("one")) for _ in range(3)]
        workers[0].seconds("set of zeros", "k", size)
        for each in workers:
            each.seconds("get", "k")
            each.process.kill()
        place.kill()
        for each in workers:
            each.__exit__()
        left = len(files(host("one")))
        place.start()
        with dstore.Node(place.address, shm=host("one")) as node:
            node.join()
            node.set("new", bytes(MIB))
            node.delete("new")
            anew = len(files(host("one")))
        place.stop()
        return {"killed": left, "after a fresh start": anew, "after a clean exit": _entries(host)}


def _entries(host: Callable[[str], str]) -> int:
    return sum(1 for path in Path(host("one")).rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

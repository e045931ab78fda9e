"""Honest processes that read, write and delete during an attack, and check what they read.

A writer raises the version of each key, by replacing it or by deleting and setting it. Once a call
is confirmed, it writes into shared memory the lowest version that may still be read. A reader looks
at that number before it reads: the value that it gets must not be older.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import random
import tempfile
import time
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import dstore
from tests.ending import Closing, join

KEYS = 20
READERS = 2
TIMEOUT = 10.0
"""Seconds until an honest call gives up; then it counts as refused."""
PAUSE = 0.002
"""Seconds between two calls of the writer."""
ANSWER_TIMEOUT = 60.0
"""Seconds for an honest process to answer or to end."""


class Told(NamedTuple):
    """What an honest process has counted since it was last asked; ``longest`` is in seconds."""

    calls: int
    reads: int
    stale: int
    refused: int
    longest: float
    complaint: str

    def __add__(self, other: tuple[Any, ...]) -> Told:
        assert isinstance(other, Told)
        return Told(
            self.calls + other.calls,
            self.reads + other.reads,
            self.stale + other.stale,
            self.refused + other.refused,
            max(self.longest, other.longest),
            self.complaint or other.complaint,
        )


NOTHING = Told(0, 0, 0, 0, 0.0, "")


class LowestVersions:
    """The lowest version of each key that may still be read, in a file that all processes map."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * KEYS)
        self._view = memoryview(self._map).cast(
            "q"
        )  # aligned words, which are read and written atomically

    def __getitem__(self, key: int) -> int:
        return self._view[key]

    def __setitem__(self, key: int, version: int) -> None:
        self._view[key] = version

    def close(self) -> None:
        self._view.release()
        self._map.close()


class _Calls:
    """Makes the calls of one process and counts them."""

    def __init__(self, node: dstore.Node, least: LowestVersions, dice: random.Random) -> None:
        self.node = node
        self.told = NOTHING
        self._least = least
        self._dice = dice

    def read(self) -> None:
        key = self._dice.randrange(KEYS)
        least = self._least[key]
        start = time.monotonic()
        try:
            got = self.node.get(f"honest{key}", None)
        except dstore.DstoreError as error:
            self._count(start, complaint=f"get: {error}")
            return
        self._count(start, reads=1, stale=int(got is not None and got < least))

    def write(self) -> None:
        key = self._dice.randrange(KEYS)
        name, version = f"honest{key}", self._least[key] + 1
        start = time.monotonic()
        try:
            if self._dice.random() < 0.5:
                self.node.set(name, version, replace=True)
            else:
                self.node.delete(name)
                self._least[key] = version
                self.node.set(name, version)
            self._least[key] = version
        except dstore.KeyMissing:
            self.node.set(name, version)
            self._least[key] = version
        except dstore.DstoreError as error:
            self._count(start, complaint=f"write: {error}")
            return
        self._count(start)

    def _count(self, start: float, reads: int = 0, stale: int = 0, complaint: str = "") -> None:
        took = time.monotonic() - start
        self.told += Told(1, reads, stale, bool(complaint), took, complaint)


def _work(
    address: str,
    connect: str | None,
    writes: bool,
    seed: int,
    path: str,
    over: Event,
    asked: Any,
    answers: Any,
) -> None:
    with (
        dstore.Node(address, timeout=TIMEOUT, connect=connect) as node,
        contextlib.closing(LowestVersions(path)) as least,
    ):
        calls = _Calls(node, least, random.Random(seed))
        node.join()
        while not over.is_set():
            calls.write() if writes else calls.read()
            if asked.poll(0):
                asked.recv()
                answers.send(calls.told)
                calls.told = NOTHING
            time.sleep(PAUSE * writes)


class Honest(Closing):
    """One writer and some readers, each a process with a Node that uses this connect file."""

    def __init__(self, address: str, seed: int, connect: str | None = None) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self._over = context.Event()
        self._least = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._least.truncate(8 * KEYS)
        self._pipes: list[tuple[Any, Any]] = []
        self._processes: list[BaseProcess] = []
        for number in range(1 + READERS):
            asked_end, ask_end = context.Pipe(duplex=False)
            answers_end, answer_end = context.Pipe(duplex=False)
            process = context.Process(
                target=_work,
                args=(
                    address,
                    connect,
                    number == 0,
                    seed + number,
                    self._least.name,
                    self._over,
                    asked_end,
                    answer_end,
                ),
            )
            process.start()
            asked_end.close()
            answer_end.close()
            self._pipes.append((ask_end, answers_end))
            self._processes.append(process)
        self.ask()

    def ask(self) -> Told:
        """The counts of all processes since the last time.

        Each process has finished a call that began after this one.
        """
        for ask, _ in self._pipes:
            ask.send(None)
        told = NOTHING
        for _, answers in self._pipes:
            if not answers.poll(ANSWER_TIMEOUT):
                return told + Told(0, 0, 0, 1, ANSWER_TIMEOUT, "an honest process hangs")
            told += answers.recv()
        return told

    def close(self) -> None:
        self._over.set()
        for process in self._processes:
            join(process, ANSWER_TIMEOUT)
        for pipes in self._pipes:
            for pipe in pipes:
                pipe.close()
        self._least.close()

"""One worker process of the demo: it embeds a Node, reads, and notes what it saw.

It does what the parent tells it over a pipe (:class:`Order`) and answers with the messages below.
It ends when it has reported, or when the parent has gone.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection

from dstore import DstoreError, KeyMissing, Node
from dstore.cli.demo.corpus import Key, address_of
from dstore.cli.demo.verdict import Seen, Sighting

READS_PER_LOOK = 64
"""A worker that keeps reading looks for an order of its parent after so many reads."""


@dataclass(frozen=True)
class Entry:
    """A loaded file: its key, and the content addresses of its content and of its replacement."""

    key: Key
    address: str
    address_new: str


class Order(Enum):
    """What the parent tells a worker. Before the first one it sends the list of entries."""

    READ_ALL = "read everything once, by path and by content address"
    KEEP_READING = "read all paths, over and over"
    ENOUGH = "read all paths a last time, then stop"
    REPORT = "report and leave"


@dataclass(frozen=True)
class Progress:
    """So many more files were read."""

    files: int


class Joined:
    """Global knows this worker."""


class Done:
    """The order was carried out (KEEP_READING: each path was read once, and it goes on)."""


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on."""

    reason: str


@dataclass(frozen=True)
class Report:
    """All that a worker did and saw. Times are nanoseconds, of the reads told by READ_ALL."""

    worker: int
    hits: int
    misses: int
    missing: int
    hit_ns: Sequence[int]
    miss_ns: Sequence[int]
    deletions_heard: int
    sightings: list[Sighting]

    @property
    def reads(self) -> int:
        return self.hits + self.misses


class Reader:
    """Reads keys through a Node, and remembers what each read gave and when."""

    def __init__(self, node: Node, entries: list[Entry]) -> None:
        self._node = node
        self._meanings: dict[Key, dict[str, Seen]] = {}
        for entry in entries:
            self._meanings[entry.address] = {entry.address: Seen.FILE}
            self._meanings[entry.key] = {
                entry.address: Seen.FILE,
                entry.address_new: Seen.REPLACEMENT,
            }
        self._known: dict[Key, tuple[object, Seen]] = {}
        self._sightings: dict[tuple[Key, Seen], list[int]] = {}
        self.hits = self.misses = self.missing = 0
        self.hit_ns, self.miss_ns = array("q"), array("q")

    def read(self, key: Key, *, timed: bool = False) -> object:
        """Read one key and take note; return the value, or None if there is none."""
        start = time.monotonic_ns()
        try:
            found = self._node.lookup(key)
        except KeyMissing:
            end = time.monotonic_ns()
            self.misses += 1
            self.missing += 1
            self._note(key, Seen.NOTHING, start, end)
            return None
        end = time.monotonic_ns()
        if found.from_local:
            self.hits += 1
        else:
            self.misses += 1
        if timed:
            (self.hit_ns if found.from_local else self.miss_ns).append(end - start)
        self._note(key, self._compare(key, found.value), start, end)
        return found.value

    def sightings(self, worker: int) -> list[Sighting]:
        return [
            Sighting(worker, key, seen, count, end_first, start_last)
            for (key, seen), (count, end_first, start_last) in self._sightings.items()
        ]

    def _compare(self, key: Key, value: object) -> Seen:
        """Compare every byte, by its hash; but the same immutable object only once."""
        known = self._known.get(key)
        if known is not None and known[0] is value:
            return known[1]
        seen = Seen.OTHER
        if isinstance(value, bytes):
            seen = self._meanings[key].get(address_of(value), Seen.OTHER)
        self._known[key] = (value, seen)
        return seen

    def _note(self, key: Key, seen: Seen, start: int, end: int) -> None:
        sighting = self._sightings.get((key, seen))
        if sighting is None:
            self._sightings[key, seen] = [1, end, start]
        else:  # one thread reads, one read after the other: the first end is the earliest
            sighting[0] += 1
            sighting[2] = start


def work(number: int, address: str, pipe: Connection) -> None:
    """The whole life of worker ``number``: the target of its process."""
    try:
        try:
            with Node(address, label=f"demo worker {number}") as node:
                node.join()
                pipe.send(Joined())
                _obey(number, node, pipe)
        except DstoreError as error:
            pipe.send(Failed(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone, or wants no more


def _obey(number: int, node: Node, pipe: Connection) -> None:
    entries: list[Entry] = pipe.recv()
    reader = Reader(node, entries)
    random.Random(number).shuffle(entries)
    while True:
        order = pipe.recv()
        if order is Order.READ_ALL:
            _read_all(reader, entries, pipe)
        elif order is Order.KEEP_READING:
            _keep_reading(reader, [entry.key for entry in entries], pipe)
        else:
            break
        pipe.send(Done())
    pipe.send(_report(number, node, reader))


def _read_all(reader: Reader, entries: list[Entry], pipe: Connection) -> None:
    """Read each file by its path, and then by the address that its content hashes to."""
    for count, entry in enumerate(entries, 1):
        content = reader.read(entry.key, timed=True)
        if isinstance(content, bytes) and address_of(content) == entry.address:
            reader.read(entry.address, timed=True)
        if count % READS_PER_LOOK == 0:
            pipe.send(Progress(READS_PER_LOOK))
    pipe.send(Progress(len(entries) % READS_PER_LOOK))


def _keep_reading(reader: Reader, keys: list[Key], pipe: Connection) -> None:
    for key in keys:
        reader.read(key)
    pipe.send(Done())
    while True:
        for count, key in enumerate(keys):
            if count % READS_PER_LOOK == 0 and pipe.poll():
                pipe.recv()
                for last in keys:
                    reader.read(last)
                return
            reader.read(key)


def _report(number: int, node: Node, reader: Reader) -> Report:
    return Report(
        worker=number,
        hits=reader.hits,
        misses=reader.misses,
        missing=reader.missing,
        hit_ns=reader.hit_ns,
        miss_ns=reader.miss_ns,
        deletions_heard=node.stats()["deletions"],
        sightings=reader.sightings(number),
    )

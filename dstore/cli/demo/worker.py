"""One worker process of the demo: it embeds a Node, reads keys, and checks every answer."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median

from blake3 import blake3

from dstore import DstoreError, KeyMissing, Node, config

PASSES = 2
READS_PER_LOOK = 64
"""A worker that keeps reading looks after this number of reads whether it is to stop."""
TIMES_MAX = 100_000

Key = str | bytes


@dataclass(frozen=True)
class Entry:
    """A loaded file.

    ``address`` is the content address of its content. ``becomes`` says what the parent makes of
    its path while the workers read: None for nothing, an empty text for a deletion, or the content
    address of a replacement.
    """

    number: int
    key: Key
    address: str
    becomes: str | None


@dataclass
class WorkerReport:
    """What a worker has done. ``fault`` describes the first wrong answer, or is empty."""

    number: int
    hit_ns: list[int] = field(default_factory=list)
    miss_ns: list[int] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    proofs: int = 0
    """Reads of a path that began after its deletion or replacement had been confirmed."""
    fault: str = ""

    @property
    def medians(self) -> list[float]:
        """The median microseconds of a hit and of a miss."""
        return [median(times or [0]) / 1e3 for times in (self.hit_ns, self.miss_ns)]


def address_of(content: bytes) -> str:
    """The content address that ``Node.put`` must answer, computed without it."""
    return config.CONTENT_PREFIX + blake3(content).hexdigest()


def fault_of(entry: Entry, address: str, *, by_path: bool, confirmed: bool) -> str:
    """Return what is wrong with an answer, or an empty text.

    ``address`` is the content address of the bytes that were read, or empty if the key was missing.
    """
    if address == entry.address:
        return "the old content after its deletion had been confirmed (stale)" if confirmed else ""
    if by_path and address == entry.becomes:
        return ""
    return "a value that was never written there" if address else "nothing"


class CheckedNode:
    """A Node whose every answer is checked.

    ``confirmed`` is shared memory: byte N is 1 once the deletion or the replacement of file N has
    been confirmed. A read that begins afterwards must not return the old content.
    """

    def __init__(self, node: Node, confirmed: Sequence[int], report: WorkerReport) -> None:
        self._node = node
        self._confirmed = confirmed
        self._report = report
        self._hashed: dict[Key, tuple[object, str]] = {}

    def read(self, entry: Entry, *, by_path: bool = True) -> None:
        """Read a file, by its path or by its content address, and check the answer."""
        report = self._report
        key = entry.key if by_path else entry.address
        confirmed = by_path and self._confirmed[entry.number] != 0
        from_local, address = False, ""
        start = time.monotonic_ns()
        try:
            found = self._node.lookup(key)
        except KeyMissing:
            took = time.monotonic_ns() - start
        else:
            took = time.monotonic_ns() - start
            from_local, address = found.from_local, self._address(key, found.value)
        report.hits += from_local
        report.misses += not from_local
        report.proofs += confirmed
        times = report.hit_ns if from_local else report.miss_ns
        if len(times) < TIMES_MAX:
            times.append(took)
        wrong = fault_of(entry, address, by_path=by_path, confirmed=confirmed)
        if wrong and not report.fault:
            report.fault = f"worker {report.number} read {key!r} and got {wrong}"

    def _address(self, key: Key, value: object) -> str:
        """Hash every byte of a value; but only once if the Node returns the same object again."""
        known = self._hashed.get(key)
        if known is None or known[0] is not value:
            address = address_of(value) if isinstance(value, bytes) else "no bytes"
            known = self._hashed[key] = (value, address)
        return known[1]


def work(number: int, address: str, confirmed: Sequence[int], pipe: Connection) -> None:
    """Run worker ``number``, as the target of its process.

    It sends a message when it has joined, after each pass over all files, and with its report. It
    receives the entries, and when it is to stop. It ends at once when the parent has gone.
    """
    report = WorkerReport(number)
    try:
        try:
            with Node(address, label=f"demo worker {number}") as node:
                node.join()
                _read(CheckedNode(node, confirmed, report), number, pipe)
        except DstoreError as error:
            report.fault = f"worker {number} gave up: {error}"
        pipe.send(report)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _read(node: CheckedNode, number: int, pipe: Connection) -> None:
    pipe.send("joined")
    entries: list[Entry] = pipe.recv()
    random.Random(number).shuffle(entries)
    for _ in range(PASSES):
        for entry in entries:
            node.read(entry)
            node.read(entry, by_path=False)
        pipe.send("passed")
    for count, entry in enumerate(itertools.cycle(entries)):
        if count % READS_PER_LOOK == 0 and pipe.poll():
            break
        node.read(entry)
    pipe.recv()  # to stop: every change has been confirmed
    for entry in entries:
        node.read(entry)

"""One worker process of the demo: it embeds a Node, reads keys, and checks every answer."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median

from blake3 import blake3

from dstore import DstoreError, KeyMissing, Node

PASSES = 2
READS_PER_LOOK = 64
"""A worker that keeps reading looks after this number of reads whether it is to stop."""
TIMES_MAX = 100_000

Key = str | bytes


@dataclass(frozen=True)
class LoadedFile:
    """A file that the parent has stored: its key is its path in the folder.

    ``digest`` is the BLAKE3 hash of its content. ``becomes`` says what the parent does to it while
    the workers read: None for nothing, an empty text for a deletion, or the digest of a
    replacement.
    """

    number: int
    key: Key
    digest: str
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
    """Reads of a file that began after its deletion or replacement had been confirmed."""
    fault: str = ""

    @property
    def medians(self) -> list[float]:
        """The median microseconds of a hit and of a miss."""
        return [median(times or [0]) / 1e3 for times in (self.hit_ns, self.miss_ns)]


def digest_of(content: object) -> str:
    return blake3(content).hexdigest() if isinstance(content, bytes) else "no bytes"


def fault_of(file: LoadedFile, digest: str, *, confirmed: bool) -> str:
    """Return what is wrong with an answer, or an empty text.

    ``digest`` is that of the bytes that were read, or empty if the key was missing.
    """
    if digest == file.digest:
        return "the old content after its deletion had been confirmed (stale)" if confirmed else ""
    if digest == file.becomes:
        return ""
    return "a value that was never written there" if digest else "nothing"


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

    def read(self, file: LoadedFile) -> None:
        """Read a file and check the answer."""
        report = self._report
        confirmed = self._confirmed[file.number] != 0
        start = time.monotonic_ns()
        try:
            found = self._node.lookup(file.key)
        except KeyMissing:
            found = None
        took = time.monotonic_ns() - start
        from_local = found is not None and found.from_local
        digest = "" if found is None else self._digest(file.key, found.value)
        report.hits += from_local
        report.misses += not from_local
        report.proofs += confirmed
        times = report.hit_ns if from_local else report.miss_ns
        if len(times) < TIMES_MAX:
            times.append(took)
        wrong = fault_of(file, digest, confirmed=confirmed)
        if wrong and not report.fault:
            report.fault = f"worker {report.number} read {file.key!r} and got {wrong}"

    def _digest(self, key: Key, value: object) -> str:
        """Hash every byte of a value; but only once if the Node returns the same object again."""
        known = self._hashed.get(key)
        if known is None or known[0] is not value:
            known = self._hashed[key] = (value, digest_of(value))
        return known[1]


def work(
    number: int, address: str, timeout: float, confirmed: Sequence[int], pipe: Connection
) -> None:
    """Run worker ``number``, as the target of its process.

    It sends a message when it has joined, after each pass over all files, and with its report. It
    receives the list of files, and when it is to stop. It ends at once when the parent has gone.
    """
    report = WorkerReport(number)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            with Node(address, label=f"demo worker {number}", timeout=timeout) as node:
                node.join()
                _read(CheckedNode(node, confirmed, report), number, pipe)
        except DstoreError as error:
            report.fault = f"worker {number} gave up: {error}"
        pipe.send(report)


def _read(node: CheckedNode, number: int, pipe: Connection) -> None:
    pipe.send("joined")
    files: list[LoadedFile] = pipe.recv()
    random.Random(number).shuffle(files)
    for _ in range(PASSES):
        for file in files:
            node.read(file)
        pipe.send("passed")
    for count, file in enumerate(itertools.cycle(files)):
        if count % READS_PER_LOOK == 0 and pipe.poll():
            break
        node.read(file)
    pipe.recv()  # to stop: every change has been confirmed
    for file in files:
        node.read(file)

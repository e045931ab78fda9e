"""Records of what a client does: one JSON line for each call, written during the call.

A write has two lines: one before it begins, one when it has returned. So a client that is killed
leaves a write of unknown outcome, and everything that it may have done is recorded. A read has one
line. Times are ``time.monotonic_ns``, which all processes of a machine share.

What a watch says is recorded, too: each event with the round of its key, and when the watch began,
ended and had resyncs in a file of its own, since that concerns all rounds.

Consecutive reads of one thread that return the same value are recorded as the first and the last of
them. Every value is written once, so that it is current without a break, and the reads between two
reads of it need no check of their own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tests.ending import Closing

Values: TypeAlias = dict[str, "str | None"]

# The outcome for one key of a call that has returned.
DONE = "done"
MISSING = "missing"
OCCUPIED = "occupied"
OCCUPIED_LOCAL = "occupied here"  # this Local's own cache said so, or may have
UNKNOWN = "unknown"
NOT_DONE = "not done"
TIMED_OUT = "timed out"
WATCHES = "watch"
"""What the names of files begin with that have the beginnings, ends and resyncs of watches."""

WRITES = ("set", "replace", "delete", "clear")
"""``clear`` is a deletion without waiting for its confirmation."""


@dataclass
class Operation:
    """One call and one of its keys.

    ``value`` is what was written, or what was read (None: missing). ``end`` is None if the call
    has not returned. ``local`` says whether the Local's cache answered a read, if that is known.
    ``process`` is one thread of one client.
    """

    process: str
    kind: str
    key: str
    value: str | None
    start: int
    end: int | None
    outcome: str = UNKNOWN
    local: bool | None = None

    @property
    def reads(self) -> bool:
        return self.kind not in WRITES


class Waited(NamedTuple):
    """A wait for a key that has returned; ``value`` is None if it had none, ``outcome`` says why.

    ``longest`` is after how many nanoseconds it had to return in any case.
    """

    process: str
    key: str
    start: int
    end: int
    outcome: str
    longest: int


class Noticed(NamedTuple):
    """A deletion of a key as a program notices it, at a time: an event, or ``on_deletion``."""

    process: str
    key: str
    at: int
    watch: bool


@dataclass
class Watched:
    """A watch of all keys: when it began, when it ended (None: killed), and its resyncs."""

    begin: int
    end: int | None = None
    resyncs: list[int] = field(default_factory=list)


@dataclass
class Records:
    """The contents of all files of a round, and all watches by process."""

    operations: list[Operation] = field(default_factory=list)
    waits: list[Waited] = field(default_factory=list)
    noticed: list[Noticed] = field(default_factory=list)
    watches: dict[str, Watched] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)


class Recorder(Closing):
    """Writes the records of one thread, a new file for each round."""

    def __init__(self, folder: Path, process: str) -> None:
        self._folder = folder
        self._process = process
        self._round = -1
        self._file = -1
        self._calls = 0

    def enter(self, number: int) -> None:
        """Write the following records into the file of this round."""
        if number != self._round:
            self.close()
            self._round = number
            path = self._folder / f"{number}.{self._process}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def begin(self, kind: str, values: Values, start: int) -> int:
        """Record that a write is about to begin. Returns its number, for :meth:`end`."""
        self._calls += 1
        self._put("begin", self._calls, kind, values, start)
        return self._calls

    def end(self, call: int, start: int, end: int, outcomes: dict[str, str]) -> None:
        """Record that a write has returned. ``start`` is more exact than that of :meth:`begin`."""
        self._put("end", call, start, end, outcomes)

    def read(
        self, kind: str, values: Values, start: int, end: int, local: bool | None, more: int = 0
    ) -> None:
        """Record a read, and that ``more`` reads before it returned the same."""
        self._put("read", kind, values, start, end, local, more)

    def wait(
        self, key: str, value: str | None, start: int, end: int, outcome: str, longest: int
    ) -> None:
        """Record a wait that has returned; see :class:`Waited`."""
        self._put("wait", key, value, start, end, outcome, longest)

    def notice(self, key: str, at: int, watch: bool) -> None:
        """Record a deletion that was noticed; see :class:`Noticed`."""
        self._put("notice", key, at, watch)

    def count(self, counts: dict[str, int]) -> None:
        """Add to the metrics of this round."""
        self._put("count", counts)

    def surprise(self, what: str) -> None:
        """Record something that must never happen."""
        self._put("surprise", what)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _put(self, *fields: Any) -> None:
        os.write(self._file, json.dumps(fields, separators=(",", ":")).encode() + b"\n")


class WatchRecorder:
    """Writes when a watch began, ended and had resyncs. It begins now."""

    def __init__(self, folder: Path, process: str, begin: int) -> None:
        path = folder / f"{WATCHES}.{process}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._put("begin", begin)

    def resync(self, at: int) -> None:
        self._put("resync", at)

    def end(self, at: int) -> None:
        self._put("end", at)

    def _put(self, kind: str, at: int) -> None:
        os.write(self._file, json.dumps([kind, at]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def load_watches(folder: Path) -> dict[str, Watched]:
    """Return all watches of a run by process. An incomplete last line is ignored."""
    return {_process_of(path): _watched(path) for path in folder.glob(f"{WATCHES}.*.jsonl")}


def _watched(path: Path) -> Watched:
    (_, begin), *others = map(json.loads, path.read_text().split("\n")[:-1])
    watched = Watched(begin)
    for kind, at in others:
        if kind == "end":
            watched.end = at
        else:
            watched.resyncs.append(at)
    return watched


def _process_of(path: Path) -> str:
    return path.name.partition(".")[2].removesuffix(".jsonl")


def files_of(folder: Path, number: int) -> list[Path]:
    """The files of one round."""
    return sorted(folder.glob(f"{number}.*.jsonl"))


def load(paths: Iterable[Path]) -> Records:
    """Merge files. An incomplete last line (its writer was killed) is ignored."""
    records = Records()
    for path in paths:
        _Loader(_process_of(path), records).load(path.read_text())
    return records


class _Loader:
    def __init__(self, process: str, records: Records) -> None:
        self._process = process
        self._records = records
        self._open: dict[int, list[Operation]] = {}

    def load(self, text: str) -> None:
        lines = text.split("\n")[:-1]
        for line in lines:
            kind, *fields = json.loads(line)
            getattr(self, f"_on_{kind}")(*fields)

    def _on_begin(self, call: int, kind: str, values: Values, start: int) -> None:
        begun = [Operation(self._process, kind, key, values[key], start, None) for key in values]
        self._open[call] = begun
        self._records.operations += begun
        self._records.counts["calls"] += 1

    def _on_end(self, call: int, start: int, end: int, outcomes: dict[str, str]) -> None:
        for operation in self._open.pop(call):
            operation.start, operation.end = start, end
            operation.outcome = outcomes.get(operation.key, NOT_DONE)
        for outcome in set(outcomes.values()) & {UNKNOWN, NOT_DONE}:
            self._records.counts[outcome] += 1

    def _on_read(
        self, kind: str, values: Values, start: int, end: int, local: bool | None, more: int
    ) -> None:
        self._records.operations += [
            Operation(self._process, kind, key, value, start, end, DONE, local)
            for key, value in values.items()
        ]
        self._records.counts["calls"] += 1 + more

    def _on_wait(
        self, key: str, value: str | None, start: int, end: int, outcome: str, longest: int
    ) -> None:
        self._records.waits.append(Waited(self._process, key, start, end, outcome, longest))
        self._records.counts[f"waits {outcome}"] += 1
        if value is not None:
            self._records.operations.append(
                Operation(self._process, "wait", key, value, start, end, DONE)
            )

    def _on_notice(self, key: str, at: int, watch: bool) -> None:
        self._records.noticed.append(Noticed(self._process, key, at, watch))

    def _on_count(self, counts: dict[str, int]) -> None:
        self._records.counts.update(counts)

    def _on_surprise(self, what: str) -> None:
        self._records.surprises.append(f"{self._process}: {what}")

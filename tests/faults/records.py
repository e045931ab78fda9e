"""Records of what a client does: one JSON line for each call, written during the call.

A write has two lines: one before it begins, one when it has returned. So a client that is killed
leaves a write of unknown outcome, and everything that it may have done is recorded. A read has one
line. Times are ``time.monotonic_ns``, which all processes of a machine share.

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
from typing import Any, TypeAlias

from tests.ending import Closing

Values: TypeAlias = dict[str, "str | None"]

# The outcome for one key of a call that has returned.
DONE = "done"
MISSING = "missing"
OCCUPIED = "occupied"
OCCUPIED_LOCAL = "occupied here"  # this Local's own cache said so, or may have
UNKNOWN = "unknown"
NOT_DONE = "not done"

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


@dataclass
class Records:
    """The contents of all files of a round."""

    operations: list[Operation] = field(default_factory=list)
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


def files_of(folder: Path, number: int) -> list[Path]:
    """The files of one round."""
    return sorted(folder.glob(f"{number}.*.jsonl"))


def load(paths: Iterable[Path]) -> Records:
    """Merge files. An incomplete last line (its writer was killed) is ignored."""
    records = Records()
    for path in paths:
        process = path.name.partition(".")[2].removesuffix(".jsonl")
        _Loader(process, records).load(path.read_text())
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

    def _on_count(self, counts: dict[str, int]) -> None:
        self._records.counts.update(counts)

    def _on_surprise(self, what: str) -> None:
        self._records.surprises.append(f"{self._process}: {what}")

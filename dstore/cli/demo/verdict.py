"""Holds the demo's records against what dstore promises.

All processes of one machine share ``CLOCK_MONOTONIC``, so that instants of different processes
can be compared. Each key is written at most once (deleted or replaced, by one process) while the
workers read it. For such a register, reads and write are linearizable if and only if

- no read that started after the write had returned gave the content from before it (a *stale*
  read: the promise that a confirmed deletion makes),
- no read that ended before the write was called gave its effect,
- no read that started after *another read with the effect* had ended gave the content from before
  (time does not run backwards between two workers).

Only the latest start and the earliest end of the reads with one result can break these rules, so a
worker keeps just these two for each key and result: a :class:`Sighting`. Nothing is lost by that,
and the record stays small however long the workers read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Seen(Enum):
    """What one read gave."""

    FILE = "the file's content"
    REPLACEMENT = "the new content"
    NOTHING = "nothing"
    OTHER = "bytes that are neither the file's nor the new content"


class Change(Enum):
    """What was done to a key while the workers were reading it, and what a read gives then."""

    DELETED = Seen.NOTHING
    REPLACED = Seen.REPLACEMENT


@dataclass(frozen=True)
class Write:
    """One deletion or replacement. ``called`` and ``returned`` are monotonic nanoseconds."""

    key: str | bytes
    change: Change
    called: int
    returned: int
    confirmed: int = 0
    expired: int = 0


@dataclass(frozen=True)
class Sighting:
    """All reads of one worker that gave one result for one key, as far as the rules need them."""

    worker: int
    key: str | bytes
    seen: Seen
    count: int
    end_first: int
    start_last: int


@dataclass(frozen=True)
class Fault:
    """One broken promise, in words."""

    text: str

    def __str__(self) -> str:
        return self.text


def judge(
    keys: Iterable[str | bytes],
    writes: Iterable[Write],
    sightings: Iterable[Sighting],
    workers: Iterable[int],
) -> list[Fault]:
    """Return every fault in the records of a run over ``keys``; an empty list is a good verdict.

    A record that proves nothing is a fault too: each worker must have read each key, and each
    written key once more after the write had returned.
    """
    written: dict[str | bytes, Write] = {}
    by_key: dict[str | bytes, list[Sighting]] = defaultdict(list)
    expected, crew = set(keys), sorted(workers)
    faults: list[Fault] = [] if expected and crew else [Fault("there is nothing to judge")]
    for write in writes:
        if write.key in written or write.key not in expected:
            faults.append(Fault(f"{write.key!r} was written more often than planned"))
        written[write.key] = write
    for sighting in sightings:
        by_key[sighting.key].append(sighting)
    for key in sorted(expected | set(by_key), key=repr):
        faults.extend(_judge_key(key, written.get(key), by_key[key], crew))
    return faults


def _judge_key(
    key: str | bytes, write: Write | None, sightings: list[Sighting], crew: list[int]
) -> Iterator[Fault]:
    yield from _absent(key, write, sightings, crew)
    possible = {Seen.FILE} if write is None else {Seen.FILE, write.change.value}
    for sighting in sightings:
        if sighting.seen not in possible:
            yield Fault(f"worker {sighting.worker} read {key!r} and got {sighting.seen.value}")
    if write is not None:
        yield from _out_of_order(write, sightings)


def _absent(
    key: str | bytes, write: Write | None, sightings: list[Sighting], crew: list[int]
) -> Iterator[Fault]:
    """Reads that would have been needed to prove something, and were not made."""
    for worker in crew:
        starts = [sighting.start_last for sighting in sightings if sighting.worker == worker]
        if not starts:
            yield Fault(f"worker {worker} never read {key!r}")
        elif write is not None and max(starts) <= write.returned:
            yield Fault(f"worker {worker} never read {key!r} after it was {_done(write)}")


def _out_of_order(write: Write, sightings: list[Sighting]) -> Iterator[Fault]:
    before = [sighting for sighting in sightings if sighting.seen is Seen.FILE]
    after = [sighting for sighting in sightings if sighting.seen == write.change.value]
    for sighting in before:
        late = sighting.start_last - write.returned
        if late > 0:
            yield Fault(
                f"stale: worker {sighting.worker} began to read {write.key!r} {_ms(late)} after it "
                f"was {_done(write)}, and got {sighting.seen.value}"
            )
    for sighting in after:
        early = write.called - sighting.end_first
        if early > 0:
            yield Fault(
                f"worker {sighting.worker} read {write.key!r} {_ms(early)} before it was "
                f"{write.change.name.lower()}, and got {sighting.seen.value}"
            )
    effect = min(after, key=lambda sighting: sighting.end_first, default=None)
    for sighting in before:
        if effect is not None and effect.end_first < sighting.start_last <= write.returned:
            yield Fault(
                f"backwards: worker {sighting.worker} got {sighting.seen.value} of {write.key!r} "
                f"{_ms(sighting.start_last - effect.end_first)} after worker {effect.worker} "
                f"had got {effect.seen.value}"
            )


def _done(write: Write) -> str:
    return f"confirmed as {write.change.name.lower()}"


def _ms(ns: int) -> str:
    return f"{ns / 1e6:,.3f} ms"

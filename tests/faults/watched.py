"""Judges what the watches and the waits of a run have seen against the history of a round.

- Every confirmed deletion that began during a watch has an event, or is covered by a resync, that
  comes when it has begun, and within ``NOTICED_LATE`` seconds without any fault. Each one that has
  no later resync has an event of its own.
- Nothing is noticed, by a watch or ``on_deletion``, that nobody has done.
- A wait for a key that is bound, and never deleted, ends within ``WAIT_LATE`` seconds without any
  fault. Each wait ends within its time.

That a program which follows its watch has nothing but present values is judged with all other
operations: :mod:`tests.faults.watching` records what it has in the end as if it was read then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from tests.faults.client import AWAITED_SORT
from tests.faults.cluster import Times
from tests.faults.lives import client_of
from tests.faults.records import DONE, OCCUPIED, OCCUPIED_LOCAL, UNKNOWN, Operation, Records

WAIT_LATE = 3.0
"""Seconds without any fault until a wait for a key that is bound has ended."""
NOTICED_LATE = 3.0
"""Seconds without any fault until a deletion that was confirmed has been noticed."""


def wrong(records: Records, times: Times) -> Iterator[str]:
    """Yield the violations. Counts what was judged in the counts of the records."""
    yield from _Watches(records, times).wrong()
    yield from _waits(records, times)


NEVER = 1 << 62


class _Watches:
    def __init__(self, records: Records, times: Times) -> None:
        self._records = records
        self._times = times
        self._events: dict[tuple[str, str], list[int]] = defaultdict(list)  # by watch and key
        for each in records.noticed:
            if each.watch:
                self._events[each.process, each.key].append(each.at)
        for events in self._events.values():
            events.sort()
        self._deletions: dict[str, list[Operation]] = defaultdict(list)  # which were confirmed
        self._removed: dict[str, int] = {}  # the first moment at which a key may have been deleted
        for operation in records.operations:
            if operation.kind == "delete" and operation.outcome == DONE:
                self._deletions[operation.key].append(operation)
            if operation.kind in ("delete", "clear", "replace") and operation.outcome in (
                DONE,
                UNKNOWN,
            ):
                first = self._removed.get(operation.key, operation.start)
                self._removed[operation.key] = min(first, operation.start)

    def wrong(self) -> Iterator[str]:
        for process in self._records.watches:
            yield from self._missed(process)
        for each in self._records.noticed:
            self._records.counts["events" if each.watch else "callbacks"] += 1
            if self._removed.get(each.key, each.at) >= each.at:
                yield f"{each.process} noticed a deletion of {each.key!r} that nobody has made"

    def _missed(self, process: str) -> Iterator[str]:
        """Yield what a watch has not noticed. One whose process was killed is left out."""
        watch, counts = self._records.watches[process], self._records.counts
        if watch.end is None:
            return
        resyncs, late = sorted(watch.resyncs), int(NOTICED_LATE * 1e9)
        for key, deletions in self._deletions.items():
            events = self._events.get((process, key), [])
            ends = {each.start: each.end or 0 for each in deletions if each.start > watch.begin}
            due = [
                start
                for start, end in sorted(ends.items())
                if self._times.quiet(end, watch.end) > late
            ]
            for at, start in enumerate(due):
                event, resync = _next(events, start), _next(resyncs, start)
                noticed = min(event, resync)
                counts["deletions watched"] += 1
                counts["deletions covered by a resync"] += resync < event
                quiet = self._times.quiet(ends[start], min(noticed, watch.end))
                own = len(events) - bisect_left(events, start)
                if quiet > late or (resync > watch.end and own < len(due) - at):
                    begun, took = self._seconds(start), self._seconds(ends[start])
                    yield (
                        f"{process}: the deletion of {key!r} in [{begun}, {took}] was noticed "
                        f"{self._when(noticed, watch.end)}, {quiet / 1e9:.3f} s of that without a "
                        f"fault; of the {len(due) - at} from then on it had {own} events"
                    )
                    break

    def _when(self, noticed: int, end: int) -> str:
        return "never" if noticed > end else f"at {self._seconds(noticed)}"

    def _seconds(self, moment: int) -> str:
        """Return a time as the checkers write it."""
        return f"{(moment - self._times.lives[0].begin) / 1e9:.6f}"


def _next(times: list[int], since: int) -> int:
    """Return the first of these times from ``since`` on; a time that never comes if none."""
    at = bisect_left(times, since)
    return times[at] if at < len(times) else NEVER


def _waits(records: Records, times: Times) -> Iterator[str]:
    bound: dict[str, int] = {}  # when a key was certainly bound, of those that are never deleted
    for operation in records.operations:
        if operation.kind != "set" or f".{AWAITED_SORT}" not in operation.key:
            continue
        if operation.outcome in (DONE, OCCUPIED, OCCUPIED_LOCAL) and operation.end is not None:
            known = bound.get(operation.key, operation.end)
            bound[operation.key] = min(known, operation.end)
    for wait in records.waits:
        if wait.key in bound and bound[wait.key] < wait.end:
            records.counts["waits for a key that is bound"] += 1
            quiet = times.quiet(max(wait.start, bound[wait.key]), wait.end)
            if quiet > WAIT_LATE * 1e9:
                yield (
                    f"{wait.process} went on to wait for {wait.key!r} for {quiet / 1e9:.3f} s "
                    f"without any fault when it was bound, until: {wait.outcome}"
                )
        took = wait.end - wait.start
        if took > wait.longest and not times.disturbed(client_of(wait), wait.start, wait.end):
            yield (
                f"{wait.process} has waited for {wait.key!r} for {took / 1e9:.3f} s, longer than "
                f"{wait.longest / 1e9:.3f} s"
            )

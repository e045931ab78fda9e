"""Assigns each operation to a life of Global. The history of each life is judged by itself.

A volatile Global that was killed starts again empty, as another store. The times of each life are
known: it did nothing before it began or after it ended. So an operation belongs to a life that it
overlaps. There is one documented exception: a Local may answer a read from its cache for up to one
lease after the life from which the value came. Every value was written once, which shows the life
it belongs to.

An operation that overlaps two lives belongs to one of them, and it is not known to which. Such a
write may have happened in either, or not at all; a read that returned no value says nothing about
either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from tests.faults.cluster import Life, Times
from tests.faults.records import (
    DONE,
    NOT_DONE,
    OCCUPIED_LOCAL,
    UNKNOWN,
    Operation,
    Waited,
)


@dataclass
class Sorted:
    """Operations by life, and errors about those that cannot belong to any."""

    by_life: dict[int, list[Operation]]
    wrong: list[str]
    unclear: int = 0


def by_life(operations: list[Operation], times: Times) -> Sorted:
    """Assign each operation to its life, and restrict its times to those of that life."""
    return _Sorting(operations, times).run()


class _Sorting:
    def __init__(self, operations: list[Operation], times: Times) -> None:
        self._operations = operations
        self._times = times
        self._writes = {
            (each.key, each.value): each
            for each in operations
            if not each.reads and each.value is not None
        }
        self._result = Sorted(defaultdict(list), [])

    def run(self) -> Sorted:
        for operation in self._operations:
            if operation.outcome == NOT_DONE:
                continue
            if operation.reads and operation.value is not None:
                self._place_value(operation)
            elif not operation.reads and operation.outcome in (DONE, UNKNOWN):
                self._place_write(operation)
            else:
                self._place(operation, self._lives_of(operation), "answered")
        return self._result

    # ---- placing --------------------------------------------------------------------------

    def _place(self, operation: Operation, lives: list[int], what: str) -> None:
        if len(lives) == 1:
            self._put(operation, lives[0])
        elif lives:
            self._result.unclear += 1
        else:
            self._report(f"{what} when there was no Global to do it", operation)

    def _place_write(self, operation: Operation) -> None:
        lives = self._lives_of(operation)
        if len(lives) > 1:
            for life in lives:
                self._put(replace(operation, outcome=UNKNOWN), life)
        elif lives or operation.outcome == DONE:
            self._place(operation, lives, "done")

    def _place_value(self, operation: Operation) -> None:
        assert operation.value is not None
        write = self._writes.get((operation.key, operation.value))
        if write is None:
            self._report("returned what was never written", operation)
        elif write.outcome not in (DONE, UNKNOWN):
            self._report("returned what was refused", operation, write)
        elif operation.kind == "stale" and operation.local:
            written = self._lives_of(write)
            if not written or _end(operation) < write.start:
                self._report("returned what was not yet written", operation, write)
            elif len(written) == 1:
                self._put(operation, written[0])
        else:
            written = self._lives_of(write)
            lives = [life for life in self._lives_of(operation) if life in written]
            if lives:
                self._place(operation, lives, "answered")
            else:
                self._report("returned a value of another life of Global", operation, write)

    def _put(self, operation: Operation, number: int) -> None:
        life = self._times.lives[number]
        operation = replace(operation, start=max(operation.start, life.begin))
        end = _end(operation)
        if operation.local is not True and operation.outcome != OCCUPIED_LOCAL:
            end = min(end, _last(life))
        end = max(end, operation.start)  # a hit after that life has ended: nothing changes any more
        operation.end = None if math.isinf(end) else int(end)
        self._result.by_life[number].append(operation)

    def _report(self, what: str, *operations: Operation) -> None:
        lines = [self._described(operation) for operation in operations]
        self._result.wrong.append("\n  ".join([what, *lines]))

    def _described(self, operation: Operation) -> str:
        """The operation in the format of the checkers, with their times."""
        start, end = (
            "..." if time is None else f"{(time - self._times.lives[0].begin) / 1e9:.6f}"
            for time in (operation.start, operation.end)
        )
        where = {True: " here", False: " at Global", None: ""}[operation.local]
        return (
            f"[{start}, {end}] {operation.process}: {operation.kind}{where} "
            f"{operation.key.rstrip('-')!r}, {operation.value!r} -> {operation.outcome}"
        )

    # ---- times ----------------------------------------------------------------------------

    def _lives_of(self, operation: Operation) -> list[int]:
        """The lives that may have answered: their Global, or a cache that it filled."""
        end = operation.end
        last = end if end is not None else self._times.deaths.get(client_of(operation), math.inf)
        grace = self._times.lease if _may_be_cached(operation) else 0
        return [
            number
            for number, life in enumerate(self._times.lives)
            if life.begin <= last and operation.start <= _last(life) + grace
        ]


def _may_be_cached(operation: Operation) -> bool:
    if operation.outcome == OCCUPIED_LOCAL:
        return True
    if operation.kind == "get" and operation.value is None:
        return False  # a Local never answers "missing" from its cache
    return operation.reads and operation.local is not False


def client_of(operation: Operation | Waited) -> str:
    return operation.process.partition(".")[0]


def _end(operation: Operation) -> float:
    return math.inf if operation.end is None else operation.end


def _last(life: Life) -> float:
    return math.inf if life.end is None else life.end

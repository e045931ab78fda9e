"""What a listing of all keys must have, and must not have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dstore.protocol.keys import in_order
from dstore.protocol.messages import Key
from tests.history.operations import Kind, Operation, Result

SHOWS = {Result.VALUE, Result.OCCUPIED, Result.STORED, Result.REPLACED, Result.WRITTEN}


class Scan(NamedTuple):
    """One listing: who has made it, when it began and ended, and what it has found."""

    process: str
    start: float
    end: float
    keys: tuple[Key, ...]


def broken(scans: Iterable[Scan], history: Iterable[Operation]) -> Iterator[str]:
    """Yield what is wrong with these listings, one line each.

    Keys come in order and once. A key that was surely bound during the whole listing is in it: its
    SET had ended before, and nothing that may remove it began before the end. A key that was surely
    not bound at any moment is not in it: nothing that may bind it began before the end.
    """
    history = list(history)
    for scan in scans:
        if list(scan.keys) != sorted(set(scan.keys), key=in_order):
            yield f"{scan.process}: the keys are not in order: {scan.keys}"
        for key in sorted({each.key for each in history}):
            of_key = [each for each in history if each.key == key]
            if key not in scan.keys and _surely_bound(scan, of_key):
                yield f"{scan.process}: the listing {scan} has no {key!r}"
            if key in scan.keys and not any(
                each.kind in (Kind.SET, Kind.REPLACE) and each.start <= scan.end for each in of_key
            ):
                yield f"{scan.process}: nobody has bound {key!r}, and {scan} has it"


def _surely_bound(scan: Scan, history: list[Operation]) -> bool:
    """Whether a key was seen before the listing, and nothing removes it from then to its end."""
    seen = [each.start for each in history if _shows(each) and _end(each) < scan.start]
    removals = [_gone_by(each) for each in history if _removes(each) and each.start <= scan.end]
    return bool(seen) and max(removals, default=-math.inf) < max(seen)


def _shows(operation: Operation) -> bool:
    """Whether a key was bound at some moment of an operation."""
    return operation.result in SHOWS


def _removes(operation: Operation) -> bool:
    """Whether a key may be removed by an operation, or by a deadline that it gives."""
    deletes = operation.kind is Kind.DELETE and operation.result is not Result.MISSING
    return deletes or operation.ttl is not None


def _gone_by(operation: Operation) -> float:
    """Return by when such an operation has taken effect."""
    late = operation.ttl is not None or operation.result is Result.PENDING
    return math.inf if late else _end(operation)


def _end(operation: Operation) -> float:
    return math.inf if operation.end is None else operation.end

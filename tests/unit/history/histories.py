"""Histories to test the checkers with: parsed from text, simulated, and judged by brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from random import Random

from tests.history.expiry import WRITES, expires_from
from tests.history.operations import Kind, Operation, Result

KINDS = (Kind.GET, Kind.SET, Kind.REPLACE, Kind.DELETE)
RESULTS = {result.value for result in Result} - {"value"}


def history(text: str) -> list[Operation]:
    """One operation a line: ``process start end kind [value] [for ttl] -> result``.

    An unknown end is ``?``. The result of a GET is ``missing`` or a value; ``occupied`` may be
    followed by the value that was bound. ``stale`` is a GET with ``stale_ok``.
    """
    return [_operation(*line.split("->")) for line in text.splitlines() if line.strip()]


def _operation(request: str, answer: str) -> Operation:
    request, _, ttl = request.partition(" for ")
    process, start, end, kind, *value = request.split()
    result, *seen = answer.split()
    if result not in RESULTS:
        result, seen = "value", [result]
    return Operation(
        process,
        "k",
        Kind.GET if kind == "stale" else Kind(kind),
        float(start),
        None if end == "?" else float(end),
        Result(result),
        value[0] if value else None,
        seen[0] if seen else None,
        kind == "stale",
        float(ttl) if ttl else None,
    )


# ---- a store that is linearizable by construction ---------------------------------------------


def simulated(
    random: Random,
    operations: int,
    *,
    processes: int = 8,
    keys: int = 1,
    unknown: float = 0.02,
    lateness: float = 50.0,
    pending: float = 0.0,
    lease: float = 2.0,
    ttl: float = 0.0,
    whole: bool = False,
) -> list[Operation]:
    """A random history with a moment for each operation, so that it is linearizable.

    A part of the writes has an ``unknown`` outcome; they happen within their time, up to
    ``lateness`` after it, or never. A part of the deletions is ``pending``: they happen at most a
    ``lease`` after their answer. A part of the writes lets its key expire after a ``ttl``; such a
    value goes at most a ``lease`` after its deadline, and EXPIREs change some deadlines. ``whole``:
    times are whole numbers, and often equal.
    """
    clocks = [random.random() for _ in range(processes)]
    plan: list[tuple[float, Operation]] = []
    for number in range(operations):
        process = random.randrange(processes)
        start = clocks[process] + random.choice((0.0, random.expovariate(2.0)))
        end = start + random.expovariate(1.0)
        if whole:
            start, end = float(round(start)), float(round(end))
        clocks[process] = end if whole else math.nextafter(end, math.inf)
        kind = random.choices((*KINDS, Kind.EXPIRE), (6, 2, 1, 2, 4 * ttl))[0]
        value = f"v{number}" if kind in (Kind.SET, Kind.REPLACE) else None
        result = Result.PENDING if random.random() < pending else Result.UNKNOWN
        asked = Operation(process, f"k{number % keys}", kind, start, end, result, value)
        if ttl and kind not in (Kind.GET, Kind.DELETE) and random.random() < ttl:
            asked = asked._replace(ttl=random.choice((0.5, 1.0, 4.0)))
        moment = random.uniform(start, end)
        if random.random() < unknown:
            asked = asked._replace(end=None)
            moment = random.choice((moment, moment + random.uniform(0, lateness), math.inf))
        plan.append((moment, asked))
    return _carried_out(random, plan, lease)


def _carried_out(
    random: Random, plan: list[tuple[float, Operation]], lease: float
) -> list[Operation]:
    states: dict[str, str | None] = {}
    deadlines: dict[str, int] = {}  # the operation that has given the key its deadline
    done = []
    heap = [(moment, number, asked) for number, (moment, asked) in enumerate(plan)]
    heapify(heap)
    while heap:
        moment, number, asked = heappop(heap)
        if moment == math.inf:
            answered = asked
        elif number < 0:  # the second half of a pending deletion, or an expiry
            if asked.kind is Kind.DELETE or deadlines.get(asked.key) == number:
                states[asked.key] = None
            continue
        else:
            before = states.get(asked.key)
            answered, states[asked.key] = _executed(asked, before)
            changed = states[asked.key] != before
            if changed or (asked.kind is Kind.EXPIRE and before):
                deadlines[asked.key] = -number - 1
                if asked.ttl is not None:
                    end = moment + asked.ttl + random.uniform(0, lease)
                    heappush(heap, (end, -number - 1, asked))
            if answered.result is Result.PENDING:
                assert answered.end is not None
                heappush(heap, (random.uniform(moment, answered.end + lease), -number - 1, asked))
        if answered.end is None:
            answered = answered._replace(result=Result.UNKNOWN, seen=None)
        done.append(answered)
    return sorted(done, key=lambda operation: operation.start)


def _executed(asked: Operation, state: str | None) -> tuple[Operation, str | None]:
    """The operation with its result, and the new state."""
    if asked.kind is Kind.GET:
        return asked._replace(result=Result.VALUE if state else Result.MISSING, seen=state), state
    if asked.kind is Kind.EXPIRE:
        return asked._replace(result=Result.CHANGED if state else Result.MISSING), state
    if asked.kind is Kind.DELETE:
        if state and asked.result is Result.PENDING and asked.end is not None:
            return asked, state
        return asked._replace(result=Result.DELETED if state else Result.MISSING), None
    if state is None or asked.kind is Kind.REPLACE:
        result = Result.REPLACED if state else Result.STORED
        return asked._replace(result=result), str(asked.value)
    told = state if len(state) % 2 else None
    return asked._replace(result=Result.OCCUPIED, seen=told), state


def corrupted(random: Random, operations: Sequence[Operation]) -> list[Operation]:
    """The same history with another result for one operation, or another time."""
    changed = list(operations)
    index = random.randrange(len(changed))
    old = changed[index]
    values = [each.value for each in operations if each.value is not None] or ["v0"]
    if old.kind is Kind.GET:
        value = random.choice([*values, None])
        result = Result.MISSING if value is None else Result.VALUE
        new = old._replace(result=result, seen=value)
    elif old.kind is Kind.SET:
        value = random.choice([*values, None])
        result = random.choice((Result.STORED, Result.OCCUPIED))
        new = old._replace(result=result, seen=value if result is Result.OCCUPIED else None)
    elif old.kind is Kind.REPLACE:
        new = old._replace(
            result=random.choice((Result.STORED, Result.REPLACED, Result.WRITTEN)), seen=None
        )
    elif old.kind is Kind.EXPIRE:
        new = old._replace(result=random.choice((Result.CHANGED, Result.MISSING)))
    else:
        new = old._replace(result=random.choice((Result.DELETED, Result.MISSING, Result.PENDING)))
    changed[index] = new._replace(end=old.start + 1 if old.end is None else old.end)
    return changed


# ---- brute force ------------------------------------------------------------------------------


def some_order_explains(
    operations: Sequence[Operation], pending_within: float | None = None
) -> bool:
    """Whether a history of one key is linearizable: all orders are tried, one after the other."""
    parts: list[Operation] = []
    for each in operations:
        if each.result is Result.PENDING:  # saw that it is bound; deletes some time, or never
            assert each.end is not None
            end = None if pending_within is None else each.end + pending_within
            parts.append(each._replace(kind=Kind.SET, result=Result.OCCUPIED, value="?"))
            parts.append(each._replace(end=end, result=Result.UNKNOWN))
        elif not each.stale_ok:
            parts.append(each)
    expires = [each for each in operations if each.kind is Kind.EXPIRE]
    for each in operations:
        start = expires_from(each, expires) if each.kind in WRITES else math.inf
        if start < math.inf:  # a deletion of this value alone
            gone = Operation("?", "k", Kind.DELETE, start, None, Result.UNKNOWN, seen=each.value)
            parts.append(gone)
    return _explained(parts, None)


def _explained(left: list[Operation], state: object) -> bool:
    if all(each.end is None for each in left):
        return True
    for index, first in enumerate(left):
        rest = left[:index] + left[index + 1 :]
        in_time = all(each.end is None or each.end >= first.start for each in rest)
        if in_time and any(_explained(rest, after) for after in _after(first, state)):
            return True
    return False


def _after(operation: Operation, state: object) -> list[object]:
    """The states after the operation; none if it cannot have this result here."""
    kind, result, seen, value = operation.kind, operation.result, operation.seen, operation.value
    bound = state is not None
    possible: dict[tuple[Kind, Result], tuple[bool, object]] = {
        (Kind.GET, Result.VALUE): (state == seen, state),
        (Kind.GET, Result.MISSING): (not bound, state),
        (Kind.GET, Result.UNKNOWN): (True, state),
        (Kind.SET, Result.STORED): (not bound, value),
        (Kind.SET, Result.OCCUPIED): (bound and seen in (None, state), state),
        (Kind.SET, Result.UNKNOWN): (True, state if bound else value),
        (Kind.REPLACE, Result.STORED): (not bound, value),
        (Kind.REPLACE, Result.REPLACED): (bound, value),
        (Kind.REPLACE, Result.WRITTEN): (True, value),
        (Kind.REPLACE, Result.UNKNOWN): (True, value),
        (Kind.DELETE, Result.DELETED): (bound, None),
        (Kind.DELETE, Result.MISSING): (not bound, state),
        (Kind.DELETE, Result.UNKNOWN): (seen in (None, state), None),
        (Kind.EXPIRE, Result.CHANGED): (bound, state),
        (Kind.EXPIRE, Result.MISSING): (not bound, state),
        (Kind.EXPIRE, Result.UNKNOWN): (True, state),
    }
    fits, after = possible[kind, result]
    return [after] if fits else []

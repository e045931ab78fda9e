"""Decides whether a history is linearizable, with unknown outcomes, and explains why not.

A history is linearizable if each operation can be given one moment between its start and its end,
such that the operations, one at a time in the order of these moments, would have had exactly these
results (M. Herlihy and J. Wing, "Linearizability", 1990). A history is linearizable if and only if
that of each key is (their locality theorem; the "P-compositionality" of A. Horn and D. Kroening,
"Faster linearizability checking via P-compositionality", 2015). A key is either missing or has a
value:

==========  =======================  ====================================================
operation   result                   meaning
==========  =======================  ====================================================
GET         value, missing           the state
SET         stored                   it was missing, and has the value now
SET         occupied (by v)          it had a value (v)
REPLACE     stored, replaced         it was missing, or not, and has the new value now
REPLACE     written                  it has the new value now
DELETE      deleted                  it had a value, and is missing now
DELETE      missing                  it was missing
DELETE      pending                  it had a value; it goes later, see ``pending_within``
EXPIRE      changed                  it had a value, which may go after its time to live
EXPIRE      missing                  it was missing
any write   unknown                  it takes effect at any moment after its start, or never
==========  =======================  ====================================================

A value that expires goes at any moment from its deadline on, or never (by when it has to go is
judged by :mod:`tests.history.expiry`). GETs without an answer mean nothing, and GETs with
``stale_ok`` are judged by :mod:`tests.history.weaker`. Keys are missing at first. The method is in
:mod:`tests.history.sweep`::

    verdict = check_linearizable(history.operations())
    assert verdict.ok, verdict
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from tests.history.expiry import expires_from
from tests.history.operations import Kind, Operation, Result, Verdict, Violation, by_key
from tests.history.sweep import (
    ABSENT,
    ANYTHING,
    BOUND,
    LOOKS,
    NEVER,
    UNSEEN,
    VALUES,
    Step,
    Undecided,
    spare_of,
    stuck_at,
)

EXPLAINED_MAX = 5
"""Violations that are reduced to the operations that matter. Of others one operation is named."""


def check_linearizable(
    operations: Iterable[Operation], *, pending_within: float | None = None
) -> Verdict:
    """Judge a history.

    ``pending_within`` is the seconds after a PENDING answer in which the deletion has to take
    effect (a lease, and some slack). Without it, the deletion may take effect at any time or never.

    Raises ValueError if the history contradicts itself or two writes of one key have the same
    value, and Undecided if too much overlaps (some dozens of writes, all of whose values are read).
    """
    count = 0
    violations: list[Violation] = []
    keys = by_key(operations)
    for key, history in keys.items():
        count += len(history)
        steps = list(_steps(history, pending_within))
        try:
            stuck = stuck_at(steps)
        except Undecided as undecided:
            raise Undecided(f"key {key!r}: {undecided}") from None
        if stuck is not None and len(violations) < EXPLAINED_MAX:
            core, blamed = _explained(steps, stuck)
            violations.append(_violation(key, history, core, blamed))
        elif stuck is not None:
            violations.append(_violation(key, history, [stuck], stuck))
    return Verdict(count, len(keys), tuple(violations))


# ---- operations as steps ----------------------------------------------------------------------


def _steps(history: Sequence[Operation], pending_within: float | None) -> Iterator[Step]:
    """The operations of a key as steps: the state that each needs and gives."""
    numbers: dict[Hashable, int] = {}
    expires = [each for each in history if each.kind is Kind.EXPIRE]
    for source, operation in enumerate(history):
        kind, result, start, end = operation.kind, operation.result, operation.start, operation.end
        if kind is Kind.GET and (operation.stale_ok or result is Result.UNKNOWN):
            continue
        if kind is Kind.EXPIRE and result is Result.UNKNOWN:
            continue  # what may come of it is in the expiry of each value
        need = BOUND
        if operation.seen is not None:
            need = numbers.setdefault(operation.seen, VALUES + len(numbers))
        elif result in (Result.MISSING, Result.STORED):
            need = ABSENT
        elif result is Result.WRITTEN:
            need = ANYTHING
        gives = ABSENT if kind is Kind.DELETE else LOOKS
        if operation.value is not None:
            gives = numbers.setdefault(operation.value, VALUES + len(numbers))
            expiry = expires_from(operation, expires)
            if expiry < NEVER:
                yield Step(expiry, NEVER, gives, ABSENT, source)
        if end is None:
            need = {Kind.SET: ABSENT, Kind.REPLACE: ANYTHING}.get(kind, BOUND)
            end = NEVER
        elif result in (Result.MISSING, Result.OCCUPIED):
            gives = LOOKS
        elif result is Result.PENDING:
            yield Step(start, end, BOUND, LOOKS, source)
            need, end = ANYTHING, NEVER if pending_within is None else end + pending_within
        yield Step(start, end, need, gives, source)


# ---- what matters in a violation --------------------------------------------------------------


def _explained(steps: Sequence[Step], stuck: Step) -> tuple[list[Step], Step]:
    """A smallest set of steps that contradict each other, and the last of them.

    First the shortest prefix of the history that cannot be explained is found (linearizability is a
    safety property: no continuation makes it right). Then, from its end backwards, the nearest
    steps that are needed for the contradiction.
    """
    prefix = _shortest_prefix(steps, stuck)
    left = sorted(prefix, key=lambda step: (step.end < NEVER, step.end, step.start))[::-1]
    core: list[Step] = []
    while left and not _contradicts_with(left, core, prefix, 0):
        needed = _first(len(left), partial(_contradicts_with, left, core, prefix))
        core.append(left[needed - 1])
        left = left[: needed - 1]
    return core, max(core, key=lambda step: (step.end < NEVER, step.end))


def _shortest_prefix(steps: Sequence[Step], stuck: Step) -> list[Step]:
    """The steps that are known at the first moment at which no order explains them."""
    with suppress(Undecided):
        stuck = stuck_at(steps, foresight=False) or stuck
    times = sorted({step.end for step in steps if stuck.end <= step.end < NEVER})

    def has_no_order(count: int) -> bool:
        return _contradicts(_prefix(steps, times[count - 1]))

    return _prefix(steps, times[_first(len(times), has_no_order) - 1])


def _prefix(steps: Sequence[Step], time: float) -> list[Step]:
    """The steps that are known at a time. A write under way may take effect or not."""
    known = []
    for step in steps:
        if step.end <= time:
            known.append(step)
        elif step.start <= time and step.gives != LOOKS:
            known.append(step._replace(end=NEVER))
    return known


def _contradicts_with(
    left: Sequence[Step], core: Sequence[Step], steps: Sequence[Step], count: int
) -> bool:
    """Whether no order explains the core and the first ``count`` of ``left``, with any other steps.

    All other writes are still possible. Those that ended before may have left any state; the rest
    may take effect at any moment, or never.
    """
    kept = {*core, *left[:count]}
    seen = {step.need for step in kept if step.need >= VALUES}
    begin = min((step.start for step in kept), default=NEVER)
    weakened, initial, spare = list(kept), {ABSENT}, [0, 0, 0]
    for step in steps:
        if step.gives == LOOKS or step in kept:
            continue
        if step.end < begin:
            initial.add(step.gives if step.gives in seen or step.gives == ABSENT else UNSEEN)
        elif step.gives in seen:
            weakened.append(step._replace(end=NEVER))
        else:
            spare[spare_of(step)] += 1
    return _contradicts(weakened, (spare[0], spare[1], spare[2]), initial)


def _contradicts(
    steps: Sequence[Step],
    spare: tuple[int, int, int] = (0, 0, 0),
    initial: Iterable[int] = (ABSENT,),
) -> bool:
    try:
        return stuck_at(steps, spare, initial) is not None
    except Undecided:
        return False


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in 1..count that ``holds``.

    It holds for ``count``, and for every number above one for which it holds. Small numbers are
    tried first, since they are cheap.
    """
    low, step = 0, 1
    while low + step < count and not holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


# ---- the description --------------------------------------------------------------------------


def _violation(
    key: str, history: Sequence[Operation], core: Sequence[Step], blamed: Step
) -> Violation:
    culprit = history[blamed.source]
    sources = {step.source for step in core}
    seen = {history[source].seen for source in sources} - {None}
    sources |= {source for source, each in enumerate(history) if each.value in seen}
    shown = sorted((history[source] for source in sources), key=lambda each: each.start)
    others = len(history) - len(shown)
    lines = [f"key {key!r}: no order explains these ({others} other operations do not matter)"]
    for each in shown:
        lines.append(f"  {each}")
        if each is culprit:
            lines[-1] += f"  <-- {_reason(culprit, history)}"
    return Violation(key, tuple(shown), tuple(lines))


def _reason(culprit: Operation, history: Sequence[Operation]) -> str:
    """A short reason why this operation does not fit, where there is one."""
    if culprit.seen is not None:
        writes = [each for each in history if each.value == culprit.seen]
        if not writes:
            return "no operation wrote this value"
        if writes[0].result is Result.OCCUPIED:
            return "the SET of this value was refused"
        if culprit.end is not None and culprit.end < writes[0].start:
            return "this value was written only later"
    return "does not fit with the rest"

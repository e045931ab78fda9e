"""Decides whether an order of steps on one key explains them all, in one pass through time.

The method is just-in-time linearization (G. Lowe, "Testing for linearizability", 2017), breadth
first: the pass goes through all starts and ends in the order of time and keeps the set of
*configurations* that the operations so far allow, each a state of the key and the set of open
steps that have been given their place. A step is given its place only when it has to, at its end;
there every way to get to it through other open steps is tried. No configuration left: no order
exists. Equal configurations are merged, which is the memo of Lowe's version of the search by Wing
and Gong ("Testing and verifying concurrent objects", 1993). At a moment without open steps only the
possible states are left, so that histories are split there.

The set is kept small without losing an order:

- *Steps that only look* are placed at the first moment at which the state fits. A configuration
  that has placed more of them can do all that another can.
- *Values are unique*, as in P. Gibbons and E. Korach, "Testing shared memories" (1997): a value is
  current for one stretch of time, which has to reach into every step that saw it. So a state is
  not left before all that see it have started, and a write goes before the end of the first that
  sees its value, however late or unknown its own end.
- *Values that were not seen* are one and the same state. Writes with the same condition and effect
  are interchangeable, so the one that ends first goes first.
- *The expiry of a value* may take place at any moment from some time on, or never. Since no value
  comes back, it need not be remembered whether it has.
- *Writes that may never take effect* and whose value was not seen are only counted, by what they
  can do. They need not be placed, so that having used fewer is never worse. Hundreds of them that
  stay open for ever cost three numbers.

Times that are equal count as concurrent.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

NEVER = math.inf

ABSENT, UNSEEN, VALUES = 0, 1, 2
"""States: no value, a value that was not seen, and from VALUES on one number for each value."""
BOUND, ANYTHING = -1, -2
"""What a step may need instead of a certain state: any value, or nothing at all."""
LOOKS = -1
"""What a step gives if it does not change the state."""

SET, REPLACE, DELETE = range(3)
SPARE_MOVES = ((SET, ABSENT, UNSEEN), (REPLACE, ANYTHING, UNSEEN), (DELETE, BOUND, ABSENT))
"""What writes that may never take effect can do: their counter, what they need and give."""
Spent = tuple[int, int, int]

CONFIGURATIONS_MAX = 200_000
"""Configurations in one search between two states. A larger search would take too long."""


class Undecided(Exception):
    """Too many operations overlap to decide about their order."""


class Step(NamedTuple):
    """An event of the key at one moment between ``start`` and ``end``.

    It needs a state (or BOUND, ANYTHING) and gives one, or LOOKS. A step that ends NEVER need not
    happen at all. One that needs a certain value and gives ABSENT is its expiry, and ends NEVER.
    ``source`` is for the caller.
    """

    start: float
    end: float
    need: int
    gives: int
    source: int = -1


class Configuration(NamedTuple):
    """A possible outcome of the operations so far: a state, and a bit for each placed open step.

    ``spent`` counts the writes that were used although they need not have happened.
    """

    state: int
    writes: int
    looks: int
    spent: Spent


def is_expiry(step: Step) -> bool:
    """Whether this takes away one certain value, at any moment after its start, or never."""
    return step.gives == ABSENT and step.need >= VALUES


def spare_of(step: Step) -> int:
    """The counter of a write that need not happen and whose value was not seen."""
    if step.gives == ABSENT:
        return DELETE
    return SET if step.need == ABSENT else REPLACE


def fits(state: int, need: int) -> bool:
    """Whether a step with this need can take place in a state."""
    return state == need or (need == BOUND and state != ABSENT) or need == ANYTHING


def _placed(step: Step) -> Callable[[Configuration], int]:
    """The field of a configuration that has the bit of this step."""
    return _looks if step.gives == LOOKS else _writes


_looks, _writes = attrgetter("looks"), attrgetter("writes")


def stuck_at(
    steps: Sequence[Step],
    spare: Spent = (0, 0, 0),
    initial: Iterable[int] = (ABSENT,),
    *,
    foresight: bool = True,
) -> Step | None:
    """The step at whose end no order is left that explains all. None if there is an order.

    The key is in one of the ``initial`` states at first. ``spare`` writes of each sort may be used
    at any time. With ``foresight`` the search knows which values will be seen later. Then it may be
    stuck well before the end of the shortest prefix that has no order. Without it, it mostly is
    not, but has to try more. Raises Undecided.
    """
    return _Sweep(steps, spare, initial, foresight).run()


class _Front:
    """Configurations of which none can do all that another can."""

    def __init__(self) -> None:
        self._best: dict[tuple[int, int], list[Configuration]] = {}
        self.size = 0

    def add(self, new: Configuration) -> bool:
        """Add it and remove those that it covers. False, and not added, if one covers it."""
        key = new[:2]
        rivals = self._best.get(key)
        if rivals is None:
            self._best[key] = [new]
        else:
            if any(_covers(rival, new) for rival in rivals):
                return False
            self._best[key] = [rival for rival in rivals if not _covers(new, rival)] + [new]
        self.size += 1
        return True

    def configurations(self) -> list[Configuration]:
        return [each for rivals in self._best.values() for each in rivals]


def _covers(a: Configuration, b: Configuration) -> bool:
    """Whether ``a`` can do all that ``b`` can; state and placed writes are the same.

    A spare replacement can do all that a spare SET can. So one SET more is made up for by one
    replacement less.
    """
    if b.looks & ~a.looks:
        return False
    mine, others = a.spent, b.spent
    return mine == others or (
        mine[DELETE] <= others[DELETE]
        and mine[REPLACE] <= others[REPLACE]
        and mine[SET] + mine[REPLACE] <= others[SET] + others[REPLACE]
    )


class _Sweep:
    """One pass. Open writes wait until all that see their value have started, then are ready."""

    def __init__(
        self, steps: Sequence[Step], spare: Spent, initial: Iterable[int], foresight: bool
    ) -> None:
        looks = [step for step in steps if not is_expiry(step)]
        self._to_start = Counter(step.need for step in looks if step.need >= VALUES)
        named = {step.need for step in steps}
        self._steps = [self._seen_or_not(step, named) for step in steps]
        if not foresight:
            for step in steps:
                if step.gives >= VALUES and step.end != NEVER:
                    self._to_start[step.gives] = 0
        self._originals = steps
        self._spare = list(spare)
        self._configurations = [Configuration(state, 0, 0, (0, 0, 0)) for state in initial]
        self._bits: dict[int, int] = {}  # open step -> its bit
        self._expiring: set[int] = set()  # values that may go at any time
        self._free = [1]  # bits that can be used again; the first is the highest
        self._ready: dict[tuple[int, int], list[tuple[float, int]]] = {}  # by end
        self._waiting: dict[int, int] = {}  # value -> its write
        self._writer: dict[int, int] = {}  # value -> its write, while that is open
        self._looking: dict[int, int] = {}  # need -> bits of the open steps that look for it

    @staticmethod
    def _seen_or_not(step: Step, seen: set[int]) -> Step:
        return step if step.gives < VALUES or step.gives in seen else step._replace(gives=UNSEEN)

    def run(self) -> Step | None:
        for _, is_end, index in self._events():
            if not is_end:
                self._start(index)
            elif index in self._bits and not self._end(index):
                return self._originals[index]
        return None

    def _events(self) -> list[tuple[float, bool, int]]:
        starts = [(step.start, False, index) for index, step in enumerate(self._steps)]
        ends = [(s.end, True, index) for index, s in enumerate(self._steps) if s.end != NEVER]
        return sorted(starts + ends)

    # ---- starts ---------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        step = self._steps[index]
        if step.gives == LOOKS:
            self._start_look(step, self._open(index))
        elif is_expiry(step):
            self._expiring.add(step.need)
        elif step.end == NEVER and step.gives < VALUES:
            self._spare[spare_of(step)] += 1
        else:
            self._open(index)
            if step.gives >= VALUES:
                self._writer[step.gives] = index
            if step.gives >= VALUES and self._to_start[step.gives]:
                self._waiting[step.gives] = index
            else:
                self._make_ready(index)

    def _start_look(self, step: Step, bit: int) -> None:
        self._looking[step.need] = self._looking.get(step.need, 0) | bit
        self._configurations = [
            Configuration(each.state, each.writes, each.looks | bit, each.spent)
            if fits(each.state, step.need)
            else each
            for each in self._configurations
        ]
        if self._to_start[step.need]:
            self._to_start[step.need] -= 1
            if not self._to_start[step.need] and step.need in self._waiting:
                self._make_ready(self._waiting.pop(step.need))

    def _make_ready(self, index: int) -> None:
        step = self._steps[index]
        insort(self._ready.setdefault((step.need, step.gives), []), (step.end, index))

    # ---- ends -----------------------------------------------------------------------------

    def _end(self, index: int) -> bool:
        """Keep what has placed the step, or can place it now. Returns whether anything is left."""
        step, bit = self._steps[index], self._bits[index]
        placed = _placed(step)
        lacking = [each for each in self._configurations if not placed(each) & bit]
        if lacking:
            front = _Front()
            for each in self._configurations:
                if placed(each) & bit:
                    front.add(each)
            self._reach(step, index, lacking, front)
            self._configurations = front.configurations()
        self._close(index)
        if step.need >= VALUES and step.need in self._writer:
            self._close(self._writer[step.need])  # it took effect before
        return bool(self._configurations)

    def _reach(self, step: Step, index: int, lacking: list[Configuration], front: _Front) -> None:
        """Add to ``front`` what moves from ``lacking`` reach, the last of which places the step."""
        placed, bit = _placed(step), self._bits[index]
        visited = _Front()
        left = [each for each in lacking if visited.add(each)]
        last_moves = self._last_moves(step, index)
        while left:
            here = left.pop()
            if self._to_start[here.state]:
                continue  # a step that sees this state has not started yet
            for there in self._moves(here, last_moves):
                if placed(there) & bit:
                    front.add(there)
                elif visited.add(there):
                    left.append(there)
            if visited.size > CONFIGURATIONS_MAX:
                raise Undecided(f"more than {CONFIGURATIONS_MAX} ways to order what overlaps")

    def _last_moves(self, step: Step, index: int) -> list[int]:
        """Waiting writes that place the step. They can only be last, as their state has to stay."""
        if step.gives != LOOKS:
            return [index] if index == self._waiting.get(step.gives) else []
        if step.need == BOUND:
            return list(self._waiting.values())
        return [self._waiting[step.need]] if step.need in self._waiting else []

    def _moves(self, here: Configuration, last_moves: Iterable[int]) -> Iterator[Configuration]:
        """The configurations that are one write away."""
        state, writes, _, spent = here
        for (need, gives), ready in self._ready.items():
            if fits(state, need):
                for _, index in ready:
                    bit = self._bits[index]
                    if not writes & bit:
                        yield self._moved(here, gives, writes | bit, spent)
                        break
        if state in self._expiring:  # it does not come back, so this need not be remembered
            yield self._moved(here, ABSENT, writes, spent)
        for index in last_moves:
            step, bit = self._steps[index], self._bits[index]
            if fits(state, step.need) and not writes & bit:
                yield self._moved(here, step.gives, writes | bit, spent)
        for sort, need, gives in SPARE_MOVES:
            if spent[sort] < self._spare[sort] and state != gives and fits(state, need):
                more = (spent[0] + (sort == 0), spent[1] + (sort == 1), spent[2] + (sort == 2))
                yield self._moved(here, gives, writes, more)

    def _moved(self, here: Configuration, state: int, writes: int, spent: Spent) -> Configuration:
        looks = here.looks | self._looking.get(state, 0)
        if state != ABSENT:
            looks |= self._looking.get(BOUND, 0)
        return Configuration(state, writes, looks, spent)

    # ---- open steps and their bits --------------------------------------------------------

    def _open(self, index: int) -> int:
        bit = self._free.pop()
        if not self._free:
            self._free.append(bit << 1)
        self._bits[index] = bit
        return bit

    def _close(self, index: int) -> None:
        """Forget a step that every configuration has placed."""
        step, bit = self._steps[index], self._bits.pop(index)
        self._free.append(bit)
        if step.gives == LOOKS:
            self._looking[step.need] ^= bit
            keep = [Configuration(s, w, looks & ~bit, n) for s, w, looks, n in self._configurations]
        else:
            self._forget_write(step, index)
            keep = [Configuration(s, w & ~bit, looks, n) for s, w, looks, n in self._configurations]
        if len(keep) > 1:
            front = _Front()
            for each in keep:
                front.add(each)
            keep = front.configurations()
        self._configurations = keep

    def _forget_write(self, step: Step, index: int) -> None:
        if self._writer.get(step.gives) == index:
            del self._writer[step.gives]
        if self._waiting.get(step.gives) == index:
            del self._waiting[step.gives]
            return
        ready = self._ready[step.need, step.gives]
        ready.remove((step.end, index))
        if not ready:
            del self._ready[step.need, step.gives]

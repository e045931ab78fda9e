"""The course of a run, of one Global or of several: faults strike until all operations have ended,
then everything has to become well again, and the history is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Generic, TypeVar

from dstore.core.authority import sessions
from dstore.core.local import cache, owner, state
from tests.history.operations import Operation
from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario

S = TypeVar("S", bound=Scenario)
WRITER_IDLE, WRITER_SILENCE = 2.0, 6.0
"""Instead of those of Global, so that a run ends sooner. No Local waits longer with a repeat."""
Spans = Mapping[tuple[ModuleType, str], float]
"""Values of names in modules, which are spans of time or sizes."""


@contextmanager
def shortened(spans: Spans) -> Iterator[None]:
    """Give spans of the code under test these values, for a while."""
    former = {(module, name): getattr(module, name) for module, name in spans}
    try:
        for (module, name), span in spans.items():
            setattr(module, name, span)
        yield
    finally:
        for (module, name), span in former.items():
            setattr(module, name, span)


class Course(Generic[S]):
    """Plays a scenario to its end, or until an invariant is broken.

    ``busy_max`` is in seconds of true time: after them a run is no longer disturbed, ended
    operations or not.
    """

    busy_max: float

    def __init__(self, scenario: S) -> None:
        self.scenario = scenario
        self.loop = Loop(scenario.seed)
        self.violations = self.loop.violations
        self.busy_lines: int | None = None  # lines of the trace before the faults ended

    def run(self) -> None:
        with shortened(self.spans()):
            self.begin()
            self.loop.after_step = self._check
            self.loop.run(self.busy_max, lambda: bool(self.violations) or self.idle())
            if not self.violations:
                self.loop.quiet = True
                self.busy_lines = len(self.loop.trace)
                self.settle()
            if not self.violations:
                self.violations += self.left_over()

    def plan(self, rate: float, strike: Callable[[], None]) -> None:
        """Let a fault strike again and again, ``rate`` times a second."""
        if rate and not self.loop.quiet:
            self.loop.later(self.loop.dice.expovariate(rate), self._strike, rate, strike)

    def _strike(self, rate: float, strike: Callable[[], None]) -> None:
        if not self.loop.quiet:
            strike()
            self.plan(rate, strike)

    def _check(self) -> None:
        for problem in self.broken():
            self.loop.violation(problem)

    # ---- what differs ---------------------------------------------------------------------

    @property
    def history(self) -> list[Operation]:
        """All operations, in the order of their starts."""
        raise NotImplementedError

    def spans(self) -> Spans:
        """Return spans that are long, compared with the leases of the scenario, made shorter."""
        away = self.scenario.private_after
        return {
            (state, "PRIVATE_AFTER"): away,
            (state, "LOOK_SOON"): away / 4,
            (state, "LOOK_LATER"): away,
            (owner, "PAGE_PAUSE"): away / 2,
            (cache, "SHARED_OVERHEAD"): 0,  # so that a cache has room for some large values
            (cache, "DIGEST_OVERHEAD"): 0,
            (cache, "INDEX_OVERHEAD"): 0,
            (sessions, "WRITER_IDLE"): WRITER_IDLE,
            (sessions, "WRITER_SILENCE"): WRITER_SILENCE,
        }

    def begin(self) -> None:
        """Start all processes, and plan the faults."""
        raise NotImplementedError

    def idle(self) -> bool:
        """Whether all operations have ended."""
        raise NotImplementedError

    def settle(self) -> None:
        """The faults have ended: let time pass in which everything becomes well."""
        raise NotImplementedError

    def broken(self) -> Iterator[str]:
        """Yield the conditions that do not hold now, one line each."""
        raise NotImplementedError

    def left_over(self) -> Iterator[str]:
        """Yield what is not well at the end of a run, one line each."""
        raise NotImplementedError


@dataclass
class Outcome:
    """The outcome of one run. ``violations`` has what is wrong, one item each."""

    scenario: Scenario
    violations: list[str]
    steps: int
    operations: int
    undecided: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list, repr=False)

    @property
    def ok(self) -> bool:
        return not self.violations


C = TypeVar("C", bound=Course[Any])


def play(course: C, judge: Callable[[C, Outcome], None]) -> Outcome:
    """Play a run, in which the invariants are checked at each step, then judge its history."""
    try:
        course.run()
    except Exception as error:  # in the code under test, which is a finding
        course.violations.append(f"{type(error).__name__}: {error}")
    loop = course.loop
    outcome = Outcome(course.scenario, course.violations, loop.steps, len(course.history))
    outcome.trace, outcome.counts = loop.trace, loop.counts
    if outcome.ok:
        judge(course, outcome)
        if outcome.violations:
            outcome.trace = outcome.trace[: course.busy_lines]
    return outcome


def without(scenario: S, faults: tuple[str, ...]) -> Iterator[S]:
    """Yield scenarios that are simpler by one kind of fault each."""
    for name in faults:
        if getattr(scenario, name):
            yield replace(scenario, **{name: 0.0})  # type: ignore[arg-type]


def smaller(scenario: S, sizes: tuple[str, ...]) -> Iterator[S]:
    """Yield scenarios in which one of these numbers is smaller, and is 1 at least."""
    for name in sizes:
        value = getattr(scenario, name)
        for each in sorted({(value + 1) // 2, value - 1} - {0, value}):
            yield replace(scenario, **{name: each})


def plainer(scenario: S) -> Iterator[S]:
    """Yield scenarios with one kind of operation less."""
    for index, weight in enumerate(scenario.weights):
        if weight and sum(map(bool, scenario.weights)) > 1:
            weights = (*scenario.weights[:index], 0, *scenario.weights[index + 1 :])
            yield replace(scenario, weights=weights)

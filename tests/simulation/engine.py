"""The simulated engine that has to load values: late, in any order, and sometimes in vain."""

from __future__ import annotations

from collections.abc import Callable

from dstore.engines import Key, Loaded, MemoryEngine
from tests.engines import AwayEngine
from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario

GARBAGE = b"garbage!"
"""What may be returned for a value that is gone: as long as most values, and written by nobody."""

Report = Callable[[int, list[Loaded]], None]


class SimEngine(AwayEngine):
    """Each time that a value is read it may be away, whatever happened before.

    The bytes are read at one random moment and reported at a later one. ``report`` is called with
    the number of the load and its results. A crash of Global is the end of this object: what it
    reports later must be ignored.
    """

    def __init__(self, inner: MemoryEngine, loop: Loop, scenario: Scenario, report: Report) -> None:
        super().__init__(inner)
        self._loop = loop
        self._scenario = scenario
        self._report = report

    def is_away(self, key: Key) -> bool:
        return self._loop.dice.random() < self._scenario.away

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        self._loop.counts["loads"] += 1
        self._later(self._end, number, wanted)

    def _later(self, what: Callable[..., None], *arguments: object) -> None:
        self._loop.later(self._loop.dice.random() * self._scenario.loading, what, *arguments)

    def _end(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        self._later(self._report, number, [self.result(*each) for each in wanted])

    def result(self, key: Key, token: bytes) -> Loaded:
        dice, found = self._loop.dice, super().result(key, token)
        if isinstance(found, Exception):
            self._loop.counts["loads of values that were gone"] += 1
            return dice.choice((found, GARBAGE))
        if dice.random() < self._scenario.load_failures:
            self._loop.counts["loads that failed"] += 1
            return dice.choice((OSError("the disk is away"), bytes(found[1:])))
        return found

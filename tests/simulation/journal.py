"""The simulated disk of a durable Global: what survives its crashes, and what comes too late."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.engine import Change, ChangeKind, Kept, Outcome
from dstore.protocol.messages import Key
from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario


class SimJournal:
    """Writes batches one after the other, each after a random delay, and reports each later.

    The changes of one key are reported in their order, as a journal has to.

    A crash comes before a batch is on the disk, or after that and before the report. ``report`` is
    called with a number and its outcomes.
    """

    def __init__(self, loop: Loop, scenario: Scenario) -> None:
        self.rows: dict[Key, Kept] = {}
        self.quiet = 0.0  # seconds for which leases may be out that are not waited for yet
        self._loop = loop
        self._scenario = scenario
        self._life = object()
        self._told: dict[Key, float] = {}  # when the newest change of a key is reported
        self._free_at = 0.0  # when the batches before are on the disk

    def begin(self, report: Callable[[int, list[Outcome]], None]) -> list[Kept]:
        """Begin another life. Returns what is on the disk."""
        self._life = object()
        self._free_at = self._loop.now
        self._report = report
        return list(self.rows.values())

    def commit(self, number: int, changes: list[Change]) -> None:
        loop = self._loop
        self._free_at = max(self._free_at, loop.now) + loop.dice.random() * self._scenario.commit
        loop.at(self._free_at, self._write, self._life, number, changes)

    def _write(self, life: object, number: int, changes: list[Change]) -> None:
        if life is not self._life:
            return  # Global has crashed before
        outcomes = [self._apply(change) for change in changes]
        self._loop.counts["batches on the disk"] += 1
        at = self._loop.now + self._loop.dice.random() * self._scenario.commit
        at = max([at, *(self._told.get(change.key, 0.0) for change in changes)])
        self._told.update((change.key, at) for change in changes)
        self._loop.at(at, self._tell, life, number, outcomes)

    def _tell(self, life: object, number: int, outcomes: list[Outcome]) -> None:
        if life is self._life:
            self._report(number, outcomes)
        else:
            self._loop.counts["batches on the disk that were not reported"] += 1

    def _apply(self, change: Change) -> Outcome:
        kind, key, token, stored, deadline = change
        if self._loop.dice.random() < self._scenario.failing:
            return self._loop.dice.choice((Outcome.FULL, Outcome.FAILED))
        row = self.rows.get(key)
        if (row.token if row else b"") != token:
            return Outcome.FAILED
        if kind is ChangeKind.REMOVE:
            del self.rows[key]
        elif kind is ChangeKind.DEADLINE:
            assert row is not None
            self.rows[key] = row._replace(deadline=deadline)
        else:
            assert stored is not None
            self.rows[key] = Kept(key, stored.token, stored, deadline)
        return Outcome.DONE

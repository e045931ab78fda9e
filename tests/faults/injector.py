"""Chooses faults, begins them, and repairs them: seeded, every kind once before any is repeated.

Each fault has a target that no other fault has at the same time. Each is repaired after a while, at
the latest by :meth:`Injector.calm`. What the faults are is up to a subclass.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

PAUSE = 0.02
"""Seconds between two attempts to repair what is left."""
REPAIR_TIMEOUT = 60.0
"""Seconds for all repairs at the end."""

Repair: TypeAlias = Callable[[], bool]
"""Ends a fault. Returns False if that is not possible yet, to be tried again."""
Begun: TypeAlias = tuple[Hashable, float, Repair]
"""The target of a fault, its length in leases, and its repair."""


@dataclass
class Fault:
    """One fault: its kind, and when it began and was repaired, in ns of ``time.monotonic_ns``."""

    kind: str
    begin: int
    end: int | None = None


@dataclass
class _Busy:
    """A fault that is to be repaired at a time of ``time.monotonic``."""

    due: float
    repair: Repair
    fault: Fault


class Injector(ABC):
    """Injects faults into a run. Call :meth:`step` often.

    ``lease`` is the unit of the lengths of faults, in seconds. On average ``pause_leases`` of them
    are between the beginnings of two faults.
    """

    def __init__(
        self, rng: random.Random, faults: Sequence[str], lease: float, pause_leases: float
    ) -> None:
        self.done: Counter[str] = Counter()
        self.history: list[Fault] = []
        self._rng = rng
        self._faults = faults
        self._lease = lease
        self._pause = pause_leases * lease
        self._deck: list[str] = []
        self._next = time.monotonic() + self._pause
        self._busy: dict[Hashable, _Busy] = {}

    def step(self) -> None:
        """Repair the faults that are due, and perhaps begin the next one."""
        now = time.monotonic()
        for target, busy in list(self._busy.items()):
            if now >= busy.due:
                self._try_to_repair(target, busy)
        if now >= self._next:
            self._next = now + self._rng.expovariate(1 / self._pause)
            self._begin(now)

    @property
    def complete(self) -> bool:
        """Whether every kind of fault has happened."""
        return all(self.done[fault] for fault in self._faults)

    def calm(self) -> None:
        """Repair everything. Raises TimeoutError if that is not possible in time."""
        until = time.monotonic() + REPAIR_TIMEOUT
        while self._busy:
            if time.monotonic() > until:
                left = ", ".join(busy.fault.kind for busy in self._busy.values())
                raise TimeoutError(f"cannot be repaired: {left}")
            for target, busy in list(self._busy.items()):
                self._try_to_repair(target, busy)
            time.sleep(PAUSE)

    def _try_to_repair(self, target: Hashable, busy: _Busy) -> None:
        if busy.repair():
            busy.fault.end = time.monotonic_ns()
            del self._busy[target]

    def _begin(self, now: float) -> None:
        if not self._deck:
            self._deck = list(self._faults)
            self._rng.shuffle(self._deck)
        for kind in self._deck:  # the first whose target is free
            fault = Fault(kind, time.monotonic_ns())
            begun = self._disturb(kind)
            if begun is not None:
                target, leases, repair = begun
                self._busy[target] = _Busy(now + leases * self._lease, repair, fault)
                self._deck.remove(kind)
                self.done[kind] += 1
                self.history.append(fault)
                return

    @abstractmethod
    def _disturb(self, fault: str) -> Begun | None:
        """Begin a fault of this kind; None if there is no free target for it."""

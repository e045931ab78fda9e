"""Connections between Locals and Global: ordered, with random delays, and lossy when cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario


class Connection:
    """A connection with two directions, each in order. A cut loses what is under way.

    ``up`` is called with a message that arrives at Global, ``down`` with one that arrives at the
    Local. After a cut the connection has another route.
    """

    def __init__(
        self,
        loop: Loop,
        scenario: Scenario,
        name: str,
        up: Callable[[bytes, Any], None],
        down: Callable[[Any], None],
    ) -> None:
        self.name = name
        self.open = True
        self._loop = loop
        self._scenario = scenario
        self._up = up
        self._down = down
        self._life = 0
        self._last = {"up": 0.0, "down": 0.0}

    @property
    def route(self) -> bytes:
        """The route by which Global's ROUTER addresses this connection, until it is cut."""
        return f"{self.name}/{self._life}".encode()

    def send_up(self, message: Any) -> bool:
        """Send to Global. False if there is no connection."""
        if self.open:
            self._carry("up", self._arrive_up, self.route, message)
        return self.open

    def send_down(self, message: Any) -> None:
        if self.open:
            self._carry("down", self._arrive_down, self._life, message)

    def cut(self, back: Callable[[], None]) -> None:
        """Lose what is under way. ``back`` is called when the connection is restored."""
        if not self.open:
            return
        self._loop.log(self.name, "cut off")
        self.open = False
        self._life += 1
        self._loop.later(self._loop.dice.random() * 0.2, self._restore, back)

    def _restore(self, back: Callable[[], None]) -> None:
        self.open = True
        self._loop.log(self.name, "connected")
        back()

    def _carry(self, way: str, arrive: Callable[..., None], *arguments: Any) -> None:
        dice = self._loop.dice
        delay = dice.random() * 2 * self._scenario.latency
        if dice.random() < self._scenario.slow and not self._loop.quiet:
            delay += dice.random() * self._scenario.slowness
        self._last[way] = max(self._last[way], self._loop.now + delay)
        self._loop.at(self._last[way], arrive, *arguments)

    def _arrive_up(self, route: bytes, message: Any) -> None:
        if route == self.route:
            self._up(route, message)

    def _arrive_down(self, life: int, message: Any) -> None:
        if life == self._life:
            self._down(message)

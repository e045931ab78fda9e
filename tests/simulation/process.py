"""What simulated processes have in common: they stand still, die, and keep in touch with Global."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dstore.core.authority.identity import Identity
from dstore.core.local.effects import LocalEffect
from dstore.core.local.state import LocalState
from tests.simulation.host import SimHost
from tests.simulation.identities import Identities
from tests.simulation.loop import Died, Loop, Pausable
from tests.simulation.network import Connection
from tests.simulation.scenario import Scenario
from tests.simulation.trace import short

NEVER = float("inf")
STILL = 0.005
"""Seconds between two looks at a process that is in the middle of a call."""


class Mortal(Pausable):
    """A process that may stand still, or die, in the middle of a call as well."""

    def __init__(self, loop: Loop, scenario: Scenario, name: str) -> None:
        super().__init__(loop, name)
        self.scenario = scenario
        self.alive = True
        self.frozen = 0  # calls that stand still, so that the process is in the middle of them

    def crash(self) -> None:
        """End without a message."""
        raise NotImplementedError

    def held_up(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        """Whether it is paused or in the middle of a call; see :meth:`Pausable.held_up`."""
        if self.frozen and self.loop.now >= self._wakes.get(line, self._until):
            self._wakes[line] = self.loop.now + STILL  # another call, within which it is, goes on
        return super().held_up(line, again, *arguments)

    def between(self) -> None:
        """Perhaps stand still in the middle of a call. Raises Died if the process has died."""
        dice, scenario = self.loop.dice, self.scenario
        if scenario.freezes and not self.loop.quiet and dice.random() < scenario.freezes:
            self.stand_still(dice.random() * scenario.pause * dice.random(), dice.random() < 0.6)

    def stand_still(self, seconds: float, whole: bool = True) -> None:
        """Stand still in the middle of a call: the process, or only what needs its lock."""
        life = self.life
        self.loop.counts["calls that stood still"] += 1
        if whole:
            self.pause(seconds)
        self.frozen += 1
        try:
            self.loop.stand_still(seconds)
        finally:
            self.frozen -= 1
        if life != self.life:
            raise Died

    @property
    def life(self) -> object:
        """What changes when the process dies."""
        return self.alive


class Authority(Protocol):
    """What a process needs of Global: its connections, by name."""

    connections: dict[str, Connection]
    subscriptions: dict[str, Connection]
    identities: Identities

    def receive(self, route: bytes, message: Any) -> None: ...


class Process(Mortal):
    """A process with a LocalState, its control channel, and its subscription."""

    state: LocalState
    host: SimHost
    identity: Identity

    def __init__(
        self, loop: Loop, scenario: Scenario, authority: Authority, host: SimHost, name: str
    ) -> None:
        super().__init__(loop, scenario, name)
        self.host = host
        self.rate, self.offset = host.rate, host.offset
        self._timer = NEVER
        self._authority = authority
        self.control = self.connect("control", self._on_control)
        self.sub = Connection(loop, scenario, f"{name}.sub", authority.receive, self._on_published)
        authority.subscriptions[self.sub.name] = self.sub

    def connect(self, kind: str, down: Callable[[Any], None]) -> Connection:
        name = f"{self.name}.{kind}"
        connection = Connection(self.loop, self.scenario, name, self._authority.receive, down)
        self._authority.connections[name] = connection
        return connection

    def disconnect(self, *others: Connection) -> None:
        for connection in (self.control, self.sub, *others):
            self._authority.connections.pop(connection.name, None)
            self._authority.subscriptions.pop(connection.name, None)

    # ---- clock ----------------------------------------------------------------------------

    def clock(self) -> float:
        return self.offset + self.rate * self.loop.now

    def true_time(self, local: float) -> float:
        return (local - self.offset) / self.rate

    # ---- its background thread ------------------------------------------------------------

    def busy(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        """Whether an event of the background thread cannot happen now: it is delayed, or void."""
        return not self.alive or self.held_up(line, again, *arguments)

    def _on_control(self, message: Any) -> None:
        if not self.busy("control", self._on_control, message):
            self._receive(message)

    def _on_published(self, message: Any) -> None:
        if not self.busy("sub", self._on_published, message):
            self._receive(message)

    def _receive(self, message: Any) -> None:
        self.loop.log(self.name, f"<- {short(message)}")
        effects = self.state.receive(message, self.clock())
        self.perform([*effects, *self.state.tick(self.clock())])

    def reconnected(self) -> None:
        if not self.busy("control", self.reconnected):
            self.state.reconnected(self.clock())
            self.touched()

    def _tick(self) -> None:
        if not self.busy("timer", self._tick):
            self._timer = NEVER
            due = self.state.wake_at <= self.clock()
            self.perform(self.state.tick(self.clock()) if due else [])

    def perform(self, effects: Iterable[LocalEffect]) -> None:
        """Carry out effects, in their order."""
        raise NotImplementedError

    def touched(self) -> None:
        """The state may have changed: set the timer."""
        due = max(self.true_time(self.state.wake_at), self.loop.now)
        if due < self._timer and due < NEVER:
            self._timer = due
            self.loop.at(due + 1e-6, self._tick)

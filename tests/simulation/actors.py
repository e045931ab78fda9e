"""Global and Locals in simulated processes, around the real core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from dstore.core.authority.effects import GlobalEffect, Publish
from dstore.core.authority.pending import PendingDeletion
from dstore.core.authority.state import GlobalState
from dstore.core.local.cache import ENTRY_OVERHEAD
from dstore.core.local.effects import Announce, Dropped, LocalEffect, Tell
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Large, Message, Stored
from dstore.server.engines.memory import MemoryEngine
from tests.simulation.hosts import SimBulk, SimHost
from tests.simulation.loop import Loop, Pausable
from tests.simulation.network import Connection
from tests.simulation.scenario import Scenario

if TYPE_CHECKING:
    from tests.simulation.client import Client

VALUE_BYTES = 8
SCARCE_BYTES, SCARCE_HOLDER_BYTES = 6_000, 500
"""What writes and waits, and the record of the holders, may take where memory is scarce: enough for
one message of all, and for two keys.
"""
NEVER = float("inf")


UNTOLD = {
    "epoch",
    "nonce",
    "publisher",
    "label",
    "lease",
    "text",
    "wait",
    "value_limit",
    "large_from",
}


def short(message: Message) -> str:
    """A message on one line of a trace."""
    fields = (f"{name}={_short(value)}" for name, value in _told(message))
    return f"{type(message).__name__}({', '.join(fields)})"


def _told(message: Any) -> list[tuple[str, Any]]:
    pairs = zip(message._fields, message)
    return [(name, value) for name, value in pairs if name not in UNTOLD]


def _short(value: Any) -> str:
    if isinstance(value, Stored):
        body = value.body
        return f"large {value.token.hex()[:4]}" if isinstance(body, Large) else _text(body)
    if isinstance(value, (bytes, memoryview)):
        return _text(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if hasattr(value, "_fields"):
        return " ".join(_short(part) for _, part in _told(value))
    return str(value)


def _text(raw: bytes | memoryview) -> str:
    return bytes(raw).decode(errors="replace") if len(raw) <= VALUE_BYTES else bytes(raw[:2]).hex()


class SimGlobal(Pausable):
    """One Global, and after a crash the next life of it."""

    def __init__(self, loop: Loop, scenario: Scenario) -> None:
        super().__init__(loop, "G")
        self.scenario = scenario
        self.host = SimHost()
        self.engine = MemoryEngine()
        self.bulk = SimBulk(self.host)
        self.connections: dict[str, Connection] = {}
        self.subscriptions: dict[str, Connection] = {}
        self.deletions: list[tuple[str, bytes]] = []  # of this life, in the order of the numbers
        self.epoch = 0
        self._serves_from = 0.0
        self._timer = NEVER
        self._begin()

    def _begin(self) -> None:
        self.epoch += 1
        self.deletions = []
        self._timer = NEVER
        self.state = GlobalState(
            self.engine,
            self.bulk,
            epoch=self.epoch,
            publisher="tcp://*:2",
            lease=self.scenario.lease,
            log_length=self.scenario.log_length,
            value_limit=1 << 20,
            large_from=1 << 10,
            random63=self.loop.random63,
            max_clients=self.scenario.sessions,
        )
        if self.scenario.scarce:
            self.state._holders.limit = SCARCE_HOLDER_BYTES
            for budget in (self.state._sessions.writes, self.state._sessions.waits):
                budget.total, budget.assured = SCARCE_BYTES, 0
        deletions, start = self.deletions, self.state._invalidations.start

        def noted(pending: PendingDeletion, now: float) -> None:
            deletions.append((pending.key, pending.token))
            start(pending, now)

        self.state._invalidations.start = noted  # type: ignore[method-assign]

    def crash(self) -> None:
        """A volatile Global returns empty. One with its data waits until all leases have ended."""
        self.loop.tell(self.name, f"crashes, durable={self.scenario.durable}")
        if self.scenario.durable:
            self._serves_from = self.loop.now + self.scenario.lease
            for token in self.bulk.tokens() - self.bound():
                self.bulk.drop(token)
        else:
            self.engine = MemoryEngine()
            self.bulk = SimBulk(self.host)
        self._begin()

    def bound(self) -> set[bytes]:
        """The tokens of the large values that keys are bound to."""
        values = (self.engine.read(key) for key in self.engine.scan("", "", 1000))
        return {each.token for each in values if each and isinstance(each.body, Large)}

    def receive(self, route: bytes, message: Any) -> None:
        if self.held_up("requests", self.receive, route, message):
            return
        if self.loop.now < self._serves_from:
            return
        self.loop.tell(self.name, f"<- {route.decode()} {short(message)}")
        self._perform(self.state.receive(route, message, self.loop.now))

    def _tick(self, epoch: int) -> None:
        if epoch != self.epoch or self.held_up("timer", self._tick, epoch):
            return
        self._timer = NEVER
        self._perform(self.state.tick(self.loop.now) if self.due else [])

    @property
    def due(self) -> bool:
        return self.loop.now >= self.state.wake_at

    def _perform(self, effects: Iterable[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect)
            else:
                connection = self.connections.get(effect.route.decode().rpartition("/")[0])
                if connection is not None and connection.route == effect.route:
                    connection.send_down(effect.message)
        if self.state.wake_at < self._timer:
            self._timer = self.state.wake_at
            self.loop.at(self._timer, self._tick, self.epoch)

    def _publish(self, effect: Publish) -> None:
        self.loop.tell(self.name, f"publishes {short(effect.message)}")
        for connection in self.subscriptions.values():
            if self.loop.dice.random() >= self.scenario.lost_publications:
                connection.send_down(effect.message)


class SimLocal(Pausable):
    """One process with a Local and some threads. Its clock runs at a rate of its own."""

    def __init__(
        self, loop: Loop, scenario: Scenario, place: SimGlobal, host: SimHost, name: str
    ) -> None:
        super().__init__(loop, name)
        self.host = host
        self.scenario = scenario
        self.place = place
        self.rate = 1 + loop.dice.uniform(-scenario.drift, scenario.drift)
        self.offset = loop.dice.uniform(0, 1000)
        self.alive = True
        self.clients: list[Client] = []
        self.state = LocalState(
            random16=loop.random16,
            label=name,
            cache_bytes=scenario.cache_entries * (ENTRY_OVERHEAD + VALUE_BYTES + 2),
            reorder_keys_max=scenario.held_keys,
        )
        self.announced = 0  # the number of the last deletion that watchers know of
        self._timer = NEVER
        if loop.dice.random() < scenario.watchers:
            self.state.watch(1, self.clock())
        self.control = self.connect("control", self._on_control)
        self.sub = Connection(loop, scenario, f"{name}.sub", place.receive, self._on_published)
        place.subscriptions[self.sub.name] = self.sub
        self.touched()

    def connect(self, kind: str, down: Callable[[Any], None]) -> Connection:
        name = f"{self.name}.{kind}"
        connection = Connection(self.loop, self.scenario, name, self.place.receive, down)
        self.place.connections[name] = connection
        return connection

    def of_global(self, token: bytes) -> bytes | None:
        """What is found in Global's own files, if it runs on the same host."""
        body = self.place.bulk.read(token, 0, VALUE_BYTES) if self.host is self.place.host else None
        return None if body is None else bytes(body)

    # ---- its clock ------------------------------------------------------------------------

    def clock(self) -> float:
        return self.offset + self.rate * self.loop.now

    def true_time(self, local: float) -> float:
        return (local - self.offset) / self.rate

    # ---- its background thread ------------------------------------------------------------

    def _on_control(self, message: Any) -> None:
        if self.alive and not self.held_up("control", self._on_control, message):
            self._receive(message)

    def _on_published(self, message: Any) -> None:
        if self.alive and not self.held_up("sub", self._on_published, message):
            self._receive(message)

    def _receive(self, message: Any) -> None:
        self.loop.tell(self.name, f"<- {short(message)}")
        effects = self.state.receive(message, self.clock())
        self.perform([*effects, *self.state.tick(self.clock())])

    def reconnected(self) -> None:
        if self.alive and not self.held_up("control", self.reconnected):
            self.state.reconnected(self.clock())
            self.touched()

    def _tick(self) -> None:
        if self.alive and not self.held_up("timer", self._tick):
            self._timer = NEVER
            due = self.state.wake_at <= self.clock()
            self.perform(self.state.tick(self.clock()) if due else [])

    def perform(self, effects: Iterable[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.loop.tell(self.name, f"-> {short(effect.message)}")
                self.control.send_up(effect.message)
            elif isinstance(effect, Dropped):
                self.loop.tell(self.name, f"drops {effect.keys}")
                for token in effect.tokens:
                    self.host.copies.pop(token, None)
            elif isinstance(effect, Announce):
                self._announce(effect)
        self.touched()

    def _announce(self, effect: Announce) -> None:
        """What watchers are told has taken effect, and none is left out."""
        for removal in effect.removals:
            if removal.key is not None and removal.seq != self.announced + 1:
                self.loop.fault(f"{self.name} announces {removal} after {self.announced}")
            self.announced = removal.seq
        if self.state.epoch == self.place.epoch:
            committed = self.place.state._invalidations.committed
            if self.announced > committed:
                self.loop.fault(
                    f"{self.name} announces {effect} and only {committed} are committed"
                )

    def touched(self) -> None:
        """Something may have changed: look who waits, and when a timer is due."""
        for client in list(self.clients):
            client.look()
        due = max(self.true_time(self.state.wake_at), self.loop.now)
        if due < self._timer and due < NEVER:
            self._timer = due
            self.loop.at(due + 1e-6, self._tick)

    # ---- its end --------------------------------------------------------------------------

    def goodbye(self) -> None:
        """Leave in good order; what its threads are doing is given up."""
        if self.alive and not self.state.closing:
            self.loop.tell(self.name, "goodbye")
            for client in self.clients:
                client.give_up()
            self.state.goodbye(self.clock())
            self.touched()

    def crash(self) -> None:
        """Die; nothing is said."""
        self.loop.tell(self.name, "dies")
        self.alive = False
        for client in self.clients:
            client.give_up()
        for connection in (self.control, self.sub, *(each.channel for each in self.clients)):
            self.place.connections.pop(connection.name, None)
            self.place.subscriptions.pop(connection.name, None)

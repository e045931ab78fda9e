"""Simulated processes of Global and of Locals, around the real core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.effects import GlobalEffect, Publish
from dstore.core.authority.state import GlobalState
from dstore.core.local.cache import ENTRY_OVERHEAD
from dstore.core.local.effects import Announce, Dropped, LocalEffect, Tell
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Key, Large
from dstore.server.engines.memory import MemoryEngine
from tests.simulation.host import SimBulk, SimHost
from tests.simulation.loop import Loop, Pausable
from tests.simulation.network import Connection
from tests.simulation.scenario import Scenario
from tests.simulation.trace import short

VALUE_BYTES = 8
"""Bytes of each value."""
SCARCE_BYTES = 6_000
"""Bytes for writes and for waits in a scenario with scarce memory: enough for one message each."""
SCARCE_HOLDER_BYTES = 500
"""Bytes for the record of holders in such a scenario: enough for two keys."""
NEVER = float("inf")


class SimState(LocalState):
    """A Local with a vector of its own size: where it is small, keys share buckets."""

    def __init__(self, buckets: int, **settings: Any) -> None:
        self.buckets = buckets
        super().__init__(**settings)


class WordState(SimState):
    """A Local whose hits compare words, as those of a shared membership do. It drops no entry."""

    def _words_of_hits(self) -> memoryview:
        return self.vector.words

    def _invalidate(self, key: Key, seq: int) -> None:
        pass


class Caller(Protocol):
    """A thread of a simulated process, which runs operations one after the other.

    ``line`` names it among the connections, timers and threads of its process.
    """

    local: SimLocal
    loop: Loop
    line: str
    channel: Connection

    def look(self) -> None:
        """The state of the Local may have changed."""

    def give_up(self) -> None:
        """Stop what it does."""


class SimGlobal(Pausable):
    """One Global, and after each crash its next epoch."""

    def __init__(self, loop: Loop, scenario: Scenario) -> None:
        super().__init__(loop, "G")
        self.scenario = scenario
        self.host = SimHost()
        self.engine = MemoryEngine()
        self.bulk = SimBulk(self.host)
        self.connections: dict[str, Connection] = {}
        self.subscriptions: dict[str, Connection] = {}
        self.deletions: list[tuple[str, bytes]] = []  # of this epoch, by seq
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
        """Crash and restart: empty, or with its data when all leases have ended."""
        self.loop.log(self.name, f"crashes, durable={self.scenario.durable}")
        if self.scenario.durable:
            self._serves_from = self.loop.now + self.scenario.lease
            for token in self.bulk.tokens() - self.bound():
                self.bulk.drop(token)
        else:
            self.engine = MemoryEngine()
            self.bulk = SimBulk(self.host)
        self._begin()

    def bound(self) -> set[bytes]:
        """The tokens of the large values that are bound to keys."""
        values = (self.engine.read(key) for key in self.engine.scan("", "", 1000))
        return {each.token for each in values if each and isinstance(each.body, Large)}

    def receive(self, route: bytes, message: Any) -> None:
        if self.held_up("requests", self.receive, route, message):
            return
        if self.loop.now < self._serves_from:
            return
        self.loop.log(self.name, f"<- {route.decode()} {short(message)}")
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
        self.loop.log(self.name, f"publishes {short(effect.message)}")
        for connection in self.subscriptions.values():
            if self.loop.dice.random() >= self.scenario.lost_broadcasts:
                connection.send_down(effect.message)


class SimLocal(Pausable):
    """A process with a Local and some threads. Its clock has a rate of its own."""

    def __init__(
        self, loop: Loop, scenario: Scenario, authority: SimGlobal, host: SimHost, name: str
    ) -> None:
        super().__init__(loop, name)
        self.host = host
        self.scenario = scenario
        self.authority = authority
        self.rate = 1 + loop.dice.uniform(-scenario.drift, scenario.drift)
        self.offset = loop.dice.uniform(0, 1000)
        self.alive = True
        self.clients: list[Caller] = []
        kind = WordState if loop.dice.random() < scenario.words else SimState
        self.state = kind(
            scenario.buckets,
            random16=loop.random16,
            label=name,
            cache_bytes=scenario.cache_entries * (ENTRY_OVERHEAD + VALUE_BYTES + 2),
            reorder_keys_max=scenario.reorder_keys,
        )
        self.announced = 0  # seq of the last deletion that watchers know of
        self._timer = NEVER
        if loop.dice.random() < scenario.watchers:
            self.state.watch(1, self.clock())
        self.control = self.connect("control", self._on_control)
        self.sub = Connection(loop, scenario, f"{name}.sub", authority.receive, self._on_published)
        authority.subscriptions[self.sub.name] = self.sub
        self.touched()

    def connect(self, kind: str, down: Callable[[Any], None]) -> Connection:
        name = f"{self.name}.{kind}"
        connection = Connection(self.loop, self.scenario, name, self.authority.receive, down)
        self.authority.connections[name] = connection
        return connection

    def of_global(self, token: bytes) -> bytes | None:
        """A value in Global's own files, if Global runs on the same host."""
        if self.host is not self.authority.host:
            return None
        body = self.authority.bulk.read(token, 0, VALUE_BYTES)
        return None if body is None else bytes(body)

    # ---- clock ----------------------------------------------------------------------------

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
        self.loop.log(self.name, f"<- {short(message)}")
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
                self.loop.log(self.name, f"-> {short(effect.message)}")
                self.control.send_up(effect.message)
            elif isinstance(effect, Dropped):
                self.loop.log(self.name, f"drops {effect.keys}")
                for token in effect.tokens:
                    self.host.copies.pop(token, None)
            elif isinstance(effect, Announce):
                self._announce(effect)
        self.touched()

    def _announce(self, effect: Announce) -> None:
        """Check that announced deletions are committed, and that none is left out."""
        for removal in effect.removals:
            if removal.key is not None and removal.seq != self.announced + 1:
                self.loop.violation(f"{self.name} announces {removal} after {self.announced}")
            self.announced = removal.seq
        if self.state.epoch == self.authority.epoch:
            committed = self.authority.state._invalidations.committed
            if self.announced > committed:
                self.loop.violation(
                    f"{self.name} announces {effect} and only {committed} are committed"
                )

    def touched(self) -> None:
        """The state may have changed: let the threads look, and set the timer."""
        for client in list(self.clients):
            client.look()
        due = max(self.true_time(self.state.wake_at), self.loop.now)
        if due < self._timer and due < NEVER:
            self._timer = due
            self.loop.at(due + 1e-6, self._tick)

    # ---- end ------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """End the session and give up what its threads do."""
        if self.alive and not self.state.closing:
            self.loop.log(self.name, "goodbye")
            for client in self.clients:
                client.give_up()
            self.state.goodbye(self.clock())
            self.touched()

    def crash(self) -> None:
        """End without a message."""
        self.loop.log(self.name, "dies")
        self.alive = False
        for client in self.clients:
            client.give_up()
        for connection in (self.control, self.sub, *(each.channel for each in self.clients)):
            self.authority.connections.pop(connection.name, None)
            self.authority.subscriptions.pop(connection.name, None)

"""The simulated process of a client: one Local for each member, around the real core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dstore.client.cluster.routing import Routes
from dstore.core.local.cache import ENTRY_OVERHEAD
from dstore.core.local.effects import Dropped, LocalEffect, Tell
from dstore.core.local.membership import Entry
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Key
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.host import SimHost
from tests.simulation.identities import Identities
from tests.simulation.loop import Loop
from tests.simulation.network import Connection
from tests.simulation.process import Mortal, Process
from tests.simulation.trace import short

VALUE_BYTES = 8
"""Bytes of each value."""


class Waiting(Protocol):
    """An operation of a Local that is on its way."""

    def look(self) -> None:
        """The state of the Local may have changed."""

    def cut(self) -> None:
        """Lose what is under way."""


class SimNode(Mortal):
    """A client process: it knows the map, and opens a Local for each member that it needs."""

    scenario: ClusterScenario

    def __init__(
        self,
        loop: Loop,
        scenario: ClusterScenario,
        members: dict[str, SimMember],
        identities: Identities,
        number: int,
    ) -> None:
        super().__init__(loop, scenario, f"N{number}")
        drift = scenario.drift
        self.host = SimHost(loop, 1 + loop.dice.uniform(-drift, drift), loop.dice.uniform(0, 1000))
        self.routes = Routes(members)
        self.locals: dict[str, NodeLocal] = {}
        self._members = members
        self._identities = identities

    def clock(self) -> float:
        return self.host.clock()

    def local(self, address: str) -> NodeLocal:
        """Return the Local for a member, which is opened if there is none."""
        if address not in self.locals:
            self.locals[address] = NodeLocal(self, self._members[address], self._identities)
            self.locals[address].touched()
        local = self.locals[address]
        if self.routes.known and local.state.cluster != self.routes.cluster:
            local.state.belong(self.routes.cluster, self.clock())
            local.touched()
        return local

    def hit(self, key: Key) -> Entry | None:
        """Look a key up in the caches of all Locals, as a Node does: no map is needed."""
        now = self.clock()
        found = [each.state.hit(key, now) for each in self.locals.values()]
        return next((each for each in found if each is not None), None)


class NodeLocal(Process):
    """The Local of a process for one member. It stands still with its process."""

    scenario: ClusterScenario

    def __init__(self, node: SimNode, member: SimMember, identities: Identities) -> None:
        name = f"{node.name}.{member.name}"
        self.node = node
        self.attempts: list[Waiting] = []
        super().__init__(node.loop, node.scenario, member, node.host, name)
        self.identity = identities.admit(name, None)
        self.state = LocalState(
            random16=self.loop.random16,
            label=name,
            cache_bytes=node.scenario.cache_entries * (ENTRY_OVERHEAD + VALUE_BYTES + 2),
            reorder_keys_max=node.scenario.reorder_keys,
        )

    def held_up(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        return self.node.held_up(f"{self.name} {line}", again, *arguments)

    def forget(self, connection: Connection) -> None:
        self._authority.connections.pop(connection.name, None)

    def perform(self, effects: Iterable[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.loop.log(self.name, f"-> {short(effect.message)}")
                self.control.send_up(effect.message)
            elif isinstance(effect, Dropped):
                self.loop.log(self.name, f"drops {effect.keys}")
        self.touched()

    def touched(self) -> None:
        for attempt in list(self.attempts):
            attempt.look()
        super().touched()

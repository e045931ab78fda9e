"""The simulated process of a client: one Local for each member, around the real core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dstore.client.cluster.routing import Routes
from dstore.core.local.membership import Entry
from dstore.protocol.messages import Key
from tests.simulation.client import LOCK_FREE
from tests.simulation.cluster.machine import Machine
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.hits import hit as hit_of
from tests.simulation.identities import Identities
from tests.simulation.local import LocalProcess, SimState, Thread
from tests.simulation.loop import Loop
from tests.simulation.network import Connection
from tests.simulation.pages import ReadPage
from tests.simulation.process import Mortal


class SimNode(Mortal):
    """A client process: it knows the map, and opens a Local for each member that it needs."""

    scenario: ClusterScenario

    def __init__(
        self,
        loop: Loop,
        scenario: ClusterScenario,
        members: dict[str, SimMember],
        identities: Identities,
        machine: Machine,
        number: int,
    ) -> None:
        super().__init__(loop, scenario, f"N{number}")
        self.machine = machine
        self.sharing = bool(scenario.sharing) and loop.dice.random() < scenario.sharing
        self.routes = Routes(members)
        self.locals: dict[str, NodeLocal] = {}
        self.index: dict[Key, Entry] = {}
        self._members = members
        self._identities = identities

    def clock(self) -> float:
        return self.machine.clock()

    def local(self, address: str) -> NodeLocal:
        """Return the Local for a member, which is opened if there is none."""
        if address not in self.locals:
            self.locals[address] = NodeLocal(self, self._members[address], self._identities)
        local = self.locals[address]
        if self.routes.known and local.state.cluster != self.routes.cluster:
            local.state.belong(self.routes.cluster, self.clock())
            local.touched()
        return local

    def hit(self, key: Key) -> Entry | None:
        """Look a key up in the caches of all Locals, as a Node does: no map is needed.

        In some cases without a lock.
        """
        lock_free = self.sharing and self.loop.dice.random() < LOCK_FREE
        for local in list(self.locals.values()):
            if lock_free:
                hit = hit_of(local, key)
                found = None if hit is None else hit.entry
            else:
                found = None if local.frozen else local.state.hit(key, local.clock())
            if found is not None:
                return found
        return None


class NodeLocal(LocalProcess):
    """The Local of a process for one member. It stands still with its process."""

    scenario: ClusterScenario

    def __init__(self, node: SimNode, member: SimMember, identities: Identities) -> None:
        name = f"{node.name}.{member.name}"
        self.node = node
        self.attempts: list[Thread] = []
        host = node.machine.of(member.address)
        super().__init__(node.loop, node.scenario, member, host, name)
        self.identity = identities.admit(name, None)
        self.state = self.sharing() if node.sharing else self.made(SimState)
        self.state.cache.join_index(node.index)
        page = self.host.find(0) if node.sharing else None
        if page is not None:
            self.state.attach(ReadPage(page, self).shared, self.clock())
        if self.state.page is None or self.state.observing:
            self.go()

    def threads(self) -> Sequence[Thread]:
        return self.attempts

    def held_up(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        if super().held_up(line, again, *arguments):  # it is in the middle of a call
            return True
        return self.node.held_up(f"{self.name} {line}", again, *arguments)

    def pause(self, seconds: float) -> None:
        """Let the whole process stand still."""
        self.node.pause(seconds)

    def forget(self, connection: Connection) -> None:
        self._authority.connections.pop(connection.name, None)

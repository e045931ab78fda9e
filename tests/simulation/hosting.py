"""The owners of the pages of hosts without a Global, one after the other, and what strikes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dstore.protocol.clusters import NO_CLUSTER
from tests.simulation.host import SimHost
from tests.simulation.loop import Loop
from tests.simulation.owners import SimOwner
from tests.simulation.process import Authority
from tests.simulation.scenario import Scenario


class Hosting:
    """``hosts`` have pages, which may be struck. ``authority`` returns the Global of the host that
    has this place among them, and ``cluster`` is what they belong to."""

    def __init__(
        self,
        loop: Loop,
        scenario: Scenario,
        hosts: list[SimHost],
        authority: Callable[[int], Authority],
        cluster: bytes = NO_CLUSTER,
    ) -> None:
        self.owners: dict[int, SimOwner] = {}  # by the place of the host among the hosts
        self._loop = loop
        self._scenario = scenario
        self._hosts = hosts
        self._authority = authority
        self._cluster = cluster

    def __iter__(self) -> Iterator[SimOwner]:
        return iter(self.owners.values())

    def start(self, number: int, life: int = 1) -> None:
        """Start the owner of a host, again and again when it has ended."""
        name, host = f"O{number}.{life}", self._hosts[number]
        self._loop.log(name, "starts")
        self._loop.counts["owner restarts"] += life > 1
        started = SimOwner(self._loop, self._scenario, self._authority(number), host, name)
        if self._cluster:
            started.state.belong(self._cluster, started.clock())
        self.owners[number] = started
        self._loop.later(self._scenario.lease, self._restart, number, life)

    def _restart(self, number: int, life: int) -> None:
        ended = self.owners[number]
        if ended.alive and not (ended.state.closing and not ended.state.leaving):
            self._loop.later(self._scenario.lease, self._restart, number, life)
            return
        if ended.alive:
            ended.crash()  # it has said goodbye
        pause = 0.0 if self._loop.quiet else 2 * self._loop.dice.random() * self._scenario.lease
        self._loop.later(pause, self.start, number, life + 1)

    def strike(self) -> None:
        """Something happens to an owner, or to a page."""
        dice = self._loop.dice
        owners = [each for each in self if each.alive and not each.state.closing]
        if not owners or dice.random() < 0.2:
            host = dice.choice(self._hosts)
            if host.page is not None:
                self._loop.log("!", f"the names of {host.page!r} are removed")
                host.page = None
            return
        struck = dice.choice(owners)
        kind = dice.choice(("crash", "pause", "control", "sub", "stop"))
        if kind == "crash":
            struck.crash()
        elif kind == "pause":
            struck.pause(dice.random() * self._scenario.pause)
        elif kind == "control":
            struck.control.cut(struck.reconnected)
        elif kind == "sub":
            struck.sub.cut(struck.reconnected)
        elif not struck.frozen:
            struck.goodbye()

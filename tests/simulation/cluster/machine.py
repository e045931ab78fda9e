"""A simulated host of a cluster: one clock, and what its processes share for each member."""

from __future__ import annotations

from tests.simulation.host import SimHost
from tests.simulation.loop import Loop


class Machine:
    """A host. For each member there is a page, and a place for large values, by its address."""

    def __init__(self, loop: Loop, rate: float, offset: float) -> None:
        self.rate = rate
        self.offset = offset
        self._loop = loop
        self._hosts: dict[str, SimHost] = {}

    def clock(self) -> float:
        return self.offset + self.rate * self._loop.now

    def of(self, address: str) -> SimHost:
        """Return what the processes of this host share for one member."""
        if address not in self._hosts:
            self._hosts[address] = SimHost(self._loop, self.rate, self.offset)
        return self._hosts[address]

    def hosts(self) -> list[SimHost]:
        return list(self._hosts.values())

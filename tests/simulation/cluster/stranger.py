"""A Global that listens at the address of a member which has ended, and is none of its cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dstore.core.authority.effects import GlobalEffect, Publish, Send
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.protocol.partitions import PARTITIONS
from dstore.server.engines.memory import MemoryEngine
from tests.simulation.host import SimBulk, SimHost
from tests.simulation.loop import Loop
from tests.simulation.trace import short

OTHER = b"another cluster."
"""The id of a cluster of which strangers are members, if they are of any."""
FOREVER = 1e12
VERSION = 1 << 40
"""The version of their map: higher than any of the simulated cluster."""


class Stranger:
    """It takes whatever it is sent, and keeps it in memory.

    ``clock`` is that of its machine; ``perform`` carries out what is to be sent. ``member``: it is
    one of another cluster, and owns all partitions of that; else it is a Global by itself.
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        clock: Callable[[], float],
        perform: Callable[[Iterable[GlobalEffect]], None],
        *,
        lease: float,
        member: bool,
    ) -> None:
        self.over = False
        self._loop = loop
        self._name = f"S{loop.number()}"
        self._clock = clock
        self._perform = perform
        partitions = Partitions(FOREVER, OTHER) if member else None
        if partitions is not None:
            partitions.gain(range(PARTITIONS), 0.0)
            partitions.map = (VERSION, [address], bytes(PARTITIONS))
        self._state = GlobalState(
            MemoryEngine(),
            SimBulk(SimHost(loop)),
            epoch=loop.number(),
            publisher="tcp://*:2",
            lease=lease,
            log_length=30,
            value_limit=1 << 20,
            large_from=1 << 10,
            random63=loop.random63,
            wall=lambda: loop.now,
            partitions=partitions,
        )
        loop.log(self._name, f"begins at {address}")
        loop.counts["strangers of another cluster" if member else "strangers by themselves"] += 1
        self._tick()

    def end(self) -> None:
        """End without a message."""
        self.over = True

    def receive(self, route: bytes, message: Any) -> None:
        self._loop.log(self._name, f"<- {route.decode()} {short(message)}")
        self._act(self._state.receive(route, message, self._clock()))

    def _act(self, effects: Iterable[GlobalEffect]) -> None:
        effects = list(effects)
        assert all(isinstance(each, (Send, Publish)) for each in effects)
        self._perform(effects)

    def _tick(self) -> None:
        """Do what is due, ten times a second."""
        if not self.over:
            self._act(self._state.tick(self._clock()))
            self._loop.later(0.1, self._tick)

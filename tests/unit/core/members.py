"""Members of a cluster for unit tests: real state machines over tables in memory, and one clock."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.cluster.messages import (
    Ask,
    Beat,
    Effect,
    Gained,
    HandOver,
    Leave,
    Lost,
    MapChanged,
    View,
)
from dstore.core.cluster.ownership import Ownership
from tests.simulation.cluster.tables import Plain, carry_out

LEASE, CACHE_LEASE = 6.0, 2.0
PARTITIONS = 16


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


class Machine:
    """One member with its host. The database answers when :meth:`answer` is called."""

    def __init__(
        self, cluster: Cluster, name: bytes, lease: float = LEASE, cache_lease: float = CACHE_LEASE
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.state = Ownership(
            name * 16, f"tcp://{name.decode()}:1", lease=lease, cache_lease=cache_lease
        )
        self.asked: Ask | None = None
        self.asks: list[Ask] = []
        self.events: list[object] = []
        self.served: dict[int, float] = {}  # partitions, with the ends of their quiet times
        self.fences: dict[int, int] = {}
        self.map: MapChanged | None = None
        self.handing: HandOver | None = None
        self.paused = False

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, (Beat, Leave)):
                assert self.asked is None, "one ask at a time"
                self.asked = effect
                self.asks.append(effect)
                continue
            self.events.append(effect)
            if isinstance(effect, Gained):
                for number, fence, quiet_until in effect.gains:
                    self.served[number] = quiet_until
                    self.fences[number] = fence
            elif isinstance(effect, Lost):
                self.served, self.fences, self.handing = {}, {}, None
            elif isinstance(effect, HandOver):
                self.handing = effect
            elif isinstance(effect, MapChanged):
                self.map = effect

    def tick(self) -> None:
        self.do(self.state.tick(self.cluster.now))

    def answer(self, change: Callable[[View], View | None] = lambda view: view) -> View:
        """The database carries out what was asked. ``change`` makes the answer another one."""
        ask, self.asked = self.asked, None
        assert ask is not None
        view = carry_out(ask, self.cluster.tables)
        self.do(self.state.answered(ask, change(view), self.cluster.now))
        return view

    def fail(self) -> None:
        """The ask is not carried out, and not answered."""
        ask, self.asked = self.asked, None
        assert ask is not None
        self.do(self.state.answered(ask, None, self.cluster.now))

    def doubt(self) -> None:
        """The ask is carried out, and not answered."""
        self.answer(lambda view: None)

    def settle(self) -> None:
        """Carry out and answer all that is due now."""
        self.tick()
        while self.asked is not None:
            self.answer()

    def hand_over(self) -> None:
        """The host has ended the epoch, and begins the next one."""
        assert self.handing is not None
        self.handing = None
        effects = self.state.handed_over(self.cluster.now)
        owned = self.state.owned
        self.served = {number: gain.quiet_until for number, gain in owned.items()}
        self.do(effects)

    @property
    def serving(self) -> set[int]:
        """The partitions that it answers for now."""
        return set(self.served) if self.cluster.now < self.state.ends else set()

    def happened(self, kind: type) -> int:
        return sum(isinstance(each, kind) for each in self.events)


class Cluster:
    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.now = 1000.0
        self.tables = Plain(partitions)
        self.machines: list[Machine] = []

    def add(self, name: bytes, **leases: float) -> Machine:
        machine = Machine(self, name, **leases)
        self.machines.append(machine)
        return machine

    def run(self, seconds: float) -> None:
        """Let time pass. All that is not paused does what is due when it is due."""
        until = self.now + seconds
        while True:
            for machine in self.machines:
                if not machine.paused:
                    machine.settle()
                    if machine.handing is not None:
                        machine.hand_over()
                        machine.settle()
            self.check()
            due = [each.state.wake_at for each in self.machines if not each.paused]
            at = min(due, default=until)
            if at > until:
                break
            assert at >= self.now
            self.now = max(self.now, at)
        self.now = until

    def check(self) -> None:
        """No two members answer for one partition."""
        served = [number for machine in self.machines for number in machine.serving]
        assert len(served) == len(set(served)), "two owners"

    @property
    def serving(self) -> set[int]:
        return {number for machine in self.machines for number in machine.serving}

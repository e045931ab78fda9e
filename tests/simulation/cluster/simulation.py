"""One run of a cluster: members over a database, clients, and the faults that strike them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice

from dstore.client.cluster import routing
from dstore.core.authority import sessions
from dstore.protocol.messages import Key
from dstore.protocol.partitions import partition_of
from tests.history.operations import Operation
from tests.simulation.cluster.caller import Caller
from tests.simulation.cluster.invariants import broken, left_over
from tests.simulation.cluster.member import SimMember
from tests.simulation.cluster.node import SimNode
from tests.simulation.cluster.scans import Scan
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Database
from tests.simulation.identities import Identities
from tests.simulation.loop import Loop

BUSY_MAX = 120.0
"""Seconds of true time after which a run is no longer disturbed, ended operations or not."""
STARTS_MAX = 10
"""Lives of members of one run."""
SETTLE = 6.0
"""Ownership leases after the faults within which everything has to be well again."""


@contextmanager
def quickened(scenario: ClusterScenario) -> Iterator[None]:
    """Shorten spans of the client and the core that are long, compared with the leases here."""
    spans = {
        (routing, "ATTEMPT_FIRST"): scenario.attempt,
        (routing, "ASK_TIMEOUT"): scenario.attempt / 2,
        (routing, "CONTACT_TIMEOUT"): scenario.attempt,
        (routing, "PAUSE_MAX"): scenario.attempt / 4,
        (sessions, "WRITER_IDLE"): 2.0,
        (sessions, "WRITER_SILENCE"): 6.0,
    }
    former = {(module, name): getattr(module, name) for module, name in spans}
    try:
        for (module, name), span in spans.items():
            setattr(module, name, span)
        yield
    finally:
        for (module, name), span in former.items():
            setattr(module, name, span)


def keys_of(scenario: ClusterScenario) -> list[Key]:
    """Return keys of the partitions that a scenario has, spread over them."""
    found: list[Key] = []
    for number in range(scenario.keys):
        wanted = number % scenario.partitions
        names = (f"k{number}.{each}" for each in count())
        found += islice((name for name in names if partition_of(name) == wanted), 1)
    return found


class ClusterSimulation:
    """Plays a scenario to its end, or until an invariant is broken."""

    def __init__(self, scenario: ClusterScenario) -> None:
        self.scenario = scenario
        self.loop = Loop(scenario.seed)
        self.violations = self.loop.violations
        self.members: dict[str, SimMember] = {}
        self.nodes: list[SimNode] = []
        self.callers: list[Caller] = []
        self.keys = keys_of(scenario)
        self.busy_lines: int | None = None  # lines of the trace before the faults ended

    def run(self) -> None:
        with quickened(self.scenario):
            self._begin()
            self.loop.after_step = self._check
            self.loop.run(BUSY_MAX, self._is_over)
            if not self.violations:
                self._settle()

    def _begin(self) -> None:
        scenario, loop = self.scenario, self.loop
        self.database = Database(loop, scenario)
        identities = Identities(loop, scenario)
        for number in range(scenario.members_max):
            member = SimMember(loop, scenario, self.database, identities, number)
            self.members[member.address] = member
        for number, member in enumerate(self.members.values()):
            if number < scenario.members:
                loop.later(loop.dice.random() * scenario.ownership, member.start)
        for number in range(scenario.locals):
            node = SimNode(loop, scenario, self.members, identities, number)
            self.nodes.append(node)
            self.callers += [Caller(node, each, self.keys) for each in range(scenario.threads)]
        for rate, strike in (
            (scenario.member_pauses, self._pause_member),
            (scenario.member_crashes, self._crash_member),
            (scenario.isolations, self._isolate),
            (scenario.joins, self._join),
            (scenario.drains, self._drain),
            (scenario.database_faults, self._strike_database),
            (scenario.cuts, self._cut),
            (scenario.pauses, self._pause_node),
        ):
            self._plan(rate, strike)

    @property
    def threads(self) -> list[Caller]:
        return self.callers

    @property
    def history(self) -> list[Operation]:
        recorded = [each for caller in self.callers for each in caller.done]
        return sorted(recorded, key=lambda each: each.start)

    @property
    def scans(self) -> list[Scan]:
        return [each for caller in self.callers for each in caller.scans]

    # ---- the course of a run --------------------------------------------------------------

    def _is_over(self) -> bool:
        return bool(self.violations) or all(caller.idle for caller in self.callers)

    def _settle(self) -> None:
        """End the faults. After some leases all partitions are served, and each key is read."""
        loop = self.loop
        loop.quiet = True
        self.busy_lines = len(loop.trace)
        loop.log("!", "no more faults")
        for member in self.members.values():
            if not any(each.alive and not each.ownership.draining for each in self._others(member)):
                member.start()
        span = SETTLE * self.scenario.ownership + 2 * max(self.scenario.leases)
        loop.run(loop.now + span, lambda: False)
        if not self.violations:
            for caller, key in zip(self.callers * len(self.keys), self.keys * len(self.callers)):
                if caller.idle:
                    caller.probe(key)
            loop.run(loop.now + 2 * self.scenario.timeout, self._is_over)
        if not self.violations:
            self.violations += left_over(self)

    def _others(self, member: SimMember) -> list[SimMember]:
        return [each for each in self.members.values() if each is not member]

    def _check(self) -> None:
        for problem in broken(self):
            self.loop.violation(problem)

    # ---- faults ---------------------------------------------------------------------------

    def _plan(self, rate: float, strike: Callable[[], None]) -> None:
        if rate and not self.loop.quiet:
            self.loop.later(self.loop.dice.expovariate(rate), self._strike, rate, strike)

    def _strike(self, rate: float, strike: Callable[[], None]) -> None:
        if not self.loop.quiet:
            strike()
            self._plan(rate, strike)

    def _alive(self) -> list[SimMember]:
        return [each for each in self.members.values() if each.alive]

    def _starts(self) -> int:
        return sum(each.lives for each in self.members.values())

    def _pause_member(self) -> None:
        alive = self._alive()
        if alive:
            seconds = self.loop.dice.random() * self.scenario.member_pause
            self.loop.dice.choice(alive).pause(seconds)

    def _strike_database(self) -> None:
        self.database.strike()
        if self.database.former is not None:  # members may read there: let partitions move
            self.loop.later(self.loop.dice.random() * 2 * self.scenario.ownership, self._move)

    def _move(self) -> None:
        if not self.loop.quiet:
            self.loop.dice.choice((self._drain, self._crash_member, self._isolate))()

    def _isolate(self) -> None:
        alive = self._alive()
        if alive:
            dice, span = self.loop.dice, self.scenario.ownership
            member = dice.choice(alive)
            self.loop.log(member.name, "loses the database")
            member.slow_until = self.loop.now + dice.random() * span
            self.loop.at(member.slow_until, self._cut_off, member, 2 * dice.random() * span)

    def _cut_off(self, member: SimMember, seconds: float) -> None:
        if not self.loop.quiet:
            member.cut_until = self.loop.now + seconds

    def _crash_member(self) -> None:
        alive = self._alive()
        if alive and self._starts() < STARTS_MAX:
            member = self.loop.dice.choice(alive)
            member.crash()
            self._replace(member)
            pause = 2 * self.loop.dice.random() * self.scenario.ownership
            self.loop.later(pause, member.start)

    def _replace(self, member: SimMember) -> None:
        """Perhaps let another Global have the address of a member that has ended.

        Not before all clients know the cluster: one that does not may take it for its Global.
        """
        odds = self.scenario.strangers
        known = all(each.routes.known for each in self.nodes)
        if odds and known and self.loop.dice.random() < odds:
            member.begin_stranger()

    def _join(self) -> None:
        away = [each for each in self.members.values() if not each.alive]
        if away and self._starts() < STARTS_MAX:
            self.loop.dice.choice(away).start()

    def _drain(self) -> None:
        alive = [each for each in self._alive() if not each.ownership.draining]
        if len(alive) > 1 and self._starts() < STARTS_MAX:
            member = self.loop.dice.choice(alive)
            member.drain()
            pause = (2 + 3 * self.loop.dice.random()) * self.scenario.ownership
            self.loop.later(pause, member.start)

    def _cut(self) -> None:
        locals_ = [local for node in self.nodes for local in node.locals.values()]
        if not locals_:
            return
        local = self.loop.dice.choice(locals_)
        kind = self.loop.dice.choice(("control", "sub", "requests"))
        if kind == "control":
            local.control.cut(local.reconnected)
        elif kind == "sub":
            local.sub.cut(local.reconnected)
        else:
            for attempt in local.attempts:
                attempt.cut()

    def _pause_node(self) -> None:
        self.loop.dice.choice(self.nodes).pause(self.loop.dice.random() * self.scenario.pause)

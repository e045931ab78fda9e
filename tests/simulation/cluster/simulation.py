"""One run of a cluster: members over a database, clients, and the faults that strike them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

from dstore.client.cluster import routing
from dstore.core.authority.stages import STAGE_IDLE
from dstore.protocol.messages import Key
from dstore.protocol.partitions import partition_of
from dstore.server.postgres import large
from tests.history.operations import Operation
from tests.simulation.cluster.caller import Caller
from tests.simulation.cluster.invariants import broken, left_over
from tests.simulation.cluster.machine import Machine
from tests.simulation.cluster.member import CLUSTER, SimMember
from tests.simulation.cluster.node import SimNode
from tests.simulation.cluster.scans import Scan
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Database
from tests.simulation.course import Course, Spans
from tests.simulation.hosting import Hosting
from tests.simulation.identities import Identities

PIECE_BYTES = 5
"""Bytes of a piece, so that a large value has two, each of which is written by itself."""
STARTS_MAX = 10
"""Lives of members of one run."""
SETTLE = 6.0
"""Ownership leases after the faults within which everything has to be well again."""


def keys_of(scenario: ClusterScenario) -> list[Key]:
    """Return keys of the partitions that a scenario has, spread over them."""
    found: list[Key] = []
    for number in range(scenario.keys):
        wanted = number % scenario.partitions
        names = (f"k{number}.{each}" for each in count())
        found += islice((name for name in names if partition_of(name) == wanted), 1)
    return found


class ClusterSimulation(Course[ClusterScenario]):
    """A run of a cluster."""

    busy_max = 120.0

    def __init__(self, scenario: ClusterScenario) -> None:
        super().__init__(scenario)
        self.members: dict[str, SimMember] = {}
        self.nodes: list[SimNode] = []
        self.callers: list[Caller] = []
        self.keys = keys_of(scenario)

    def spans(self) -> Spans:
        attempt = self.scenario.attempt
        return {
            **super().spans(),
            (routing, "ATTEMPT_FIRST"): attempt,
            (routing, "ASK_TIMEOUT"): attempt / 2,
            (routing, "CONTACT_TIMEOUT"): attempt,
            (routing, "PAUSE_MAX"): attempt / 4,
            (large, "PIECE_BYTES"): PIECE_BYTES,
            (large, "PIECES_AT_ONCE"): 1,
        }

    def begin(self) -> None:
        scenario, loop = self.scenario, self.loop
        self.database = Database(loop, scenario)
        identities = Identities(loop, scenario)
        for number in range(scenario.members_max):
            member = SimMember(loop, scenario, self.database, identities, number)
            self.members[member.address] = member
        for number, member in enumerate(self.members.values()):
            if number < scenario.members:
                loop.later(loop.dice.random() * scenario.ownership, member.start)
        self.machines = self._machines()
        self._hosts = [each.of(address) for each in self.machines for address in self.members]
        owned = {member.host: member for member in self.members.values()}
        by_place = dict(enumerate(list(self.members.values()) * len(self.machines)))
        self.owners = Hosting(loop, scenario, self._hosts, by_place.__getitem__, CLUSTER)
        for place, host in enumerate(self._hosts):
            if scenario.owners and host not in owned:
                loop.later(loop.dice.random() * scenario.lease, self.owners.start, place)
        for number in range(scenario.locals):
            machine = self.machines[number % len(self.machines)]
            node = SimNode(loop, scenario, self.members, identities, machine, number)
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
            (scenario.owner_faults, self.owners.strike),
            (scenario.evictions, self._evict),
        ):
            self.plan(rate, strike)

    def _machines(self) -> list[Machine]:
        """Return the hosts of clients. If they are shared, some have a member, too."""
        dice, scenario = self.loop.dice, self.scenario
        machines = []
        for member, _ in zip(self.members.values(), range(scenario.hosts)):
            rate = 1 + dice.uniform(-scenario.drift, scenario.drift)
            other = Machine(self.loop, rate, dice.uniform(0, 1000))
            shared = scenario.sharing and dice.random() < 0.5
            machines.append(member.machine if shared else other)
        return machines

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

    def idle(self) -> bool:
        return all(caller.idle for caller in self.callers)

    def settle(self) -> None:
        """End the faults. After some leases all partitions are served, and each key is read.

        No other operation begins: where a Node may use no Global but by a page that nobody owns any
        more, each would last for its whole timeout.
        """
        loop = self.loop
        loop.log("!", "no more faults")
        for caller in self.callers:
            caller.left = 0
        for member in self.members.values():
            if not any(each.alive and not each.ownership.draining for each in self._others(member)):
                member.start()
        span = SETTLE * self.scenario.ownership + 2 * max(self.scenario.leases)
        span += STAGE_IDLE if self.scenario.large else 0.0
        loop.run(loop.now + span, lambda: False)
        if not self.violations:
            for caller, key in zip(self.callers * len(self.keys), self.keys * len(self.callers)):
                if caller.idle:
                    caller.probe(key)
            until = loop.now + 2 * self.scenario.timeout
            loop.run(until, lambda: bool(self.violations) or self.idle())

    def _others(self, member: SimMember) -> list[SimMember]:
        return [each for each in self.members.values() if each is not member]

    def broken(self) -> Iterator[str]:
        return broken(self)

    def left_over(self) -> Iterator[str]:
        return left_over(self)

    # ---- faults ---------------------------------------------------------------------------

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
        if locals_:
            self.loop.dice.choice(locals_).cut()

    def _evict(self) -> None:
        """Drop a file of a large value, to make room."""
        hosts = [host for machine in self.machines for host in machine.hosts() if host.copies]
        if hosts:
            host = self.loop.dice.choice(hosts)
            host.copies.pop(self.loop.dice.choice(list(host.copies)))

    def _pause_node(self) -> None:
        self.loop.dice.choice(self.nodes).pause(self.loop.dice.random() * self.scenario.pause)

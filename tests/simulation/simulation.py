"""One run: a Global, its Locals, and the faults that strike them."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core.authority.identity import Identity
from dstore.core.authority.stages import STAGE_IDLE
from dstore.protocol.messages import Ack, Goodbye, Sync
from tests.history.operations import Operation
from tests.simulation.actors import SimLocal
from tests.simulation.authority import SimGlobal
from tests.simulation.client import Client, history_of
from tests.simulation.course import WRITER_IDLE, WRITER_SILENCE, Course
from tests.simulation.host import SimHost
from tests.simulation.hosting import Hosting
from tests.simulation.invariants import broken, left_over
from tests.simulation.scenario import Scenario

GUESSES_MAX = 10
"""The session ids that a forger guesses are below this."""
LOCALS_MAX = 12
"""Locals of one run, including those that have ended."""
ALIVE_MAX = 6
"""Locals that are alive at the same time."""
PROBE = 3.0
"""Seconds that the reads at the end of a run take at most."""


class Simulation(Course[Scenario]):
    """A run of one Global."""

    busy_max = 180.0

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.locals: list[SimLocal] = []
        self._started = 0
        self.clients: list[Client] = []

    def begin(self) -> None:
        scenario, dice = self.scenario, self.loop.dice
        self.authority = SimGlobal(self.loop, scenario)
        others = [SimHost(self.loop, *self._clock()) for _ in range(2)]
        hosts = [*others, self.authority.host]
        if scenario.global_page:
            hosts.reverse()
        self.hosts = hosts[: scenario.hosts]
        self.owners = Hosting(self.loop, scenario, self.hosts, lambda number: self.authority)
        for number, host in enumerate(self.hosts):
            if scenario.owners and host is not self.authority.host:
                self.loop.later(dice.random() * scenario.lease, self.owners.start, number)
        for _ in range(scenario.locals):
            self._start_local()
        for rate, strike in (
            (scenario.cuts, self._cut),
            (scenario.pauses, self._pause),
            (scenario.crashes, self._crash),
            (scenario.goodbyes, self._goodbye),
            (scenario.global_pauses, self._pause_global),
            (scenario.global_crashes, self._crash_global),
            (scenario.evictions, self._evict),
            (scenario.strangers, self._forge),
            (scenario.owner_faults, self.owners.strike),
            (scenario.forks, self._fork),
            (scenario.revocations, self._revoke),
        ):
            self.plan(rate * scenario.locals, strike)

    def _clock(self) -> tuple[float, float]:
        """The rate and the offset of the clock of a host."""
        drift, dice = self.scenario.drift, self.loop.dice
        return 1 + dice.uniform(-drift, drift), dice.uniform(0, 1000)

    @property
    def history(self) -> list[Operation]:
        return history_of(self.clients)

    # ---- the course of a run --------------------------------------------------------------

    def _start_local(self, parent: SimLocal | None = None) -> None:
        number, self._started = self._started, self._started + 1  # it may stand still in its start
        host = self.hosts[number % len(self.hosts)] if parent is None else parent.host
        name = f"L{number}"
        local = SimLocal(self.loop, self.scenario, self.authority, host, name, parent)
        self.locals.append(local)
        for number in range(self.scenario.threads):
            self.clients.append(Client(local, number))

    def idle(self) -> bool:
        return all(client.idle for client in self.clients if client.local.alive)

    def settle(self) -> None:
        linger = max(self.authority.state._sessions.linger, WRITER_SILENCE)
        uploads = STAGE_IDLE if self.scenario.large else 0.0
        span = linger + 10 * self.scenario.lease + 5 + WRITER_IDLE + uploads
        self.loop.run(self.loop.now + span, lambda: False)
        if not self.violations:
            self._probe()

    def _probe(self) -> None:
        """Have each Local that shares a membership read once more, so that it uses the page."""
        for client in self.clients:
            if client.local.alive and client.local.state.looking:
                client.probe()
        self.loop.run(self.loop.now + PROBE + 2 * self.scenario.timeout, lambda: False)

    def broken(self) -> Iterator[str]:
        return broken(self.authority, self.locals, list(self.owners))

    def left_over(self) -> Iterator[str]:
        return left_over(self.authority, self.locals, self.clients, list(self.owners))

    # ---- faults ---------------------------------------------------------------------------

    def _any_local(self) -> SimLocal | None:
        alive = [local for local in self.locals if local.alive and not local.state.closing]
        return self.loop.dice.choice(alive) if alive else None

    def _cut(self) -> None:
        local = self._any_local()
        if local is not None:
            local.cut()

    def _pause(self) -> None:
        local = self._any_local()
        if local is not None:
            local.pause(self.loop.dice.random() * self.scenario.pause)

    def _crash(self) -> None:
        local = self._any_local()
        if local is not None and self._started < LOCALS_MAX:
            local.crash()
            self._start_local()

    def _goodbye(self) -> None:
        local = self._any_local()
        if local is not None and not local.frozen and self._started < LOCALS_MAX:
            local.goodbye()
            self._start_local()

    def _fork(self) -> None:
        local = self._any_local()
        alive = sum(each.alive and not each.state.closing for each in self.locals)
        room = self._started < LOCALS_MAX and alive < ALIVE_MAX
        if local is not None and local.state.looking and room:
            self.loop.log(local.name, "forks")
            self._start_local(local)

    def _revoke(self) -> None:
        """Revoke an identity. Its Locals answer from their caches while they may, and end later."""
        room = self._started + len(self.locals) < 2 * LOCALS_MAX
        if not room:
            return
        gone = self.authority.identities.revoke()
        self.loop.counts["revocations"] += 1
        self.authority.revoke(gone)
        self.loop.later(2 * self.scenario.lease, self._end_revoked, gone)

    def _end_revoked(self, gone: Identity) -> None:
        """End the processes of an identity, those included that were forked since."""
        for process in (*self.locals, *self.owners):
            if process.identity is gone and process.alive:
                process.crash()
                if isinstance(process, SimLocal):
                    self._start_local()

    def _evict(self) -> None:
        host = self.loop.dice.choice(self.hosts)
        if host.copies:
            host.copies.pop(self.loop.dice.choice(list(host.copies)))

    def _forge(self) -> None:
        """Send a message for a Local, with all right but the session id, which is guessed."""
        epoch, guess = self.authority.epoch, self.loop.dice.randrange(1, GUESSES_MAX)
        seq = self.authority.state._log.seq
        forged = (
            Ack(epoch, guess, seq),
            Sync(epoch, guess, 1, seq, GUESSES_MAX),
            Goodbye(epoch, guess),
        )
        self.authority.receive(b"stranger/0", self.loop.dice.choice(forged))

    def _pause_global(self) -> None:
        self.authority.pause(self.loop.dice.random() * self.scenario.pause)

    def _crash_global(self) -> None:
        self.authority.crash()

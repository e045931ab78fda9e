"""One run: a Global, its Locals, and the faults that strike them."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.authority.stages import STAGE_IDLE
from dstore.protocol.messages import Ack, Goodbye, Sync
from tests.history.operations import Operation
from tests.simulation.actors import SimGlobal, SimLocal
from tests.simulation.client import Client, history_of
from tests.simulation.host import SimHost
from tests.simulation.invariants import broken, left_over
from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario

BUSY_MAX = 180.0
"""Seconds of true time after which a run is no longer disturbed, ended operations or not."""
GUESSES_MAX = 10
"""The session ids that a forger guesses are below this."""
LOCALS_MAX = 12
"""Locals of one run, including those that have ended."""


class Simulation:
    """Plays a scenario to its end, or until an invariant is broken."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.loop = Loop(scenario.seed)
        self.authority = SimGlobal(self.loop, scenario)
        self.hosts = [SimHost(), SimHost(), self.authority.host][: scenario.hosts]
        self.locals: list[SimLocal] = []
        self.clients: list[Client] = []
        self.violations = self.loop.violations
        self.busy_lines: int | None = None  # lines of the trace before the faults ended
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
        ):
            self._plan(rate * scenario.locals, strike)

    def run(self) -> None:
        self.loop.after_step = self._check
        self.loop.run(BUSY_MAX, self._busy_is_over)
        if not self.violations:
            self._settle()

    @property
    def history(self) -> list[Operation]:
        return history_of(self.clients)

    # ---- the course of a run --------------------------------------------------------------

    def _start_local(self) -> None:
        host = self.hosts[len(self.locals) % len(self.hosts)]
        local = SimLocal(self.loop, self.scenario, self.authority, host, f"L{len(self.locals)}")
        self.locals.append(local)
        for number in range(self.scenario.threads):
            self.clients.append(Client(local, number))

    def _busy_is_over(self) -> bool:
        return bool(self.violations) or all(
            client.idle for client in self.clients if client.local.alive
        )

    def _settle(self) -> None:
        """End the faults; after some leases nothing may be left over."""
        self._quiet = True
        self.busy_lines = len(self.loop.trace)
        linger = self.authority.state._sessions.linger
        uploads = STAGE_IDLE if self.scenario.large else 0.0
        span = linger + 10 * self.scenario.lease + 5 + uploads
        self.loop.run(self.loop.now + span, lambda: False)
        if not self.violations:
            self.violations += left_over(self.authority, self.locals, self.clients)

    def _check(self) -> None:
        for problem in broken(self.authority, self.locals):
            self.loop.violation(problem)

    # ---- faults ---------------------------------------------------------------------------

    _quiet = False

    def _plan(self, rate: float, strike: Callable[[], None]) -> None:
        if rate and not self._quiet:
            self.loop.later(self.loop.dice.expovariate(rate), self._strike, rate, strike)

    def _strike(self, rate: float, strike: Callable[[], None]) -> None:
        if not self._quiet:
            strike()
            self._plan(rate, strike)

    def _any_local(self) -> SimLocal | None:
        alive = [local for local in self.locals if local.alive and not local.state.closing]
        return self.loop.dice.choice(alive) if alive else None

    def _cut(self) -> None:
        local = self._any_local()
        if local is not None:
            kind = self.loop.dice.choice(("control", "sub", "requests"))
            if kind == "control":
                local.control.cut(local.reconnected)
            elif kind == "sub":
                local.sub.cut(local.reconnected)
            else:
                for client in local.clients:
                    client.channel.cut(lambda: None)

    def _pause(self) -> None:
        local = self._any_local()
        if local is not None:
            local.pause(self.loop.dice.random() * self.scenario.pause)

    def _crash(self) -> None:
        local = self._any_local()
        if local is not None and len(self.locals) < LOCALS_MAX:
            local.crash()
            self._start_local()

    def _goodbye(self) -> None:
        local = self._any_local()
        if local is not None and len(self.locals) < LOCALS_MAX:
            local.goodbye()
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

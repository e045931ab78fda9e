"""The simulated PostgreSQL: a primary, its synchronous standby, and what goes wrong with them.

What a transaction changes is *flushed* at its commit, and *replicated* some time later, in the
order of the commits. Until then nobody else sees it, its rows stay locked, and it is not
acknowledged. There are exceptions, as with the real one, and they are what makes this hard:

- The wait for the standby is cancelled, or the primary crashes and starts again: then others see
  what is not replicated, and a failover takes it back.
- The connection is lost, or the answer takes too long: the transaction may have been carried out,
  or may be carried out later.
- After a failover the former primary goes on for a while: it can be read, and never acknowledges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.tables import Plain, RowName
from tests.simulation.loop import Loop, Pausable

Body = Callable[["Transaction"], Any]
"""What a transaction does. It is called again from its beginning if it has to wait for a row."""
Done = Callable[[Any], None]
"""Called with the result of a transaction, or None if that is not known."""


class Client(Pausable):
    """A process that uses the database, over a network of which its part may be bad."""

    slow_until = 0.0  # all takes long, and arrives
    cut_until = 0.0  # nothing arrives


class Blocked(Exception):
    """A row is locked by another transaction, and has to be waited for."""


class Transaction:
    """One transaction on one server: the rows as it sees them, and those that it has locked."""

    def __init__(
        self, server: Server, body: Body, done: Done, owner: Client, given_up: Callable[[], bool]
    ) -> None:
        self.server = server
        self.body = body
        self.owner = owner
        self.given_up = given_up  # whether nobody waits for the answer any more
        self.writes: dict[RowName, Any] = {}
        self.result: Any = None
        self.visible = False  # though it may not be replicated
        self.over = False
        self._done: Done | None = done

    def get(self, name: RowName) -> Any:
        return self.writes[name] if name in self.writes else self.server.visible.get(name)

    def put(self, name: RowName, row: Any) -> None:
        self.writes[name] = row

    def names(self, table: str) -> Iterable[Any]:
        names = {name for name in (*self.server.visible, *self.writes) if name[0] == table}
        return sorted(name[1] for name in names if self.get(name) is not None)

    def lock(self, name: RowName) -> None:
        if not self.lock_at_once(name):
            raise Blocked

    def lock_at_once(self, name: RowName) -> bool:
        return self._locked(name, exclusive=True)

    def share(self, name: RowName) -> None:
        """Lock a row, so that nobody changes it (FOR SHARE)."""
        if not self._locked(name, exclusive=False):
            raise Blocked

    def _locked(self, name: RowName, exclusive: bool) -> bool:
        holders = self.server.locks.setdefault(name, {})
        others = [mode for each, mode in holders.items() if each is not self]
        if any(others) or (exclusive and others):
            return False
        holders[self] = exclusive or holders.get(self, False)
        return True

    def answer(self, result: Any) -> None:
        """Tell who waits for it; once."""
        done, self._done = self._done, None
        if done is not None:
            done(result)


class Server:
    """One PostgreSQL server that can be written to. ``rows`` is what it begins with."""

    def __init__(self, loop: Loop, scenario: ClusterScenario, rows: dict[RowName, Any]) -> None:
        self.durable = dict(rows)  # what the standby has, too
        self.visible = dict(rows)
        self.locks: dict[RowName, dict[Transaction, bool]] = {}
        self.flushed: deque[Transaction] = deque()  # and not replicated
        self.has_standby = True
        self.alive = True
        self.up_at = 0.0
        self.lags_until = 0.0
        self._loop = loop
        self._scenario = scenario
        self._open: list[Transaction] = []  # that have run, and not committed
        self._blocked: list[Transaction] = []

    @property
    def up(self) -> bool:
        return self.alive and self._loop.now >= self.up_at

    def begin(self, body: Body, done: Done, owner: Client, given_up: Callable[[], bool]) -> None:
        """Run a transaction, now or when the rows that it needs are free."""
        if self.up:
            self._run(Transaction(self, body, done, owner, given_up))

    def _run(self, transaction: Transaction) -> None:
        if transaction.over or not self.up:
            return
        transaction.writes = {}
        try:
            transaction.result = transaction.body(transaction)
        except Blocked:
            self._release(transaction)
            self._blocked.append(transaction)
            self._loop.counts["transactions that waited for a lock"] += 1
            return
        self._open.append(transaction)
        dice = self._loop.dice
        self._loop.later(dice.random() * self._scenario.commit, self._commit, transaction)
        self._loop.later(self._scenario.idle_timeout, self._abort, transaction)

    def _abort(self, transaction: Transaction) -> None:
        """End a transaction whose client does not go on with it."""
        if transaction in self._open:
            self._loop.counts["transactions that were aborted"] += 1
            self._open.remove(transaction)
            self._end(transaction)
            transaction.answer(None)

    def _commit(self, transaction: Transaction) -> None:
        """The COMMIT comes, unless its client stands still."""
        if transaction not in self._open:
            return
        if transaction.owner.held_up("commit", self._commit, transaction):
            return
        if transaction.given_up() and self._loop.dice.random() < 0.5:
            self._abort(transaction)  # its client did not get to that
            return
        self._open.remove(transaction)
        if not transaction.writes:
            self._end(transaction)
            transaction.answer(transaction.result)
            return
        self.flushed.append(transaction)
        self._loop.later(self._loop.dice.random() * self._scenario.commit, self._replicate)

    def _replicate(self) -> None:
        """The standby has the oldest transaction that it did not have."""
        if not self.flushed or not self.has_standby or not self.alive:
            return
        later = max(self.lags_until, self.up_at)
        if self._loop.now < later:
            self._loop.at(later, self._replicate)
            return
        transaction = self.flushed.popleft()
        _apply(transaction.writes, self.durable)
        self._show(transaction)
        transaction.answer(transaction.result)

    def _show(self, transaction: Transaction) -> None:
        """From now on others see what a transaction has done, and its rows are free."""
        if not transaction.visible:
            transaction.visible = True
            _apply(transaction.writes, self.visible)
            self._end(transaction)

    def _end(self, transaction: Transaction) -> None:
        transaction.over = True
        self._release(transaction)
        blocked, self._blocked = self._blocked, []
        for each in blocked:
            self._loop.later(0.0, self._run, each)

    def _release(self, transaction: Transaction) -> None:
        for name in [each for each, holders in self.locks.items() if transaction in holders]:
            del self.locks[name][transaction]
            if not self.locks[name]:
                del self.locks[name]

    # ---- faults ---------------------------------------------------------------------------

    def cancel(self) -> None:
        """Somebody cancels the waits for the standby: a WARNING, and others see what was done."""
        for transaction in list(self.flushed):
            if not transaction.visible:
                self._loop.counts["commits with a warning"] += 1
                self._show(transaction)
                transaction.answer(None)

    def crash(self, down: float) -> None:
        """Crash and start again. What was flushed is there then, replicated or not."""
        self.up_at = self._loop.now + down
        for transaction in [*self._open, *self._blocked]:
            transaction.over = True
        self._open, self._blocked, self.locks = [], [], {}
        for transaction in self.flushed:
            self._loop.counts["commits that a crash has shown"] += not transaction.visible
            self._show(transaction)


def _apply(writes: dict[RowName, Any], rows: dict[RowName, Any]) -> None:
    for name, row in writes.items():
        if row is None:
            rows.pop(name, None)
        else:
            rows[name] = row


class Database:
    """The servers. A failover makes the standby the primary, and gives it a standby of its own."""

    def __init__(self, loop: Loop, scenario: ClusterScenario) -> None:
        self.loop = loop
        self.scenario = scenario
        self.primary = Server(loop, scenario, Plain(scenario.partitions).rows)
        self.former: Server | None = None  # goes on, without a standby
        self.connections: list[Connection] = []

    def pick(self) -> Server | None:
        """Return the server that a new connection finds; None if there is none."""
        former = self.former
        if former is not None and former.alive and self.loop.dice.random() < 0.4:
            return former
        return self.primary if self.primary.up else None

    # ---- faults ---------------------------------------------------------------------------

    def strike(self) -> None:
        """Something goes wrong."""
        dice, loop = self.loop.dice, self.loop
        kind = dice.choice(("cancel", "lag", "crash", "failover", "loss"))
        loop.log("DB", kind)
        loop.counts[f"database: {kind}"] += 1
        if kind == "cancel":
            self.primary.cancel()
        elif kind == "lag":
            self.primary.lags_until = loop.now + dice.random() * self.scenario.outage
        elif kind == "crash":
            self._cut(self.primary)
            self.primary.crash(dice.random() * self.scenario.outage)
        elif kind == "loss":
            self._lose()
        else:
            self._fail_over()

    def _lose(self) -> None:
        """Show what is not replicated, for a while, then fail over."""
        dice, loop, span = self.loop.dice, self.loop, self.scenario.outage
        primary = self.primary
        primary.lags_until = loop.now + 3 * span
        shown = dice.random() * span
        loop.later(shown, primary.cancel)
        if dice.random() < 0.5:
            loop.later(shown + dice.random() * span, primary.cancel)
        loop.later(shown + dice.random() * 2 * span, self._fail_over_from, primary)

    def _fail_over_from(self, primary: Server) -> None:
        if primary is self.primary:
            self._fail_over()

    def _fail_over(self) -> None:
        dice, loop = self.loop.dice, self.loop
        former = self.primary
        if not former.up or dice.random() < 0.3:  # it had crashed first, and has shown more
            former.crash(0.0)
        self.primary = Server(loop, self.scenario, former.durable)
        self.primary.up_at = loop.now + dice.random() * self.scenario.outage
        loop.counts["commits that a failover has lost"] += len(former.flushed)
        former.has_standby = False
        if self.former is not None:
            self._kill(self.former)
        if dice.random() < 0.5:
            self.former = former
            loop.later(dice.random() * 5 * self.scenario.ownership, self._kill, former)
        else:
            self._kill(former)

    def _kill(self, server: Server) -> None:
        if server.alive:
            server.alive = False
            self._cut(server)
        if self.former is server:
            self.former = None

    def _cut(self, server: Server) -> None:
        for connection in self.connections:
            if connection.server is server:
                connection.cut()


class Connection:
    """A connection of a member to the database. It runs one transaction at a time.

    ``line`` names the thread of the member that has it.
    """

    def __init__(self, database: Database, owner: Client, line: str) -> None:
        self.server: Server | None = None
        self.closed = False
        self._database = database
        self._loop = database.loop
        self._owner = owner
        self._line = line
        self._number = 0
        self._done: Done | None = None
        database.connections.append(self)

    def run(self, body: Body, done: Done) -> None:
        """Run a transaction. ``done`` is called with what ``body`` returns or, if it is not known
        whether that was committed and replicated, with None."""
        assert self._done is None, "one transaction at a time"
        dice, scenario = self._loop.dice, self._database.scenario
        self._done = done
        self._number += 1
        self._loop.later(scenario.patience, self._give_up, self._number)
        if self.server is None:
            self.server = self._database.pick()
        if self.server is None:
            self._loop.later(scenario.patience / 4, self._give_up, self._number)
            return
        delay = dice.random() * 2 * scenario.latency
        if dice.random() < scenario.late and not self._loop.quiet:
            delay += dice.random() * scenario.lateness
        if self._loop.now < self._owner.slow_until:
            delay += dice.random() * scenario.patience
        if self._loop.now < self._owner.cut_until:
            return
        self._loop.later(delay, self._arrive, self.server, self._number, body)

    def _arrive(self, server: Server, number: int, body: Body) -> None:
        """What was sent comes in: later, at times, if its sender cannot see that it does not."""
        owner, dice = self._owner, self._loop.dice
        away = owner.paused or self._loop.now < owner.cut_until or number != self._number
        if away and dice.random() < 0.5 and not self._loop.quiet:
            lateness = dice.random() * self._database.scenario.lateness
            self._loop.later(lateness, self._arrive, server, number, body)
            return

        def given_up() -> bool:
            return number != self._number or self._done is None or self.closed

        self._loop.counts["transactions that came late"] += given_up()

        def done(result: Any) -> None:
            now, scenario = self._loop.now, self._database.scenario
            slow = now < self._owner.slow_until
            span = scenario.patience if slow else 2 * scenario.latency
            if now >= self._owner.cut_until:
                self._loop.later(self._loop.dice.random() * span, self._answered, number, result)

        server.begin(body, done, self._owner, given_up)

    def _answered(self, number: int, result: Any) -> None:
        if number != self._number or self._done is None or self.closed:
            return
        if self._owner.held_up(self._line, self._answered, number, result):
            return
        done, self._done = self._done, None
        done(result)

    def _give_up(self, number: int) -> None:
        if number == self._number and self._done is not None:
            self.cut()

    def cut(self) -> None:
        """Lose the connection. What was sent may still arrive."""
        self.server = None
        if self._done is not None:
            self._loop.counts["transactions in doubt"] += 1
            self._loop.later(0.0, self._answered, self._number, None)

    def close(self) -> None:
        """Its process has ended, or does not need it any more."""
        self.cut()
        self.closed = True
        self._database.connections.remove(self)

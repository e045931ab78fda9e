"""The simulated process of Global, around the real core."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from dstore.config import LOAD_BYTES_MIN
from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.effects import Commit, GlobalEffect, Load, Publish
from dstore.core.authority.identity import Identity
from dstore.core.authority.state import GlobalState
from dstore.core.engine import Loaded, Outcome
from dstore.protocol.messages import Large
from dstore.server.engines.memory import MemoryEngine
from tests.simulation.engine import SimEngine
from tests.simulation.host import SimBulk, SimHost
from tests.simulation.identities import Identities
from tests.simulation.journal import SimJournal
from tests.simulation.loop import Loop
from tests.simulation.network import Connection
from tests.simulation.owners import CHECK_EVERY, Owner
from tests.simulation.pages import SimPage, WrittenPage, table_of
from tests.simulation.scenario import Scenario
from tests.simulation.trace import short

SCARCE_BYTES = 6_000
"""Bytes for writes and for waits in a scenario with scarce memory: enough for one message each."""
SCARCE_HOLDER_BYTES = 500
"""Bytes for the record of holders in such a scenario: enough for two keys."""
NEVER = float("inf")
WALL = 1.8e9
"""The time of the wall clock at the beginning of a run."""


class SimGlobal(Owner):
    """One Global, and after each crash its next epoch."""

    def __init__(self, loop: Loop, scenario: Scenario) -> None:
        super().__init__(loop, scenario, "G")
        self.identities = Identities(loop, scenario)
        self.host = SimHost(loop)
        self.journal = SimJournal(loop, scenario)
        self.bulk = SimBulk(self.host)
        self.connections: dict[str, Connection] = {}
        self.subscriptions: dict[str, Connection] = {}
        self.deletions: list[tuple[str, bytes]] = []  # of this epoch, by seq
        self.epoch = 0
        self._timer = NEVER
        self._begin()

    @property
    def life(self) -> object:
        return self.epoch

    def _begin(self) -> None:
        self.epoch += 1
        self.deletions = []
        self._timer = NEVER
        self.engine = MemoryEngine(journal=self.scenario.durable)
        self.loading = SimEngine(
            self.engine, self.loop, self.scenario, partial(self._loaded, self.epoch)
        )
        kept = self.journal.begin(partial(self._committed, self.epoch))
        for row in kept:
            assert row.stored is not None
            self.engine.bind(row.key, row.stored)
        quiet, now = self.journal.quiet, self.loop.now
        self.journal.quiet = max(quiet, self.scenario.lease)
        self.state = GlobalState(
            self.loading if self.scenario.away else self.engine,
            self.bulk,
            epoch=self.epoch,
            publisher="tcp://*:2",
            lease=self.scenario.lease,
            log_length=self.scenario.log_length,
            value_limit=1 << 20,
            large_from=1 << 10,
            random63=self.loop.random63,
            wall=lambda: WALL + self.loop.now,
            max_clients=self.scenario.sessions,
            durable=self.scenario.durable,
            quiet_until=now + quiet,
        )
        if self.scenario.scarce:
            self.state._holders.limit = SCARCE_HOLDER_BYTES
            for budget in (self.state._sessions.writes, self.state._sessions.waits):
                budget.total, budget.assured = SCARCE_BYTES, 0
            loads = self.state._sessions.loads
            loads.total, loads.assured = LOAD_BYTES_MIN, 0
        if self.scenario.keyed:
            self.state.conceal()
        deletions, start = self.deletions, self.state._invalidations.start

        def noted(pending: PendingDeletion, now: float) -> None:
            deletions.append((pending.key, pending.token))
            start(pending, now)

        self.state._invalidations.start = noted  # type: ignore[method-assign]
        commit = self.state._writes._commit

        def ended(pending: PendingDeletion, outcome: Outcome, now: float) -> None:
            if outcome:  # the value is still bound, and may be cached again
                deletions[pending.seq - 1] = (pending.key, b"")
            commit(pending, outcome, now)

        self.state._writes._commit = ended  # type: ignore[method-assign]
        self.state.recover([(row.key, row.token, row.deadline) for row in kept], now)
        self._perform([])
        self.own = GlobalsPage(self, self.host)
        if self.scenario.global_page:
            # A restarted one may not reach the shared memory at once.
            late = self.epoch > 1 and self.loop.dice.random() < 0.2
            self.loop.at(self.loop.now + late * CHECK_EVERY, self._first_page, self.epoch)

    # ---- the page of its host -------------------------------------------------------------

    def withdraw(self, page: SimPage) -> None:
        if self.host.page is page:
            self.host.page = None

    def _first_page(self, epoch: int) -> None:
        if epoch == self.epoch and not self.held_up("timer", self._first_page, epoch):
            self.loop.later(CHECK_EVERY, self._check_page, epoch)
            self.own.begin()
            self._perform([])

    def _check_page(self, epoch: int) -> None:
        if epoch == self.epoch and not self.held_up("timer", self._check_page, epoch):
            self.loop.later(CHECK_EVERY, self._check_page, epoch)
            self.own.check()
            self._perform([])

    # ---- life -----------------------------------------------------------------------------

    def crash(self) -> None:
        """Crash and restart: empty, or with what is on the disk."""
        self.loop.log(self.name, f"crashes, durable={self.scenario.durable}")
        if self.scenario.durable:
            values = [row.stored for row in self.journal.rows.values()]
            bound = {each.token for each in values if each and isinstance(each.body, Large)}
            for token in self.bulk.tokens() - bound:
                self.bulk.drop(token)
        else:
            self.bulk = SimBulk(self.host)
        self._begin()

    def bound(self) -> set[bytes]:
        """The tokens of the large values that are bound to keys."""
        values = (self.engine.read(key) for key in self.engine.scan("", "", 1000))
        return {each.token for each in values if each and isinstance(each.body, Large)}

    def _committed(self, epoch: int, number: int, outcomes: list[Outcome]) -> None:
        """Take the report of the disk."""
        if epoch != self.epoch or self.held_up("disk", self._committed, epoch, number, outcomes):
            return
        self.loop.log(self.name, f"batch {number} is durable: {outcomes}")
        self._perform(self.state.committed(number, outcomes, self.loop.now))

    def _loaded(self, epoch: int, number: int, results: list[Loaded]) -> None:
        """Take the report of the engine."""
        if epoch != self.epoch:
            self.loop.counts["loads that a crash has overtaken"] += 1
        elif not self.held_up("loads", self._loaded, epoch, number, results):
            self.loop.log(self.name, f"load {number} has ended: {results}")
            self._perform(self.state.loaded(number, results, self.loop.now))

    def receive(self, route: bytes, message: Any) -> None:
        if self.held_up("requests", self.receive, route, message):
            return
        self.loop.log(self.name, f"<- {route.decode()} {short(message)}")
        identity = self.identities.of_route(route)
        self._perform(self.state.receive(route, message, self.loop.now, identity))

    def revoke(self, identity: Identity) -> None:
        """Global reads that an identity is not allowed any more."""
        if not self.held_up("keys", self.revoke, identity):
            self.loop.log(self.name, f"revokes {identity!r}")
            self._perform(self.state.revoke(identity, self.loop.now))

    def _tick(self, epoch: int) -> None:
        if epoch != self.epoch or self.held_up("timer", self._tick, epoch):
            return
        self._timer = NEVER
        self._perform(self.state.tick(self.loop.now) if self.due else [])

    @property
    def due(self) -> bool:
        return self.loop.now >= self.state.wake_at

    def _perform(self, effects: Iterable[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect)
            elif isinstance(effect, Commit):
                self.journal.commit(effect.number, effect.changes)
            elif isinstance(effect, Load):
                self.loop.log(self.name, f"load {effect.number} of {[k for k, _ in effect.wanted]}")
                self.loading.load(effect.number, effect.wanted)
            else:
                connection = self.connections.get(effect.route.decode().rpartition("/")[0])
                if connection is not None and connection.route == effect.route:
                    connection.send_down(effect.message)
        if self.state.wake_at < self._timer:
            self._timer = self.state.wake_at
            self.loop.at(self._timer, self._tick, self.epoch)

    def _publish(self, effect: Publish) -> None:
        self.loop.log(self.name, f"publishes {short(effect.message)}")
        for connection in self.subscriptions.values():
            if self.loop.dice.random() >= self.scenario.lost_broadcasts:
                connection.send_down(effect.message)


class GlobalsPage:
    """Global's own host: its page in one epoch, and the next one when it is lost.

    The counterpart of ``dstore.server.host``.
    """

    def __init__(self, authority: SimGlobal, host: SimHost) -> None:
        self._authority = authority
        self._host = host
        self._state = authority.state
        self.page: SimPage | None = None

    def begin(self) -> None:
        """Void what a former life has left, and open a page."""
        self._host.take_names()
        self._open()

    def check(self) -> None:
        """Replace a page that was lost or removed."""
        if self.page is not None:
            if not self._state.host_lost and self._host.page is self.page:
                return
            self._authority.loop.log("G", "replaces its page")
            self._give_up()
        self._open()

    def close(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        page, self.page = self.page, None
        self._state.close_host(self._authority.loop.now)
        if page is not None and self._host.page is page:
            self._host.page = None

    def _open(self) -> None:
        authority, scenario = self._authority, self._authority.scenario
        loop = authority.loop
        session = self._state.open_host(loop.now, "host")
        authority.between()
        if authority.fails():
            self._give_up()
            return
        page = self.page = SimPage(
            epoch=authority.epoch,
            session=session,
            lease=scenario.lease,
            value_limit=1 << 20,
            large_from=1 << 10,
            hash_key=loop.random16(),
            buckets=scenario.buckets,
            began=self._state._log.seq,
            table=table_of(scenario.table, loop),
        )
        loop.counts["pages of Global"] += 1
        loop.log("G", f"opens {page!r}")
        self._host.publish(page)
        self._state.share(WrittenPage(page, authority), loop.now)

"""The owners of pages; ``dstore host`` is here, Global in :mod:`tests.simulation.authority`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dstore.core.local.effects import Dropped, LocalEffect, Tell
from dstore.core.local.owner import OwnerState
from dstore.protocol.messages import Welcome
from tests.simulation.host import SimHost
from tests.simulation.loop import Died, Loop
from tests.simulation.pages import SimPage, WrittenPage, table_of
from tests.simulation.process import Authority, Mortal, Process
from tests.simulation.scenario import Scenario
from tests.simulation.trace import short

CHECK_EVERY = 0.5
"""Seconds between two looks at whether the page is there."""
FAILURE_PAUSE = 0.1
"""Seconds of rest after a failure, as those of ``dstore host``."""


class Owner(Mortal):
    """A process that writes pages."""

    def between(self) -> None:
        """Perhaps stand still or die. Raises Died when it is dead."""
        super().between()
        deaths = self.scenario.deaths
        if deaths and not self.loop.quiet and self.loop.dice.random() < deaths:
            self.loop.counts["owners that died in a call"] += 1
            self.crash()
            raise Died

    def fails(self) -> bool:
        faults = self.scenario.page_faults
        return bool(faults) and not self.loop.quiet and self.loop.dice.random() < faults


class SimOwner(Owner, Process):
    """One life of ``dstore host`` on one host. It has voided what a former one has left."""

    def __init__(
        self, loop: Loop, scenario: Scenario, authority: Authority, host: SimHost, name: str
    ) -> None:
        super().__init__(loop, scenario, authority, host, name)
        self.pages: list[SimPage] = []
        self.identity = authority.identities.admit(name.partition(".")[0], owner=True)
        self.state: OwnerState = OwnerState(
            random16=loop.random16, label=name, open_page=self._open_page
        )
        host.take_names()
        self.touched()
        loop.later(CHECK_EVERY, self._check)

    def _open_page(self, message: Welcome) -> WrittenPage:
        self.between()
        if self.fails():
            raise OSError("no memory for a page")
        page = SimPage(
            epoch=message.epoch,
            session=message.session,
            lease=message.lease,
            value_limit=message.value_limit,
            large_from=message.large_from,
            hash_key=self.loop.random16(),
            buckets=self.scenario.buckets,
            began=message.seq,
            table=table_of(self.scenario.table, self.loop),
            cluster=message.cluster,
        )
        self.loop.counts["pages"] += 1
        self.loop.log(self.name, f"opens {page!r}")
        self.pages.append(page)
        self.host.publish(page)
        return WrittenPage(page, self)

    def withdraw(self, page: SimPage) -> None:
        if self.host.page is page:
            self.host.page = None

    def _check(self) -> None:
        """Replace a page that another program has removed."""
        if not self.alive or self.state.closing or self.held_up("check", self._check):
            return
        self.loop.later(CHECK_EVERY, self._check)
        published = self.state.published
        if isinstance(published, WrittenPage) and self.host.page is not published.page:
            self.loop.log(self.name, "finds that its page was removed")
            self._guarded(lambda: self.state.abandon(self.clock()))
            self.touched()

    # ---- failures of its pages ------------------------------------------------------------

    def _receive(self, message: Any) -> None:
        self._guarded(lambda: super(SimOwner, self)._receive(message))
        self.touched()

    def _tick(self) -> None:
        self._guarded(super()._tick)
        self.touched()

    def _guarded(self, what: Any) -> None:
        """Go on after a page that could not be voided, with a pause."""
        try:
            what()
        except OSError as error:
            self.loop.log(self.name, f"failed: {error}")
            self.pause(FAILURE_PAUSE)

    def perform(self, effects: Iterable[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.loop.log(self.name, f"-> {short(effect.message)}")
                self.control.send_up(effect.message)
            elif isinstance(effect, Dropped):
                for token in effect.tokens:
                    self.host.copies.pop(token, None)
        self.touched()

    # ---- end ------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """Stop: void and remove the page, then end the session."""
        if self.alive and not self.state.closing:
            self.loop.log(self.name, "goodbye")
            self._guarded(lambda: self.state.goodbye(self.clock()))
            self.touched()

    def crash(self) -> None:
        """End without a message; the page stays as it is."""
        if self.alive:
            self.loop.log(self.name, "dies")
            self.alive = False
            self.disconnect()

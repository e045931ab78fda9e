"""The page of Global's own host: opened, looked after and voided, as by ``dstore.server.host``."""

from __future__ import annotations

from typing import Protocol

from dstore.core.authority.state import GlobalState
from tests.simulation.host import SimHost
from tests.simulation.loop import Loop
from tests.simulation.pages import SimPage, Writer, WrittenPage, table_of
from tests.simulation.scenario import Scenario


class PageOwner(Writer, Protocol):
    """The process of a Global."""

    name: str
    loop: Loop

    @property
    def scenario(self) -> Scenario: ...

    def clock(self) -> float: ...


class GlobalsPage:
    """Global's own host: its page in one epoch, and the next one when it is lost.

    ``lease`` is that of caches, in seconds.
    """

    def __init__(
        self, authority: PageOwner, host: SimHost, state: GlobalState, lease: float
    ) -> None:
        self._authority = authority
        self._host = host
        self._state = state
        self._lease = lease
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
            self._authority.loop.log(self._authority.name, "replaces its page")
            self._give_up()
        self._open()

    def close(self) -> None:
        """Void the page, and end the membership."""
        self._give_up()

    def _give_up(self) -> None:
        page, self.page = self.page, None
        self._state.close_host(self._authority.clock())
        if page is not None and self._host.page is page:
            self._host.page = None

    def _open(self) -> None:
        authority, scenario = self._authority, self._authority.scenario
        loop = authority.loop
        session = self._state.open_host(authority.clock(), "host")
        authority.between()
        if authority.fails():
            self._give_up()
            return
        page = self.page = SimPage(
            epoch=self._state.epoch,
            session=session,
            lease=self._lease,
            value_limit=1 << 20,
            large_from=1 << 10,
            hash_key=loop.random16(),
            buckets=scenario.buckets,
            began=self._state._log.seq,
            table=table_of(scenario.table, loop),
            cluster=self._state.cluster,
        )
        loop.counts["pages of Global"] += 1
        loop.log(authority.name, f"opens {page!r}")
        self._host.publish(page)
        self._state.share(WrittenPage(page, authority), authority.clock())

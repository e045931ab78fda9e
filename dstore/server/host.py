"""The membership of Global's own host: when it begins, is checked, replaced and ended.

The core decides what is written (:mod:`dstore.core.authority.host`), :mod:`dstore.shm.share` has
the files. If they cannot be had, Global works without them: one line in the log says why, and it
tries again now and then, since another owner may have ended or memory may be free again.

The page names no endpoint for requests of this host, so that they use the address of Global. An ipc
endpoint would be a sixth faster, but libzmq 4.3.5 aborts the process when it accepts an ipc
connection and no descriptor is left; see :mod:`dstore.transport.guard`. A flood of other
connections can use up those that are left between two checks, and the next process of this host
that connects would then end Global.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from dstore import config
from dstore.core.authority.state import GlobalState
from dstore.runtime.logs import DEBUG, WARNING, Log
from dstore.shm.directory import Unusable
from dstore.shm.share import Share, WrittenPage
from dstore.transport import addresses

log = Log("dstore.global")

CHECK_EVERY = 2.0
"""Seconds between two looks at whether the processes of the host find the page."""
RETRY_EVERY = 10.0
"""Seconds between two tries to have a page."""
NEVER = float("inf")
OFF = "off"
"""The value of $DSTORE_HOST with which Global shares no membership."""


class HostMembership:
    """Owns the membership of this host, for the thread that serves. Raises nothing.

    ``address`` is the one that is bound. :meth:`check` is due at ``check_at``.
    """

    def __init__(
        self,
        state: GlobalState,
        *,
        root: str | None,
        address: str,
        cache_bytes: int | None,
        publisher: str,
        lease: float,
        value_limit: int,
        large_from: int,
        keyed: bool,
    ) -> None:
        self.check_at = NEVER
        self._state = state
        self._address = address
        self._open_page = partial(
            Share.open,
            lease=lease,
            value_limit=value_limit,
            large_from=large_from,
            publisher=publisher,
            keyed=keyed,
        )
        self._page: WrittenPage | None = None
        self._reported = ""
        self._share = Share(
            root, addresses.canonical_bound(address), f"Global at {address}", cache_bytes
        )
        state.figures_of_host = self._share.figures

    def begin(self, now: float) -> None:
        """Let the processes of this host share a membership, if that is possible and wanted."""
        if not self._share.available:
            return
        if config.host_default() != OFF:
            self._try(now, waiting=True)
            return
        # What a former Global on this address has left must not be used any more all the same.
        with contextlib.suppress(Unusable, OSError):
            self._share.take()
        self._share.close()

    def check(self, now: float) -> None:
        """Replace a page that was lost or removed, or try again to have one."""
        self.check_at = now + CHECK_EVERY
        if self._page is not None:
            if not self._state.host_lost and self._share.findable:
                return
            log.warning(
                "the page of the cache that the processes of this host share was lost or removed; "
                "it is replaced"
            )
            self._give_up(now)
        self._try(now, waiting=False)

    def close(self, now: float) -> None:
        """End it, before the sockets are closed. Idempotent."""
        self.check_at = NEVER
        self._give_up(now)

    def _give_up(self, now: float) -> None:
        self._page = None
        try:
            self._state.close_host(now)  # this voids the page, and then ends the session
        finally:
            self._share.close()

    def _try(self, now: float, waiting: bool) -> None:
        try:
            if waiting:
                self._share.take()
            else:
                self._share.take(tries=1)
            self._open(now)
        except (Unusable, OSError) as error:
            self.check_at = now + RETRY_EVERY
            self._give_up(now)
            self._report(error)
        else:
            self.check_at = now + CHECK_EVERY
            log.log(
                WARNING if self._reported else DEBUG,
                "the processes of this host share one cache of %s",
                self._address,
            )
            self._reported = ""

    def _open(self, now: float) -> None:
        state = self._state
        session = state.open_host(now, f"the processes of this host, process {os.getpid()}")
        self._page = self._open_page(
            self._share, epoch=state.epoch, session=session, cluster=state.cluster
        )
        state.share(self._page, now)

    def _report(self, error: Exception) -> None:
        """Log why there is no page, once for each reason."""
        text = str(error)
        if text != self._reported:
            self._reported = text
            log.warning("the processes of this host do not share a cache: %s", text)

"""One Local, of one process: LocalState with sockets, threads and a lock."""

from __future__ import annotations

from collections.abc import Callable

from dstore.client.hosts.background import Background
from dstore.client.hosts.core import Host
from dstore.client.hosts.loop import LoopHost
from dstore.client.hosts.threads import ThreadHost
from dstore.client.settings import Settings
from dstore.client.watch import Watches
from dstore.core.local.entries import LAPSED
from dstore.protocol.messages import Key
from dstore.runtime import greenlets as green
from dstore.runtime import reentrancy
from dstore.runtime.signals import signals_blocked
from dstore.transport.link import Link


class Local:
    """The parts of one Local, alive from :meth:`start` on.

    ``run`` is for calling threads, ``loop`` for tasks and greenlets; ``watch`` begins a watch.
    """

    def __init__(
        self, settings: Settings, label: str, on_deletion: Callable[[Key], None] | None
    ) -> None:
        self._address = settings.address
        self.host = Host(
            label=label,
            cache_bytes=settings.cache_bytes,
            shm=settings.shm,
            shm_limit=settings.shm_limit,
        )
        self.state = self.host.state
        self.large = self.host.large
        self.loop = LoopHost(self.host)
        watches = Watches(self.host)
        self._background = Background(self.host, self.loop, watches, on_deletion)
        self.run = ThreadHost(self.host).run
        self.watch = watches.begin
        self.forked = watches.end

    def start(self) -> None:
        """Begin to join.

        Raises AddressError, and GlobalUnavailable if the system gives no sockets or no threads.
        """
        try:
            with signals_blocked():
                self.host.link = Link(self._address)
                self._background.start()
        except BaseException:  # Ctrl-C, perhaps: no Node will have this Local
            self.abandon()
            raise

    def close(self) -> None:
        """Say goodbye, wake all that wait, release everything. Safe from any thread; idempotent.

        The background thread does all that, so that Ctrl-C meanwhile leaves nothing half done. This
        waits for it, but neither in that thread (``on_deletion``) nor in a signal handler in the
        middle of a call of any Node. If it is a call of this Node, the end of the call waits.
        """
        self.host.stop(self._wait_closed)

    def abandon(self) -> None:
        """Do what :meth:`close` does, for the garbage collector: take no lock, and do not wait."""
        self.host.stopping = True
        self.state.lease_end = LAPSED
        if self._background.thread.started:
            self.host.link.control.wake()
        elif (link := vars(self.host).pop("link", None)) is not None:  # the thread did not start
            link.control.close()
            link.close(reentrancy.inside.__contains__)

    def _wait_closed(self) -> None:
        if not self._background.thread.is_this():
            green.blocking(self._join)

    def _join(self) -> None:
        self._background.thread.join()
        self.loop.join()

"""Where a Global listens, and who is admitted there: its Router and its key folder.

A changed key folder is applied while the Global runs. If the server key has changed, another Router
takes the place of the first one, at the same addresses. Sessions and all else stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from dstore.access.keys import Changes, KeyRing
from dstore.core.authority.effects import GlobalEffect
from dstore.core.authority.state import GlobalState
from dstore.errors import AddressError
from dstore.runtime import clock, native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.runtime.native import signals_blocked
from dstore.server.access import Access
from dstore.server.settings import GlobalSettings
from dstore.transport import addresses
from dstore.transport.connection import Denied
from dstore.transport.router import Router

log = Log("dstore.global")

REBIND_TIMEOUT = 5.0
"""Seconds to try to listen again when the server key has changed."""
REBIND_PAUSE = 0.1
"""Seconds between two tries."""


class Service(Protocol):
    """What a listener needs of the Global that listens."""

    state: GlobalState

    def perform(self, effects: Iterable[GlobalEffect]) -> None:
        """Carry out the effects of the state."""


class Listener:
    """The Router of a Global, and its key folder if it has one.

    One thread uses it, but :meth:`wake` may be called from any thread and from signal handlers. At
    the time ``check_at`` of ``access``, which is None without keys, :meth:`look` is due. Add to its
    ``heard`` each identity from which a message has come.
    """

    def __init__(self, settings: GlobalSettings, service: Service) -> None:
        self.router: Router | None = None
        self.access: Access | None = None
        self.counting = False  # whether what fails is counted in the state, and not only logged
        self._settings = settings
        self._service = service
        self._era = 0  # counts the routers so far
        self._server_key = ""  # the public one of the present router
        self._cut_log = RateLimitedLog(log)
        self._denied_logs = {each: RateLimitedLog(log) for each in Denied}

    # ---- life -----------------------------------------------------------------------------

    def admit(self) -> None:
        """Load the key folder, if there is one. Raises KeyFolderError."""
        if self._settings.keys is not None:
            with signals_blocked():
                self.access = Access(self._settings.keys)

    def bind(self) -> Router:
        """Bind the sockets, after :meth:`admit`. Raises AddressError."""
        settings = self._settings
        router = self._new_router(settings.address, settings.publisher or None)
        if self.access is None and not settings.insecure:
            _refuse_if_exposed(router)
        return router

    def begin_epoch(self, state: GlobalState) -> None:
        """Apply to a new state what is known of identities."""
        for name in ("denied", *map(_counter_of, Denied)):
            state.counters.setdefault(name, 0)
        if self.concealed:
            state.conceal()

    def end_epoch(self, now: float) -> None:
        """Report nothing while leases of the epoch may run: who was revoked may have one."""
        if self.access is not None:
            self.access.report_from(now + self._settings.lease)

    def report(self) -> None:
        """Report what is applied to the key folder, if that is due."""
        if self.access is not None:
            self.access.report(clock.now(), self._service.state.sessions_by_identity)

    @property
    def concealed(self) -> bool:
        """Whether some identities do not see all keys."""
        return self.access is not None and self.access.ring.concealed

    def peer_of(self, route: bytes) -> str | None:
        """Return the source address of a route, if it is known."""
        return None if self.router is None else self.router.peer_of(route)

    def wake(self) -> None:
        """Make the Router's ``receive`` return soon."""
        if self.router is not None:
            self.router.wake()

    def close_router(self) -> None:
        """Let the last replies leave, then free the ports. Idempotent."""
        if self.router is not None:
            self.router.close()

    def close(self) -> None:
        """Give up the key folder. Idempotent."""
        if self.access is not None:
            self.access.close()

    def forked(self) -> None:
        """In a forked child: leave the sockets to the parent."""
        if self.router is not None:
            self.router.forked()
        if self.access is not None:
            self.access.forked()

    def _new_router(self, address: str, publisher: str | None) -> Router:
        ring = None if self.access is None else self.access.ring
        with signals_blocked():
            router = self.router = Router(
                address,
                publisher,
                max_clients=self._settings.max_clients,
                warn=self._warn_of_cut,
                deny=self._deny,
                keys=ring,
                era=self._era.to_bytes(4, "big") if self._era else b"",
            )
        self._server_key = "" if ring is None else ring.server_public
        return router

    # ---- keys -----------------------------------------------------------------------------

    def look(self) -> None:
        """Apply what is new in the key folder, and report. Raises AddressError."""
        access = self.access
        if access is None:
            return
        try:
            news = access.look(clock.now())
            if news is not None:
                self._apply(access, *news)
        except Exception:  # what was revoked and is still answered is not reported as applied
            log.exception("Listener.look failed; Global goes on, and tries again")
        if access.ring.server_public != self._server_key:
            self._replace_router()
        self.report()

    def _apply(self, access: Access, ring: KeyRing, changed: Changes) -> None:
        router, service = self.router, self._service
        assert router is not None
        if ring.concealed:  # before anybody is admitted who may not see all keys
            service.state.conceal()
        router.admit(ring)
        for identity in changed.revoked:
            service.perform(service.state.revoke(identity, clock.now()))
            # Not before: the session counts as lapsed only if it was revoked first.
            router.cut_identity(identity)
            log.info("%s has no access any more: its connections were ended", identity.name)
        access.lapsing += changed.revoked
        access.ring = ring

    def _replace_router(self) -> None:
        """Listen at the same addresses with another server key. Locals connect again.

        ZeroMQ reads the key when a socket is bound, and one that was bound once cannot be bound
        again; see the Router. Raises AddressError if the addresses are not free within
        ``REBIND_TIMEOUT`` seconds.
        """
        former = self.router
        assert former is not None
        log.info("the server key was changed: all connections end, and are made again")
        former.close()
        self._era += 1
        end = clock.now() + REBIND_TIMEOUT
        while True:
            try:
                self._new_router(former.address, former.publisher)
                break
            except AddressError:
                if clock.now() >= end:
                    raise
            native.sleep(REBIND_PAUSE)
        self.wake()  # what was said to the former one

    # ---- who is not let in ----------------------------------------------------------------

    def _deny(self, why: Denied, source: str | None) -> None:
        """Count and log a failed handshake."""
        if self.counting:
            counters = self._service.state.counters
            counters["denied"] += 1
            counters[_counter_of(why)] += 1
        log_of_kind = self._denied_logs[why]
        log_of_kind.warning(
            "refused a connection of %s: %s", source or "an unknown address", why.value
        )

    def _warn_of_cut(self, message: str, *arguments: object) -> None:
        """Count and log a connection that the router has cut."""
        if self.counting:
            self._service.state.counters["cut"] += 1
        self._cut_log.warning(message, *arguments)


def exposed(router: Router) -> list[str]:
    """Return the addresses of a router that other machines can reach. Looks host names up."""
    return [each for each in (router.address, router.publisher) if not addresses.is_private(each)]


def _refuse_if_exposed(router: Router) -> None:
    found = exposed(router)
    if found:
        raise AddressError(
            f"{' and '.join(found)} can be reached from other machines, and without keys every "
            "program there could read and write everything; give it a key folder (--keys DIR, or "
            "keys=), which `dstore access init DIR` makes, or listen on 127.0.0.1 or at an "
            "ipc path, or permit it (--insecure, or insecure=True)"
        )


def _counter_of(why: Denied) -> str:
    return f"denied_{why.name.lower()}"

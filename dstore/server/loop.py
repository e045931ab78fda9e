"""The loop of a Global: its sockets, its state, and the messages between them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from dstore import checks
from dstore.access.keys import Changes, KeyRing
from dstore.core.authority.effects import GlobalEffect, Load, Publish, Send
from dstore.core.authority.identity import Identity
from dstore.core.authority.state import GlobalState
from dstore.core.engine import Bulk, Engine, Loaded, LoadingEngine
from dstore.errors import AddressError, BadMessage
from dstore.protocol import wire
from dstore.protocol.messages import Buffer, Hello, Key, Refusal, Refused
from dstore.runtime import clock, native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.runtime.native import signals_blocked
from dstore.server.access import Access
from dstore.server.durable import Durable
from dstore.server.engines.memory import MemoryEngine
from dstore.server.host import HostMembership
from dstore.shm import bulk_for
from dstore.transport import addresses
from dstore.transport.connection import Denied
from dstore.transport.router import Router

log = Log("dstore.global")

FINISH_MAX = 1000
"""Messages that have arrived before the end and are still handled."""
LAST_WORDS = 0.1
"""Seconds for which Global stays after its last answer. ZeroMQ drops what a Local has received and
not yet read when the connection is lost.
"""
SILENCE_SLICE = 0.1
"""Seconds of silence in one go; then Global looks whether it is to end."""
FINISH_SLACK = 0.5
"""Seconds beyond one lease within which the last answers must have been given."""


REBIND_TIMEOUT = 5.0
"""Seconds to try to listen again when the server key has changed."""
REBIND_PAUSE = 0.1
"""Seconds between two tries."""


class GlobalSettings(NamedTuple):
    """The parameters of :class:`dstore.Global` that it needs when it binds.

    ``publisher`` is empty if it follows from ``address``. ``shm`` is None for the default folder,
    and ``host_cache`` for the default size. ``data`` is None if nothing is kept on a disk, and
    ``keys`` if all may use this Global; these are the programs of this machine alone, unless it is
    ``insecure``.
    """

    address: str
    publisher: str
    lease: float
    log_length: int
    value_limit: int
    large_from: int
    max_clients: int
    shm: str | None
    host_cache: int | None
    data: str | None
    keys: str | None
    insecure: bool


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


def loading_engine(engine: Engine) -> LoadingEngine | None:
    """Return the engine if it may have values away. Raises TypeError for a part of one."""
    if not hasattr(engine, "loaded"):
        return None
    loading: LoadingEngine = checks.member("engine", engine, LoadingEngine)
    return loading


class Loop:
    """What a bound Global has: a router, a place for large values, and a GlobalState.

    ``engine`` and ``given``, a place for large values or None, belong to the caller, also after
    :meth:`close`. One thread serves. :meth:`wake` may be called from any thread and from signal
    handlers.
    """

    def __init__(self, settings: GlobalSettings, engine: Engine, given: Bulk | None = None) -> None:
        self.settings = settings
        self.router: Router | None = None
        self._engine = engine
        self._loading = loading_engine(engine)
        self._failed: list[tuple[int, list[Loaded]]] = []  # loads that could not even begin
        self._given = given
        self._bulk: Bulk | None = None
        self._host: HostMembership | None = None
        self._durable: Durable | None = None
        self._access: Access | None = None
        self._era = 0  # counts the routers so far
        self._server_key = ""  # the public one of the present router
        self._serving = False
        self._rate_limited_log = RateLimitedLog(log)
        self._load_log = RateLimitedLog(log)
        self._denied_logs = {each: RateLimitedLog(log) for each in Denied}

    # ---- life -----------------------------------------------------------------------------

    def open(self) -> tuple[str, str]:
        """Bind the sockets. Returns the addresses for requests and for broadcasts.

        Raises AddressError, DataError and KeyFolderError. After any exception :meth:`close` is to
        follow.
        """
        settings = self.settings
        durable: Durable | None = None
        deadlines: list[tuple[Key, bytes, float]] = []
        if settings.keys is not None:
            with signals_blocked():
                self._access = Access(settings.keys)
        if settings.data is not None:
            with signals_blocked():
                durable = self._durable = Durable(settings.data, settings.lease)
            self._engine.close()  # empty, if an earlier try has failed
            assert isinstance(self._engine, MemoryEngine)  # no other one goes with a data folder
            deadlines = durable.load(self._engine)
        router = self._new_router(settings.address, settings.publisher or None)
        if self._access is None and not settings.insecure:
            _refuse_if_exposed(router)
        epoch = secrets.randbits(63) | 1
        bulk = self._bulk = bulk_for(epoch, settings.shm, self._given)
        if durable is not None:
            bulk = self._bulk = durable.bulk(bulk)
        self.state = GlobalState(
            self._engine,
            bulk,
            epoch=epoch,
            publisher=router.advertised,
            lease=settings.lease,
            log_length=settings.log_length,
            value_limit=settings.value_limit,
            large_from=settings.large_from,
            random63=partial(secrets.randbits, 63),
            wall=time.time,
            max_clients=settings.max_clients,
            peer_of=self._peer_of,
            durable=durable is not None,
            quiet_until=self._quiet_until(),
        )
        if durable is not None:
            self.state.figures_of_disk = durable.figures
            self.state.recover(deadlines, clock.now())
            durable.begin(self.wake)
        if self._loading is not None:
            self._loading.begin(self.wake)
        self.state.counters.update(dict.fromkeys(map(_counter_of, Denied), 0), denied=0)
        if self._access is not None:
            if self._access.ring.concealed:
                self.state.conceal()
            self._access.report(clock.now(), self.state.sessions_by_identity)
        # The names follow from the port. Nothing has been answered yet: what a former Global on
        # this address has left is void before this one says anything.
        with signals_blocked():
            self._host = HostMembership(
                self.state,
                root=settings.shm,
                address=router.address,
                cache_bytes=settings.host_cache,
                publisher=router.advertised,
                lease=settings.lease,
                value_limit=settings.value_limit,
                large_from=settings.large_from,
                keyed=settings.keys is not None,
            )
            self._host.begin(clock.now())
        return router.address, router.publisher

    def _new_router(self, address: str, publisher: str | None) -> Router:
        ring = None if self._access is None else self._access.ring
        with signals_blocked():
            router = self.router = Router(
                address,
                publisher,
                max_clients=self.settings.max_clients,
                warn=self._warn_of_cut,
                deny=self._deny,
                keys=ring,
                era=self._era.to_bytes(4, "big") if self._era else b"",
            )
        self._server_key = "" if ring is None else ring.server_public
        return router

    def _peer_of(self, route: bytes) -> str | None:
        return None if self.router is None else self.router.peer_of(route)

    def _quiet_until(self) -> float:
        """Return when the leases of former lives are over, as far as they are known."""
        if self._durable is not None:
            return self._durable.quiet_until
        # What an engine has at the start a former Global may have answered, with the same lease.
        return clock.now() + self.settings.lease if len(self._engine) else 0.0

    def wake(self) -> None:
        """Make the serving thread check whether it should go on."""
        if self.router is not None:
            self.router.wake()

    def close(self) -> None:
        """Give back the sockets and the memory of large values. What was given stays open.

        Ctrl-C may come at any moment. It would interrupt an ExitStack between two of its callbacks,
        and leave out the rest; a ``finally`` is always carried out.
        """
        router, bulk, host = self.router, self._bulk, self._host
        try:
            if host is not None:  # first: from now on another Global may have the address
                host.close(clock.now())
        finally:
            try:
                if router is not None:
                    router.close()
            finally:
                try:
                    if bulk is not None:
                        bulk.close()
                finally:
                    self._close_folders()

    def _close_folders(self) -> None:
        try:
            if self._durable is not None:
                self._durable.close(lease_out=self._lease_out())
        finally:
            if self._access is not None:
                self._access.close()

    def _lease_out(self) -> bool:
        state = getattr(self, "state", None)
        return state is None or state.lease_out(clock.now())

    def forked(self) -> None:
        """In a forked child: leave the sockets to the parent."""
        if self.router is not None:
            self.router.forked()
        if self._durable is not None:
            self._durable.forked()
        if self._access is not None:
            self._access.forked()

    # ---- serving --------------------------------------------------------------------------

    def serve(self, ended: Callable[[], object]) -> None:
        """Serve until ``ended()``, which is called after each message and each wake-up."""
        self._serving = True
        self._wait_in_silence(ended)
        alarm, host, durable, access = self.state.alarm, self._host, self._durable, self._access
        while not ended():
            until = alarm.moment if host is None else min(alarm.moment, host.check_at)
            if access is not None and access.check_at < until:
                until = access.check_at
            self._turn(until if durable is None else min(until, durable.check_at))

    def _wait_in_silence(self, ended: Callable[[], object]) -> None:
        """Answer nothing while a Global that has the same data may go on; see Durable."""
        silent_until = 0.0 if self._durable is None else self._durable.silent_until
        left = silent_until - clock.now()
        if left > 0:
            log.warning(
                "the data folder was copied or moved, or its first start did not end: nothing is "
                "answered for %.1f seconds, until the leases of a Global that it may come from are "
                "over",
                left,
            )
        while left > 0 and not ended():
            native.sleep(min(left, SILENCE_SLICE))
            self._look_at_keys()
            left = silent_until - clock.now()

    def finish(self) -> None:
        """Answer what has arrived and what waits for acknowledgements; take no new writes."""
        answered = False
        for _ in range(FINISH_MAX):
            if not self._turn(0.0):
                break
            answered = True
        self.state.close()
        end = clock.now() + self.settings.lease + FINISH_SLACK
        while not self.state.idle and clock.now() < end:
            self._turn(min(self.state.wake_at, end))
            answered = True
        if answered:
            end = clock.now() + LAST_WORDS
            while clock.now() < end:
                self._turn(end)

    def _turn(self, until: float) -> bool:
        """Handle one message, if one arrives in time, and do what is due.

        Returns whether a message arrived. Exceptions are logged: a bug that one message triggers
        must not end the service for others. But DataError ends it, and so does any failure to
        apply what is durable: memory and disk would not be the same any more.
        """
        router = self.router
        assert router is not None
        arrived = router.receive(until - clock.now())
        if arrived is not None:
            if self._access is not None:
                self._access.heard.add(arrived[3])
            try:
                self._take(router, *arrived)
            except Exception:
                log.exception("_take failed; Global goes on")
        now = clock.now()
        if now >= self.state.alarm.moment:
            try:
                self._perform(router, self.state.tick(now))
            except Exception:
                log.exception("_tick failed; Global goes on")
        host = self._host
        if host is not None and now >= host.check_at:
            try:
                host.check(now)
            except Exception:
                log.exception("host.check failed; Global goes on")
        durable = self._durable
        if durable is not None and (durable.news or now >= until):
            self._take_committed(router, durable)
        if self._loading is not None or self._failed:
            self._take_loaded(router)
        if self._access is not None and now >= self._access.check_at:
            self._look_at_keys()
        return arrived is not None

    def _take_committed(self, router: Router, durable: Durable) -> None:
        for number, outcomes in durable.committed():
            self._perform(router, self.state.committed(number, outcomes, clock.now()))
        if clock.now() >= durable.check_at:
            durable.check()

    def _take_loaded(self, router: Router) -> None:
        """Take what the engine has loaded. Exceptions are logged, as for a message."""
        ended, self._failed = self._failed, []
        if self._loading is not None:
            try:
                ended += self._loading.loaded()
            except Exception:
                log.exception("the engine's loaded() failed; Global goes on")
        for number, results in ended:
            try:
                self._take_results(router, number, results)
            except Exception:
                log.exception("_take_results failed; Global goes on")

    def _take_results(self, router: Router, number: int, results: list[Loaded]) -> None:
        failed = self.state.counters["failed_loads"]
        self._perform(router, self.state.loaded(number, results, clock.now()))
        for each in results:
            if not isinstance(each, (bytes, memoryview)):
                failed += 1
                self._load_log.warning("a value could not be loaded: %s", repr(each))
        if self.state.counters["failed_loads"] > failed:
            self._load_log.warning("a value was loaded that does not have its size")

    def _take(
        self,
        router: Router,
        route: bytes,
        frame: bytes,
        data: Buffer | None,
        identity: Identity,
    ) -> None:
        get = wire.get_of(frame) if data is None else None
        reply = None if get is None else self.state.read(get, clock.now(), identity)
        if reply is not None:  # nearly all requests end here
            router.send(route, wire.encode(reply))
            return
        try:
            message = wire.decode_to_global(frame, data)
        except BadMessage as error:
            self._refuse(router, route, error)
            return
        if type(message) is Hello and not router.knows(route):
            return  # its connection has ended: the answer would reach no Local
        # The clock is read after the message has arrived: a lease counts from receipt.
        self._perform(router, self.state.receive(route, message, clock.now(), identity))

    def _perform(self, router: Router, effects: list[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                message = effect.message
                router.send(effect.route, wire.encode(message), wire.data_of(message))
            elif isinstance(effect, Publish):
                router.publish(wire.encode(effect.message))
            elif isinstance(effect, Load):
                self._load(router, effect)
            else:
                assert self._durable is not None
                self._durable.commit(effect)

    def _load(self, router: Router, effect: Load) -> None:
        """Have the engine load values. If that raises, none of them could be loaded."""
        try:
            if self._loading is None:
                raise TypeError(f"{self._engine!r} has values away, and is no LoadingEngine")
            self._loading.load(*effect)
        except Exception as error:
            self._failed.append((effect.number, [error] * len(effect.wanted)))
            self.wake()

    # ---- keys -----------------------------------------------------------------------------

    def _look_at_keys(self) -> None:
        """Apply what is new in the key folder, and report. Raises AddressError."""
        access = self._access
        if access is None:
            return
        try:
            news = access.look(clock.now())
            if news is not None:
                self._apply(access, *news)
        except Exception:  # what was revoked and is still answered is not reported as applied
            log.exception("_look_at_keys failed; Global goes on, and tries again")
        if access.ring.server_public != self._server_key:
            self._replace_router()
        access.report(clock.now(), self.state.sessions_by_identity)

    def _apply(self, access: Access, ring: KeyRing, changed: Changes) -> None:
        router = self.router
        assert router is not None
        if ring.concealed:  # before anybody is admitted who may not see all keys
            self.state.conceal()
        router.admit(ring)
        for identity in changed.revoked:
            self._perform(router, self.state.revoke(identity, clock.now()))
            # Not before: the session counts as lapsed only if it was revoked first.
            router.cut_identity(identity)
            log.warning("%s has no access any more: its connections were ended", identity.name)
        access.lapsing += changed.revoked
        access.ring = ring

    def _replace_router(self) -> None:
        """Listen at the same addresses with another server key. Locals connect again.

        ZeroMQ reads the key when a socket is bound, and one that was bound once cannot be bound
        again; see the Router. Sessions and all else stay. Raises AddressError if the addresses are
        not free within ``REBIND_TIMEOUT`` seconds.
        """
        former = self.router
        assert former is not None
        log.warning("the server key was changed: all connections end, and are made again")
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

    def _deny(self, why: Denied, source: str | None) -> None:
        """Count and log a failed handshake."""
        if self._serving:
            self.state.counters["denied"] += 1
            self.state.counters[_counter_of(why)] += 1
        log_of_kind = self._denied_logs[why]
        log_of_kind.warning(
            "refused a connection of %s: %s", source or "an unknown address", why.value
        )

    # ---- what strangers send --------------------------------------------------------------

    def _warn_of_cut(self, message: str, *arguments: object) -> None:
        """Count and log a connection that the router has cut."""
        if self._serving:
            self.state.counters["cut"] += 1
        self._rate_limited_log.warning(message, *arguments)

    def _refuse(self, router: Router, route: bytes, error: BadMessage) -> None:
        """Answer a frame that cannot be decoded."""
        self.state.counters["malformed"] += 1
        self._rate_limited_log.warning("refused a frame that is not a message of ours: %s", error)
        other = isinstance(error, wire.OtherVersion)
        refusal = Refusal.OTHER_VERSION if other else Refusal.BAD_MESSAGE
        envelope = error.envelope if isinstance(error, wire.Malformed) else (0, 0, 0)
        router.send(route, wire.encode(Refused(*envelope, refusal, str(error))))

"""The loop of a Global: its sockets, its state, and the messages between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dstore import checks
from dstore.core.authority.effects import NEVER, GlobalEffect, Load, Publish, Send
from dstore.core.authority.identity import Identity
from dstore.core.engine import Bulk, Engine, Loaded, PartLoader
from dstore.errors import BadMessage, DataError
from dstore.protocol import wire
from dstore.protocol.messages import Buffer, Hello, Key, Refusal, Refused
from dstore.runtime import clock, native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.runtime.native import signals_blocked
from dstore.server.cluster.member import Member
from dstore.server.durable import Durable
from dstore.server.engines.memory import MemoryEngine
from dstore.server.epoch import Epoch
from dstore.server.host import HostMembership
from dstore.server.listener import Listener
from dstore.server.parameters import loading_engine
from dstore.server.settings import GlobalSettings
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
LEAVE_MAX = 30.0
"""Seconds within which a member that ends must have handed over what it owns."""
FINISH_SLACK = 0.5
"""Seconds beyond one lease within which the last answers must have been given."""


def _as_it_is(bulk: Bulk) -> Bulk:
    return bulk


class Loop:
    """What a bound Global has: a router, a place for large values, and a GlobalState.

    ``engine`` and ``given``, a place for large values or None, belong to the caller, also after
    :meth:`close`. One thread serves. :meth:`wake` may be called from any thread and from signal
    handlers.
    """

    def __init__(
        self, settings: GlobalSettings, engine: Engine | None, given: Bulk | None = None
    ) -> None:
        self.settings = settings
        self._listener = Listener(settings, self)
        self._engine = engine  # a member of a cluster has one for each epoch
        self._loading = None if engine is None else loading_engine(engine)
        self._failed: list[tuple[int, list[Loaded]]] = []  # loads that could not even begin
        self._given = given
        self._epoch: Epoch | None = None
        self._epochs = 0  # how many have begun
        self._host: HostMembership | None = None  # that of the epoch
        self._durable: Durable | None = None  # with a data folder
        self._member: Member | None = None  # in a cluster
        self._rate_limited_log = RateLimitedLog(log)
        self._load_log = RateLimitedLog(log)

    # ---- life -----------------------------------------------------------------------------

    def open(self) -> tuple[str, str]:
        """Bind the sockets. Returns the addresses for requests and for broadcasts.

        Raises AddressError, DataError and KeyFolderError. After any exception :meth:`close` is to
        follow.
        """
        settings = self.settings
        deadlines: list[tuple[Key, bytes, float]] = []
        self._listener.admit()
        if settings.data is not None:
            with signals_blocked():
                self._durable = Durable(settings.data, settings.lease)
            assert isinstance(self._engine, MemoryEngine)  # no other one goes with a data folder
            self._engine.close()  # empty, if an earlier try has failed
            deadlines = self._durable.load(self._engine)
        elif settings.database is not None:
            with signals_blocked():
                self._member = Member(settings)
        router = self._listener.bind()
        self.begin_epoch()
        if self._member is not None:
            self._member.begin(settings.advertise or router.address, self.wake)
        elif self._durable is not None:
            self.state.recover(deadlines, clock.now())
            self._durable.begin(self.wake)
        self._listener.report()
        if self._member is None:  # it does that when it may answer
            self.share(clock.now())
        return router.address, router.publisher

    def begin_epoch(self) -> None:
        """Make the state of a new epoch, and what belongs to it. Nothing is answered before."""
        router, member = self.router, self._member
        storage = self._storage
        assert router is not None
        if member is not None:
            self._engine = self._loading = member.engine
        assert self._engine is not None
        former = None if self._epoch is None else self._epoch.state.counters
        epoch = self._epoch = Epoch(
            self.settings,
            self._engine,
            self._given,
            _as_it_is if storage is None else storage.bulk,
            number=self._epochs,
            address=router.address,
            publisher=router.advertised,
            peer_of=self._listener.peer_of,
            durable=storage is not None,
            quiet_until=self._quiet_until(),
            partitions=None if member is None else member.partitions,
        )
        self._epochs += 1
        state = self.state = epoch.state
        if storage is not None:
            state.figures_of_disk = storage.figures
        if former is not None:
            state.counters.update(former)
        if self._loading is not None:
            self._loading.begin(self.wake)
        self._listener.begin_epoch(state)

    def end_epoch(self) -> None:
        """Answer nothing of this epoch any more, and void the page of this host. Idempotent."""
        epoch, now = self._epoch, clock.now()
        assert epoch is not None
        self._host = None
        epoch.void(now)
        self.perform(self.state.end())
        self._listener.end_epoch(now)
        epoch.close()

    def share(self, now: float) -> None:
        """Let the processes of this host share a membership of this epoch."""
        assert self._epoch is not None
        with signals_blocked():
            self._epoch.share(now)
        self._host = self._epoch.host

    def _quiet_until(self) -> float:
        """Return when the leases of former lives are over, as far as they are known."""
        if self._durable is not None:
            return self._durable.quiet_until
        if self._member is not None:
            return 0.0  # each partition has a quiet time of its own
        assert self._engine is not None
        # What an engine has at the start a former Global may have answered, with the same lease.
        return clock.now() + self.settings.lease if len(self._engine) else 0.0

    def wake(self) -> None:
        """Make the serving thread check whether it should go on."""
        self._listener.wake()

    def close(self) -> None:
        """Give back the sockets and the memory of large values. What was given stays open.

        Ctrl-C may come at any moment. It would interrupt an ExitStack between two of its callbacks,
        and leave out the rest; a ``finally`` is always carried out.
        """
        epoch = self._epoch
        try:
            if epoch is not None:  # first: from now on another Global may have the address
                epoch.void(clock.now())
        finally:
            try:
                self._listener.close_router()
            finally:
                try:
                    if epoch is not None:
                        epoch.close()
                finally:
                    self._close_folders()

    def _close_folders(self) -> None:
        try:
            if self._durable is not None:
                self._durable.close(lease_out=self._lease_out())
            if self._member is not None:
                self._member.close()
        finally:
            self._listener.close()

    def _lease_out(self) -> bool:
        state = getattr(self, "state", None)
        return state is None or state.lease_out(clock.now())

    def forked(self) -> None:
        """In a forked child: leave the sockets to the parent."""
        self._listener.forked()
        if self._durable is not None:
            self._durable.forked()
        if self._member is not None:
            self._member.forked()

    # ---- serving --------------------------------------------------------------------------

    def serve(self, ended: Callable[[], object]) -> None:
        """Serve until ``ended()``, which is called after each message and each wake-up."""
        self._listener.counting = True
        self._wait_in_silence(ended)
        while not ended():
            self._turn(self._next_moment())

    def _next_moment(self) -> float:
        """Return when there is something to do, if no message arrives."""
        host, durable, access = self._host, self._durable, self._listener.access
        until = NEVER
        if self._member is None or self._member.answers(clock.now()):
            until = self.state.alarm.moment
            if host is not None and host.check_at < until:
                until = host.check_at
        if access is not None and access.check_at < until:
            until = access.check_at
        if self._member is not None:
            until = min(until, self._member.check_at)
        if durable is not None and durable.check_at < until:
            until = durable.check_at
        return until

    @property
    def _storage(self) -> Durable | Member | None:
        """What makes changes durable."""
        return self._durable if self._member is None else self._member

    @property
    def router(self) -> Router | None:
        """The present Router; another one takes its place when the server key has changed."""
        return self._listener.router

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
            self._listener.look()
            left = silent_until - clock.now()

    def finish(self) -> None:
        """Answer what has arrived and what waits for acknowledgements; take no new writes.

        A member of a cluster hands over what it owns.
        """
        if self._member is not None:
            self._leave(self._member)
            return
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

    def _leave(self, member: Member) -> None:
        """Let a member hand over what it owns, and answer messages meanwhile."""
        end = clock.now() + LEAVE_MAX
        member.leave(self)
        while not member.left and clock.now() < end:
            self._turn(min(self._next_moment(), end))
        if not member.left:
            log.warning(
                "what this Global owns was not handed over within %.0f seconds; others take it "
                "over when its ownership lease has ended",
                LEAVE_MAX,
            )
        end = clock.now() + LAST_WORDS
        while clock.now() < end:
            self._turn(end)

    def _turn(self, until: float) -> bool:
        """Handle one message, if one arrives in time, and do what is due.

        Returns whether a message arrived. Exceptions are logged: a bug that one message triggers
        must not end the service for others. But DataError ends it, and so does any failure to
        apply what is durable: memory and disk would not be the same any more.
        """
        router, access, member = self._listener.router, self._listener.access, self._member
        assert router is not None
        arrived = router.receive(until - clock.now())
        if arrived is not None:
            if access is not None:
                access.heard.add(arrived[3])
            # A member that stood still since its ownership lease ended answers nothing: the clock
            # is read after the message has arrived.
            if member is None or member.answers(clock.now()):
                try:
                    self._take(router, *arrived)
                except Exception:
                    log.exception("_take failed; Global goes on")
        now = clock.now()
        if member is None or member.answers(now):
            self._tick(router, now)
        if member is not None:  # after all that may have ended what a hand-over waits for
            self._step(router, member)
        durable = self._durable
        if durable is not None and (durable.news or now >= until):
            self._take_committed(router, durable)
        if self._loading is not None or self._failed:
            self._take_loaded(router)
        if access is not None and now >= access.check_at:
            self._listener.look()
        return arrived is not None

    def _tick(self, router: Router, now: float) -> None:
        """Do what is due in the state, and for the processes of this host."""
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

    def _take_committed(self, router: Router, durable: Durable) -> None:
        for number, outcomes in durable.committed():
            self._perform(router, self.state.committed(number, outcomes, clock.now()))
        if clock.now() >= durable.check_at:
            durable.check()

    def _step(self, router: Router, member: Member) -> None:
        """Do what is due in a cluster. After an exception memory may be wrong: it is forgotten."""
        try:
            if member.committed_news:
                for number, outcomes in member.committed():
                    if member.answers(now := clock.now()):
                        self._perform(router, self.state.committed(number, outcomes, now))
            if member.news or clock.now() >= member.check_at:
                member.step(self)
        except DataError:
            raise
        except Exception as error:
            log.exception("a member failed; it gives up what it owns, and joins again")
            member.fail(repr(error))

    def _take_loaded(self, router: Router) -> None:
        """Take what the engine has loaded. Exceptions are logged, as for a message."""
        ended, self._failed = self._failed, []
        if self._loading is not None:
            try:
                ended += self._loading.loaded()
            except Exception:
                log.exception("the engine's loaded() failed; Global goes on")
        assert self._epoch is not None
        first = self._epoch.first_load
        for number, results in ended:
            if number < first:
                continue  # for readers of a former epoch
            try:
                self._take_results(router, number - first, results)
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

    def perform(self, effects: Iterable[GlobalEffect]) -> None:
        """Carry out effects of the state."""
        assert self.router is not None
        self._perform(self.router, effects)

    def _perform(self, router: Router, effects: Iterable[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                message = effect.message
                router.send(effect.route, wire.encode(message), wire.data_of(message))
            elif isinstance(effect, Publish):
                router.publish(wire.encode(effect.message))
            elif isinstance(effect, Load):
                self._load(effect)
            else:
                assert self._storage is not None
                self._storage.commit(effect)

    def _load(self, effect: Load) -> None:
        """Have the engine load values, or a part of one. If that raises, nothing was loaded."""
        assert self._epoch is not None
        number = effect.number + self._epoch.first_load
        try:
            if self._loading is None:
                raise TypeError(f"{self._engine!r} has values away, and is no LoadingEngine")
            if effect.part is None:
                self._loading.load(number, effect.wanted)
            else:
                loader: PartLoader = checks.member("engine", self._loading, PartLoader)
                loader.load_part(number, *effect.wanted[0], *effect.part)
        except Exception as error:
            self._failed.append((number, [error] * len(effect.wanted)))
            self.wake()

    def _refuse(self, router: Router, route: bytes, error: BadMessage) -> None:
        """Answer a frame that cannot be decoded."""
        self.state.counters["malformed"] += 1
        self._rate_limited_log.warning("refused a frame that is not a message of ours: %s", error)
        other = isinstance(error, wire.OtherVersion)
        refusal = Refusal.OTHER_VERSION if other else Refusal.BAD_MESSAGE
        envelope = error.envelope if isinstance(error, wire.Malformed) else (0, 0, 0)
        router.send(route, wire.encode(Refused(*envelope, refusal, str(error))))

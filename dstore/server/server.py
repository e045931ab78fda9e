"""Global at work: GlobalState and an engine with sockets and a loop."""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from dstore import checks, config
from dstore.core.authority.effects import GlobalEffect, Send
from dstore.core.authority.state import GlobalState
from dstore.core.engine import Bulk, Engine
from dstore.errors import AddressError, BadMessage, GlobalClosed, GlobalServing
from dstore.protocol import wire
from dstore.protocol.messages import Buffer, Hello, Refusal, Refused
from dstore.runtime import clock, native, reentrancy
from dstore.runtime import greenlets as green
from dstore.runtime.logs import Log
from dstore.runtime.rate_limited_log import RateLimitedLog
from dstore.runtime.signals import signals_blocked
from dstore.server.engines.memory import MemoryEngine
from dstore.shm import bulk_for, check_root
from dstore.transport import addresses
from dstore.transport.limits import no_threads
from dstore.transport.router import Router

log = Log("dstore.global")

FINISH_MAX = 1000
"""Messages that have arrived before the end, and are taken as any others."""
LAST_WORDS = 0.1
"""Seconds for which Global stays after its last answer. What a Local has received, and not yet
read, ZeroMQ drops when the connection is lost.
"""
WAIT_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""
FINISH_SLACK = 0.5
"""Seconds beyond one lease in which the last answers must have been given."""


STOPPED, CLOSED = "was stopped", "was closed"
"""How a Global was ended by its owner."""


class Phase(enum.Enum):
    """How far the life of a Global has come."""

    NEW = "new"
    BOUND = "bound"
    SERVING = "serving"
    CLOSED = "closed"


class Global:
    """The authority: binds its sockets and answers until it is stopped.

    Parameters
    ----------
    address
        Where requests are taken, ``tcp://HOST:PORT`` (port 0: any free one; host ``*``: all
        addresses of this machine, of IPv6 and of IPv4) or ``ipc://PATH``. A file ``PATH.lock``
        beside it says that the path is taken.
    publisher
        Where deletions are published. Default: the next port, or the path with ``.pub`` added.
    lease
        Seconds for which a Local may answer from its cache without hearing from Global. A worker
        that dies delays a deletion of what it had read by at most this much.
    log_length
        How many recent deletions are kept for Locals that missed them; one that missed more
        drops its whole cache.
    memory_limit
        Bytes that keys and values may take, by default 4 GiB. An ``engine`` has a limit of its own.
    value_limit
        Bytes that one value may have.
    large_from
        Values of so many bytes travel in chunks, and the processes of a host share one copy.
    max_clients
        How many Nodes may be joined at one time; further ones are told so, and go on asking.
    shm
        The folder for that copy, in memory. Default: ``$DSTORE_SHM``, else ``/dev/shm`` where there
        is one. Empty: large values stay in the memory of this process. Nodes of this host find
        what is in the same folder.
    engine
        Where they are kept. Default: in memory, within ``memory_limit``. It is closed with the
        Global.

    Raises
    ------
    AddressError
        ``address`` or ``publisher`` is malformed.
    TypeError
        A parameter is of a wrong type.
    ValueError
        A parameter is out of its range, or both ``engine`` and ``memory_limit`` are given.

    Notes
    -----
    Use it as a context manager, which serves in a thread, or call :meth:`run`. All methods are safe
    from any thread, and :meth:`stop` and :meth:`close` from signal handlers.

    A Global lives once. It is *new*, then *bound*, *serving*, and *closed*; ``repr`` shows which.

    ========  =============  ================  ==================  ======================
    call      new            bound             serving             stopped or closed
    ========  =============  ================  ==================  ======================
    bind      binds          does nothing      does nothing        GlobalClosed
    start     binds, serves  serves            does nothing        GlobalClosed
    with      binds, serves  serves            closes at the end   GlobalClosed
    run       binds, serves  serves            GlobalServing       GlobalClosed; if stopped
                                                                   beforehand, returns
    stop      is stopped     is stopped        answers, and ends   does nothing
    close     is closed      frees the ports   waits for the end   waits for the end
    ========  =============  ================  ==================  ======================

    A ``bind`` or ``start`` that fails, with AddressError or since there is no thread to be had,
    leaves it as it was, and may be tried again. In a child that is forked, one that was bound or
    served is closed (the parent's is undisturbed), and a new one can be used.
    """

    def __init__(
        self,
        address: str = config.ADDRESS_DEFAULT,
        *,
        publisher: str | None = None,
        lease: float = config.LEASE_DEFAULT,
        log_length: int = config.LOG_LENGTH_DEFAULT,
        memory_limit: int | None = None,
        value_limit: int = config.VALUE_LIMIT_DEFAULT,
        large_from: int = config.LARGE_FROM_DEFAULT,
        max_clients: int = config.CLIENTS_MAX_DEFAULT,
        shm: str | os.PathLike[str] | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.address = addresses.check(checks.text("address", address), bind=True)
        self.publisher = ""
        if publisher is not None:
            self.publisher = addresses.check(checks.text("publisher", publisher), bind=True)
        self._lease = checks.seconds("lease", lease, config.LEASE_MIN, config.LEASE_MAX)
        self._log_length = checks.count("log_length", log_length, 1, config.LOG_LENGTH_MAX)
        self._value_limit = checks.count("value_limit", value_limit, 1, config.SIZE_MAX)
        self._large_from = checks.count(
            "large_from", large_from, config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX
        )
        self._max_clients = checks.count("max_clients", max_clients, 1, config.CLIENTS_MAX)
        self._shm: str | None = checks.optional(checks.path, "shm", shm)
        check_root(self._shm)
        self._engine = _engine(engine, memory_limit)
        self._bulk: Bulk | None = None
        self._router: Router | None = None
        self._asked = self.address, self.publisher  # port 0 stands for any free one
        self._phase = Phase.NEW
        self._end = ""  # how it was ended, or is about to end
        self._lock = native.RLock()  # a signal handler may close what it finds in the making
        self._changer: int | None = None  # the thread that binds, starts or closes it just now
        self._thread: native.Thread | None = None
        self._server: int | None = None  # the thread in run()
        self._waiters: deque[native.Lock] = deque()  # each is held until the end
        self._rate_limited_log = RateLimitedLog(log)
        _globals.add(self)

    def __repr__(self) -> str:
        stopping = self._end and self._phase is not Phase.CLOSED
        return f"<dstore.Global {self.address} {'stopping' if stopping else self._phase.value}>"

    # ---- life -----------------------------------------------------------------------------

    def bind(self) -> None:
        """Take the addresses; :attr:`address` and :attr:`publisher` then have the real ports.

        Nothing is answered before :meth:`start` or :meth:`run`. Raises AddressError, after which it
        may be tried again, and GlobalClosed.
        """
        with self._change():
            self._check_open()
            self._bind()
            if self._end == CLOSED:  # by a signal handler, in the middle of this
                self._end_service()
                raise self._gone()

    def start(self) -> None:
        """Bind, and serve in a thread. One that serves already goes on.

        Raises AddressError, also if the system gives too few descriptors or threads (it may be
        tried again), and GlobalClosed.
        """
        with self._change():
            self._check_open()
            if self._phase is Phase.SERVING:
                return
            was_bound = self._phase is Phase.BOUND
            self._bind()
            if self._end:  # by a signal handler, in the middle of this
                self._end_service()
                raise self._gone()
            thread = native.Thread(self._serve_here, "dstore-global")
            try:
                self._thread, self._phase = thread, Phase.SERVING
                thread.start()
            except BaseException as error:  # or Ctrl-C, and the thread finds that it is not it
                self._thread, self._phase = None, Phase.BOUND
                if not was_bound:
                    self._unbind()
                if isinstance(error, RuntimeError):
                    raise AddressError(no_threads(error)) from None
                raise

    def run(self) -> None:
        """Bind, and serve in the calling thread until :meth:`stop`. (In a greenlet it serves in a
        thread of the system, so that other greenlets run meanwhile.)

        Returns at once if :meth:`stop` was called before. Raises AddressError, after which it may
        be tried again, GlobalServing, GlobalClosed, and what ends the service unexpectedly.
        """
        mine = False
        try:
            with self._change():
                if self._phase is Phase.SERVING and not self._end:
                    raise GlobalServing(f"{self!r} serves already, in another thread")
                if self._phase in (Phase.SERVING, Phase.CLOSED):
                    raise self._gone()
                if not self._end:
                    self._bind()
                if self._end:
                    self._end_service()
                    return
                mine = green.here() is None
                self._server = native.get_ident() if mine else None
                self._phase = Phase.SERVING
            if mine:
                self._serve()
            else:
                self._serve_beside()
        except BaseException as error:
            if mine:
                self._note(error)
            raise
        finally:
            if mine:
                self._end_service()

    def _serve_beside(self) -> None:
        """Serve in a thread of the system, while other greenlets run."""

        def serve() -> None:
            self._server = native.get_ident()
            try:
                self._serve()
            except BaseException as error:
                self._note(error)
                raise
            finally:
                self._end_service()

        try:
            green.blocking(serve)
        except BaseException:
            self.stop()  # a greenlet was killed: its thread ends, too
            raise

    def stop(self) -> None:
        """Make :meth:`run` answer what is outstanding and return, or return when it is called.

        Idempotent. It waits for nobody.
        """
        self._end = self._end or STOPPED
        router = self._router
        if router is not None and self._phase is not Phase.CLOSED:  # as a child finds its parent's
            router.wake()

    def close(self) -> None:
        """Stop, and wait until the ports are free. Idempotent.

        In the thread that serves, and in a signal handler that interrupts a Node's call or one of
        these methods, it returns at once.
        """
        if self._phase is not Phase.CLOSED:
            self._end = CLOSED
        self.stop()
        me = native.get_ident()
        if reentrancy.here() is not None or me in (self._changer, self._server):
            return
        with self._change():
            if self._phase in (Phase.NEW, Phase.BOUND):
                self._end_service()
        green.blocking(self._wait)
        thread = self._thread
        if thread is not None:
            green.blocking(thread.join)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Bind, start or close it, one thread at a time; not in the middle of just that."""
        me = native.get_ident()
        if self._changer == me:
            raise RuntimeError(
                "a Global cannot be bound, started or run by a signal handler that interrupts this"
            )
        with self._lock:
            try:
                self._changer = me
                yield
            finally:
                self._changer = None

    def _check_open(self) -> None:
        if self._end or self._phase is Phase.CLOSED:
            raise self._gone()

    def _gone(self) -> GlobalClosed:
        return GlobalClosed(f"the Global of {self.address} {self._end}; make a new one")

    def _bind(self) -> None:
        if self._phase is not Phase.NEW:
            return
        try:
            with signals_blocked():
                router = self._router = Router(
                    self.address,
                    self.publisher or None,
                    max_clients=self._max_clients,
                    warn=self._warn_of_cut,
                )
            self.address, self.publisher = router.address, router.publisher
            epoch = secrets.randbits(63) | 1
            self._bulk = bulk_for(epoch, self._shm)
            self._state = GlobalState(
                self._engine,
                self._bulk,
                epoch=epoch,
                publisher=router.advertised,
                lease=self._lease,
                log_length=self._log_length,
                value_limit=self._value_limit,
                large_from=self._large_from,
                random63=partial(secrets.randbits, 63),
                max_clients=self._max_clients,
                peer_of=router.peer_of,
            )
            self._phase = Phase.BOUND
        except BaseException:
            self._unbind()
            raise

    def _unbind(self) -> None:
        """It is as new."""
        self._phase = Phase.NEW
        self.address, self.publisher = self._asked
        self._give_back()

    def _give_back(self) -> None:
        try:
            if self._router is not None:
                self._router.close()
        finally:
            if self._bulk is not None:
                self._bulk.close()
        self._router = self._bulk = None

    def _end_service(self) -> None:
        """Give everything back. Unless this is a forked child, where it is the parent's."""
        if self._phase is Phase.CLOSED:
            return
        phase = Phase.CLOSED
        try:
            try:
                self._give_back()
            finally:
                self._engine.close()
        except Exception:
            raise
        except BaseException:  # Ctrl-C: close() may be called again, and goes on with it
            phase = Phase.BOUND
            raise
        finally:
            self._phase = phase
            while self._waiters:
                self._waiters.pop().release()
            self._server = None  # last: a signal handler in this thread must not wait for this

    def _wait(self) -> None:
        """Return when nobody serves. Not by an Event: Ctrl-C within its wait may break its lock."""
        waiter = native.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        while self._phase is Phase.SERVING:
            waiter.acquire(timeout=WAIT_MAX)

    def _note(self, error: BaseException) -> None:
        """Tell those who use it later what has ended it."""
        self._end = f"was ended by {checks.shown(error)}"

    def _forked(self) -> None:
        """In the child: a Global that had begun is the parent's, sockets and all."""
        changing, self._changer = self._changer is not None, None
        self._lock = native.RLock()
        if self._phase is Phase.NEW and not changing:
            return
        if self._phase is not Phase.CLOSED:
            self._end = "belongs to the process that this one was forked from"
        if self._router is not None:
            self._router.forked()
        self._phase = Phase.CLOSED
        self._thread = self._server = None

    def __enter__(self) -> Global:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the loop -------------------------------------------------------------------------

    def _serve_here(self) -> None:
        """What the thread does that :meth:`start` makes."""
        with self._lock:  # start() has it
            if self._thread is None or not self._thread.is_this():
                return
            self._server = native.get_ident()
        try:
            self._serve()
        except BaseException as error:
            self._note(error)
            log.exception("the Global of %s fails, and answers nobody any more", self.address)
        finally:
            self._end_service()

    def _serve(self) -> None:
        router = self._router
        assert router is not None
        while not self._end:
            self._turn(router, self._state.wake_at)
        if self._phase is not Phase.CLOSED:  # as it is in a child that an engine has forked
            self._finish(router)

    def _turn(self, router: Router, until: float) -> bool:
        """Take one message, if one comes in time; do what is due. Whether one came."""
        arrived = router.receive(until - clock.now())
        if arrived is not None:
            self._guarded(self._take, router, *arrived)
        if clock.now() >= self._state.wake_at:
            self._guarded(self._tick, router)
        return arrived is not None

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """A bug of ours, met over one message, must not end the service of all others."""
        try:
            step(*arguments)
        except Exception:
            log.exception("%s failed; Global goes on", step.__name__)

    def _tick(self, router: Router) -> None:
        self._perform(router, self._state.tick(clock.now()))

    def _take(self, router: Router, route: bytes, frame: bytes, data: Buffer | None) -> None:
        try:
            message = wire.decode_to_global(frame, data)
        except BadMessage as error:
            self._refuse(router, route, error)
            return
        if type(message) is Hello and not router.knows(route):
            return  # nobody would hear the answer, and it would be of no address
        # The clock is read after the message has arrived: a lease counts from receipt.
        self._perform(router, self._state.receive(route, message, clock.now()))

    def _perform(self, router: Router, effects: list[GlobalEffect]) -> None:
        for effect in effects:
            if type(effect) is Send:
                message = effect.message
                router.send(effect.route, wire.encode(message), wire.data_of(message))
            else:
                router.publish(wire.encode(effect.message))

    def _finish(self, router: Router) -> None:
        """Answer what has arrived and what waits for acknowledgements; take no new writes."""
        answered = False
        for _ in range(FINISH_MAX):
            if not self._turn(router, 0.0):
                break
            answered = True
        self._state.close()
        end = clock.now() + self._lease + FINISH_SLACK
        while not self._state.idle and clock.now() < end:
            self._turn(router, min(self._state.wake_at, end))
            answered = True
        if answered:
            end = clock.now() + LAST_WORDS
            while clock.now() < end:
                self._turn(router, end)

    def _warn_of_cut(self, message: str, *arguments: object) -> None:
        if self._phase is Phase.SERVING:
            self._state.counters["cut"] += 1
        self._rate_limited_log.warning(message, *arguments)

    def _refuse(self, router: Router, route: bytes, error: BadMessage) -> None:
        self._state.counters["malformed"] += 1
        self._rate_limited_log.warning("refused a frame that is not a message of ours: %s", error)
        other = isinstance(error, wire.OtherVersion)
        refusal = Refusal.OTHER_VERSION if other else Refusal.BAD_MESSAGE
        asked = (0, 0, 0)
        if isinstance(error, wire.Malformed):
            asked = (error.epoch, error.session, error.request)
        router.send(route, wire.encode(Refused(*asked, refusal, str(error))))


def _engine(given: Engine | None, memory_limit: int | None) -> Engine:
    """Where keys and values are kept."""
    limit = checks.optional(checks.count, "memory_limit", memory_limit, 1, config.SIZE_MAX)
    if given is None:
        return MemoryEngine(config.MEMORY_LIMIT_DEFAULT if limit is None else limit)
    if limit is not None:
        raise ValueError(
            "memory_limit is for the engine that is there without engine=; give one of them, and "
            "your engine a limit of its own"
        )
    checks.member("engine", given, Engine)
    return given


# ---- the Globals of this process --------------------------------------------------------------

_globals: weakref.WeakSet[Global] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_globals):
        each._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""``dstore.Global``: the life of an authority, from its settings to its end."""

from __future__ import annotations

import contextlib
import enum
import os
import weakref
from collections import deque
from collections.abc import Iterator

from dstore import checks, config
from dstore.core.engine import Bulk, Engine
from dstore.errors import AddressError, GlobalClosed, GlobalServing
from dstore.runtime import greenlets as green
from dstore.runtime import native, reentrancy
from dstore.server.loop import Loop, log
from dstore.server.parameters import (
    bulk_of,
    check_member,
    database_of,
    engine_of,
    folder_path,
    host_cache_size,
    memory_limit_of,
)
from dstore.server.settings import GlobalSettings
from dstore.shm import check_root
from dstore.transport import addresses
from dstore.transport.limits import no_threads

WAIT_MAX = 0.5
"""Seconds of one wait. Python notices a signal that arrives in the instant before a wait begins
only after that wait.
"""
STOPPED, CLOSED = "was stopped", "was closed"
"""How the owner of a Global has ended it, for error messages."""


class Phase(enum.Enum):
    """The stage of a Global's life."""

    NEW = "new"
    BOUND = "bound"
    SERVING = "serving"
    CLOSED = "closed"


class Global:
    """The authority: binds its sockets and answers until it is stopped.

    Parameters
    ----------
    address
        The address for requests, ``tcp://HOST:PORT`` (port 0: any free port; host ``*``: all
        IPv6 and IPv4 addresses of this machine) or ``ipc://PATH``. A file ``PATH.lock`` beside the
        socket shows that the path is taken.
    publisher
        The address for broadcasts of invalidations. Default: the next port, or the path with
        ``.pub`` added.
    lease
        Seconds for which a Node may answer from its cache without a message from Global. A worker
        that dies delays a deletion of what it had read by at most this much.
    log_length
        Number of recent invalidations that are kept for Nodes that missed them. A Node that missed
        more drops its whole cache.
    memory_limit
        Bytes that keys and values may take, by default 4 GiB. An ``engine`` has its own limit.
    value_limit
        Bytes that one value may have.
    large_from
        Values of at least this many bytes travel in chunks, and the processes of a host share one
        copy of each.
    max_clients
        Number of Nodes that may be joined at one time. Further Nodes are refused and try again.
    shm
        The folder for the shared copies, on a file system in memory. Default: ``$DSTORE_SHM``, else
        ``/dev/shm`` if it exists. Empty: large values stay in the memory of this process. Nodes of
        this host share the copies in the same folder.
    host_cache
        Bytes of the host cache: small values that the processes of this host share in the same
        folder. Default: 256 MiB, and at most a quarter of its file system. 0: there is none, and
        each process has its own copies; deletions are still acknowledged once for all of them.
    data
        The folder in which keys and values are kept on a disk, so that they survive the end of this
        process, also by a crash. It is made if it is not there; one Global at a time uses it.
        Values are answered from memory all the same, within ``memory_limit``. Default: none, all is
        in memory alone.
    engine
        Where keys and values are kept: a :class:`dstore.engines.Engine`. Default: in memory, within
        ``memory_limit``. The Global closes it when it ends. If it has keys at the start, none is
        deleted or replaced during the first lease, since another Global may have answered them.
        Or the URL of a PostgreSQL database, ``postgresql://HOST/NAME``, which ``dstore cluster
        init`` has prepared: then this Global is a *member* of a cluster, and serves the part of the
        keys that it owns. A password is better kept out of the URL, in ``$PGPASSWORD``,
        ``~/.pgpass`` or a service file. This needs the extra ``dstore[postgres]``.
    advertise
        The address that a member of a cluster gives to clients. Default: the one that it is bound
        to, which must then name a host.
    ownership_lease
        Seconds for which a member may answer after it has made itself heard in the database, which
        it does many times as often. A member that dies is replaced after about this time. Default:
        4. A failover of the database that takes longer ends all caches.
    bulk
        Where the bytes of large values are kept: a :class:`dstore.engines.Bulk`. Default: in the
        folder ``shm``, where the Nodes of this host map them. With a bulk of your own Global puts
        none there, and Nodes of this host fetch large values and share their copies as on any other
        host. The Global closes it when it ends.
    keys
        The folder with the keys of this Global and of all clients that it admits, which
        ``dstore access init`` makes. All that clients and Global send is encrypted. Changes of the
        folder are applied while the Global runs. Default: every program that can reach the Global
        may read and write everything.
    insecure
        Whether a Global without keys may have an address that other machines can reach.

    Raises
    ------
    AddressError
        ``address`` or ``publisher`` is malformed.
    TypeError
        A parameter has a wrong type.
    ValueError
        A parameter is out of range, an object ``engine`` is given beside ``memory_limit`` or
        ``data``, ``bulk`` beside ``data``, either beside the URL of a database, ``advertise`` or
        ``ownership_lease`` without one, or ``insecure`` beside ``keys``.

    Notes
    -----
    Use a Global as a context manager, which serves in a thread, or call :meth:`run`. All methods
    may be called from any thread, :meth:`stop` and :meth:`close` from signal handlers too.

    A Global is used once. It is *new*, then *bound*, *serving*, and *closed*; ``repr`` shows which.

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

    A ``bind`` or ``start`` that fails, with AddressError or because no thread can be started,
    leaves the Global as it was and may be tried again. In a forked child, a Global that was bound
    or served is closed, which does not disturb the parent's; the child can use a new one.
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
        host_cache: int | None = None,
        data: str | os.PathLike[str] | None = None,
        engine: Engine | str | None = None,
        advertise: str | None = None,
        ownership_lease: float | None = None,
        bulk: Bulk | None = None,
        keys: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> None:
        address = addresses.check(checks.text("address", address), bind=True)
        if publisher is not None:
            publisher = addresses.check(checks.text("publisher", publisher), bind=True)
        database = database_of(engine)
        check_member(database, address, advertise, ownership_lease, data, bulk)
        if advertise is not None:
            advertise = addresses.check(checks.text("advertise", advertise))
        self._settings = GlobalSettings(
            address,
            publisher or "",
            checks.seconds("lease", lease, config.LEASE_MIN, config.LEASE_MAX),
            checks.count("log_length", log_length, 1, config.LOG_LENGTH_MAX),
            checks.count("value_limit", value_limit, 1, config.SIZE_MAX),
            checks.count("large_from", large_from, config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX),
            checks.count("max_clients", max_clients, 1, config.CLIENTS_MAX),
            checks.optional(checks.path, "shm", shm),
            checks.optional(host_cache_size, "host_cache", host_cache),
            checks.optional(folder_path, "data", data),
            checks.optional(folder_path, "keys", keys),
            checks.flag("insecure", insecure),
            memory_limit_of(memory_limit),
            database,
            advertise or "",
            checks.seconds(
                "ownership_lease",
                config.OWNERSHIP_LEASE_DEFAULT if ownership_lease is None else ownership_lease,
                config.OWNERSHIP_LEASE_MIN,
                config.OWNERSHIP_LEASE_MAX,
            ),
        )
        if self._settings.keys is not None and insecure:
            raise ValueError("insecure is for a Global without keys; give one of them")
        check_root(self._settings.shm)
        self.address, self.publisher = self._settings[:2]
        self._bulk = bulk_of(bulk, self._settings.data is not None)
        self._engine: Engine | None = None  # a member of a cluster makes one when it binds
        if database is None:
            self._engine = engine_of(engine, memory_limit, self._settings.data is not None)
        self._loop: Loop | None = None
        self._phase = Phase.NEW
        self._end = ""  # what has ended it, or is about to end it
        self._lock = native.RLock()  # a signal handler may close in the middle of bind()
        self._changer: int | None = None  # the thread that is in bind(), start() or close()
        self._thread: native.Thread | None = None
        self._server: int | None = None  # the thread in run()
        self._waiters: deque[native.Lock] = deque()  # each is held until the end
        _globals.add(self)

    def __repr__(self) -> str:
        stopping = self._end and self._phase is not Phase.CLOSED
        return f"<dstore.Global {self.address} {'stopping' if stopping else self._phase.value}>"

    # ---- life -----------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the sockets; :attr:`address` and :attr:`publisher` then have the real ports.

        Requests are answered only after :meth:`start` or :meth:`run`. Raises AddressError and
        KeyFolderError, after which it may be tried again, and GlobalClosed.
        """
        with self._change():
            self._check_open()
            self._bind()
            if self._end == CLOSED:  # by a signal handler, in the middle of this
                self._end_service()
                raise self._gone()

    def start(self) -> None:
        """Bind, and serve in a thread. Does nothing if the Global serves already.

        Raises AddressError, also if the system has too few descriptors or threads, after which it
        may be tried again, and GlobalClosed.
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
            except BaseException as error:  # or Ctrl-C; the thread sees that it is not wanted
                self._thread, self._phase = None, Phase.BOUND
                if not was_bound:
                    self._unbind()
                if isinstance(error, RuntimeError):
                    raise AddressError(no_threads(error)) from None
                raise

    def run(self) -> None:
        """Bind, and serve in the calling thread until :meth:`stop`.

        In a greenlet it serves in a system thread, so that other greenlets run meanwhile. Returns
        at once if :meth:`stop` was called before. Raises AddressError, after which it may be tried
        again, GlobalServing, GlobalClosed, and the exception that ends the service unexpectedly.
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
        """Serve in a system thread, while other greenlets run."""
        try:
            green.blocking(self._serve_to_the_end)
        except BaseException:
            self.stop()  # a greenlet was killed: its thread ends, too
            raise

    def _serve_to_the_end(self) -> None:
        self._server = native.get_ident()
        try:
            self._serve()
        except BaseException as error:
            self._note(error)
            raise
        finally:
            self._end_service()

    def stop(self) -> None:
        """Make :meth:`run` answer what is outstanding and return, or return when it is called.

        Idempotent. Returns at once.
        """
        self._end = self._end or STOPPED
        loop = self._loop
        if loop is not None and self._phase is not Phase.CLOSED:  # a forked child is CLOSED
            loop.wake()

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
        """Hold the lock of the life of this Global: one thread at a time binds, starts or closes.

        Raises RuntimeError in a signal handler that interrupts this thread while it holds the lock.
        """
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
            self._loop = Loop(self._settings, self._engine, self._bulk)
            self.address, self.publisher = self._loop.open()
            self._phase = Phase.BOUND
        except BaseException:
            self._unbind()
            raise

    def _unbind(self) -> None:
        """Return to the phase NEW."""
        self._phase = Phase.NEW
        self.address, self.publisher = self._settings[:2]
        self._give_back()

    def _give_back(self) -> None:
        if self._loop is not None:
            self._loop.close()
        self._loop = None

    def _end_service(self) -> None:
        """Release everything, unless a forked child finds what belongs to its parent."""
        if self._phase is Phase.CLOSED:
            return
        phase = Phase.CLOSED
        try:
            try:
                self._give_back()
            finally:
                self._close_storage()
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

    def _close_storage(self) -> None:
        try:
            if self._engine is not None:
                self._engine.close()
        finally:
            if self._bulk is not None:
                self._bulk.close()

    def _wait(self) -> None:
        """Return when no thread serves."""
        # Not by an Event: Ctrl-C within its wait may break its lock.
        waiter = native.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        while self._phase is Phase.SERVING:
            waiter.acquire(timeout=WAIT_MAX)

    def _note(self, error: BaseException) -> None:
        """Record which exception has ended this Global, for later calls."""
        self._end = f"was ended by {checks.shown(error)}"

    def _forked(self) -> None:
        """In a forked child: a Global that was bound belongs, with its sockets, to the parent."""
        changing, self._changer = self._changer is not None, None
        self._lock = native.RLock()
        if self._phase is Phase.NEW and not changing:
            return
        if self._phase is not Phase.CLOSED:
            self._end = "belongs to the process that this one was forked from"
        if self._loop is not None:
            self._loop.forked()
        self._phase = Phase.CLOSED
        self._thread = self._server = None

    def __enter__(self) -> Global:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _serve_here(self) -> None:
        """Serve in the thread that :meth:`start` makes."""
        with self._lock:  # until start() releases it
            if self._thread is None or not self._thread.is_this():
                return
        try:
            self._serve_to_the_end()
        except BaseException:
            log.exception("the Global of %s fails, and answers no more requests", self.address)

    def _serve(self) -> None:
        loop = self._loop
        assert loop is not None
        loop.serve(lambda: self._end)
        if self._phase is not Phase.CLOSED:  # a child that an engine has forked is CLOSED
            loop.finish()


# ---- the Globals of this process --------------------------------------------------------------

_globals: weakref.WeakSet[Global] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_globals):
        each._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Global at work: GlobalState and an engine with sockets and a loop."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dstore import clock, config, green, native, reentrancy, wire
from dstore.background import signals_left_to_this_thread
from dstore.core.effects import GlobalEffect, Send
from dstore.core.global_state import GlobalState
from dstore.engines.base import Bulk, Engine
from dstore.engines.memory import MemoryEngine
from dstore.errors import BadMessage
from dstore.limited_log import LimitedLog
from dstore.logs import Log
from dstore.messages import Buffer, Refusal, Refused
from dstore.shm import bulk_for
from dstore.transport.router import Router

log = Log("dstore.global")

FINISH_MAX = 1000
"""Messages that have arrived before the end, and are taken as any others."""
LAST_WORDS = 0.1
"""Seconds for which Global stays after its last answer. What a Local has received, and not yet
read, ZeroMQ drops when the connection is lost.
"""
FINISH_SLACK = 0.5
"""Seconds beyond one lease in which the last answers must have been given."""


class Global:
    """The authority: binds its sockets and answers until it is stopped.

    Parameters
    ----------
    address
        Where requests are taken, ``tcp://HOST:PORT`` (port 0: any free one) or ``ipc://PATH``.
    publisher
        Where deletions are published. Default: the next port, or the path with ``.pub`` added.
    lease
        Seconds for which a Local may answer from its cache without hearing from Global. A worker
        that dies delays a deletion of what it had read by at most this much.
    log_length
        How many recent deletions are kept for Locals that missed them; one that missed more
        drops its whole cache.
    memory_limit
        Bytes that keys and values may take.
    value_limit
        Bytes that one value may have.
    large_from
        Values of so many bytes travel in chunks, and the processes of a host share one copy.
    shm
        The folder for that copy, in memory. Default: ``$DSTORE_SHM``, else ``/dev/shm`` where there
        is one. Empty: large values stay in the memory of this process. Nodes of this host find
        what is in the same folder.
    engine
        Where they are kept. Default: in memory, within ``memory_limit``.

    Raises
    ------
    ValueError
        A parameter is out of its range.

    Notes
    -----
    Use it as a context manager, which serves in a thread, or call :meth:`run`. :meth:`stop` is
    safe from any thread and from signal handlers.
    """

    def __init__(
        self,
        address: str = config.ADDRESS_DEFAULT,
        *,
        publisher: str | None = None,
        lease: float = config.LEASE_DEFAULT,
        log_length: int = config.LOG_LENGTH_DEFAULT,
        memory_limit: int = config.MEMORY_LIMIT_DEFAULT,
        value_limit: int = config.VALUE_LIMIT_DEFAULT,
        large_from: int = config.LARGE_FROM_DEFAULT,
        shm: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        if not config.LEASE_MIN <= lease <= config.LEASE_MAX:
            raise ValueError(
                f"a lease has {config.LEASE_MIN} to {config.LEASE_MAX:g} seconds, not {lease}"
            )
        if not 1 <= log_length <= config.LOG_LENGTH_MAX:
            raise ValueError(f"log_length is 1 to {config.LOG_LENGTH_MAX:,}, not {log_length}")
        if memory_limit < 1:
            raise ValueError(f"memory_limit is at least 1, not {memory_limit}")
        if value_limit < 1:
            raise ValueError(f"value_limit is at least 1, not {value_limit}")
        if not config.LARGE_FROM_MIN <= large_from <= config.INLINE_BYTES_MAX:
            least, most = config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX
            raise ValueError(f"large_from is {least:,} to {most:,}, not {large_from}")
        self.address = address
        self.publisher = publisher or ""
        self._lease = float(lease)
        self._log_length = log_length
        self._engine = MemoryEngine(memory_limit) if engine is None else engine
        self._value_limit = value_limit
        self._large_from = large_from
        self._shm = shm
        self._bulk: Bulk | None = None
        self._router: Router | None = None
        self._thread: native.Thread | None = None
        self._stopping = native.Event()
        self._server: int | None = None  # the thread in run()
        self._ended = native.Event()
        self._complaints = LimitedLog(log)

    def __repr__(self) -> str:
        return f"<dstore.Global {self.address} {'bound' if self._router else 'not bound'}>"

    # ---- life -----------------------------------------------------------------------------

    def bind(self) -> None:
        """Take the addresses; :attr:`address` and :attr:`publisher` then have the real ports.

        Raises AddressError.
        """
        if self._router is not None:
            return
        with signals_left_to_this_thread():
            router = Router(self.address, self.publisher or None)
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
        )
        self._router = router

    def start(self) -> None:
        """Bind, and serve in a thread. Raises AddressError."""
        self.bind()
        self._thread = native.Thread(self._serve, "dstore-global")
        with signals_left_to_this_thread():
            self._thread.start()

    def run(self) -> None:
        """Bind, and serve in the calling thread until :meth:`stop`. Raises AddressError.

        In a greenlet it serves in a thread of the system, so that other greenlets run meanwhile.
        """
        self.bind()
        try:
            green.blocking(self._serve)
        except BaseException:
            self.stop()  # a greenlet was killed: its thread ends, too
            raise

    def _serve(self) -> None:
        assert self._router is not None
        self._server = native.get_ident()
        try:
            while not self._stopping.is_set():
                self._turn(self._router, self._state.wake_at)
            self._finish(self._router)
        finally:
            self._release()
            self._ended.set()

    def stop(self) -> None:
        """Make :meth:`run` answer what is outstanding and return."""
        self._stopping.set()
        router = self._router
        if router is not None:
            router.wake()

    def close(self) -> None:
        """Stop, and wait until the ports are free. Idempotent.

        In the thread that serves, and in a signal handler that interrupts a Node's call, it
        returns at once.
        """
        self.stop()
        if reentrancy.here() is not None:
            return
        if self._thread is not None:
            green.blocking(self._thread.join)
        elif self._server is None:
            self._release()
        elif self._server != native.get_ident():
            green.blocking(self._wait)

    def _wait(self) -> None:
        self._ended.wait()

    def _release(self) -> None:
        router, self._router = self._router, None
        if router is not None:
            router.close()
        self._engine.close()
        if self._bulk is not None:
            self._bulk.close()

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

    def _refuse(self, router: Router, route: bytes, error: BadMessage) -> None:
        self._state.counters["malformed"] += 1
        self._complaints.warning("refused a frame that is not a message of ours: %s", error)
        other = isinstance(error, wire.OtherVersion)
        refusal = Refusal.OTHER_VERSION if other else Refusal.BAD_MESSAGE
        asked = (0, 0, 0)
        if isinstance(error, wire.Malformed):
            asked = (error.epoch, error.session, error.request)
        router.send(route, wire.encode(Refused(*asked, refusal, str(error))))

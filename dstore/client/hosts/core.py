"""What the thread host and the loop host of one Local share: its state, lock, and sockets.

The lock guards the LocalState and the hosts' own records. An operation holds it while it takes a
step, and never while it waits, so that it does not matter which thread takes the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, TypeVar

from dstore import config
from dstore.client.large import LargeValues, random16
from dstore.client.settings import Settings
from dstore.codecs import KEPT, encode_kept
from dstore.core.local.membership import LAPSED
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Finished, Operation, StepResult, Steps
from dstore.errors import BadMessage, NodeClosed
from dstore.protocol import wire
from dstore.protocol.messages import Buffer, ToLocal
from dstore.runtime import clock, native, reentrancy
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.transport.link import Link

log = Log("dstore.local")

T = TypeVar("T")


class Host:
    """The common part of a Local's hosts. Everything is safe from any thread unless noted.

    ``stopping``: the Node is being closed. ``link`` has the sockets, once the Local needs Global.
    """

    link: Link

    def __init__(self, settings: Settings, label: str, observing: bool) -> None:
        given = settings.cache_bytes
        self.state = LocalState(
            random16=random16,
            label=label,
            cache_bytes=given if given is not None else config.CACHE_BYTES_DEFAULT,
            shared_bytes=given,
            kept=KEPT,
            encode=encode_kept,
            observing=observing,
            looking=settings.looking,
            joining=settings.host != "require",
            addresses=settings.addresses,
        )
        self.large = LargeValues(settings.shm, settings.shm_limit)
        self.lock = native.RLock()
        self.stopping = False
        self.malformed = 0
        self.background_thread: int | None = None
        # Called once each, with the lock, when something has changed that they may wait for.
        self.waiters: list[Callable[[], None]] = []
        # The calls of event loops that wait for a change, and whether there was one.
        self.loop_calls: Sized = ()
        self.changed = False
        self.asleep_until = LAPSED  # until when the background thread sleeps
        self.next_check = LAPSED  # when it next looks at evicted files, if there are any
        self._rate_limited_log = RateLimitedLog(log)
        self.closer: int | None = None  # the thread whose call calls ``wait_closed`` at its end
        self.wait_closed: Callable[[], None] = lambda: None

    def advance(self, operation: Steps[object], result: StepResult | None) -> Any:
        """Take one step, under the lock. Raises what the operation raises, and NodeClosed."""
        # No StopIteration may leave the block: Python 3.10 does not always release a lock when
        # Ctrl-C comes while an exception leaves its block.
        with self.lock:
            if self.stopping:
                raise closed()
            if result is not None:
                result.now = clock.now()
            try:
                return operation.send(result)  # type: ignore[arg-type]
            except StopIteration as stop:
                return Finished(stop.value)
            finally:
                self.notify()

    def end(self, operation: Operation[object]) -> None:
        """Close an operation that nothing waits for any more."""
        with self.lock:
            operation.close()
            self.notify()

    def notify(self) -> None:
        """Wake everything that may have to act after a change. The caller holds the lock."""
        if self.loop_calls:  # first, and not registered each time: a waiter below may raise
            self.changed = True
            self.wake_background()
        if self.waiters:
            waiters, self.waiters = self.waiters, []
            for wake in waiters:
                wake()
        state = self.state
        at = state.wake_at
        if self.next_check < at and state.cache.shared:
            at = self.next_check
        if at < self.asleep_until:
            self.wake_background()

    def wake_background(self) -> None:
        """Wake the background thread, if it sleeps. The caller holds the lock."""
        if self.asleep_until > LAPSED:
            self.asleep_until = LAPSED
            self.link.control.wake()

    def check_open(self) -> None:
        """Raise NodeClosed if the Node is closed."""
        if self.stopping:
            raise closed()

    def decode(self, frame: bytes, data: Buffer | None = None) -> ToLocal | None:
        """Return the message in a frame. A malformed frame is counted, logged and dropped."""
        try:
            return wire.decode_to_local(frame, data)
        except BadMessage as error:
            self.note_malformed(error)
            return None

    def note_malformed(self, error: BadMessage) -> None:
        """Count and log a frame that is dropped."""
        self.malformed += 1
        if isinstance(error, wire.OtherVersion):
            self.state.last_error = f"what answers there is of another kind: {error}"
        self._rate_limited_log.warning("dropped a frame that is not Global's: %s", error)

    def call(self, do: Callable[[], T]) -> T:
        """Call a function as one call of a Node.

        Raises RuntimeError if the thread is in the middle of a call, as in a destructor or a
        signal handler, or is the background thread.
        """
        me = native.get_ident()
        if me in reentrancy.inside or me == self.background_thread:
            raise interrupted()
        try:
            reentrancy.inside[me] = self
            return do()
        finally:
            # Not in a function of its own: Ctrl-C may come when that is called.
            reentrancy.inside.pop(me, None)
            if self.closer == me:
                self.wait_closed()

    def aside(self, do: Callable[[], T]) -> T | None:
        """Call a function with the lock, so that signal handlers cannot make calls meanwhile.

        Does nothing, and returns None, where :meth:`call` raises RuntimeError: what the thread was
        interrupted in may have been half of a change.
        """
        me = native.get_ident()
        if me in reentrancy.inside or me == self.background_thread:
            return None
        try:
            reentrancy.inside[me] = self
            with self.lock:
                return do()
        finally:
            reentrancy.inside.pop(me, None)
            if self.closer == me:
                self.wait_closed()

    def stop(self, wait_closed: Callable[[], None]) -> None:
        """Let every call end with NodeClosed. ``wait_closed`` waits until the Local has ended.

        It is called here, unless this thread is in the middle of a call: of another Node, then not
        at all, or of this one, then at the end of that call.
        """
        occupied = reentrancy.here()
        with self.lock:
            self.stopping = True
            if occupied is self:
                self.closer, self.wait_closed = native.get_ident(), wait_closed
            self.state.lapse()
            self.notify()
        if "link" in vars(self):
            self.link.control.wake()
        if occupied is None:
            wait_closed()


def closed() -> NodeClosed:
    """Return the error for a call of a Node that is closed."""
    return NodeClosed("the Node is closed")


def interrupted() -> RuntimeError:
    """Return the error for a call in the middle of another."""
    return RuntimeError(
        "a Node cannot be used by a destructor, signal handler or callback that interrupts one; "
        "note what is to be done, and do it afterwards"
    )

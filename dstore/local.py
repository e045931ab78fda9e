"""The cache of one process at work: LocalState with sockets, a thread and a lock.

A background thread owns the control channel: it joins, renews the lease, applies deletions and
acknowledges them. Requests run in the calling threads, each on a channel of its own, so that a
slow one delays neither the lease nor anybody else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dstore import clock, content, wire
from dstore.core.effects import Dropped, LocalEffect, Subscribe, Tell
from dstore.core.local_state import LocalState
from dstore.core.operations import Ask, Operation, Resumed, Step, Until
from dstore.errors import AddressError, BadMessage, NodeClosed, ValueCorrupt
from dstore.limited_log import LimitedLog
from dstore.messages import (
    REPLIES,
    Get,
    GetReply,
    Key,
    Reply,
    Request,
    Set,
    SetReply,
    ToLocal,
)
from dstore.transport.channel import Channel
from dstore.transport.link import Link
from dstore.transport.waker import signals_left_to_this_thread

log = logging.getLogger("dstore.local")

T = TypeVar("T")
GOODBYE_MAX = 0.5
"""Seconds that closing waits for Global to answer the goodbye."""
WAIT_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""
FAILURE_PAUSE = 0.1
"""Seconds that the background thread rests after it failed."""


def random16() -> bytes:
    """16 bytes that nobody else will ever draw."""
    return os.urandom(16)


class Local:
    """One live Local, of one process. :meth:`run` is safe from any thread.

    Raises AddressError if ``address`` cannot be connected to.
    """

    def __init__(
        self,
        address: str,
        *,
        label: str,
        cache_bytes: int,
        on_deletion: Callable[[Key], None] | None,
    ) -> None:
        self.state = LocalState(random16=random16, label=label, cache_bytes=cache_bytes)
        self.malformed = 0
        self._on_deletion = on_deletion
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._inside: set[int] = set()  # threads in run()
        self._asleep_until = float("-inf")
        self._complaints = LimitedLog(log)
        self._stopping = False
        self._closer: threading.Thread | None = None
        self._thread = threading.Thread(target=self._serve, name="dstore-local", daemon=True)
        with signals_left_to_this_thread():
            self._link = Link(address)
            self._control = self._link.control
            self._thread.start()

    def __repr__(self) -> str:
        return f"<Local {self.state!r}>"

    # ---- in the calling threads -----------------------------------------------------------

    def run(self, start: Callable[[LocalState, float], Operation[T]]) -> T:
        """Carry out an operation. Raises what it raises, and NodeClosed.

        RuntimeError if the thread is inside of another one: in a destructor or signal handler.
        """
        me = threading.get_ident()
        if me in self._inside or me == self._thread.ident:
            raise RuntimeError(
                "a Node cannot be used by a destructor, signal handler or callback that "
                "interrupts it; note what is to be done, and do it afterwards"
            )
        self._inside.add(me)
        try:
            return self._run(start)
        finally:
            self._inside.discard(me)
            if self._closer is threading.current_thread():
                self._shut()

    def _run(self, start: Callable[[LocalState, float], Operation[T]]) -> T:
        channel: Channel | None = None
        done = False
        operation: Operation[T] | None = None
        try:
            with self._lock:
                self._check_open()
                now = clock.now()
                operation = start(self.state, now)
                step = self._advance(operation, None)
            while True:
                if isinstance(step, Ask):
                    channel = channel or self._link.channels.take()
                    reply, sent = self._ask(channel, step)
                    with self._lock:
                        self._check_open()
                        step = self._advance(operation, Resumed(clock.now(), reply, sent))
                else:
                    with self._lock:
                        self._wait(step)
                        self._check_open()
                        step = self._advance(operation, Resumed(clock.now()))
        except StopIteration as stop:
            done = True
            result: T = stop.value
            return result
        finally:
            if not done and operation is not None:
                with self._lock:
                    operation.close()
                    self._tell_waiting()
            if channel is not None:
                if done:
                    self._link.channels.give_back(channel)
                else:
                    channel.close()

    def _advance(self, operation: Operation[T], resumed: Resumed | None) -> Step:
        """One step of an operation, under the lock; then whoever waits looks again."""
        try:
            return operation.send(resumed)  # type: ignore[arg-type]
        finally:
            self._tell_waiting()
            if self.state.wake_at < self._asleep_until:
                self._control.wake()

    def _wait(self, step: Until) -> None:
        self._waiting += 1
        try:
            while not self._stopping:
                now = clock.now()
                if step.predicate(now) or now >= step.until:
                    return
                self._changed.wait(min(step.until - now, WAIT_MAX))
        finally:
            self._waiting -= 1

    def _tell_waiting(self) -> None:
        if self._waiting:
            self._changed.notify_all()

    def _ask(self, channel: Channel, step: Ask) -> tuple[Reply | None, bool]:
        """Send a request; the reply that bears its number, if it comes in time; whether it left."""
        request = step.message
        if not channel.send(wire.encode(request), step.until - clock.now()):
            return None, False
        while True:
            left = step.until - clock.now()
            frame = channel.receive(min(left, WAIT_MAX))
            if frame is None and left > WAIT_MAX and not self._stopping:
                continue
            if frame is None:
                return None, True
            message = self._decode(frame)
            if isinstance(message, REPLIES) and message.request == request.request:
                _verify(request, message)
                return message, True

    def _check_open(self) -> None:
        if self._stopping:
            raise NodeClosed("the Node is closed")

    # ---- the background thread ------------------------------------------------------------

    def _serve(self) -> None:
        try:
            goodbye_until = None
            while goodbye_until is None or (self.state.session and clock.now() < goodbye_until):
                self._guarded_turn(goodbye_until)
                if self._stopping and goodbye_until is None:
                    goodbye_until = clock.now() + GOODBYE_MAX
                    with self._lock:
                        self.state.goodbye(clock.now())
        finally:
            self._control.close()
            if self._closer is threading.current_thread():
                self._link.close()

    def _guarded_turn(self, until: float | None) -> None:
        try:
            self._turn(until)
        except Exception:  # a bug of ours; without this thread the Node would be of no more use
            log.exception("the background thread of a Node failed and goes on")
            time.sleep(FAILURE_PAUSE)

    def _turn(self, until: float | None) -> None:
        with self._lock:
            wake_at = self.state.wake_at
            effects = self.state.tick(clock.now()) if wake_at <= clock.now() else []
            wake_at = self._asleep_until = self.state.wake_at
        self._perform(effects)
        if self._stopping and until is None:
            return
        self._control.wait(min(wake_at, until or wake_at) - clock.now())
        up = self._control.reconnected()
        frames = self._control.receive()
        messages = [message for message in map(self._decode, frames) if message is not None]
        effects = []
        with self._lock:
            self._asleep_until = float("-inf")
            now = clock.now()
            if up:
                self.state.reconnected(now)
            for message in messages:
                effects += self.state.receive(message, now)
            effects += self.state.tick(now)
            self._tell_waiting()
        self._perform(effects)

    def _perform(self, effects: list[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self._control.send(wire.encode(effect.message))
            elif isinstance(effect, Subscribe):
                self._subscribe(effect.publisher)
            elif self._on_deletion is not None:
                self._announce(effect, self._on_deletion)

    def _subscribe(self, publisher: str) -> None:
        try:
            self._control.subscribe(publisher)
        except AddressError as error:
            log.warning("cannot hear deletions, only renewals bring them: %s", error)

    @staticmethod
    def _announce(effect: Dropped, callback: Callable[[Key], None]) -> None:
        for key in effect.keys:
            try:
                callback(key)
            except BaseException:
                log.exception("on_deletion(%r) failed", key)

    def _decode(self, frame: bytes) -> ToLocal | None:
        try:
            return wire.decode_to_local(frame)
        except BadMessage as error:
            self.malformed += 1
            if isinstance(error, wire.OtherVersion):
                self.state.obstacle = f"what answers there is of another kind: {error}"
            self._complaints.warning("dropped a frame that is not Global's: %s", error)
            return None

    # ---- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, wake whoever waits, give everything back. Safe from any thread.

        Called by ``on_deletion``, or by a signal handler in the middle of a call, it returns at
        once; the rest is done when that call, or the background thread, ends.
        """
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._closer = threading.current_thread()
            self.state.lease_end = float("-inf")
            self._changed.notify_all()
        self._control.wake()
        if self._closer is not self._thread and threading.get_ident() not in self._inside:
            self._shut()

    def abandon(self) -> None:
        """Like close, for the garbage collector: takes no lock and waits for nobody."""
        self._closer = self._thread
        self._stopping = True
        self.state.lease_end = float("-inf")
        self._control.wake()

    def _shut(self) -> None:
        self._closer = None
        self._thread.join()
        self._link.close()


def _verify(request: Request, reply: Reply) -> None:
    """Raise ValueCorrupt if a value that came does not hash to its content address."""
    if isinstance(request, Get) and isinstance(reply, GetReply):
        pairs = zip(request.keys, reply.items)
    elif isinstance(request, Set) and isinstance(reply, SetReply):
        pairs = zip((item.key for item in request.items), (each.found for each in reply.items))
    else:
        return
    for key, found in pairs:
        if found is not None and not content.matches(key, found.stored):
            raise ValueCorrupt(f"the value that Global sent for {key} is not what it names")

"""The cache of one process at work: LocalState with sockets, a thread and a lock.

A background thread owns the control channel: it joins, renews the lease, applies deletions and
acknowledges them. Requests run in the calling threads, each on a channel of its own, so that a
slow one delays neither the lease nor anybody else.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from dstore.client.files import Progress
from dstore.client.large import LargeValues, random16, release
from dstore.client.watch import Watch
from dstore.core.local.effects import Announce, Dropped, LocalEffect, Subscribe, Tell
from dstore.core.local.operations import (
    FetchBody,
    Operation,
    Request,
    SendBody,
    Step,
    StepResult,
    WaitUntil,
)
from dstore.core.local.state import LocalState
from dstore.core.local.transfer import Body, Damaged, Moved, Send, Transfer, TransferFailed, upload
from dstore.core.local.watching import ALL
from dstore.errors import AddressError, BadMessage, GlobalUnavailable, NodeClosed, ValueCorrupt
from dstore.protocol import content, wire
from dstore.protocol.messages import (
    REPLIES,
    Broadcast,
    Buffer,
    Chunk,
    Committed,
    Found,
    Get,
    GetReply,
    Key,
    Reply,
    RequestMessage,
    Set,
    SetReply,
    Staged,
    ToLocal,
    Wait,
)
from dstore.quoting import visible
from dstore.runtime import clock, native, reentrancy
from dstore.runtime import greenlets as green
from dstore.runtime.logs import Log
from dstore.runtime.rate_limited_log import RateLimitedLog
from dstore.runtime.signals import signals_blocked
from dstore.transport.channel import Channel
from dstore.transport.limits import no_threads
from dstore.transport.link import Link

log = Log("dstore.local")

T = TypeVar("T")
GOODBYE_MAX = 0.5
"""Seconds that closing waits for Global to answer the goodbye."""
WAIT_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""
FAILURE_PAUSE = 0.1
"""Seconds that the background thread rests after it failed."""
LOOK_EVERY = 2.0
"""Seconds between two looks at whether the shared files of cached values are still there."""
LOOK_MAX = 500
"""Files looked at in one go."""
DELETIONS, NEWS = wire.topic(Broadcast), wire.topic(Committed)
NO_BODIES: Mapping[bytes, Body] = {}


class Driver(Protocol):
    """Drives the operations of event loops in the background thread; see :mod:`dstore.client.hosts.loop`."""

    @property
    def wake_at(self) -> float: ...
    def notify(self) -> None: ...
    def turn(self) -> None: ...
    def shut(self) -> None: ...
    def join(self) -> None: ...


class Moving(NamedTuple):
    """How an operation moves large values: what it has, whom it tells, whether it is given up."""

    bodies: Mapping[bytes, Body]
    progress: Progress | None
    given_up: Callable[[], bool] = lambda: False

    def told(self, size: int) -> Callable[[Reply | None], None]:
        """What is to be told of each reply of a transfer of ``size`` bytes."""
        progress = self.progress

        def tell(reply: Reply | None) -> None:
            if progress is None:
                return
            if isinstance(reply, Staged):
                progress("sending", reply.received, size)
            elif isinstance(reply, Chunk):
                progress("fetching", min(size, reply.offset + len(reply.data)), size)

        return tell


class Ended(Generic[T]):
    """What an operation returned."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class GivenUp(Exception):
    """Nobody waits for this transfer any more."""


class Local:
    """One Local, of one process, alive from :meth:`start` on. :meth:`run` is for any thread."""

    def __init__(
        self,
        address: str,
        *,
        label: str,
        cache_bytes: int,
        on_deletion: Callable[[Key], None] | None,
        shm: str | None,
        shm_limit: int | None,
    ) -> None:
        self.state = LocalState(random16=random16, label=label, cache_bytes=cache_bytes)
        self.large = LargeValues(shm, shm_limit)
        self.malformed = 0
        self._look_at = float("-inf")
        self._unlooked: list[bytes] = []
        self._on_deletion = on_deletion
        self._lock = native.RLock()
        self._waiters: list[native.Lock] = []  # each is held, until something has changed
        self._asleep_until = float("-inf")
        self._watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)
        self.driver: Driver | None = None
        self._rate_limited_log = RateLimitedLog(log)
        self._stopping = False
        self._trouble = ""  # why Global is not reached
        self._closer: int | None = None  # the thread whose call waits for the end
        self._thread = native.Thread(self._serve, "dstore-local")
        self._address = address

    def start(self) -> None:
        """Begin to join. Raises AddressError, and GlobalUnavailable if there are no sockets, or no
        threads, to be had.
        """
        try:
            with signals_blocked():
                self._link = Link(self._address)
                self._control = self._link.control
                self._control.set_topics({DELETIONS})
                try:
                    self._thread.start()
                except RuntimeError as error:
                    raise GlobalUnavailable(no_threads(error)) from None
        except BaseException:  # Ctrl-C, perhaps: nobody will know this one
            self.abandon()
            raise

    def __repr__(self) -> str:
        return f"<Local {self.state!r}>"

    # ---- in the calling threads -----------------------------------------------------------

    def run(
        self,
        start: Callable[[LocalState, float], Operation[T]],
        bodies: Mapping[bytes, Body] = NO_BODIES,
        progress: Progress | None = None,
    ) -> T:
        """Carry out an operation. Raises what it raises, and NodeClosed.

        ``bodies`` has the bytes, by token, of the large values that it writes; ``progress`` is told
        how far their transfers have come.

        RuntimeError as for :meth:`work`.
        """
        result: T = self._called(self._run, start, bodies, progress)
        return result

    def work(self, do: Callable[[LocalState, LargeValues], T]) -> T:
        """Call a function that takes its time. Raises what it raises.

        RuntimeError if the thread is in the middle of a call: in a destructor or signal handler.
        """
        result: T = self._called(do, self.state, self.large)
        return result

    def _called(self, do: Callable[..., Any], *arguments: Any) -> Any:
        me = native.get_ident()
        if me in reentrancy.inside or me == self._thread.ident:
            raise RuntimeError(
                "a Node cannot be used by a destructor, signal handler or callback that "
                "interrupts one; note what is to be done, and do it afterwards"
            )
        try:
            reentrancy.inside[me] = self
            return do(*arguments)
        finally:
            reentrancy.inside.pop(me, None)
            if self._closer == me:
                self._ended()

    def _run(
        self,
        start: Callable[[LocalState, float], Operation[T]],
        bodies: Mapping[bytes, Body],
        progress: Progress | None,
    ) -> T:
        channel: Channel | None = None
        done = False
        operation: Operation[T] | None = None
        try:
            with self._lock:
                self._check_open()
                now = clock.now()
                operation = start(self.state, now)
                step = self._advance(operation, None)
            while not isinstance(step, Ended):
                if isinstance(step, WaitUntil):
                    resumed = self._wait(step)
                else:
                    channel = channel or self._link.channels.take()
                    if isinstance(step, Request):
                        resumed = self._ask(channel, step)
                    else:
                        resumed = self._carry_out(channel, step, Moving(bodies, progress))
                with self._lock:
                    self._check_open()
                    resumed.now = clock.now()
                    step = self._advance(operation, resumed)
            done = True
            result: T = step.value
            return result
        finally:
            if not done and operation is not None:
                with self._lock:
                    operation.close()
                    self._notify()
            if channel is not None:
                kept = False
                try:
                    if done:
                        self._link.channels.give_back(channel)
                        kept = True
                finally:
                    if not kept:
                        channel.close()

    def _advance(self, operation: Operation[T], resumed: StepResult | None) -> Step | Ended[T]:
        """One step of an operation, under the lock; then whoever waits looks again.

        No StopIteration leaves here: Python 3.10 does not always release a lock when Ctrl-C comes
        while an exception leaves its block.
        """
        try:
            return operation.send(resumed)  # type: ignore[arg-type]
        except StopIteration as stop:
            return Ended(stop.value)
        finally:
            self._notify()

    def _wait(self, step: WaitUntil) -> StepResult:
        """Return when what the operation waits for may be there, or it has waited enough.

        Not with a Condition: Ctrl-C within its wait may leave it without the lock that its caller
        is about to release. Whoever is woken takes a step, and that empties the list.
        """
        while True:
            waiter = native.Lock()
            waiter.acquire()
            with self._lock:
                now = clock.now()
                if self._stopping or now >= step.until or step.predicate(now):
                    return StepResult(now)
                self._waiters.append(waiter)
            waiter.acquire(timeout=min(step.until - now, WAIT_MAX))

    def _notify(self) -> None:
        """Something may have changed: wake whom it concerns. With the lock, as the next one."""
        if self._waiters:
            self._wake_waiters()
        if self.driver is not None:
            self.driver.notify()
        self._wake_thread()

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()

    def _wake_thread(self) -> None:
        """Wake the background thread if it would sleep for too long."""
        if self._wake_at < self._asleep_until:
            self._asleep_until = float("-inf")
            self._control.wake()

    def _carry_out(self, channel: Channel, step: FetchBody | SendBody, large: Moving) -> StepResult:
        """Move a large value, without the lock."""
        request = step.envelope[2]
        told = large.told(step.stored.size)

        def move(transfer: Transfer[None]) -> None:
            self._move(channel, transfer, request, told, check)

        def check() -> None:
            self._check_open()
            if large.given_up():
                raise GivenUp

        try:
            if isinstance(step, FetchBody):
                return StepResult(0, held=self.large.obtain(step, move, check))
            body = large.bodies[step.stored.token]
            move(upload(step.envelope, step.stored, body, clock.now(), step.stall_timeout))
        except TransferFailed as failed:
            return StepResult(0, failed=failed)
        except Damaged:
            raise ValueCorrupt("the value was damaged on its way, or at Global") from None
        return StepResult(0)

    def _ask(self, channel: Channel, step: Request) -> StepResult:
        """Send a request, and wait for the reply that bears its number, without the lock."""
        request = step.message
        if not channel.send(wire.encode(request), step.until - clock.now()):
            return StepResult(0)
        reply = self._reply(channel, request.request, step.until, self._check_open)
        if reply is not None:
            verify(request, reply)
        return StepResult(0, reply, True)

    def _move(
        self,
        channel: Channel,
        transfer: Transfer[None],
        request: int,
        told: Callable[[Reply | None], None],
        check: Callable[[], None],
    ) -> None:
        """Carry out a transfer to its end, unless ``check`` raises something."""
        try:
            step = next(transfer)
            while True:
                check()
                if isinstance(step, Send):
                    frame, data = wire.encode(step.message), wire.data_of(step.message)
                    sent = channel.send(frame, step.until - clock.now(), data)
                    step = transfer.send(Moved(clock.now(), sent=sent))
                else:
                    reply = self._reply(channel, request, step.until, check)
                    told(reply)
                    step = transfer.send(Moved(clock.now(), reply))
        except StopIteration:
            return

    def _reply(
        self, channel: Channel, request: int, until: float, check: Callable[[], None]
    ) -> Reply | None:
        """The next reply that bears this number, if one comes in time."""
        while True:
            check()
            left = until - clock.now()
            arrived = channel.receive(min(left, WAIT_MAX))
            if arrived is None and left > WAIT_MAX:
                continue
            if arrived is None:
                return None
            message = self._decode(*arrived)
            if isinstance(message, REPLIES) and message.request == request:
                return message

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
                    if self.driver is not None:
                        self.driver.shut()
                    with self._lock:
                        self.state.goodbye(clock.now())
        finally:
            self._end_watches()
            self._control.close()
            self.large.close()
            self._link.close(reentrancy.inside.__contains__)

    def _guarded_turn(self, until: float | None) -> None:
        try:
            self._turn(until)
        except Exception:  # a bug of ours; without this thread the Node would be of no more use
            log.exception("the background thread of a Node failed and goes on")
            native.sleep(FAILURE_PAUSE)

    def _turn(self, until: float | None) -> None:
        self._look(clock.now())
        with self._lock:
            due = self.state.wake_at <= clock.now()
            effects = self.state.tick(clock.now()) if due else []
            wake_at = self._asleep_until = self._wake_at
            watched = bool(self.state.watching.watchers)
        self._control.set_topics({DELETIONS, NEWS} if watched else {DELETIONS})
        self._perform(effects)
        if self._stopping and until is None:
            return
        frames, up = self._control.wait(min(wake_at, until or wake_at) - clock.now())
        messages = [message for message in map(self._decode, frames) if message is not None]
        effects = []
        with self._lock:
            self._asleep_until = float("-inf")
            now = clock.now()
            if up:
                self.state.reconnected(now)
            if self._trouble != self._control.last_error:
                self._trouble = self.state.last_error = self._control.last_error
            for message in messages:
                effects += self.state.receive(message, now)
            effects += self.state.tick(now)
            self._notify()
        self._perform(effects)
        if self.driver is not None:
            self.driver.turn()

    def _perform(self, effects: list[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self._control.send(wire.encode(effect.message))
            elif isinstance(effect, Subscribe):
                self._subscribe(effect.publisher)
                self.large.joined(effect.epoch)
            elif isinstance(effect, Announce):
                self._announce_removals(effect)
            else:
                self.large.drop(effect.tokens)
                release(effect.entries)
                if self._on_deletion is not None:
                    self._announce(effect, self._on_deletion)

    def _subscribe(self, publisher: str) -> None:
        try:
            self._control.subscribe(publisher)
        except AddressError as error:
            log.warning("cannot hear deletions, only renewals bring them: %s", visible(str(error)))

    @staticmethod
    def _announce(effect: Dropped, callback: Callable[[Key], None]) -> None:
        for key in effect.keys:
            try:
                callback(key)
            except BaseException:
                log.exception("on_deletion(%r) failed", key)

    @property
    def _wake_at(self) -> float:
        """When the background thread has something to do."""
        looks = self.state.cache.shared or self._unlooked
        at = min(self.state.wake_at, self._look_at) if looks else self.state.wake_at
        return at if self.driver is None else min(at, self.driver.wake_at)

    def _announce_removals(self, effect: Announce) -> None:
        with self._lock:
            watches = {n: watch for n, watch in self._watches.items() if not watch.over}
            for number in self.state.watching.watchers - set(watches):
                self.state.unwatch(number)  # these were closed, or dropped
        for removal in effect.removals:
            for number, watch in watches.items():
                if removal.watcher in (ALL, number):
                    watch.put(removal.key)

    def _look(self, now: float) -> None:
        """Give up cached values whose files have been evicted: they keep the memory taken."""
        if not self._unlooked:
            if now < self._look_at:
                return
            with self._lock:
                self._unlooked = list(self.state.cache.shared)
        tokens, self._unlooked = self._unlooked[:LOOK_MAX], self._unlooked[LOOK_MAX:]
        self._look_at = now if self._unlooked else now + LOOK_EVERY
        shared = self.state.cache.shared
        gone = self.large.evicted(entry for token in tokens if (entry := shared.get(token)))
        with self._lock:
            entries = [shared[token] for token in gone if token in shared]
            for key in [entry.key for entry in entries]:  # no variable is to keep one of them
                self.state.cache.discard(key)
        release(entries)

    def _decode(self, frame: bytes, data: Buffer | None = None) -> ToLocal | None:
        try:
            return wire.decode_to_local(frame, data)
        except BadMessage as error:
            self.malformed += 1
            if isinstance(error, wire.OtherVersion):
                self.state.last_error = f"what answers there is of another kind: {error}"
            self._rate_limited_log.warning("dropped a frame that is not Global's: %s", error)
            return None

    # ---- watches --------------------------------------------------------------------------

    def watch(self, prefix: Key, limit: int) -> Watch:
        """A new watch of the keys that begin with ``prefix``. Raises NodeClosed."""
        watch = Watch(prefix, limit)

        def begin(state: LocalState, _: object) -> None:
            with self._lock:
                self._check_open()
                number = next(self._numbers)
                self._watches[number] = watch
                state.watch(number, clock.now())
            self._control.wake()

        self.work(begin)
        return watch

    def _end_watches(self) -> None:
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.close()

    def forked(self) -> None:
        """In the child: nothing of this is ours, and nobody will tell our watches anything."""
        for watch in list(self._watches.values()):
            watch.close()

    # ---- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, wake whoever waits, give everything back. Safe from any thread; idempotent.

        The background thread does all that, so that Ctrl-C meanwhile leaves nothing half done. It
        is waited for; but not by itself (``on_deletion``), nor by a signal handler in the middle
        of a call of any Node. Of a call of this one the end then waits for it.
        """
        occupied = reentrancy.here()
        with self._lock:
            self._stopping = True
            if occupied is self:
                self._closer = native.get_ident()
            self.state.lease_end = float("-inf")
            self._wake_waiters()
        self._control.wake()
        if occupied is None:
            self._ended()

    def abandon(self) -> None:
        """Like close, for the garbage collector: takes no lock and waits for nobody."""
        self._stopping = True
        self.state.lease_end = float("-inf")
        if self._thread.started:
            self._control.wake()
        elif (link := vars(self).pop("_link", None)) is not None:  # it was not to be
            link.control.close()
            link.close(reentrancy.inside.__contains__)

    def _ended(self) -> None:
        """Wait for the end of the background thread, unless this is it."""
        if not self._thread.is_this():
            green.blocking(self._join)

    def _join(self) -> None:
        self._thread.join()
        if self.driver is not None:
            self.driver.join()


def verify(request: RequestMessage, reply: Reply) -> None:
    """Raise ValueCorrupt if a value that came does not hash to its content address."""
    pairs: Iterable[tuple[Key, Found | None]]
    if type(reply) is GetReply and type(request) is Get:
        pairs = zip(request.keys, reply.items)
    elif type(reply) is GetReply and type(request) is Wait:
        pairs = zip([request.key], reply.items)
    elif type(reply) is SetReply and type(request) is Set:
        pairs = zip((item.key for item in request.items), (each.found for each in reply.items))
    else:
        return
    for key, found in pairs:
        if found is not None and not content.matches(key, found.stored):
            raise ValueCorrupt(f"the value that Global sent for {key} is not what it names")

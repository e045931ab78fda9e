"""The other half of a Local: any number of operations of event loops, in its background thread.

A task of an event loop begins a :class:`Call`. The first step is taken at once, in the thread of
the loop, and what needs no answer ends there. What is left waits here, without a thread of its own:
requests for the replies with their numbers, all on one DEALER; others for a change of the state;
all of them for their time. What would block (a large value on its way, files, hashing) is for
helper threads. Whichever thread ends a call tells the task with ``Call.done``.

The lock of the Local guards all of this. An operation holds it between its waits, here as there, so
that it does not matter which thread takes a step. Being the other half of a Local, and made only
for one that event loops use, a Driver knows its inner parts.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dstore.client.files import Progress
from dstore.client.hosts.helpers import Helpers
from dstore.client.hosts.threads import Ended, Local, Moving, verify
from dstore.client.large import LargeValues
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
from dstore.core.local.transfer import Body
from dstore.errors import GlobalUnavailable, NodeClosed, ValueCorrupt
from dstore.protocol import wire
from dstore.protocol.messages import REPLIES, Get, Reply, Scan, Stats
from dstore.runtime import clock, reentrancy
from dstore.runtime.logs import Log
from dstore.transport.requests import Requests

log = Log("dstore.local")

READS = (Get, Scan, Stats)
READS_MAX = 512
"""Reads under way at a time; more wait in line. A Global drops replies for a connection on which
too many stand (1,000, says ZeroMQ), and these would have to be asked for again. Other requests may
take their time, and their replies are small: they are not counted.
"""
IN_FLIGHT_BYTES_MAX = 8 << 20
"""Bytes of requests that are sent and not answered; then others wait in line. A Global cuts a
connection on which too many bytes wait to be taken.
"""
BATCH = 100
"""Requests that are sent before the lock is taken again."""
TIMERS_MIN = 64
JOIN_MAX = 0.5
"""Seconds that closing waits for helper threads."""
LAPSED, NEVER = float("-inf"), float("inf")


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """One step of a command, for which a task of an event loop waits: an operation, or some work.

    ``done`` is called when it is over, by whatever thread, which has no lock then; but not if it is
    over when it has just been begun, nor when it has been given up.
    """

    done: Callable[[], None]
    begun: bool = False
    over: bool = False
    given_up: bool = False
    value: Any = None
    error: BaseException | None = None
    # For the driver:
    operation: Operation[Any] | None = None
    moving: Moving | None = None
    step: Step | None = None
    sent: bool = False  # the request that it waits for
    size: int = 0  # of that request, in bytes, once it is sent
    timer: int = 0
    busy: bool = False  # a helper thread has it in hand, or will
    after: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Call over={self.over} busy={self.busy} step={self.step!r}>"

    def result(self) -> Any:
        """What came of it, once it is over; what it raised is raised."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # which knows this frame: no circle is left


def driver_of(local: Local) -> Driver:
    """The driver of a Local, which has none until it is needed. Safe from any thread."""
    driver = local.driver
    if driver is None:
        with local._lock:
            driver = local.driver = local.driver or Driver(local)
    assert isinstance(driver, Driver)
    return driver


class Driver:
    """The calls of one Local that are under way.

    The first methods are for the threads of event loops, any of them.
    """

    def __init__(self, local: Local) -> None:
        self._local = local
        self._lock = local._lock
        self._helpers = Helpers()
        self._asks: dict[int, Call] = {}
        self._unsent: OrderedDict[Call, None] = OrderedDict()
        self._reading = 0  # reads that are under way
        self._in_flight_bytes = 0  # bytes of requests that are sent and not answered
        self._untils: dict[Call, None] = {}
        self._timers: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count(1)
        self._ended: deque[Call] = deque()
        self._abandoned: deque[tuple[Call, Callable[[], None]]] = deque()
        self._notified = False  # something has changed for which some wait
        self._fresh = False  # there are requests that nobody has tried to send
        self._requests: Requests | None = None

    def __repr__(self) -> str:
        return (
            f"<Driver asks={len(self._asks)} unsent={len(self._unsent)} "
            f"untils={len(self._untils)} {self._helpers!r}>"
        )

    # ---- in the threads of event loops ----------------------------------------------------

    def run(
        self,
        call: Call,
        start: Callable[[LocalState, float], Operation[Any]],
        bodies: Mapping[bytes, Body],
        progress: Progress | None,
    ) -> None:
        """Begin an operation; see :meth:`dstore.client.hosts.threads.Local.run`. It may be over at once.

        Raises NodeClosed, and RuntimeError as that does.
        """

        def begin() -> None:
            with self._lock:
                self._local._check_open()
                call.moving = Moving(bodies, progress, lambda: call.given_up)
                call.operation = start(self._local.state, clock.now())
                self._advance(call, None)
                call.begun = True

        self._local._called(begin)

    def work(self, call: Call, do: Callable[[LocalState, LargeValues], Any]) -> None:
        """Begin work that takes its time. Raises what :meth:`run` raises."""

        def begin() -> None:
            with self._lock:
                self._local._check_open()
                self._submit(call, lambda: do(self._local.state, self._local.large))
                call.begun = True

        self._local._called(begin)

    def give_up(self, call: Call, after: Callable[[], None]) -> None:
        """Nobody waits for the call any more: what comes later is stored nowhere.

        ``after`` is called when no other thread has the call in hand: now, or by that thread.
        """
        if reentrancy.here() is None:
            self._local._called(lambda: self._give_up(call, after))
        else:
            self.abandon(call, after)

    def abandon(self, call: Call, after: Callable[[], None]) -> None:
        """The same for the garbage collector, which may come at any point of any thread: takes no
        lock, and leaves it to the background thread.
        """
        self._abandoned.append((call, after))
        self._local._control.wake()

    def _give_up(self, call: Call, after: Callable[[], None]) -> None:
        with self._lock:
            call.given_up = True
            call.after = after
            if not call.over:
                self._close(call)
        self._clean_up(call)

    # ---- for the Local, with its lock -----------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`turn` is next due."""
        if self._fresh or self._notified or self._abandoned:
            return LAPSED
        return self._timers[0][0] if self._timers else NEVER

    def notify(self) -> None:
        """Something has changed: those who wait for a change look again in the next turn."""
        self._notified = bool(self._untils)

    # ---- in the background thread ---------------------------------------------------------

    def turn(self) -> None:
        """Take what has come, do what is due, send what can be sent."""
        self._take_abandoned()
        self._receive()
        with self._lock:
            self._fresh = False
            self._look_again()
            self._expire()
        self._send()
        self._tell()

    def shut(self) -> None:
        """The Node is closed: all calls end, those in the hands of helper threads by these."""
        self._take_abandoned()
        with self._lock:
            for call in (*self._asks.values(), *self._untils):
                self._fail(call, NodeClosed("the Node is closed"))
        self._tell()
        self._helpers.close()
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def join(self) -> None:
        """Wait, but not for long, until the helper threads have ended. In any thread."""
        self._helpers.join(JOIN_MAX)

    def _take_abandoned(self) -> None:
        while self._abandoned:
            self._give_up(*self._abandoned.popleft())

    def _receive(self) -> None:
        if self._requests is None:
            return
        arrived: list[tuple[Call, Request, Reply, ValueCorrupt | None]] = []
        for frame in self._requests.receive():
            reply = self._local._decode(frame)
            if isinstance(reply, REPLIES):
                call = self._asks.get(reply.request)
                step = call.step if call is not None else None
                if call is not None and isinstance(step, Request):
                    arrived.append((call, step, reply, _damage(step, reply)))
        with self._lock:
            for call, step, reply, damage in arrived:
                if self._asks.get(reply.request) is not call or call.step is not step:
                    continue  # given up meanwhile, or answered twice
                if damage is not None:
                    self._fail(call, damage)
                else:
                    self._advance(call, StepResult(clock.now(), reply, sent=True))

    def _look_again(self) -> None:
        if self._notified:
            self._notified = False
            now = clock.now()
            for call in list(self._untils):
                assert isinstance(call.step, WaitUntil)
                if call.step.predicate(now):
                    self._advance(call, StepResult(now))

    def _expire(self) -> None:
        now = clock.now()
        while self._timers and self._timers[0][0] <= now:
            _, number, call = heapq.heappop(self._timers)
            if call.timer == number:
                self._advance(call, StepResult(now, sent=call.sent))

    def _send(self) -> None:
        """Send what can be sent now, in its order."""
        if self._requests is None and not self._open():
            return
        assert self._requests is not None
        blocked = False
        while not blocked and (batch := self._next()):
            tried, ahead = [], self._in_flight_bytes
            for call, ask in batch:
                size = 0
                if call.step is ask:
                    frame = wire.encode(ask.message)
                    size = len(frame)
                    blocked = not self._requests.send(frame)
                if blocked:
                    break
                tried.append((call, ask, size))
                ahead += size
                if ahead >= IN_FLIGHT_BYTES_MAX:
                    break
            with self._lock:
                for call, ask, size in tried:
                    if call.step is ask:
                        call.sent, call.size = True, size
                        self._in_flight_bytes += size
                        self._reading += isinstance(ask.message, READS)
                        self._unsent.pop(call, None)

    def _next(self) -> list[tuple[Call, Request]]:
        """Those whose requests are to be sent next."""
        with self._lock:
            count = (
                min(BATCH, READS_MAX - self._reading)
                if self._in_flight_bytes < IN_FLIGHT_BYTES_MAX
                else 0
            )
            batch = [(call, call.step) for call in itertools.islice(self._unsent, count)]
        return [(call, step) for call, step in batch if isinstance(step, Request)]

    def _open(self) -> bool:
        """Whether there is a socket now, and something to be sent. If there is none to be had,
        those who need it are told.
        """
        if not self._unsent:
            return False
        try:
            self._requests = self._local._link.requests()
        except GlobalUnavailable as error:
            with self._lock:
                for call in list(self._unsent):
                    self._fail(call, GlobalUnavailable(*error.args))
        return self._requests is not None

    # ---- in any thread --------------------------------------------------------------------

    def _advance(self, call: Call, resumed: StepResult | None) -> None:
        """Take a step of an operation, with the lock, and note what it waits for then."""
        assert call.operation is not None
        self._leave(call)
        try:
            self._local._check_open()
            step = self._local._advance(call.operation, resumed)
            while isinstance(step, WaitUntil) and _is_over(step, now := clock.now()):
                step = self._local._advance(call.operation, StepResult(now))
            if isinstance(step, Ended):
                self._end(call, step.value)
            else:
                self._enter(call, step)
        except BaseException as error:
            self._fail(call, error)

    def _enter(self, call: Call, step: Step) -> None:
        call.step = step
        if isinstance(step, Request):
            self._asks[step.message.request] = call
            self._unsent.setdefault(call)  # one that is asked again keeps its place
            self._fresh = True
        else:
            self._unsent.pop(call, None)
        if isinstance(step, WaitUntil):
            self._untils[call] = None
        if isinstance(step, (FetchBody, SendBody)):
            moved = step
            self._submit(call, lambda: self._moved(call, moved))
        else:
            call.timer = next(self._numbers)
            heapq.heappush(self._timers, (step.until, call.timer, call))
            self._drop_old_timers()
        self._local._wake_thread()

    def _leave(self, call: Call) -> None:
        """What it waited for has come, or does not matter any more."""
        step, call.step = call.step, None
        call.timer = 0
        if isinstance(step, Request):
            self._asks.pop(step.message.request, None)
            self._reading -= call.sent and isinstance(step.message, READS)
            self._in_flight_bytes -= call.size
            call.sent, call.size = False, 0
        elif isinstance(step, WaitUntil):
            self._untils.pop(call, None)

    def _close(self, call: Call) -> None:
        """End its operation, with the lock, wherever that is."""
        self._leave(call)
        self._unsent.pop(call, None)
        self._drop_old_timers()
        if call.operation is not None:
            call.operation.close()
            self._local._notify()

    def _fail(self, call: Call, error: BaseException) -> None:
        self._close(call)
        call.error = error
        self._end(call, None)

    def _end(self, call: Call, value: Any) -> None:
        self._unsent.pop(call, None)
        self._drop_old_timers()
        call.value = value
        call.over = True
        if call.begun:
            self._ended.append(call)

    def _drop_old_timers(self) -> None:
        """Now and then forget the timers of what has ended, at the latest when all has."""
        waiting = len(self._asks) + len(self._untils)
        if not waiting:
            self._timers.clear()
        elif len(self._timers) > TIMERS_MIN + 2 * waiting:
            self._timers = [each for each in self._timers if each[2].timer == each[1]]
            heapq.heapify(self._timers)

    def _tell(self) -> None:
        """Tell the tasks of calls that are over. Without the lock."""
        while self._ended:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._ended.popleft().done()

    # ---- helper threads -------------------------------------------------------------------

    def _submit(self, call: Call, job: Callable[[], Any]) -> None:
        """Have a helper thread do what the call waits for. With the lock."""
        self._helpers.submit(lambda: self._local._called(lambda: self._help(call, job)))
        call.busy = True

    def _help(self, call: Call, job: Callable[[], Any]) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            self._local._check_open()
            if not call.given_up:
                result = job()
        except BaseException as error:
            failure = error
        with self._lock:
            call.busy = False
            if not call.given_up:
                self._go_on(call, result, failure)
        failure = None  # which knows this frame: no circle is left
        self._clean_up(call)
        self._tell()

    def _go_on(self, call: Call, result: Any, failure: BaseException | None) -> None:
        if failure is not None:
            self._fail(call, failure)
        elif call.operation is None:
            self._end(call, result)
        else:
            result.now = clock.now()
            self._advance(call, result)

    def _moved(self, call: Call, step: FetchBody | SendBody) -> StepResult:
        """Move a large value, on a channel as calling threads have."""
        assert call.moving is not None
        channel = self._local._link.channels.take()
        whole = False
        try:
            resumed = self._local._carry_out(channel, step, call.moving)
            whole = True
            return resumed
        finally:
            if whole:
                self._local._link.channels.give_back(channel)
            else:
                channel.close()

    def _clean_up(self, call: Call) -> None:
        """Do what is to be done after a call that was given up, if no helper thread has it."""
        with self._lock:
            after = None
            if not call.busy:
                after, call.after = call.after, None
        if after is not None:
            try:
                after()
            except Exception:
                log.exception("what a cancelled call had begun could not be undone")


def _is_over(step: WaitUntil, now: float) -> bool:
    return now >= step.until or step.predicate(now)


def _damage(ask: Request, reply: Reply) -> ValueCorrupt | None:
    try:
        verify(ask.message, reply)
    except ValueCorrupt as error:
        return error
    return None

"""The loop host: commands of event loops and greenlets, any number at a time.

A task begins a :class:`LoopCall`. Its first step is taken at once, in the thread of the event loop;
an operation that needs no answer ends there. The others wait here without a thread of their own:
for a reply or for a change of the state, each until its time is up. The background thread
resumes them. Steps that block (a large value, files, hashing) are for helper threads. The thread
that ends a call wakes the task with ``done``.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from dstore.client.commands import Command
from dstore.client.hosts.calls import LoopCall, Timers
from dstore.client.hosts.channels import BodyTransfer, release_channel
from dstore.client.hosts.core import Host, closed, log
from dstore.client.hosts.helpers import Helpers
from dstore.client.hosts.pipeline import Pipeline
from dstore.core.local.membership import LAPSED
from dstore.core.local.steps import (
    FetchBody,
    Request,
    SendBody,
    Step,
    StepResult,
    T,
    WaitUntil,
    Work,
    drive,
)
from dstore.runtime import clock, reentrancy
from dstore.runtime.event_loops import TaskEvent

JOIN_MAX = 0.5
"""Seconds that closing waits for helper threads."""
_of_the_parent: list[object] = []
"""Calls that were under way when this process was forked. Their ends would undo what they do in the
parent, such as to remove a file that is half written.
"""


@dataclass(eq=False)
class Started(Generic[T]):
    """A command that has begun, for a task or a greenlet of one process."""

    call: LoopCall
    ready: TaskEvent
    process: int


class LoopHost:
    """The calls of one Local that event loops and greenlets wait for."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._helpers = Helpers()
        self._pipeline = Pipeline(host)
        self._untils: dict[LoopCall, None] = {}
        self._timers = Timers()
        self._ended: deque[LoopCall] = deque()
        self._to_cancel: deque[tuple[LoopCall, BaseException]] = deque()
        host.loop_calls = self._untils

    # ---- in the threads of event loops ----------------------------------------------------

    async def conduct(self, command: Command[T], new_event: Callable[[], TaskEvent]) -> T:
        """Carry out a command for a task or a greenlet, which awaits an event of ``new_event``."""
        return await self.finish(self.start(command, new_event))

    def start(self, command: Command[T], new_event: Callable[[], TaskEvent]) -> Started[T]:
        """Begin what :meth:`conduct` does. :meth:`finish` or :meth:`give_up` is to follow."""
        ready = new_event()
        started: Started[T] = Started(LoopCall(command, ready.set), ready, os.getpid())
        try:
            self.begin(started.call)
        except BaseException as error:
            self.give_up(started, error)
            raise
        return started

    async def finish(self, started: Started[T]) -> T:
        """Wait for the end of a command. Returns its result, or raises its error."""
        call = started.call
        try:
            if not call.over:
                await started.ready
            result = call.result()
        except BaseException as error:
            self.give_up(started, error)
            raise
        finished: T = call.command.finish(result)
        return finished

    def give_up(self, started: Started[T], error: BaseException) -> None:
        """Cancel a command that nothing waits for any more, because of ``error``."""
        if started.process != os.getpid():
            _of_the_parent.append(started.call)
        elif isinstance(error, GeneratorExit):  # dropped, maybe by the garbage collector
            self.cancel_later(started.call, error)
        else:
            self.cancel(started.call, error)

    def begin(self, call: LoopCall) -> None:
        """Begin a call, which may be over at once.

        Raises NodeClosed, RuntimeError as :meth:`Host.call`, and what the command's start raises.
        """

        self._host.call(lambda: self._begin(call))

    def _begin(self, call: LoopCall) -> None:
        host = self._host
        with host.lock:
            host.check_open()
            call.operation = call.command.start(host.state, host.large, clock.now())
            self._go_on(call, None)
            call.begun = True

    def cancel(self, call: LoopCall, error: BaseException) -> None:
        """End a call that nothing waits for any more. A reply that comes later is not stored.

        What it has begun is undone when no helper thread works for it: now, or by that thread.
        """
        if reentrancy.here() is None:
            self._host.call(lambda: self._cancel(call, error))
        else:
            self.cancel_later(call, error)

    def cancel_later(self, call: LoopCall, error: BaseException) -> None:
        """Have the background thread cancel a call. Takes no lock, for the garbage collector."""
        self._to_cancel.append((call, error))
        self._host.link.control.wake()

    def _cancel(self, call: LoopCall, error: BaseException) -> None:
        with self._host.lock:
            call.cancelled, call.reason = True, error
            if not call.over:
                self._leave(call)
                if call.operation is not None:  # at once, also while a helper thread works for it
                    self._host.end(call.operation)
        self._clean_up(call)

    # ---- for the background thread --------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`turn` is next due. With the lock."""
        if self._pipeline.fresh or self._host.changed or self._to_cancel:
            return LAPSED
        return self._timers.wake_at

    def turn(self) -> None:
        """Receive replies, do what is due, and send requests that can be sent."""
        self._cancel_waiting()
        arrived = self._pipeline.receive()
        with self._host.lock:
            for call, reply, damage in arrived:
                if self._pipeline.waiting.get(reply.request) is not call:
                    continue  # cancelled meanwhile, or answered twice
                self._pipeline.remove(call)
                if damage is not None:
                    self._fail(call, damage)
                else:
                    self._go_on(call, StepResult(0, reply, sent=True))
            self._pipeline.fresh = False
            self._look_again()
            self._expire()
        self._pipeline.send(self._fail)
        self._wake_tasks()

    def deny(self) -> None:
        """End the waiting for replies: Global does not let this client in, as the state knows."""
        with self._host.lock:
            for call in list(self._pipeline.waiting.values()):
                self._go_on_without_reply(call, clock.now())
        self._wake_tasks()

    def shut(self) -> None:
        """End all calls with NodeClosed; those that helper threads work for are ended by these."""
        self._cancel_waiting()
        with self._host.lock:
            for call in (*self._pipeline.waiting.values(), *self._untils):
                self._fail(call, closed())
        self._wake_tasks()
        self._helpers.close()
        self._pipeline.close()

    def join(self) -> None:
        """Wait, but not for long, until the helper threads have ended. In any thread."""
        self._helpers.join(JOIN_MAX)

    def _cancel_waiting(self) -> None:
        while self._to_cancel:
            self._cancel(*self._to_cancel.popleft())

    def _look_again(self) -> None:
        if not self._host.changed:
            return
        self._host.changed = False  # a step that is taken below is a change, too
        now = clock.now()
        for call in list(self._untils):
            assert isinstance(call.step, WaitUntil)
            if call.step.predicate(now):
                self._go_on(call, StepResult(now))

    def _expire(self) -> None:
        now = clock.now()
        while (call := self._timers.pop(now)) is not None:
            self._go_on_without_reply(call, now)

    def _go_on_without_reply(self, call: LoopCall, now: float) -> None:
        sent = call.sent
        self._pipeline.pause(call)
        self._go_on(call, StepResult(now, sent=sent))

    # ---- in any thread, with the lock -----------------------------------------------------

    def _go_on(self, call: LoopCall, result: StepResult | None) -> None:
        call.step, call.timer = None, 0
        self._untils.pop(call, None)
        assert call.operation is not None
        try:
            advance, perform = self._host.advance, partial(self._wait_for, call)
            step = advance(call.operation, result)
            finished = drive(call.operation, step, perform, advance)
        except BaseException as error:
            self._fail(call, error)
        else:
            if finished is not None:
                self._end(call, finished.value)

    def _wait_for(self, call: LoopCall, step: Step) -> StepResult | None:
        """Begin to wait for a step; return the result of one that needs no time."""
        if isinstance(step, WaitUntil):
            now = clock.now()
            if now >= step.until or step.predicate(now):
                return StepResult(now)
        if isinstance(step, Request) and self._host.state.denied is not None:
            self._pipeline.pause(call)
            return StepResult(clock.now())
        call.step = step
        if isinstance(step, Request):
            self._pipeline.add(call, step)
        else:
            self._pipeline.remove(call)
        if isinstance(step, (Request, WaitUntil)):
            if isinstance(step, WaitUntil):
                self._untils[call] = None
            self._timers.set(call, step.until)
            self._timers.tidy(len(self._pipeline.waiting) + len(self._untils))
            if self.wake_at < self._host.asleep_until:
                self._host.wake_background()
        else:
            job = step
            self._helpers.submit(lambda: self._host.call(lambda: self._help(call, job)))
            call.busy = True
        return None

    def _leave(self, call: LoopCall) -> None:
        call.step, call.timer = None, 0
        self._pipeline.remove(call)
        self._untils.pop(call, None)
        self._timers.tidy(len(self._pipeline.waiting) + len(self._untils))

    def _fail(self, call: LoopCall, error: BaseException) -> None:
        if call.operation is not None:
            self._host.end(call.operation)
        call.error = error
        self._end(call, None)

    def _end(self, call: LoopCall, value: Any) -> None:
        self._leave(call)
        call.value = value
        call.over = True
        if call.begun:
            self._ended.append(call)

    def _wake_tasks(self) -> None:
        """Wake the tasks of calls that are over. Without the lock."""
        while self._ended:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._ended.popleft().done()

    # ---- helper threads -------------------------------------------------------------------

    def _help(self, call: LoopCall, step: Work | FetchBody | SendBody) -> None:
        result: StepResult | None = None
        failure: BaseException | None = None
        try:
            self._host.check_open()
            if not call.cancelled:
                result = self._carry_out(call, step)
        except BaseException as error:
            failure = error
        with self._host.lock:
            call.busy = False
            if not call.cancelled:
                if failure is not None:
                    self._fail(call, failure)
                else:
                    self._go_on(call, result)
        failure = None  # it refers to this frame, and would form a cycle
        self._clean_up(call)
        self._wake_tasks()

    def _carry_out(self, call: LoopCall, step: Work | FetchBody | SendBody) -> StepResult:
        if isinstance(step, Work):
            return StepResult(0, value=step.do())
        channel = self._host.link.channels.take()
        done = False
        try:
            result = BodyTransfer(self._host, channel, step, lambda: call.cancelled).run()
            done = True
            return result
        finally:
            release_channel(self._host, channel, done)

    def _clean_up(self, call: LoopCall) -> None:
        """Undo what a cancelled call has begun, unless a helper thread works for it."""
        with self._host.lock:
            if call.busy or not call.cancelled:
                return
            abort, call.abort = call.abort, None
            reason, call.reason = call.reason, None  # it refers to the call, and would form a cycle
        if abort is not None and reason is not None:
            try:
                abort(reason)
            except Exception:
                log.exception("what a cancelled call had begun could not be undone")

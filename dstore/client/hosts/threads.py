"""Calling threads: each carries out its own operation, on a request channel of its own.

A slow request delays neither the lease nor the requests of other threads.
"""

from __future__ import annotations

from typing import Any, TypeVar

from dstore.client.commands import Command, ReadOne
from dstore.client.hosts.channels import WAIT_MAX, BodyTransfer, ask, release_channel
from dstore.client.hosts.core import Host, closed, interrupted
from dstore.core.local.operations import Answer, SingleGet
from dstore.core.local.steps import (
    FetchBody,
    Operation,
    Request,
    SendBody,
    Step,
    StepResult,
    WaitUntil,
    Work,
    drive,
)
from dstore.protocol.messages import Key
from dstore.runtime import clock, native, reentrancy
from dstore.transport.channel import Channel

T = TypeVar("T")


class ThreadHost:
    """Runs commands in the threads that call it, any number at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def run(self, command: Command[T]) -> T:
        """Carry out a command. Raises what it raises, NodeClosed, and RuntimeError as ``call``."""
        host = self._host
        me = native.get_ident()  # from here on as in Host.call, without the call
        if me in reentrancy.inside or me == host.background_thread:
            raise interrupted()
        try:
            reentrancy.inside[me] = host
            result = self._get(command) if isinstance(command, ReadOne) else self._run(command)
        finally:
            reentrancy.inside.pop(me, None)
            if host.closer == me:
                host.wait_closed()
        return command.finish(result)

    def _run(self, command: Command[Any]) -> Any:
        host = self._host
        call = _ThreadCall(host, None)
        operation: Operation[Any] | None = None
        done = False
        try:
            with host.lock:
                if host.stopping:
                    raise closed()
                operation = command.start(host.state, host.large, clock.now())
                step = host.advance(operation, None)  # now, before its start time is out of date
            result = call.run(operation, step)
            done = True
            return result
        except BaseException as error:
            if operation is not None:
                host.end(operation)
            if command.abort is not None:
                command.abort(error)
            raise
        finally:
            if call.channel is not None:
                release_channel(host, call.channel, done)

    def _get(self, command: ReadOne[Any]) -> dict[Key, Answer]:
        """Read one key, without a generator if :class:`SingleGet` finds the plain case."""
        host = self._host
        now = clock.now()
        deadline = now + command.timeout
        single = SingleGet(host.state, command.key, deadline, command.options.stale_ok)
        channel: Channel | None = None
        operation: Operation[dict[Key, Answer]] | None = None
        call: _ThreadCall | None = None
        done = False
        try:
            with host.lock:
                if host.stopping:
                    raise closed()
                now = clock.now()
                begun = single.begin(now)
                if begun is None:
                    operation = single.rest(now, None, command.options)
                    step = host.advance(operation, None)
            if isinstance(begun, dict):
                done = True
                return begun
            if begun is not None:
                channel = host.link.channels.take()
                result = ask(host, channel, begun)
                with host.lock:
                    if host.stopping:
                        raise closed()
                    result.now = clock.now()
                    answers = single.finish(result)
                    if answers is not None:
                        host.notify()
                        done = True
                        return answers
                    operation = single.rest(now, result, command.options)
                    step = host.advance(operation, None)
            assert operation is not None
            call = _ThreadCall(host, channel)
            answers = call.run(operation, step)
            done = True
            return answers
        finally:
            if not done:
                with host.lock:
                    if operation is not None:
                        operation.close()
                    single.end()
                    host.notify()
            if call is not None:
                channel = call.channel
            if channel is not None:
                release_channel(host, channel, done)


class _ThreadCall:
    """Carries out one operation in its thread. Takes a channel when a step first needs one."""

    def __init__(self, host: Host, channel: Channel | None) -> None:
        self._host = host
        self.channel = channel

    def run(self, operation: Operation[T], step: Any) -> T:
        """Carry out an operation, of which the first step is taken. Returns its result.

        The caller ends the operation if this raises, and releases the channel.
        """
        finished = drive(operation, step, self._perform, self._host.advance)
        assert finished is not None, "a thread waits for each of its steps"
        return finished.value

    def _perform(self, step: Step) -> StepResult:
        if isinstance(step, WaitUntil):
            return self._wait(step)
        if isinstance(step, Work):
            return StepResult(0, value=step.do())
        if self.channel is None:
            self.channel = self._host.link.channels.take()
        if isinstance(step, Request):
            return ask(self._host, self.channel, step)
        assert isinstance(step, (FetchBody, SendBody))
        return BodyTransfer(self._host, self.channel, step).run()

    def _wait(self, step: WaitUntil) -> StepResult:
        """Return when the predicate may hold, or the time is up."""
        # Not with a Condition: Ctrl-C within its wait may leave it without the lock that its caller
        # is about to release. A woken waiter takes a step, which clears the list.
        host = self._host
        while True:
            waiter = native.Lock()
            waiter.acquire()
            with host.lock:
                now = clock.now()
                if host.stopping or now >= step.until or step.predicate(now):
                    return StepResult(now)
                host.waiters.append(waiter.release)
            waiter.acquire(timeout=min(step.until - now, WAIT_MAX))

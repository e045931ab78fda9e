"""Calling threads: each carries out its own operation, on a request channel of its own.

A slow request delays neither the lease nor the requests of other threads.
"""

from __future__ import annotations

from typing import Any, TypeVar

from dstore.client.commands import Command, DirectCommand
from dstore.client.hosts.channels import (
    WAIT_MAX,
    BodyTransfer,
    ask,
    receive_reply,
    release_channel,
)
from dstore.client.hosts.core import Host, closed, interrupted
from dstore.core.local.operations import UNUSUAL, Answer, Direct, GetOne, One, ReadOptions
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
from dstore.protocol import wire
from dstore.protocol.messages import Key, Stored
from dstore.runtime import clock, native
from dstore.runtime.native import get_ident
from dstore.runtime.reentrancy import inside
from dstore.transport.channel import Channel

T = TypeVar("T")


class ThreadHost:
    """Runs commands in the threads that call it, any number at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def run(self, command: Command[T]) -> T:
        """Carry out a command. Raises what it raises, NodeClosed, and RuntimeError as ``call``."""
        host = self._host
        me = get_ident()  # from here on as in Host.call, without the call
        if me in inside or me == host.background_thread:
            raise interrupted()
        try:
            inside[me] = host
            if isinstance(command, DirectCommand):
                result = self._run_direct(command)
            else:
                result = self._run(command)
        finally:
            inside.pop(me, None)
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

    def _run_direct(self, command: DirectCommand[Any]) -> Any:
        """Carry out an operation on the direct path, and what that leaves step by step."""
        host = self._host
        direct: Direct[Any] | None = None
        call = _ThreadCall(host, None)
        done = False
        try:
            result: StepResult | None = None
            with host.lock:
                if host.stopping:
                    raise closed()
                now = clock.now()
                direct = command.begin(host.state, now + command.timeout)
                value = direct.begin(now)
            if direct.message is not None:
                call.channel = host.link.channels.take()
                result = ask(host, call.channel, Request(direct.message, direct.until()))
                with host.lock:
                    if host.stopping:
                        raise closed()
                    value = direct.take(result.reply)
                    if value is not UNUSUAL:  # else the request, or the write, is not over
                        direct.end()
                        host.notify()
            if value is UNUSUAL:
                value = self._rest(direct, call, result)
            done = True
            return value
        finally:
            if not done and direct is not None:
                self._end(direct)
            if call.channel is not None:
                release_channel(host, call.channel, done)

    def _rest(self, direct: Direct[Any], call: _ThreadCall, result: StepResult | None) -> Any:
        """Carry out, step by step, what the direct path has left."""
        host = self._host
        operation: Operation[Any] | None = None
        done = False
        try:
            with host.lock:
                now = clock.now()
                if result is not None:
                    result.now = now
                operation = direct.rest(now, result)
                step = host.advance(operation, None)
            value = call.run(operation, step)
            done = True
            return value
        finally:
            if not done and operation is not None:
                host.end(operation)
            self._end(direct)

    def _end(self, direct: Direct[Any]) -> None:
        with self._host.lock:
            direct.end()
            self._host.notify()

    def get(self, key: Key, timeout: float, options: ReadOptions) -> One | None:
        """Read one key that is not cached, as :class:`GetOne` does, in one plain function.

        A thread that has just woken up finds little of what it needs in the caches of its
        processor, so that each function and each object on the way counts. Returns None, and does
        nothing, if the operation has to begin in another way. Raises as :meth:`run`.
        """
        host, me = self._host, get_ident()
        if me in inside or me == host.background_thread:
            raise interrupted()
        channel: Channel | None = None
        done, state, begun_at = False, host.state, clock.now()
        former = state.request
        try:
            inside[me] = host
            with host.lock:
                if host.stopping:
                    raise closed()
                membership = state.membership
                request = state.ask_one(key)
            if not request:
                done = True
                return None
            channel = host.link.channels.take()
            frame = wire.get_frame(membership.epoch, membership.session, request, key)
            arrived = channel.exchange(frame)
            value = wire.value_of(arrived, request) if arrived else None
            if value is None:
                direct = GetOne(state, key, begun_at + timeout, options)
                direct.begun(membership, request, begun_at)
                one = self._late(direct, channel, arrived)
                host.link.channels.give_back(channel)
            else:
                seq, cacheable, token, codec, body = value
                answer: Answer | None = None
                with host.lock:
                    if host.stopping:
                        raise closed()
                    if cacheable:
                        answer = state.fill_small(membership, key, seq, token, codec, body)
                    if state.in_flight.get(key) == request:
                        del state.in_flight[key]
                    if host.waiters or host.loop_calls or state.has_lapsed:
                        host.notify()
                host.link.channels.give_back(channel)
                one = answer or Stored(token, codec, body), False
            done = True
            return one
        finally:
            if not done:  # Ctrl-C may have come before the number of the request was noted
                with host.lock:
                    state.end_asking_after(key, former)
                    host.notify()
                if channel is not None:
                    channel.close()
            inside.pop(me, None)
            if host.closer == me:
                host.wait_closed()

    def _late(self, direct: GetOne, channel: Channel, arrived: bytes | None) -> One:
        """Go on after a request whose reply has not come yet, or is not the usual one.

        ``arrived`` is a frame that has come, or no bytes; None if the request was not sent.
        """
        host, reply = self._host, None
        if arrived is not None and direct.message is not None:
            request = direct.message.request
            if arrived:
                channel.put_back(arrived)
            reply = receive_reply(host, channel, request, direct.until())
        call = _ThreadCall(host, channel)
        with host.lock:
            one: One = direct.take(reply)
        if one is UNUSUAL:
            one = self._rest(direct, call, StepResult(0, reply, arrived is not None))
        else:
            self._end(direct)
        return one


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

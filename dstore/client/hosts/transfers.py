"""Moving a large value over a channel, in the thread that has the channel, without the lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.client.hosts.core import Host
from dstore.client.hosts.replies import receive_reply, release_channel
from dstore.core.local.steps import (
    FetchBody,
    Report,
    SendBody,
    SendChunk,
    StepResult,
    Transfer,
    TransferFailed,
    TransferStep,
    drive,
    take_step,
)
from dstore.core.local.transfer import Damaged, upload
from dstore.errors import ValueCorrupt
from dstore.protocol import wire
from dstore.protocol.messages import Chunk, Reply, Staged
from dstore.runtime import clock
from dstore.transport.channel import Channel


class Cancelled(Exception):
    """Nothing waits for this transfer any more."""


class BodyTransfer:
    """Carries out one FetchBody or SendBody step. ``cancelled`` is asked now and then."""

    def __init__(
        self,
        host: Host,
        channel: Channel,
        step: FetchBody | SendBody,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._host = host
        self._channel = channel
        self._step = step
        self._cancelled = cancelled

    def run(self) -> StepResult:
        """Move the value. Raises NodeClosed, ValueCorrupt and Cancelled."""
        step = self._step
        try:
            if isinstance(step, FetchBody):
                return StepResult(0, body=self._host.large.obtain(step, self._move, self._check))
            self._move(
                upload(step.envelope, step.stored, step.body, clock.now(), step.stall_timeout)
            )
        except TransferFailed as failed:
            return StepResult(0, failed=failed)
        except Damaged:
            raise ValueCorrupt("the value was damaged on its way, or at Global") from None
        return StepResult(0)

    def _move(self, transfer: Transfer) -> None:
        drive(transfer, self, take_step(transfer, None))

    def _check(self) -> None:
        self._host.check_open()
        if self._cancelled():
            raise Cancelled

    def advance(self, transfer: Transfer, result: StepResult | None) -> Any:
        """Take one step of the transfer; see :class:`dstore.core.local.steps.StepHost`."""
        return take_step(transfer, result)

    def perform(self, step: TransferStep) -> StepResult:
        """Send or receive one message."""
        self._check()
        if isinstance(step, SendChunk):
            frame, data = wire.encode(step.message), wire.data_of(step.message)
            sent = self._channel.send(frame, step.until - clock.now(), data)
            return StepResult(clock.now(), sent=sent)
        request = self._step.envelope[2]
        reply = receive_reply(self._host, self._channel, request, step.until, self._check)
        if self._step.report is not None:
            _report(self._step.report, reply, self._step.stored.size)
        return StepResult(clock.now(), reply)


def _report(report: Report, reply: Reply | None, size: int) -> None:
    if isinstance(reply, Staged):
        report("sending", reply.received, size)
    elif isinstance(reply, Chunk):
        report("fetching", min(size, reply.offset + len(reply.data)), size)


def move_body(host: Host, step: FetchBody | SendBody, cancelled: Callable[[], bool]) -> StepResult:
    """Carry out a FetchBody or SendBody step on a channel that is taken for it."""
    channel = host.link.channels.take()
    done = False
    try:
        result = BodyTransfer(host, channel, step, cancelled).run()
        done = True
        return result
    finally:
        release_channel(host, channel, done)

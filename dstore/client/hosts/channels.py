"""Requests, replies and transfers of large values, on a channel of one thread, without the lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dstore.client.hosts.core import Host, closed
from dstore.core.local.steps import (
    FetchBody,
    Report,
    Request,
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
from dstore.errors import BadMessage, ValueCorrupt, copy_of
from dstore.protocol import wire
from dstore.protocol.content import Addresses
from dstore.protocol.messages import (
    REPLIES,
    UNREADABLE,
    Chunk,
    Found,
    Get,
    GetReply,
    Key,
    Reply,
    RequestMessage,
    Set,
    SetReply,
    Staged,
    Wait,
)
from dstore.runtime import clock
from dstore.transport.channel import EXCHANGE_MS, Channel

WAIT_MAX = 0.5
"""Seconds of waiting in one go. Python notices a signal that comes in the instant before a wait
begins only after the wait.
"""


def ask(host: Host, channel: Channel, step: Request) -> StepResult:
    """Send a request and wait for its reply. Raises NodeClosed and ValueCorrupt."""
    request, until = step
    frame = wire.encode(request)
    left = until - clock.now()
    arrived = channel.exchange(frame) if left * 1000 > EXCHANGE_MS else None
    if arrived is None and not channel.send(frame, until - clock.now()):
        return StepResult(0)
    if arrived:
        channel.put_back(arrived)
    reply = receive_reply(host, channel, request.request, until)
    if reply is not None:
        verify(request, reply, host.state.addresses)
    return StepResult(0, reply, True)


def receive_reply(
    host: Host,
    channel: Channel,
    request: int,
    until: float,
    check: Callable[[], None] | None = None,
) -> Reply | None:
    """Return the next reply with this number; None if none comes in time, or Global shuts this out.

    Raises NodeClosed, and what ``check`` raises, which is called before each wait.
    """
    while True:
        if host.stopping:
            raise closed()
        if check is not None:
            check()
        left = 0.0 if host.state.denied is not None else until - clock.now()
        arrived = channel.receive(min(left, WAIT_MAX))
        if arrived is None:
            if left > WAIT_MAX:
                continue
            return None
        try:
            message = wire.decode_to_local(*arrived)
        except BadMessage as error:
            if arrived[0]:  # ZeroMQ leaves an empty one now and then where a connection ends
                host.note_malformed(error)
            continue
        if isinstance(message, REPLIES) and message.request == request:
            return message


def release_channel(host: Host, channel: Channel, done: bool) -> None:
    """Give a channel back, or close it if a reply may still come on it."""
    kept = False
    try:
        if done:
            host.link.channels.give_back(channel)
            kept = True
    finally:
        if not kept:
            channel.close()


def verify(request: RequestMessage, reply: Reply, addresses: Addresses) -> None:
    """Raise ValueCorrupt if a value in a reply does not hash to its content address."""
    pairs: Iterable[tuple[Key, Found | None]]
    if type(reply) is GetReply and type(request) is Get:
        if not any(key in addresses for key in request.keys):
            return  # before the values of all keys are made
        pairs = zip(request.keys, reply.items)
    elif type(reply) is GetReply and type(request) is Wait:
        pairs = zip([request.key], reply.items)
    elif type(reply) is SetReply and type(request) is Set:
        pairs = zip((item.key for item in request.items), (each.found for each in reply.items))
    else:
        return
    for key, found in pairs:
        if (
            found is not None
            and key in addresses
            and found.stored.codec != UNREADABLE
            and not addresses.matches(key, found.stored)
        ):
            raise ValueCorrupt(f"the value that Global sent for {key} is not what it names")


class Cancelled(Exception):
    """Nothing waits for this transfer any more."""


@dataclass
class BodyTransfer:
    """Carries out one FetchBody or SendBody step. ``cancelled`` is asked now and then."""

    host: Host
    channel: Channel
    step: FetchBody | SendBody
    cancelled: Callable[[], bool] = lambda: False

    def run(self) -> StepResult:
        """Move the value.

        Raises NodeClosed, ValueCorrupt and Cancelled, and AccessDenied or WrongServer when Global
        does not let this client in any more.
        """
        step = self.step
        try:
            if isinstance(step, FetchBody):
                return StepResult(0, body=self.host.large.obtain(step, self._move, self._check))
            self._move(
                upload(step.envelope, step.stored, step.body, clock.now(), step.stall_timeout)
            )
        except TransferFailed as failed:
            return StepResult(0, failed=failed)
        except Damaged:
            raise ValueCorrupt("the value was damaged on its way, or at Global") from None
        return StepResult(0)

    def _move(self, transfer: Transfer) -> None:
        drive(transfer, take_step(transfer, None), self._perform)

    def _check(self) -> None:
        self.host.check_open()
        if self.cancelled():
            raise Cancelled
        if self.host.state.denied is not None:
            raise copy_of(self.host.state.denied)

    def _perform(self, step: TransferStep) -> StepResult:
        self._check()
        if isinstance(step, SendChunk):
            frame, data = wire.encode(step.message), wire.data_of(step.message)
            sent = self.channel.send(frame, step.until - clock.now(), data)
            return StepResult(clock.now(), sent=sent)
        request = self.step.envelope[2]
        reply = receive_reply(self.host, self.channel, request, step.until, self._check)
        if self.step.report is not None:
            _report(self.step.report, reply, self.step.stored.size)
        return StepResult(clock.now(), reply)


def _report(report: Report, reply: Reply | None, size: int) -> None:
    if isinstance(reply, Staged):
        report("sending", reply.received, size)
    elif isinstance(reply, Chunk):
        report("fetching", min(size, reply.offset + len(reply.data)), size)

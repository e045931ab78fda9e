"""Replies on a channel of one thread, and whether their values are what their keys name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dstore.client.hosts.core import Host, closed
from dstore.config import CONTENT_PREFIX
from dstore.core.local.steps import Request, StepResult
from dstore.errors import BadMessage, ValueCorrupt
from dstore.protocol import content, wire
from dstore.protocol.messages import (
    REPLIES,
    Found,
    Get,
    GetReply,
    Key,
    Reply,
    RequestMessage,
    Set,
    SetReply,
    Wait,
)
from dstore.runtime import clock
from dstore.transport.channel import Channel

WAIT_MAX = 0.5
"""Seconds of waiting in one go. Python notices a signal that comes in the instant before a wait
begins only after the wait.
"""


def ask(host: Host, channel: Channel, step: Request) -> StepResult:
    """Send a request and wait for its reply, without the lock.

    Raises NodeClosed, and ValueCorrupt for a value that is not what its key names.
    """
    request, until = step
    if not channel.send(wire.encode(request), until - clock.now()):
        return StepResult(0)
    reply = receive_reply(host, channel, request.request, until)
    if reply is not None:
        verify(request, reply)
    return StepResult(0, reply, True)


def receive_reply(
    host: Host,
    channel: Channel,
    request: int,
    until: float,
    check: Callable[[], None] | None = None,
) -> Reply | None:
    """Return the next reply with this number; None if none comes in time.

    Raises NodeClosed, and what ``check`` raises, which is called before each wait.
    """
    while True:
        if host.stopping:
            raise closed()
        if check is not None:
            check()
        left = until - clock.now()
        arrived = channel.receive(min(left, WAIT_MAX))
        if arrived is None:
            if left > WAIT_MAX:
                continue
            return None
        try:
            message = wire.decode_to_local(*arrived)
        except BadMessage as error:
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


def verify(request: RequestMessage, reply: Reply) -> None:
    """Raise ValueCorrupt if a value in a reply does not hash to its content address."""
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
        if (
            found is not None
            and key.startswith(CONTENT_PREFIX)
            and not content.matches(key, found.stored)
        ):
            raise ValueCorrupt(f"the value that Global sent for {key} is not what it names")

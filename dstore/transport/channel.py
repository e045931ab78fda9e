"""A Local's request channels: DEALER sockets that the calling threads use themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import zmq

from dstore import native, wire
from dstore.background import signals_left_to_this_thread
from dstore.errors import GlobalUnavailable, NodeClosed
from dstore.messages import Buffer
from dstore.transport import addresses

CHANNELS_KEPT = 64
"""Idle channels that a pool keeps for the next request."""

_OPTIONS = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,  # nothing is queued for a Global that is not there: it was not sent
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.HEARTBEAT_IVL: 1000,
}
CONTROL_SILENCE_MS = 10_000
"""A control connection on which nothing comes for so long is dropped, by either side; the Local
makes a new one.
"""
REQUEST_SILENCE_MS = 60_000
"""The same of a request channel, where one large value may be under way for long."""


def connected(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str | None, silence_ms: int
) -> zmq.Socket[bytes]:
    """A socket with the options that all sockets of a Local have."""
    sock = context.socket(kind)
    try:
        for option, value in _OPTIONS.items():
            sock.setsockopt(option, value)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)
        sock.setsockopt(zmq.HEARTBEAT_TTL, silence_ms)
        if address is not None:
            addresses.connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


class Channel:
    """One DEALER, for one thread at a time; ``user`` is its number.

    It is in ``open_ones`` from before it has a socket, and until it is closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        open_ones: set[Channel],
    ) -> None:
        self.user: int | None = native.get_ident()
        self._timeout_ms = {zmq.RCVTIMEO: -1, zmq.SNDTIMEO: -1}
        self._open_ones = open_ones
        open_ones.add(self)
        with signals_left_to_this_thread():  # Ctrl-C would lose a socket that has no name yet
            self._socket = connected(context, zmq.DEALER, address, REQUEST_SILENCE_MS)

    def send(self, frame: bytes, timeout: float, data: Buffer | None = None) -> bool:
        """Send a frame (and ``data`` as another), if Global can be reached within ``timeout``
        seconds.
        """
        self._limit(zmq.SNDTIMEO, timeout)
        try:
            if data is None:
                self._socket.send(frame)
            else:
                self._socket.send_multipart((frame, data))
        except zmq.Again:
            return False
        except zmq.ContextTerminated:
            raise _closed() from None
        return True

    def receive(self, timeout: float) -> tuple[bytes, Buffer | None] | None:
        """What comes within ``timeout`` seconds, or None: a frame, and its second frame or None."""
        self._limit(zmq.RCVTIMEO, timeout)
        try:
            frame: bytes = self._socket.recv()
            # That is all of most messages, and to ask ZeroMQ takes a while.
            return frame, rest_of(self._socket) if wire.with_data(frame) else None
        except zmq.Again:
            return None
        except zmq.ContextTerminated:
            raise _closed() from None

    @property
    def closed(self) -> bool:
        return self not in self._open_ones

    def close(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._open_ones.discard(self)

    def _limit(self, option: zmq.SocketOption, timeout: float) -> None:
        milliseconds = max(0, math.ceil(timeout * 1000))
        if self._timeout_ms[option] != milliseconds:
            self._timeout_ms[option] = milliseconds
            self._socket.setsockopt(option, milliseconds)


def rest_of(sock: zmq.Socket[bytes]) -> Buffer | None:
    """The second frame of a message whose first one has been received, where it lies.

    Of a third one nothing is known to us; it is dropped.
    """
    if not sock.getsockopt(zmq.RCVMORE):
        return None
    data = sock.recv(copy=False).buffer
    while sock.getsockopt(zmq.RCVMORE):
        sock.recv(copy=False)
    return data


class ChannelPool:
    """Channels to one address. Safe from any thread.

    A thread takes a channel for one operation and gives it back; one whose operation was cut
    short is closed instead.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._context = context
        self._address = address
        self._lock = native.Lock()
        self._idle: list[Channel] = []
        self._open: set[Channel] = set()
        self._closed = False

    def take(self) -> Channel:
        with self._lock:
            while self._idle:
                channel = self._idle.pop()
                channel.user = native.get_ident()
                if not channel.closed:
                    return channel
        try:
            return Channel(self._context, self._address, self._open)
        except zmq.ZMQError as error:
            if error.errno in (zmq.ETERM, zmq.EFAULT):
                raise _closed() from None
            raise no_sockets(error) from None

    def give_back(self, channel: Channel) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < CHANNELS_KEPT:
                channel.user = None
                self._idle.append(channel)
                return
        channel.close()

    def close(self, busy: Callable[[int], bool]) -> None:
        """Close the idle channels, and from now on every one that is given back.

        So are those whose threads are not ``busy`` with a call: Ctrl-C came when they were about to
        be given back.
        """
        with self._lock:
            self._closed = True
            self._idle.clear()
            left = [each for each in self._open if each.user is None or not busy(each.user)]
        for channel in left:
            channel.close()

    @property
    def in_use(self) -> bool:
        """Whether, after :meth:`close`, a thread still has one."""
        return bool(self._open)


def no_sockets(error: zmq.ZMQError) -> GlobalUnavailable:
    """What a program is told that has run out of descriptors."""
    return GlobalUnavailable(f"cannot open a socket: {error.strerror}; raise the limit (ulimit -n)")


def _closed() -> NodeClosed:
    return NodeClosed("the Node was closed during the call")

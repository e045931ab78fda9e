"""A Local's request channels: DEALER sockets that the calling threads use themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import zmq

from dstore.errors import GlobalUnavailable, NodeClosed
from dstore.protocol import wire
from dstore.protocol.messages import Buffer
from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread
from dstore.transport import limits
from dstore.transport.follower import REQUEST_SILENCE_MS, Follower
from dstore.transport.route import Route

CHANNELS_KEPT = 64
"""Idle channels that a pool keeps for the next request."""

SEND_SLICE = 0.5
"""Seconds of waiting for a connection in one go; after it Global may be found elsewhere."""


class Channel:
    """One DEALER, for one thread at a time; ``user`` is its number.

    It is in ``open_ones`` from before it has a socket, and until it is closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        route: Route,
        open_ones: set[Channel],
    ) -> None:
        self.user: int | None = native.get_ident()
        self._first: bytes | None = None  # has come, and its second frame has not
        self._timeout_ms = {zmq.RCVTIMEO: -1, zmq.SNDTIMEO: -1}
        self._open_ones = open_ones
        open_ones.add(self)
        with signals_left_to_this_thread():  # Ctrl-C would lose a socket that has no name yet
            self._follower = Follower(context, zmq.DEALER, REQUEST_SILENCE_MS, route)
        self._socket = self._follower.socket

    def send(self, frame: bytes, timeout: float, data: Buffer | None = None) -> bool:
        """Send a frame (and ``data`` as another), if Global can be reached within ``timeout``
        seconds.
        """
        until = time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            self._limit(zmq.SNDTIMEO, min(left, SEND_SLICE))
            try:
                self._follower.follow()
                if data is None:
                    self._socket.send(frame)
                else:
                    self._socket.send_multipart((frame, data))
            except zmq.Again:
                if left <= SEND_SLICE:
                    return False
            except zmq.ContextTerminated:
                raise _closed() from None
            else:
                return True

    def receive(self, timeout: float) -> tuple[bytes, Buffer | None] | None:
        """What comes within about ``timeout`` seconds, or None: a frame, and its second frame or
        None. Each of the two is a message of ZeroMQ's.
        """
        self._limit(zmq.RCVTIMEO, timeout)
        try:
            while True:
                frame = self._first or self._socket.recv()
                if not wire.with_data(frame):
                    self._first = None
                    return frame, None
                self._first = frame  # the second one may come later
                data = self._socket.recv(copy=False).buffer
                if wire.belongs(data, frame):
                    self._first = None
                    return frame, data
                self._first = bytes(data)
        except zmq.Again:
            return None
        except zmq.ContextTerminated:
            raise _closed() from None

    @property
    def closed(self) -> bool:
        return self not in self._open_ones

    def close(self) -> None:
        if hasattr(self, "_follower"):
            self._follower.socket.close()
        self._open_ones.discard(self)

    def _limit(self, option: zmq.SocketOption, timeout: float) -> None:
        milliseconds = max(0, math.ceil(timeout * 1000))
        if self._timeout_ms[option] != milliseconds:
            self._timeout_ms[option] = milliseconds
            self._socket.setsockopt(option, milliseconds)


class ChannelPool:
    """Channels along one route. Safe from any thread.

    A thread takes a channel for one operation and gives it back; one whose operation was cut
    short is closed instead.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], route: Route) -> None:
        self._context = context
        self._route = route
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
            limits.need_descriptors(limits.CHANNEL_DESCRIPTORS)
            return Channel(self._context, self._route, self._open)
        except limits.Shortage as shortage:
            raise GlobalUnavailable(str(shortage)) from None
        except zmq.ZMQError as error:
            if error.errno in (zmq.ETERM, zmq.EFAULT):
                raise _closed() from None
            raise no_socket(error) from None

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


def no_socket(error: zmq.ZMQError) -> GlobalUnavailable:
    """What a program is told when ZeroMQ gives no further socket."""
    return GlobalUnavailable(limits.no_socket(error))


def _closed() -> NodeClosed:
    return NodeClosed("the Node was closed during the call")

"""The sockets of a Local: how all of them find Global, and those that carry requests."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import zmq

from dstore.config import LOG_BYTES_MAX
from dstore.errors import GlobalUnavailable, copy_of
from dstore.protocol import wire
from dstore.protocol.messages import Buffer
from dstore.runtime import native
from dstore.runtime.native import signals_blocked
from dstore.transport import binding, limits
from dstore.transport.admission import Admission
from dstore.transport.binding import node_closed
from dstore.transport.resolver import PublisherEndpoint, Resolver

CONTROL_SILENCE_MS = 10_000
"""Milliseconds without a byte after which either side drops a control connection."""
REQUEST_SILENCE_MS = 60_000
"""The same for a request channel, where one large value may be under way for long."""
HEARTBEAT_MS = 1000
"""Milliseconds between two heartbeats on an idle connection."""
RECONNECT_MS = 50
"""Milliseconds before ZeroMQ connects again; the pause doubles with each attempt."""
RECONNECT_MS_MAX = 1000
"""Milliseconds between two attempts to connect at most."""
CHANNELS_KEPT = 64
"""Idle channels that a pool keeps for later requests."""
SEND_SLICE = 0.5
"""Seconds of waiting for a connection in one go; then the endpoint is looked at again."""
EXCHANGE_MS = 500
"""Milliseconds of waiting for a connection, and for a reply, in one go. A signal that comes in the
instant before a wait begins is noticed by Python only after it.
"""
RECONNECT_PAUSE = 1.0
"""Seconds that a channel has to connect while Global is connected on the control connection; then
its handshake has failed, after which ZeroMQ gives up, and it is made again.
"""
DRAIN_MAX = 1000
"""Frames that are taken from one socket before another gets its turn."""
_send = zmq.backend.Socket.send
"""Sends a frame. The method of zmq.Socket looks at options first that are not used here."""
_OPTIONS = {
    zmq.MAXMSGSIZE: LOG_BYTES_MAX,  # the largest message of Global: the whole invalidation log
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,  # nothing is queued for a Global that is not connected
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: RECONNECT_MS_MAX,
    zmq.RECONNECT_STOP: zmq.RECONNECT_STOP_HANDSHAKE_FAILED,  # see dstore.transport.admission
    zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
}


class NoEndpoint:
    """The source of a socket whose endpoint is not known yet."""

    endpoint = None


class ClientSocket:
    """A ZeroMQ socket that is connected to the endpoint of its source, and to nothing else: a
    DEALER with two connections would send to both in turn. For one thread at a time.

    ``admission`` has its keys. With ``trying`` those that are to be tried now are used: that is for
    the control connection, from whose handshake the others learn.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        silence_ms: int,
        admission: Admission,
        source: Resolver | PublisherEndpoint | NoEndpoint | None = None,
        *,
        trying: bool = False,
    ) -> None:
        self.source = source or NoEndpoint()
        self.admission = admission
        self.generation = admission.generation
        self.connected_to: str | None = None  # or what ZeroMQ is trying to connect to
        self._trying = trying
        self._connected_at = 0.0
        self.socket = context.socket(kind)
        try:
            for option, value in _OPTIONS.items():
                self.socket.setsockopt(option, value)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)
            self.socket.setsockopt(zmq.HEARTBEAT_TTL, silence_ms)
            self.follow_source()
        except BaseException:
            self.socket.close()
            raise

    @property
    def outdated(self) -> bool:
        """Whether :meth:`follow_source` would connect to another endpoint, or with other keys."""
        if self.connected_to != self.source.endpoint:
            return self.source.endpoint is not None
        return self.generation != self.admission.generation and not self._trying

    def follow_source(self) -> None:
        """Connect to the source's endpoint, if it is known and has changed. Raises AddressError.

        Also if the keys have changed, or if ZeroMQ may have given up the present connection.
        """
        if self.outdated:
            self.connect_again()

    def connect_again(self) -> None:
        """Give up the present connection, and connect. Raises AddressError."""
        endpoint = self.source.endpoint
        if endpoint is None:
            return
        self.disconnect()
        self.generation = self.admission.generation
        for option, key in self.admission.options(trying=self._trying).items():
            self.socket.setsockopt_string(option, key)
        binding.connect(self.socket, endpoint)
        self.connected_to = endpoint
        self._connected_at = time.monotonic()

    def connect_if_given_up(self) -> None:
        """Connect again if Global is there, and this socket should have been connected by now.

        ZeroMQ gives up a connection whose handshake has failed, for which a Global that ends in the
        middle of it is enough.
        """
        late = time.monotonic() - self._connected_at >= RECONNECT_PAUSE
        if late and self.admission.up and not self.socket.poll(0, zmq.POLLOUT):
            self.connect_again()

    def disconnect(self) -> None:
        endpoint, self.connected_to = self.connected_to, None
        if endpoint is not None:
            with contextlib.suppress(zmq.ZMQError):  # ZeroMQ may have given it up
                self.socket.disconnect(endpoint)


@contextlib.contextmanager
def opening_channel() -> Iterator[None]:
    """Check that descriptors are left; raise ZeroMQ's errors as GlobalUnavailable or NodeClosed."""
    missing = limits.shortage(limits.CHANNEL_DESCRIPTORS)
    if missing is not None:
        raise GlobalUnavailable(missing)
    try:
        yield
    except zmq.ZMQError as error:
        if error.errno in (zmq.ETERM, zmq.EFAULT):
            raise binding.node_closed() from None
        raise GlobalUnavailable(limits.no_socket(error)) from None


def drain(sock: zmq.Socket[bytes]) -> list[bytes]:
    """Take the frames that have arrived, at most ``DRAIN_MAX``."""
    frames: list[bytes] = []
    with contextlib.suppress(zmq.Again):
        while len(frames) < DRAIN_MAX:
            frames.append(sock.recv(zmq.NOBLOCK))
    return frames


class Channel:
    """One DEALER, for one thread at a time; ``user`` is the number of that thread.

    The channel is in the set ``opened`` from before it has a socket until it is closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        resolver: Resolver,
        admission: Admission,
        opened: set[Channel],
    ) -> None:
        self.user: int | None = native.get_ident()
        self._first: bytes | None = None  # a frame that receive() begins with
        self.closed = False
        self._timeout_ms = {zmq.RCVTIMEO: -1, zmq.SNDTIMEO: -1}
        self._opened = opened
        opened.add(self)
        with signals_blocked():  # Ctrl-C would lose a socket that is not assigned yet
            self._client = ClientSocket(
                context, zmq.DEALER, REQUEST_SILENCE_MS, admission, resolver
            )
        self._socket = self._client.socket

    def send(self, frame: bytes, timeout: float, data: Buffer | None = None) -> bool:
        """Send a frame, and ``data`` as a second one.

        Returns False if Global is not connected within ``timeout`` seconds, or does not let this
        client in.
        """
        until = time.monotonic() + timeout
        while True:
            if self._client.admission.denied is not None:
                return False
            left = until - time.monotonic()
            self._limit(zmq.SNDTIMEO, min(left, SEND_SLICE))
            try:
                self._client.follow_source()
                if data is None:
                    self._socket.send(frame)
                else:
                    self._socket.send_multipart((frame, data))
            except zmq.Again:
                if left <= SEND_SLICE:
                    return False
                self._client.connect_if_given_up()
            except zmq.ContextTerminated:
                raise node_closed() from None
            else:
                return True

    def exchange(self, frame: bytes) -> bytes | None:
        """Send a frame and return the next one: what usually is all that a request takes.

        Returns no bytes if none has come within ``EXCHANGE_MS``; then :meth:`receive` goes on.
        Returns None if Global is not connected. Where the second frame of an earlier reply is still
        to come, that is for :meth:`receive`, too.
        """
        if self._first is not None:
            return b"" if self.send(frame, EXCHANGE_MS / 1000) else None
        client, waits = self._client, self._timeout_ms
        if client.connected_to != client.source.endpoint or (
            client.generation != client.admission.generation
        ):
            client.follow_source()
        if waits[zmq.SNDTIMEO] != EXCHANGE_MS or waits[zmq.RCVTIMEO] != EXCHANGE_MS:
            self._limit(zmq.SNDTIMEO, EXCHANGE_MS / 1000)
            self._limit(zmq.RCVTIMEO, EXCHANGE_MS / 1000)
        sent = False
        try:
            _send(self._socket, frame)
            sent = True
            return self._socket.recv()
        except zmq.Again:
            if sent:
                return b""
            client.connect_if_given_up()
            return None
        except zmq.ContextTerminated:
            raise node_closed() from None

    def put_back(self, frame: bytes) -> None:
        """Have :meth:`receive` begin with a frame that :meth:`exchange` has returned."""
        self._first = frame

    def receive(self, timeout: float) -> tuple[bytes, Buffer | None] | None:
        """Receive a frame and its second frame (or None); each is a ZeroMQ message of its own.

        Returns None if nothing arrives within about ``timeout`` seconds.
        """
        try:
            while True:
                frame = self._first
                if frame is None:
                    self._limit(zmq.RCVTIMEO, timeout)
                    frame = self._socket.recv()
                if not wire.with_data(frame):
                    self._first = None
                    return frame, None
                self._first = frame  # the second one may arrive later
                self._limit(zmq.RCVTIMEO, timeout)
                data = self._socket.recv(copy=False).buffer
                if wire.belongs(data, frame):
                    self._first = None
                    return frame, data
                self._first = bytes(data)
        except zmq.Again:
            return None
        except zmq.ContextTerminated:
            raise node_closed() from None

    def close(self) -> None:
        self.closed = True
        if hasattr(self, "_client"):
            self._client.socket.close()
        self._opened.discard(self)

    def _limit(self, option: zmq.SocketOption, timeout: float) -> None:
        milliseconds = max(0, math.ceil(timeout * 1000))
        if self._timeout_ms[option] != milliseconds:
            self._timeout_ms[option] = milliseconds
            self._socket.setsockopt(option, milliseconds)


class ChannelPool:
    """The channels of one Local. Safe from any thread.

    A thread takes one for an operation and gives it back, or closes it if it was interrupted.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        resolver: Resolver,
        admission: Admission,
    ) -> None:
        self._context = context
        self._resolver = resolver
        self._admission = admission
        self._lock = native.Lock()
        self._idle: list[Channel] = []
        self._open: set[Channel] = set()
        self._closed = False

    def take(self) -> Channel:
        """Return a channel for the calling thread.

        Raises GlobalUnavailable, NodeClosed, and AccessDenied or WrongServer as long as Global does
        not let this client in. A thread has one channel at a time. Another one of its channels is
        from a call that Ctrl-C ended just before it was given back, or while it was opened, and is
        closed here.
        """
        me = native.get_ident()
        if self._admission.denied is not None:
            raise copy_of(self._admission.denied)
        with self._lock:
            while self._idle:
                channel = self._idle.pop()
                channel.user = me
                if not channel.closed:
                    return channel
        for left in [each for each in list(self._open) if each.user == me]:
            left.close()
        with opening_channel():
            return Channel(self._context, self._resolver, self._admission, self._open)

    def give_back(self, channel: Channel) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < CHANNELS_KEPT:
                channel.user = None
                self._idle.append(channel)
                return
        channel.close()

    def close_idle(self) -> None:
        """Close the channels that no thread uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def close(self, busy: Callable[[int], bool]) -> None:
        """Close the idle channels, and from now on every channel that is given back.

        A channel whose thread is not ``busy`` with a call is closed as well: Ctrl-C came when it
        was about to be given back.
        """
        with self._lock:
            self._closed = True
            self._idle.clear()
            left = [each for each in self._open if each.user is None or not busy(each.user)]
        for channel in left:
            channel.close()

    @property
    def in_use(self) -> bool:
        """Whether a thread still has a channel after :meth:`close`."""
        return bool(self._open)


class Requests:
    """One DEALER for the requests of event loops: many at once, and nothing blocks.

    For the thread that owns it and polls with ``poller``.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        resolver: Resolver,
        admission: Admission,
        poller: zmq.Poller,
    ) -> None:
        # No large value travels here, so a connection that is silent for 10 seconds is lost.
        self._client = ClientSocket(context, zmq.DEALER, CONTROL_SILENCE_MS, admission, resolver)
        self._socket = self._client.socket
        self._poller = poller
        self._progress_at = 0.0  # when something was last sent or received
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, frame: bytes) -> bool:
        """Send a frame if that is possible now; otherwise the poll returns when it is."""
        if self._client.admission.denied is not None:
            return False
        self._client.follow_source()
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            # If much has been sent just now, this connection has no room for more.
            if time.monotonic() - self._progress_at >= RECONNECT_PAUSE:
                self._client.connect_if_given_up()
            self._poller.register(self._socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        self._progress_at = time.monotonic()
        return True

    def receive(self) -> list[bytes]:
        """Take the frames that have arrived. No message with data is requested here."""
        self._poller.register(self._socket, zmq.POLLIN)
        frames = drain(self._socket)
        if frames:
            self._progress_at = time.monotonic()
        return frames

    def close(self) -> None:
        self._poller.unregister(self._socket)
        self._socket.close()

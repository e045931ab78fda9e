"""Global's side: ROUTER for requests, PUB for deletions."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable

import zmq

from dstore.config import CLIENTS_MAX_DEFAULT, FRAME_BYTES_MAX
from dstore.errors import AddressError
from dstore.protocol.messages import Buffer
from dstore.runtime import native
from dstore.runtime.logs import Log
from dstore.transport import addresses, limits
from dstore.transport.ending import Ending
from dstore.transport.guard import Guard
from dstore.transport.path_lock import PathLock

log = Log("dstore.global")

LINGER_MS = 1000
"""How long closing waits for the last replies to leave."""
CLOSE_MAX = 3.0
"""Seconds that closing waits until the ports are free."""
INTERRUPTED_MAX = 0.2
"""The same when Ctrl-C has interrupted binding, and may hold a socket that is half made."""
RECEIVE_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""
SUBSCRIPTION_FRAME_MAX = 128
"""Bytes of a frame that a subscriber may send."""
FRAMES_BETWEEN_TURNS = 5_000
"""Frames of a message with too many of them that are taken before the guard has its turn again."""
HANDSHAKE_MS = 10_000
"""Within this time a connection must have said that it speaks ZeroMQ's protocol."""
CONNECTIONS_PER_CLIENT = 4
"""Connections that a Local has, if it has few threads: control, subscription, requests."""
CONNECTIONS_SPARE = 512
"""Connections beyond these, for Locals with many threads."""
DESCRIPTORS_SPARE = 64
"""Descriptors that are left for everything else, at least; and an eighth of all."""
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_WAKE_UP = "inproc://wake-up"


class Router:
    """Both sockets of a Global, bound. For one thread, but for :meth:`wake`.

    ``max_clients`` is how many Locals are expected at most; it limits the connections. ``warn``
    is called, as a logger is, when a connection is cut. Raises AddressError if either address
    cannot be bound.
    """

    def __init__(
        self,
        address: str,
        publisher: str | None,
        *,
        max_clients: int = CLIENTS_MAX_DEFAULT,
        warn: Callable[..., None] = log.warning,
    ) -> None:
        addresses.check(address, bind=True)
        self._wake_up = os.urandom(16)
        self._waking = native.Lock()  # held by a thread that uses the context beside its owner
        self._locks: list[PathLock] = []
        # Where threads are patched there is no zero copy: see send().
        self._context = limits.context(
            limits.GLOBAL_DESCRIPTORS, AddressError, zero_copy=not native.patched()
        )
        self._ending = Ending(self._context)
        with contextlib.ExitStack() as unless_bound:
            unless_bound.push(self._not_to_be)
            self._router = unless_bound.enter_context(self._context.socket(zmq.ROUTER))
            self._pub = unless_bound.enter_context(self._context.socket(zmq.PUB))
            for sock in (self._router, self._pub):
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
            self._router.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
            self._pub.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_FRAME_MAX)
            subscribers = max_clients + CONNECTIONS_SPARE
            self.guard = Guard(
                self._router,
                self._pub,
                connections_max=connections_max(max_clients),
                subscribers_max=min(subscribers, connections_max(max_clients)),
                warn=warn,
            )
            unless_bound.callback(self.guard.close)
            self.address = self._bind(self._router, address)
            wanted = publisher or addresses.publisher_default(address)
            self.publisher = self._bind(self._pub, wanted)
            _number_peers(self._router)
            self._router.bind(_WAKE_UP)
            self._listening = self.guard.listening(time.monotonic())
            unless_bound.pop_all()
        self.advertised = addresses.advertised(self.publisher, self.address)
        self._timeout_ms = -1
        self._now = 0.0  # when a message was last waited for

    def _bind(self, sock: zmq.Socket[bytes], address: str) -> str:
        lock = PathLock(addresses.check(address, bind=True))
        self._locks.append(lock)
        bound = addresses.bind(sock, address)
        lock.bound()
        return bound

    def _not_to_be(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._end(CLOSE_MAX if isinstance(error, Exception) else INTERRUPTED_MAX)

    def _end(self, stall_timeout: float) -> None:
        self._ending.wait(stall_timeout)
        for lock in self._locks:  # not before ZeroMQ has closed the sockets
            lock.release()

    def receive(self, timeout: float) -> tuple[bytes, bytes, Buffer | None] | None:
        """The route, the frame and the second frame (or None) of what comes next.

        None if nothing comes within ``timeout`` seconds (of which it may take fewer).
        """
        guard = self.guard
        now = self._now = time.monotonic()
        if now >= guard.due:
            guard.turn(now)
        longest = max(0.0, guard.due - now) if len(guard) else RECEIVE_MAX
        milliseconds = math.ceil(max(0.0, min(timeout, longest, RECEIVE_MAX)) * 1000)
        if milliseconds != self._timeout_ms:
            self._timeout_ms = milliseconds
            self._router.setsockopt(zmq.RCVTIMEO, milliseconds)
        try:
            route: bytes = self._router.recv()
        except zmq.Again:
            guard.found_empty()
            return None
        connection = guard.of(route)
        if connection is None:
            first = self._router.recv(copy=False)
            frame = first.bytes
            if frame == self._wake_up:
                return None
            connection = guard.arrived(route, first, now)
        else:
            frame = self._router.recv()
        data: Buffer | None = None
        size, extra = _on_the_wire(len(frame)), 0
        if self._router.getsockopt(zmq.RCVMORE):
            second = self._router.recv(copy=False)
            data = second.buffer
            size += _on_the_wire(len(data))
            while second.more:
                second = self._router.recv(copy=False)
                if not extra % FRAMES_BETWEEN_TURNS:
                    guard.many_frames(connection, time.monotonic())
                extra += 1
        if connection is not None:
            guard.took(connection, size)
        return None if extra else (route, frame, data)

    def send(self, route: bytes, frame: bytes, data: Buffer | None = None) -> None:
        """Send a frame, and ``data`` as a message of its own, from where it lies.

        It is dropped if the peer has gone away or does not keep up.
        """
        connection = self.guard.of(route)
        if connection is not None:
            size = len(frame) if data is None else len(frame) + len(data)
            if not self.guard.may_reply(connection, size, self._now):
                return
        try:
            self._router.send(route, _MORE)
            self._router.send(frame, _NOW)
            if data is not None:
                # pyzmq frees what it does not copy in a thread, which has to be one.
                self._router.send_multipart((route, data), _NOW, copy=native.patched())
        except (zmq.Again, OSError):
            return  # the requester sends again

    def knows(self, route: bytes) -> bool:
        """Whether the connection that a message has come over has not ended."""
        return self.guard.of(route) is not None

    def peer_of(self, route: bytes) -> str | None:
        """The address that a route leads to; None if it is not TCP, or has ended."""
        connection = self.guard.of(route)
        return None if connection is None else connection.group

    def publish(self, frame: bytes) -> None:
        """Send a frame to all who listen. Those that do not keep up miss it."""
        self.guard.published(len(frame))
        self._pub.send(frame, _NOW)

    def wake(self) -> None:
        """Make :meth:`receive` return soon. From any thread or signal handler.

        Not if somebody else is about to do so; and never in a context that may be gone by now, in
        which ZeroMQ would abort.
        """
        if not self._waking.acquire(blocking=False):
            return
        try:
            with self._context.socket(zmq.DEALER) as sock:
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.connect(_WAKE_UP)
                sock.send(self._wake_up, _NOW)
        except zmq.ZMQError:  # it will return by itself
            pass
        finally:
            self._waking.release()

    def forked(self) -> None:
        """In the child: keep the ports no longer than the parent does. Nothing else is touched."""
        for descriptor in self._listening:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._listening.clear()

    def close(self) -> None:
        """Let the last replies leave, then free the ports. Idempotent."""
        self._listening.clear()
        self._waking.acquire(timeout=RECEIVE_MAX)  # for ever; Ctrl-C may have left it taken
        self.guard.close()
        self._router.close()
        self._pub.close()
        self._end(CLOSE_MAX)


def connections_max(max_clients: int) -> int:
    """How many connections are accepted: those of ``max_clients`` Locals, if there is room."""
    wanted = CONNECTIONS_PER_CLIENT * max_clients + CONNECTIONS_SPARE
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return wanted
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, limit - max(DESCRIPTORS_SPARE, limit // 8)))


def _on_the_wire(size: int) -> int:
    """The bytes of a frame with its head."""
    return size + (2 if size < 256 else 9)


def _number_peers(router: zmq.Socket[bytes]) -> None:
    """Have ZeroMQ name every peer by a number of its own, whatever name the peer claims.

    A peer that claims the number that ZeroMQ would give next would otherwise end this process: the
    next honest peer gets the same name, which an assertion of ZeroMQ forbids. The two calls
    leave exactly this behind: the socket is not raw any more, but goes on to number its peers. What
    was bound before speaks ZeroMQ's protocol as ever. The price: each frame after the route is sent
    as a message of its own.
    """
    router.setsockopt(zmq.ROUTER_RAW, 1)
    router.setsockopt(zmq.ROUTER_RAW, 0)

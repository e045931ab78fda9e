"""Global's side: a ROUTER for requests, a PUB for broadcast invalidations."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import zmq

from dstore.config import CLIENTS_MAX_DEFAULT, FRAME_BYTES_MAX
from dstore.core.authority.identity import ANYONE, Identity
from dstore.errors import AddressError
from dstore.protocol.messages import Buffer
from dstore.runtime import native
from dstore.runtime.logs import Log
from dstore.runtime.native import WAIT_SLICE
from dstore.transport import addresses, binding, limits
from dstore.transport.connection import CURVE, PLAIN, Connection, Denied
from dstore.transport.guard import Guard
from dstore.transport.limits import Termination, new_context
from dstore.transport.path_lock import PathLock
from dstore.transport.zap import Doorkeeper, KeyRing, close_to_others

log = Log("dstore.global")

LINGER_MS = 1000
"""Milliseconds for the last replies to leave when the sockets are closed."""
CLOSE_TIMEOUT = 3.0
"""Seconds to wait on closing until the ports are free."""
INTERRUPTED_CLOSE_TIMEOUT = 0.2
"""The same when Ctrl-C has interrupted binding, and may hold a socket that is half made."""
SUBSCRIPTION_FRAME_MAX = 128
"""Bytes of a frame that a subscriber may send."""
FRAMES_BETWEEN_CHECKS = 5_000
"""Frames of a message with too many of them that are taken between two checks of the guard."""
HANDSHAKE_MS = 10_000
"""Milliseconds within which a connection must have spoken ZeroMQ's handshake."""
CONNECTIONS_PER_CLIENT = 4
"""Connections that a Local with few threads has: control, subscription, requests."""
CONNECTIONS_SPARE = 512
"""Connections beyond these, for Locals with many threads."""
DESCRIPTORS_SPARE = 64
"""Descriptors that connections leave for everything else, at least; and an eighth of all."""
CURVE_SUBSCRIPTION_FRAME_MAX = 512
"""The same with CURVE, where the frames of the handshake are larger."""
Arrived: TypeAlias = tuple[bytes, bytes, "Buffer | None", Identity]
_send = zmq.backend.Socket.send
"""Sends a frame. The method of zmq.Socket looks at options first that are not used here."""
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_WAKE_UP = "inproc://wake-up"


class Router:
    """Both sockets of a Global, bound. For one thread, except :meth:`wake`. Raises AddressError.

    ``max_clients`` is how many Locals are expected at most; it limits the connections. ``warn``
    is called, as a logger is, when a connection is cut. With ``keys`` only peers are admitted whose
    key is in that ring, and all that they send and receive is encrypted. ``deny`` is called when
    the handshake of a connection has failed: why, and from which address, if that is known.
    ``era`` is to differ for each Router in the life of a Global: routes of another one then name no
    peer of this one.
    """

    def __init__(
        self,
        address: str,
        publisher: str | None,
        *,
        max_clients: int = CLIENTS_MAX_DEFAULT,
        warn: Callable[..., None] = log.warning,
        keys: KeyRing | None = None,
        deny: Callable[[Denied, str | None], None] = lambda why, source: None,
        era: bytes = b"",
    ) -> None:
        addresses.check(address, bind=True)
        self._wake_up = os.urandom(16)
        self._waking = native.Lock()  # held by another thread than the owner that uses the context
        self._wake_wanted = False
        self._waker: zmq.Socket[bytes] | None = None  # used while the lock is held
        self._locks: list[PathLock] = []
        # Where threads are patched nothing is sent without a copy: see send().
        keyed = keys is not None
        self._context = new_context(
            limits.GLOBAL_DESCRIPTORS + limits.ACCESS_DESCRIPTORS * keyed,
            AddressError,
            threads=limits.CONTEXT_THREADS + limits.ACCESS_THREADS * keyed,
            zero_copy=not native.patched(),
        )
        self._era = era
        self._wire = CURVE if keyed else PLAIN
        self._extra = self._wire.frame  # bytes that each frame has beside its own and its head
        self._doorkeeper: Doorkeeper | None = None
        self._termination = Termination(self._context)
        with contextlib.ExitStack() as unless_bound:
            unless_bound.push(self._terminate_after)
            if keys is not None:
                self._doorkeeper = Doorkeeper(self._context, keys)
            self._router = unless_bound.enter_context(self._context.socket(zmq.ROUTER))
            self._pub = unless_bound.enter_context(self._context.socket(zmq.PUB))
            for sock in (self._router, self._pub):
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
                if keys is not None:
                    close_to_others(sock, keys.server_secret)
            subscription_max = CURVE_SUBSCRIPTION_FRAME_MAX if keyed else SUBSCRIPTION_FRAME_MAX
            self._router.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX + self._extra)
            self._pub.setsockopt(zmq.MAXMSGSIZE, subscription_max)
            subscribers = max_clients + CONNECTIONS_SPARE
            self.guard = Guard(
                self._router,
                self._pub,
                connections_max=connections_max(max_clients),
                subscribers_max=min(subscribers, connections_max(max_clients)),
                warn=warn,
                # No method of this Router: a cycle of references would leave its sockets to the
                # garbage collector, which may end the context before them, and wait for ever.
                deny=partial(_denied, deny, self._doorkeeper),
                wire=self._wire,
            )
            unless_bound.callback(self.guard.close)
            self.address = self._bind(self._router, address)
            wanted = publisher or addresses.publisher_default(address)
            self.publisher = self._bind(self._pub, wanted)
            _use_own_routes(self._router)
            self._router.bind(_WAKE_UP)
            self._listening = self.guard.listening(time.monotonic())
            self._poller = zmq.Poller()  # used with keys alone
            for sock in (self._router, *self.guard.monitors):
                self._poller.register(sock, zmq.POLLIN)
            self.advertised = addresses.advertised(self.publisher, self.address)
            self._timeout_ms = -1
            self._now = 0.0  # when a message was last waited for
            unless_bound.pop_all()

    def _bind(self, sock: zmq.Socket[bytes], address: str) -> str:
        lock = PathLock(addresses.check(address, bind=True))
        self._locks.append(lock)
        bound = binding.bind(sock, address)
        lock.note_bound()
        return bound

    def _terminate_after(self, _: object, error: BaseException | None, __: object) -> None:
        self._terminate(
            CLOSE_TIMEOUT if isinstance(error, Exception) else INTERRUPTED_CLOSE_TIMEOUT
        )

    def _terminate(self, timeout: float) -> None:
        if not self._termination.wait(timeout):
            self._termination.run()
        for lock in self._locks:  # not before ZeroMQ has closed the sockets
            lock.release()

    def admit(self, ring: KeyRing) -> None:
        """From now on admit the peers of another ring. Connections that are there stay."""
        assert self._doorkeeper is not None
        self._doorkeeper.ring = ring

    def cut_identity(self, identity: Identity) -> None:
        """Cut the connections of an identity that :meth:`admit` has excluded.

        Nobody can tell whose a subscriber is, or a connection that has sent nothing yet. So all of
        those are cut as well; honest Locals connect again at once.
        """
        self.guard.cut_identity(identity, time.monotonic())

    def receive(self, timeout: float) -> Arrived | None:
        """Take the next message: its route, its frame, its second frame (or None), its identity.

        That is ANYONE without keys. What an identity sends that has been revoked is dropped.
        Returns None if none comes within ``timeout`` seconds. It may return earlier than that.
        """
        guard = self.guard
        now = self._now = time.monotonic()
        if now >= guard.check_at:
            guard.check(now)
        if guard.connected and timeout > guard.check_at - now:
            timeout = guard.check_at - now
        if timeout > WAIT_SLICE:
            timeout = WAIT_SLICE
        milliseconds = math.ceil(timeout * 1000) if timeout > 0 else 0
        if milliseconds != self._timeout_ms:
            self._timeout_ms = milliseconds
            self._router.setsockopt(zmq.RCVTIMEO, milliseconds)
        try:
            if self._doorkeeper is None:
                route: bytes = self._router.recv()
            else:
                route = self._receive_route(milliseconds)
        except zmq.Again:
            guard.round_ended()
            return None
        first = self._router.recv(copy=False)  # it knows whether another frame follows
        frame = first.bytes
        connection = guard.by_route.get(route)
        if connection is None:
            if frame == self._wake_up:
                return None
            connection = guard.first_message(route, first, now)
        # Before the next frames, of which there may be too many.
        identity = ANYONE if self._doorkeeper is None else self._whose(first, connection)
        second: Buffer | None = None
        if first.more:
            second = self._take_second(len(frame), connection, identity)
        elif connection is not None:
            size = len(frame) + self._extra
            guard.message_taken(connection, size + 2 if size < 256 else size + 9)
        if identity is None or guard.bans(identity) or (second is None and first.more):
            return None
        route += self._era
        return route, frame, second, identity

    def _receive_route(self, milliseconds: int) -> bytes:
        """Take the first frame of a message; meanwhile see who connects. Raises zmq.Again.

        The address of a peer can be had only while it is connected, and one whose handshake fails
        is gone in an instant. Of one that sends all of it at once it stays unknown at times.
        """
        try:
            return self._router.recv(zmq.NOBLOCK)
        except zmq.Again:
            ready = self._poller.poll(milliseconds)
        if any(sock is not self._router for sock, _ in ready):
            self.guard.update(self._now)
        return self._router.recv(zmq.NOBLOCK)

    def _whose(self, frame: zmq.Frame, connection: Connection | None) -> Identity | None:
        """Whose a message is, by its first frame. None if that is nobody who is admitted now."""
        identity = None if connection is None else connection.identity
        if identity is None:
            assert self._doorkeeper is not None
            with contextlib.suppress(zmq.ZMQError):  # ZeroMQ says nothing about the peer
                identity = self._doorkeeper.ring.identity_of(str(frame.get("User-Id")))
            if connection is not None:
                self.guard.identify(connection, identity)
        return None if identity is None or identity.revoked else identity

    def _take_second(
        self, size_of_first: int, connection: Connection | None, identity: Identity | None
    ) -> Buffer | None:
        """Take the second frame of a message. Returns None if there are more than two."""
        second, extra = self._router.recv(copy=False), 0
        data: Buffer = second.buffer
        while second.more:
            second = self._router.recv(copy=False)
            if not extra % FRAMES_BETWEEN_CHECKS:
                self.guard.too_many_frames(connection, identity, time.monotonic())
            extra += 1
        if connection is not None:
            size = _size_with_head(size_of_first + self._extra)
            size += _size_with_head(len(data) + self._extra)
            self.guard.message_taken(connection, size)
        return None if extra else data

    def send(self, route: bytes, frame: bytes, data: Buffer | None = None) -> None:
        """Send a frame, and ``data`` as a message of its own, which is not copied.

        Dropped if the peer has gone away or does not keep up.
        """
        if self._era:
            route = self._of_this_era(route)
        connection = self.guard.by_route.get(route)
        if connection is not None:
            size = len(frame) + self._extra
            if data is not None:
                size += len(data) + self._extra
            if not self.guard.may_reply(connection, size, self._now):
                return
        try:
            _send(self._router, route, _MORE)
            _send(self._router, frame, _NOW)
            if data is not None:
                # pyzmq releases what it does not copy in a thread, which must not be a greenlet.
                self._router.send_multipart((route, data), _NOW, copy=native.patched())
        except (zmq.Again, OSError):
            return  # the requester sends again

    def knows(self, route: bytes) -> bool:
        """Whether the connection of this route, over which a message came, is still there."""
        return self.guard.by_route.get(self._of_this_era(route)) is not None

    def peer_of(self, route: bytes) -> str | None:
        """Return the source address of a route; None if it is not TCP, or has ended."""
        connection = self.guard.by_route.get(self._of_this_era(route))
        return None if connection is None else connection.source

    def _of_this_era(self, route: bytes) -> bytes:
        """The route as ZeroMQ knows it; one that names no peer, if it is of another Router."""
        if not self._era:
            return route
        own = route.removesuffix(self._era)
        return own if own != route else b""

    def publish(self, frame: bytes) -> None:
        """Send a frame to all subscribers. Those that do not keep up miss it."""
        self.guard.published(len(frame) + self._extra)
        self._pub.send(frame, _NOW)

    def wake(self) -> None:
        """Make :meth:`receive` return soon. From any thread or signal handler.

        If another thread is doing the same, that one does it once more: what it has sent may have
        been received before this call. Does nothing if the context may be terminated by now, where
        ZeroMQ would abort.
        """
        self._wake_wanted = True
        while self._wake_wanted and self._waking.acquire(blocking=False):
            try:
                self._wake_wanted = False
                if self._waker is None:
                    self._waker = self._new_waker()
                _send(self._waker, self._wake_up, _NOW)
            except zmq.ZMQError:  # receive() returns after WAIT_SLICE anyway
                pass
            finally:
                self._waking.release()

    def _new_waker(self) -> zmq.Socket[bytes]:
        """Return a connected socket. It is kept: a durable Global is woken for each commit."""
        with contextlib.ExitStack() as unless_connected:
            sock = unless_connected.enter_context(self._context.socket(zmq.DEALER))
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(_WAKE_UP)
            unless_connected.pop_all()
        return sock

    def forked(self) -> None:
        """Close the listening descriptors in a forked child, and touch nothing else.

        As long as the child had them open the ports would stay taken after the parent's end, and
        connections there would never be answered.
        """
        for descriptor in self._listening:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._listening.clear()

    def close(self) -> None:
        """Let the last replies leave, then free the ports. Idempotent."""
        self._listening.clear()
        # Never released, so that wake() does nothing from now on. Ctrl-C may have left it taken.
        self._waking.acquire(timeout=WAIT_SLICE)
        self.guard.close()
        if self._waker is not None:
            self._waker.close()
        self._router.close()
        self._pub.close()
        self._terminate(CLOSE_TIMEOUT)
        if self._doorkeeper is not None:
            self._doorkeeper.join(CLOSE_TIMEOUT)


def connections_max(max_clients: int) -> int:
    """How many connections are accepted: those of ``max_clients`` Locals, if descriptors permit."""
    wanted = CONNECTIONS_PER_CLIENT * max_clients + CONNECTIONS_SPARE
    limit = limits.descriptor_limit()
    return max(1, min(wanted, limit - max(DESCRIPTORS_SPARE, limit // 8)))


def _denied(
    deny: Callable[[Denied, str | None], None],
    doorkeeper: Doorkeeper | None,
    why: Denied,
    source: str | None,
) -> None:
    """Say that the handshake of a connection has failed."""
    if why is Denied.UNKNOWN_KEY and doorkeeper is not None:
        with contextlib.suppress(IndexError):
            source = doorkeeper.refused.popleft()
    deny(why, source)


def _size_with_head(size: int) -> int:
    """The bytes of a frame with its head, as ZeroMQ sends it."""
    return size + (2 if size < 256 else 9)


def _use_own_routes(router: zmq.Socket[bytes]) -> None:
    """Make ZeroMQ name every peer by a number of its own, not by the name that the peer claims.

    A peer could otherwise claim the number that ZeroMQ gives next, and end this process: the next
    honest peer would get the same name, which an assertion of ZeroMQ forbids. The two calls leave
    exactly this behind: the socket is not raw any more, but goes on to number its peers. Addresses
    that were bound before speak ZeroMQ's protocol as usual. The price: each frame after the route
    is sent as a message of its own.
    """
    router.setsockopt(zmq.ROUTER_RAW, 1)
    router.setsockopt(zmq.ROUTER_RAW, 0)

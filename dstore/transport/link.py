"""All sockets of one Local, in a ZeroMQ context of their own."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable

import zmq

from dstore.errors import AddressError, GlobalUnavailable
from dstore.runtime.native import Waker
from dstore.transport import addresses, limits
from dstore.transport.channel import (
    CONTROL_SILENCE_MS,
    ChannelPool,
    ClientSocket,
    Requests,
    drain,
    opening_channel,
)
from dstore.transport.limits import Termination, new_context
from dstore.transport.resolver import PublisherEndpoint, Resolver

CLOSE_TIMEOUT = 2.0
"""Seconds to wait on closing for sockets that other threads still use."""
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED


class Control:
    """A DEALER for the session, and a SUB for broadcast invalidations.

    For the one thread that owns it, except ``wake``.

    ``poller`` has all that the thread waits for; other sockets may be registered there.
    ``resolver`` finds Global for all sockets of the Local.

    ZeroMQ restores a lost connection by itself, which is right for a literal address. A name may
    stand for another address by then, and what listens at the former one need not be our Global. So
    that connection is given up, and the name is looked up.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._publisher: str | None = None
        self._topics: set[bytes] = set()
        self._waker = Waker()
        self.wake = self._waker.wake  # makes wait() return; from any thread or signal handler
        try:
            self.resolver = Resolver(address, self.wake)
            self._dealer = ClientSocket(context, zmq.DEALER, CONTROL_SILENCE_MS, self.resolver)
            self._sub = ClientSocket(context, zmq.SUB, CONTROL_SILENCE_MS)
            self._clients = (self._dealer, self._sub)
            self._monitors = [each.socket.get_monitor_socket(_EVENTS) for each in self._clients]
            if not self.resolver.literal and not self.resolver.search():
                raise GlobalUnavailable(self.resolver.last_error)
        except BaseException:
            self._waker.close()
            raise
        self.poller = zmq.Poller()
        sockets = (self._sub.socket, self._dealer.socket, *self._monitors)
        for polled in (*sockets, self._waker.fileno()):
            self.poller.register(polled, zmq.POLLIN)

    @property
    def last_error(self) -> str:
        """Why Global is not reached, if that is known; empty once it is reached."""
        return self.resolver.last_error

    def wait(self, timeout: float) -> tuple[list[bytes], bool]:
        """Wait for at most ``timeout`` seconds (may be infinite).

        Returns the frames, invalidations first, and whether a connection has come up.
        """
        milliseconds = None if timeout == math.inf else math.ceil(max(0.0, timeout) * 1000)
        frames: list[bytes] = []
        up = False
        for client in self._clients:
            client.follow_source()
        for polled, _ in self.poller.poll(milliseconds):
            if polled is self._sub.socket or polled is self._dealer.socket:
                frames += drain(polled)
            elif polled == self._waker.fileno():
                self._waker.drain()
            elif polled in self._monitors:
                up |= self._handle_event(self._clients[self._monitors.index(polled)], polled)
        return frames, up

    def _handle_event(self, client: ClientSocket, monitor: zmq.Socket[bytes]) -> bool:
        """Handle the newest event of a connection. Returns whether the connection is up."""
        events = drain(monitor)
        if not events:
            return False
        # An event is two frames: its number (of 16 bits) with a value, and the endpoint.
        up = int.from_bytes(events[-2][:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        resolver = client.source
        if isinstance(resolver, Resolver) and client.connected_to is not None:
            if up:
                resolver.connected()
            elif client is self._dealer or not resolver.literal:
                searching = resolver.search()
                if searching and not resolver.literal:
                    client.disconnect()
        return up

    def send(self, frame: bytes) -> None:
        """Send a frame, or drop it if Global is not connected."""
        with contextlib.suppress(zmq.Again):
            self._dealer.socket.send(frame, zmq.NOBLOCK)

    def subscribe(self, publisher: str) -> None:
        """Connect to the publisher at this address, and to no other. Raises AddressError."""
        if publisher == self._publisher:
            return
        addresses.check(addresses.resolved(publisher, self.resolver.address))
        if isinstance(self._sub.source, Resolver):
            self._sub.source.stop()
        if addresses.is_literal(publisher) or addresses.on_same_host(publisher):
            self._sub.source = PublisherEndpoint(self.resolver, publisher)
        else:
            self._sub.source = named = Resolver(publisher, self.wake)
            if not named.search():
                raise AddressError(f"cannot look for {publisher}: {named.last_error}")
        self._sub.follow_source()
        self._publisher = publisher

    def set_topics(self, topics: set[bytes]) -> None:
        """Receive what is published with one of these prefixes, and nothing else."""
        for topic in topics - self._topics:
            self._sub.socket.setsockopt(zmq.SUBSCRIBE, topic)
        for topic in self._topics - topics:
            self._sub.socket.setsockopt(zmq.UNSUBSCRIBE, topic)
        self._topics = topics

    def close(self) -> None:
        for client, monitor in zip(self._clients, self._monitors):
            if isinstance(client.source, Resolver):
                client.source.stop()
            client.socket.disable_monitor()
            monitor.close()
            client.socket.close()
        self._waker.close()


class Link:
    """The control side for the background thread, channels for the other threads.

    Raises AddressError if ``address`` cannot be connected to, GlobalUnavailable if the system
    gives no more sockets.
    """

    def __init__(self, address: str) -> None:
        self._context = new_context(limits.LINK_DESCRIPTORS, GlobalUnavailable)
        self._termination = Termination(self._context)
        try:
            self.control = Control(self._context, address)
        except BaseException as error:
            self._context.destroy(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise GlobalUnavailable(limits.no_socket(error)) from None
            if isinstance(error, OSError) and not isinstance(
                error, (AddressError, GlobalUnavailable)
            ):
                raise GlobalUnavailable(f"cannot open a socket: {error.strerror}") from None
            raise
        self.channels = ChannelPool(self._context, self.control.resolver)

    def requests(self) -> Requests:
        """Open a DEALER for many requests at once, for the thread that owns ``control``.

        Raises GlobalUnavailable if the system gives no more sockets.
        """
        with opening_channel():
            return Requests(self._context, self.control.resolver, self.control.poller)

    def close(self, busy: Callable[[int], bool]) -> None:
        """Wake the requests that are under way with NodeClosed, and wait until they have ended.

        ``busy`` says whether a thread is in the middle of a call. The sockets of ``control`` must
        have been closed by the thread that owns them.
        """
        self.channels.close(busy)
        if not self._termination.wait(CLOSE_TIMEOUT) and not self.channels.in_use:
            self._context.destroy(linger=0)  # else the context ends with the process

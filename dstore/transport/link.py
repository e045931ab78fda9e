"""All sockets of one Local, in a ZeroMQ context of their own."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable

import zmq

from dstore.errors import AddressError, DstoreError, GlobalUnavailable
from dstore.runtime.native import Waker
from dstore.transport import addresses, limits
from dstore.transport.admission import EVENTS, NEVER, Admission, Event
from dstore.transport.channel import (
    CONTROL_SILENCE_MS,
    ChannelPool,
    ClientSocket,
    Requests,
    drain,
    opening_channel,
)
from dstore.transport.curve import ClientKeys
from dstore.transport.limits import Termination, new_context
from dstore.transport.resolver import PublisherEndpoint, Resolver

CLOSE_TIMEOUT = 2.0
"""Seconds to wait on closing for sockets that other threads still use."""
SUBSCRIPTION_PAUSE = 1.0
"""Seconds before a subscription whose handshake has failed is tried again."""


def _event_of(frame: bytes) -> tuple[Event, int]:
    number, value = frame[:2], frame[2:6]
    return Event(int.from_bytes(number, sys.byteorder)), int.from_bytes(value, sys.byteorder)


class Control:
    """A DEALER for the session, and a SUB for broadcast invalidations.

    For the one thread that owns it, except ``wake``.

    ``poller`` has all that the thread waits for; other sockets may be registered there.
    ``resolver`` finds Global for all sockets of the Local; ``admission`` has their keys, and says
    whether Global lets it in.

    ZeroMQ restores a lost connection by itself, which is right for a literal address. A name may
    stand for another address by then, and what listens at the former one need not be our Global. So
    that connection is given up, and the name is looked up. A connection whose handshake has failed
    is not restored by ZeroMQ, and :class:`Admission` decides when to try it again.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, admission: Admission
    ) -> None:
        self.admission = admission
        self._subscribe_at = NEVER  # when a subscription is tried again whose handshake has failed
        self._publisher: str | None = None
        self._topics: set[bytes] = set()
        self._waker = Waker()
        self.wake = self._waker.wake  # makes wait() return; from any thread or signal handler
        try:
            self.resolver = Resolver(address, self.wake)
            self._dealer = ClientSocket(
                context, zmq.DEALER, CONTROL_SILENCE_MS, admission, trying=True
            )
            self._sub = ClientSocket(context, zmq.SUB, CONTROL_SILENCE_MS, admission)
            self._clients = (self._dealer, self._sub)
            self._monitors = [each.socket.get_monitor_socket(EVENTS) for each in self._clients]
            self._dealer.source = self.resolver
            self._dealer.follow_source()
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

    @property
    def denied(self) -> DstoreError | None:
        """Why Global does not let this client in; None if it does, or if that is not known."""
        return self.admission.denied

    def wait(self, timeout: float) -> tuple[list[bytes], bool]:
        """Wait for at most ``timeout`` seconds (may be infinite).

        Returns the frames, invalidations first, and whether a connection has come up.
        """
        self._connect_if_due()
        timeout = min(timeout, self._due_at - time.monotonic())
        milliseconds = None if timeout == math.inf else math.ceil(max(0.0, timeout) * 1000)
        frames: list[bytes] = []
        up = False
        for polled, _ in self.poller.poll(milliseconds):
            if polled is self._sub.socket or polled is self._dealer.socket:
                frames += drain(polled)
            elif polled == self._waker.fileno():
                self._waker.drain()
            elif polled in self._monitors:
                up |= self._handle_events(self._clients[self._monitors.index(polled)], polled)
        if self.admission.doubted and self.resolver.mechanism is not None:
            self.admission.judge(self.resolver.mechanism, time.monotonic())
        return frames, up

    @property
    def _due_at(self) -> float:
        """When a connection is due to be tried again."""
        return min(self.admission.retry_at, self._subscribe_at)

    def _connect_if_due(self) -> None:
        """Follow the sources, and try again those connections whose handshakes have failed."""
        now = time.monotonic()
        if now >= self.admission.retry_at:
            self.admission.try_again()
            self._dealer.disconnect()
            if not self.resolver.literal:  # it may stand for another address by now
                self.resolver.search()
        if self.admission.retry_at == NEVER:
            self._dealer.follow_source()
        if now >= self._subscribe_at:
            self._subscribe_at = NEVER
            if self.admission.denied is None:  # else it waits until the control connection is up
                self._sub.disconnect()
        if self._subscribe_at == NEVER:
            self._sub.follow_source()

    def _handle_events(self, client: ClientSocket, monitor: zmq.Socket[bytes]) -> bool:
        """Handle the events of a connection, in order. Returns whether it is up after them."""
        parts = drain(monitor)
        # An event is two frames: its number (of 16 bits) with a value, and the endpoint.
        up = False
        for event, value in map(_event_of, parts[::2]):
            up = event is Event.UP
            if client.connected_to is None:
                continue  # of a connection that was given up
            if client is self._dealer:
                self._handle_event_of_dealer(event, value)
            elif event.failed:
                self._subscribe_at = time.monotonic() + SUBSCRIPTION_PAUSE
            self._search_if_lost(client, event)
        return up

    def _handle_event_of_dealer(self, event: Event, value: int) -> None:
        admission = self.admission
        if event is Event.UP:
            if admission.succeeded():
                self._subscribe_at = time.monotonic()
        elif event is Event.RETRIED:
            admission.lost()
        else:
            admission.failed(event, value, time.monotonic())
            if admission.doubted:
                self.resolver.search(asking=True)

    def _search_if_lost(self, client: ClientSocket, event: Event) -> None:
        resolver = client.source
        if not isinstance(resolver, Resolver):
            return
        if event is Event.UP:
            resolver.connected()
        elif event is Event.RETRIED and (client is self._dealer or not resolver.literal):
            searching = resolver.search()
            if searching and not resolver.literal:
                client.disconnect()

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

    ``keys`` are those of the client, None if it has none. ``reread`` returns them as they are now,
    and may raise anything; it is called when Global is not the one that has the server key, or does
    not admit the client.

    Raises AddressError if ``address`` cannot be connected to, GlobalUnavailable if the system
    gives no more sockets.
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys | None = None,
        reread: Callable[[], ClientKeys] | None = None,
    ) -> None:
        self._admission = Admission(address, keys, reread)
        self._context = new_context(limits.LINK_DESCRIPTORS, GlobalUnavailable)
        self._termination = Termination(self._context)
        try:
            self.control = Control(self._context, address, self._admission)
        except BaseException as error:
            self._context.destroy(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise GlobalUnavailable(limits.no_socket(error)) from None
            if isinstance(error, OSError) and not isinstance(
                error, (AddressError, GlobalUnavailable)
            ):
                raise GlobalUnavailable(f"cannot open a socket: {error.strerror}") from None
            raise
        self.channels = ChannelPool(self._context, self.control.resolver, self._admission)

    def requests(self) -> Requests:
        """Open a DEALER for many requests at once, for the thread that owns ``control``.

        Raises GlobalUnavailable if the system gives no more sockets.
        """
        with opening_channel():
            control = self.control
            return Requests(self._context, control.resolver, self._admission, control.poller)

    def close(self, busy: Callable[[int], bool]) -> None:
        """Wake the requests that are under way with NodeClosed, and wait until they have ended.

        ``busy`` says whether a thread is in the middle of a call. The sockets of ``control`` must
        have been closed by the thread that owns them.
        """
        self.channels.close(busy)
        if not self._termination.wait(CLOSE_TIMEOUT) and not self.channels.in_use:
            self._context.destroy(linger=0)  # else the context ends with the process

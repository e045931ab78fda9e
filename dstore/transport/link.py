"""All sockets of one Local, in a ZeroMQ context of their own."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from dstore.errors import AddressError, GlobalUnavailable
from dstore.transport import limits
from dstore.transport.channel import ChannelPool
from dstore.transport.client_socket import opening_channel
from dstore.transport.context import Termination, new_context
from dstore.transport.control import Control
from dstore.transport.requests import Requests

CLOSE_TIMEOUT = 2.0
"""Seconds to wait on closing for sockets that other threads still use."""


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
        """A channel for many requests at once, for the thread that owns ``control``.

        That thread waits for both. Raises GlobalUnavailable if the system gives no more sockets.
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

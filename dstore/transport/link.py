"""All sockets of one Local, in a context of their own."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from dstore.errors import AddressError, GlobalUnavailable
from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread
from dstore.transport import limits
from dstore.transport.channel import ChannelPool, no_socket
from dstore.transport.control import Control
from dstore.transport.requests import Requests

CLOSE_MAX = 2.0
"""Seconds that closing waits for sockets to be closed."""


class Link:
    """The control side for the background thread, channels for the others.

    Raises AddressError if ``address`` cannot be connected to, GlobalUnavailable if the system
    gives no more sockets.
    """

    def __init__(self, address: str) -> None:
        self._context = limits.context(limits.LINK_DESCRIPTORS, GlobalUnavailable)
        try:
            self.control = Control(self._context, address)
        except BaseException as error:
            self._context.destroy(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise no_socket(error) from None
            if isinstance(error, OSError) and not isinstance(
                error, (AddressError, GlobalUnavailable)
            ):
                raise GlobalUnavailable(f"cannot open a socket: {error.strerror}") from None
            raise
        self.channels = ChannelPool(self._context, self.control.route)

    def requests(self) -> Requests:
        """A channel for many requests at once. For the thread that owns ``control``, which waits
        for both; raises GlobalUnavailable if the system gives no more sockets.
        """
        try:
            limits.need_descriptors(limits.CHANNEL_DESCRIPTORS)
            return Requests(self._context, self.control.route, self.control.poller)
        except limits.Shortage as shortage:
            raise GlobalUnavailable(str(shortage)) from None
        except zmq.ZMQError as error:
            raise no_socket(error) from None

    def close(self, busy: Callable[[int], bool]) -> None:
        """Wake the requests that are under way with NodeClosed, and wait until they have gone.

        ``busy`` says of a thread whether it is in the middle of a call. The thread that owns
        ``control`` has closed its sockets before.
        """
        self.channels.close(busy)
        # A socket that Ctrl-C found half made is held by the traceback, which may be that of the
        # error during which this is called, as at the end of a with block. It is not waited for.
        thread = native.Thread(self._context.term, "dstore-close")
        try:
            with signals_left_to_this_thread():
                thread.start()
        except RuntimeError:  # there can be no more threads, or Python (3.12) is about to exit
            if not self.channels.in_use:
                self._context.destroy(linger=0)
            return  # else it ends with the process
        thread.join(CLOSE_MAX)

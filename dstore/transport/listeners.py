"""The descriptors that ZeroMQ listens on, for the sake of children that are forked.

A child inherits them. As long as it has them open the port stays taken, also when the parent has
closed its own, and connections to it are answered by nobody. So the child closes its copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import zmq
from zmq.utils.monitor import recv_monitor_message


@contextlib.contextmanager
def noted(sock: zmq.Socket[bytes], descriptors: list[int]) -> Iterator[None]:
    """Add to ``descriptors`` those on which ``sock`` listens when the block ends."""
    monitor = sock.get_monitor_socket(zmq.EVENT_LISTENING)
    try:
        yield
        while monitor.poll(0):  # the events of a bind are there when it returns
            descriptors.append(recv_monitor_message(monitor)["value"])
    finally:
        sock.disable_monitor()
        monitor.close()

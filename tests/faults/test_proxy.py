"""The relay passes bytes on, except where a rule disturbs a path."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.proxy import Proxy, Rule
from tests.integration.processes import PATIENCE, free_port

HOST = "127.0.0.2"
WHILE = 0.1
"""Seconds in which nothing must arrive."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


class Ends:
    """A listener in Global's place, and connections to it through the relay."""

    def __init__(self, stack: ExitStack) -> None:
        port = free_port()
        self._stack = stack
        self.source = "127.0.0.1"
        self._listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", port + at))) for at in (0, 1)
        ]
        self._port = port
        self.proxy = stack.enter_context(Proxy(port, [HOST]))

    def connect(self, path: int) -> tuple[socket.socket, socket.socket]:
        """The near and the far end of a new connection."""
        near = self._stack.enter_context(self.knock(path))
        far = self._stack.enter_context(self._listeners[path].accept()[0])
        far.settimeout(PATIENCE)
        return near, far

    def knock(self, path: int) -> socket.socket:
        where = (HOST, self._port + path)
        return socket.create_connection(where, PATIENCE, (self.source, 0))


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


def silent(end: socket.socket) -> bool:
    return not select.select([end], [], [], WHILE)[0]


def ended(end: socket.socket) -> bool:
    """Wait for the other side to end the connection."""
    try:
        return end.recv(100) == b""
    except ConnectionResetError:
        return True


def test_both_paths_pass_both_ways(ends: Ends) -> None:
    for path in (0, 1):
        near, far = ends.connect(path)
        near.sendall(b"there")
        assert far.recv(100) == b"there"
        far.sendall(b"back")
        assert near.recv(100) == b"back"


def test_a_cut_ends_connections_of_one_path_alone(ends: Ends) -> None:
    requests, _ = ends.connect(0)
    deletions, publisher = ends.connect(1)
    ends.proxy.disturb(HOST, "requests", Rule("cut"))
    assert ended(requests)
    with ends.knock(0) as again:
        assert ended(again)
    publisher.sendall(b"deletion")
    assert deletions.recv(100) == b"deletion"
    ends.proxy.restore(HOST, "requests")
    near, far = ends.connect(0)
    near.sendall(b"again")
    assert far.recv(100) == b"again"


@pytest.mark.parametrize("rule", [Rule("stall"), Rule("delay", 1000.0), Rule("throttle", 0.001)])
def test_what_is_held_comes_once_the_path_is_restored(ends: Ends, rule: Rule) -> None:
    near, far = ends.connect(0)
    ends.proxy.disturb(HOST, "requests", rule)
    near.sendall(b"there")
    assert silent(far)
    ends.proxy.restore(HOST, "requests")
    assert far.recv(100) == b"there"


def test_one_way_may_be_held_and_the_other_pass(ends: Ends) -> None:
    near, far = ends.connect(0)
    ends.proxy.disturb(HOST, "requests", Rule("stall", way="to_local"))
    near.sendall(b"there")
    assert far.recv(100) == b"there"
    far.sendall(b"back")
    assert silent(near)
    ends.proxy.restore(HOST, "requests")
    assert near.recv(100) == b"back"


def test_connections_of_one_source_are_cut_and_others_pass(ends: Ends) -> None:
    other, other_far = ends.connect(0)
    ends.source = "127.0.0.3"
    one, _ = ends.connect(0)
    ends.proxy.disturb(HOST, "requests", Rule("cut"), ends.source)
    assert ended(one)
    with ends.knock(0) as again:
        assert ended(again)
    other.sendall(b"there")
    assert other_far.recv(100) == b"there"
    ends.proxy.restore(HOST, "requests", ends.source)
    near, far = ends.connect(0)
    near.sendall(b"again")
    assert far.recv(100) == b"again"


def test_a_listener_that_is_gone_ends_the_connection() -> None:
    with Proxy(free_port(), [HOST]) as proxy:
        where = (HOST, proxy.port)
        with socket.create_connection(where, timeout=PATIENCE) as near:
            assert ended(near)


def test_an_address_that_is_taken_is_said() -> None:
    port = free_port()
    with socket.create_server((HOST, port)), pytest.raises(OSError, match="cannot listen"):
        Proxy(port, [HOST])

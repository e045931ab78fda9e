"""Limits on connections to Global: raw peers against a Router whose loop the test drives."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore import config
from dstore.config import share_of
from dstore.protocol import wire
from dstore.protocol.messages import Hello, Welcome
from dstore.transport import connection as connections
from dstore.transport import guard
from dstore.transport import router as routers
from dstore.transport.router import Arrived, Router, connections_max
from tests.ending import kill
from tests.faults.raw_peer import MORE, RawPeer, crowd, frame, frame_head
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess, free_port, others_left

MakeNode = Callable[..., dstore.Node]
FIRST_NAME = """
import zmq
context = zmq.Context()
router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
dealer.connect("tcp://127.0.0.1:%d" % router.bind_to_random_port("tcp://127.0.0.1"))
dealer.send(b"")
print(router.recv().hex())
context.destroy(linger=0)
"""


class Driven:
    """A Router whose loop the test drives, and its warnings (``said``)."""

    def __init__(self, max_clients: int = 1_000, address: str = "tcp://127.0.0.1:0") -> None:
        self.said: list[str] = []
        self.router = Router(
            address,
            None,
            max_clients=max_clients,
            warn=lambda text, *arguments: self.said.append(text % arguments),
        )

    def turn(self, seconds: float = 0.0) -> Arrived | None:
        """Run a check of the guard, and take the next message."""
        self.router.guard.check_at = 0.0
        return self.router.receive(seconds)

    def until(self, condition: Callable[[], object]) -> None:
        """Drive the loop until a condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"{len(self.router.guard)} connections, {self.said}"
            self.turn(0.01)

    def rest(self, turns: int = 6) -> None:
        """Let the guard check all connections several times, while no message is left."""
        for _ in range(turns):
            while self.turn(0.01) is not None:
                pass

    @property
    def cuts(self) -> int:
        return self.router.guard.cuts


@pytest.fixture
def driven() -> Iterator[Driven]:
    made = Driven()
    yield made
    made.router.close()


# ---- names ------------------------------------------------------------------------------------


def test_a_peer_that_claims_the_name_of_the_next_one_ends_nothing() -> None:
    """ZeroMQ asserts that no two peers have one name, and its numbers are always the same."""
    said = subprocess.run(
        [sys.executable, "-c", FIRST_NAME], capture_output=True, check=True, text=True
    )
    first = int.from_bytes(bytes.fromhex(said.stdout)[1:], "big")
    with GlobalProcess() as place, crowd() as peers:
        for number in range(first, first + 40):
            name = b"\0" + struct.pack(">I", number & 0xFFFFFFFF)
            peers.append(RawPeer(place.address, identity=name))
        for _ in range(5):
            with RawPeer(place.address) as honest:
                assert isinstance(honest.join(), Welcome)
        assert place.process.poll() is None


def test_peers_that_claim_one_name_are_all_served(driven: Driven) -> None:
    with crowd() as peers:
        for number in range(3):
            peers.append(RawPeer(driven.router.address, identity=b"twin"))
            peers[-1].send(b"from %d" % number)
        routes: dict[bytes, bytes] = {}
        while len(routes) < 3:
            arrived = driven.turn(0.1)
            if arrived is not None:
                routes[arrived[1]] = arrived[0]
        assert len(set(routes.values())) == 3
        for number, peer in enumerate(peers):
            driven.router.send(routes[b"from %d" % number], b"to %d" % number, b"data")
            assert peer._frame()[1] == b"to %d" % number
            assert peer._frame()[1] == b"data"


# ---- wake-ups -----------------------------------------------------------------------------------


def test_wake_ups_that_nobody_takes_are_bounded(driven: Driven) -> None:
    """A durable Global is woken for each commit, also while it is busy with something else."""

    def wake_often() -> None:
        for _ in range(4_000):
            driven.router.wake()

    thread = threading.Thread(target=wake_often)
    thread.start()
    thread.join()
    driven.router.wake()
    taken = 0
    while driven.router._router.poll(0):
        assert driven.turn() is None
        taken += 1
    assert 1 <= taken <= 2_000
    with RawPeer(driven.router.address) as peer:
        peer.send(b"a message")
        driven.until(lambda: driven.turn(0.1) is not None)
    driven.router.wake()
    assert driven.router._router.poll(int(PATIENCE * 1000))


def test_no_wake_up_is_lost_while_another_thread_sends_one(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one has sent may have been taken before; then nobody would wake Global again."""
    router = driven.router
    sent, go_on = threading.Event(), threading.Event()
    send = routers._send

    def slow(*arguments: Any) -> None:
        send(*arguments)
        if not sent.is_set():
            sent.set()
            assert go_on.wait(PATIENCE)

    monkeypatch.setattr(routers, "_send", slow)
    thread = threading.Thread(target=router.wake)
    thread.start()
    assert sent.wait(PATIENCE)
    assert driven.turn(PATIENCE) is None  # the one of the thread, which has not ended
    router.wake()
    go_on.set()
    thread.join()
    assert router._router.poll(0)


# ---- what is under way --------------------------------------------------------------------------


def test_a_message_without_end_is_cut(driven: Driven) -> None:
    with RawPeer(driven.router.address) as peer:
        part, sent = memoryview(frame(bytes(1 << 16), MORE)), 0
        peer.socket.setblocking(False)
        while not driven.cuts:
            assert sent < connections.UNREAD_MAX + (256 << 20)
            try:
                sent += peer.socket.send(part[sent % len(part) :])
            except BlockingIOError:
                driven.turn(0.001)
        driven.until(lambda: not len(driven.router.guard))
        assert peer.is_cut
    assert any("bytes" in line and "127.0.0.2" in line for line in driven.said)


def test_a_message_with_too_many_frames_is_taken_whole_and_its_sender_cut(driven: Driven) -> None:
    with RawPeer(driven.router.address) as peer, RawPeer(driven.router.address) as other:
        peer.send(*[b""] * 1_000)
        driven.until(lambda: driven.cuts)
        assert "more than two frames" in driven.said[-1]
        driven.until(lambda: len(driven.router.guard) == 1)
        other.send(b"after")
        arrived = None
        while arrived is None:
            arrived = driven.turn(0.1)
        assert arrived[1] == b"after"


@pytest.mark.parametrize("host", ["*", "[::]", "[::1]"])
def test_peers_of_both_families_are_known_by_their_addresses(host: str) -> None:
    """Where ZeroMQ listens on both, the kernel names an IPv4 peer as one of IPv6."""
    try:
        driven = Driven(address=f"tcp://{host}:0")
    except dstore.AddressError:
        pytest.skip("there is no IPv6 here")
    try:
        port = driven.router.address.rpartition(":")[2]
        local = "[::1]" if host == "[::1]" else "127.0.0.1"
        source = "::1" if host == "[::1]" else "127.0.0.2"
        with RawPeer(f"tcp://{local}:{port}", source=source) as peer:
            peer.send(b"hello")
            driven.until(lambda: _only_route(driven))
            group = driven.router.peer_of(_only_route(driven))
            assert group == ("::/64" if host == "[::1]" else "127.0.0.2")
            with contextlib.suppress(OSError):
                peer.socket.sendall(frame(b"", MORE) * 3_000_000)
            driven.until(lambda: driven.cuts)
            driven.until(lambda: peer.is_cut)
    finally:
        driven.router.close()


@pytest.mark.long
def test_messages_earn_no_credit_for_what_is_unfinished(driven: Driven) -> None:
    with RawPeer(driven.router.address) as peer:
        for _ in range(1_000):
            peer.socket.sendall(frame(b"small") * 100)
            for _ in range(100):
                while driven.turn(0.1) is None:
                    pass
        connection = driven.router.guard.by_route.get(_only_route(driven))
        assert connection is not None
        driven.rest()
        assert connection.messages == 100_000
        assert abs(connection.unread) <= connections.HANDSHAKE_BYTES


def test_an_address_that_sent_many_frames_is_not_heard_for_a_while(driven: Driven) -> None:
    with RawPeer(driven.router.address) as peer:
        peer.send(*[b""] * 1_000)
        driven.until(lambda: driven.cuts)
        with RawPeer(driven.router.address, shake=False) as again:
            driven.until(lambda: again.is_cut)
        driven.router.guard._banned_until.clear()
        with RawPeer(driven.router.address) as later:
            later.send(b"hello")
            driven.until(lambda: driven.router.guard.by_route.get(_only_route(driven)))


@pytest.mark.parametrize("frames", ["one large frame each", "frames without bytes"])
def test_unfinished_messages_of_many_peers_are_bounded_together(
    driven: Driven, monkeypatch: pytest.MonkeyPatch, frames: str
) -> None:
    """The bound is smaller if they use much more memory than they have bytes."""
    monkeypatch.setattr(guard, "INFLATED_TOTAL_MAX", 4 << 20)
    monkeypatch.setattr(guard, "BASELINE_BYTES", 1 << 16)
    size = 1 << 20
    empty = frames == "frames without bytes"
    with crowd() as peers:
        for _ in range(8):
            peer = RawPeer(driven.router.address)
            peers.append(peer)
            if not empty:
                peer.socket.sendall(frame_head(size))
            rest = memoryview(frame(b"", MORE) * (size // 2) if empty else bytes(size - 1))
            peer.socket.setblocking(False)
            while rest:
                driven.turn(0.001)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[peer.socket.send(rest) :]
        driven.rest(10)
        if empty:
            driven.until(lambda: driven.cuts)
            driven.rest()
            assert "unfinished" in driven.said[-1]
            assert driven.cuts <= 5, "no more are cut than have to be"
        else:
            assert driven.cuts == 0


def test_what_an_honest_peer_has_under_way_is_not_cut_while_global_is_busy(driven: Driven) -> None:
    """All chunks of an upload have arrived, more bytes than one frame may have, and wait."""
    count = config.CHUNKS_AHEAD
    with RawPeer(driven.router.address) as peer:
        peer.send(b"first")
        driven.until(lambda: driven.router.guard.by_route.get(_only_route(driven)) is not None)
        driven.rest()
        for _ in range(count):
            peer.socket.sendall(frame(b"head", MORE) + frame_head(config.CHUNK_BYTES))
            peer.socket.sendall(bytes(config.CHUNK_BYTES))
        for _ in range(20):  # checks, while nothing is taken
            driven.router.guard.check(time.monotonic())
        taken = 0
        while taken < count:
            taken += driven.turn(0.1) is not None
        driven.rest()
        assert driven.cuts == 0
        peer.send(b"last")
        driven.until(lambda: driven.router.guard.by_route.get(_only_route(driven)))


def _only_route(driven: Driven) -> bytes:
    routes = list(driven.router.guard.by_route)
    return routes[0] if routes else b""


def test_heartbeats_are_not_taken_for_messages_under_way() -> None:
    """Those of days have more bytes than an unfinished message may have; credit is bounded."""
    connection = connections.Connection(0, None, 0, 0.0)
    now, ping = 0.0, len(frame(b"\x04PING\x00\x64", 4))
    for _ in range(2_000):
        now += 600.0  # they come late, all at once
        connection.received += 600 * ping
        connection.discount_heartbeats(now)
    assert connection.received > connections.UNFINISHED_MAX
    assert connection.unread <= 0
    now += 10 * 86_400.0
    connection.discount_heartbeats(now)
    connection.received += 1 << 20
    connection.discount_heartbeats(now + 0.1)
    assert connection.unread > (1 << 20) - connections.HEARTBEATS_SAVED_MAX - 1_000


def test_what_waited_to_be_taken_is_not_forgiven_for_ever() -> None:
    """A check often finds messages that have arrived and are about to be taken."""
    connection = connections.Connection(0, None, 0, 0.0)
    for second in range(100_000):
        connection.received += 1 << 20
        connection.discount_heartbeats(float(second))
        connection.taken += 1 << 20
        connection.discount_heartbeats(second + 0.5)
    connection.received += 1 << 20
    connection.discount_heartbeats(100_000.0)
    assert connection.unread > (1 << 20) - connections.HEARTBEATS_SAVED_MAX - 2_000


def test_replies_that_are_not_read_are_dropped_and_then_their_peer_is_cut(driven: Driven) -> None:
    with RawPeer(driven.router.address) as deaf, RawPeer(driven.router.address) as other:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send(b"deaf")
        other.send(b"other")
        routes: dict[bytes, bytes] = {}
        while len(routes) < 2:
            arrived = driven.turn(0.1)
            if arrived is not None:
                routes[arrived[1]] = arrived[0]
        connection = driven.router.guard.by_route.get(routes[b"deaf"])
        assert connection is not None
        for _ in range(2 * connections.REPLIES_MAX // (1 << 20)):
            driven.router.send(routes[b"deaf"], bytes(1 << 20))
        assert connection.replies <= connections.REPLIES_MAX + (8 << 20), "and a full socket"
        driven.rest()
        assert driven.cuts == 0, "it may be slow, and go on"
        connection.progress_at -= connections.STALLED_SECONDS
        driven.rest()
        assert driven.cuts == 1
        assert "read" in driven.said[-1]
        driven.router.send(routes[b"other"], b"still here")
        assert other._frame()[1] == b"still here"


def test_a_peer_that_was_idle_for_long_has_time_to_read_its_next_reply(driven: Driven) -> None:
    """The reply has been sent, and its acknowledgement has not come yet."""
    with RawPeer(driven.router.address) as peer:
        peer.send(b"hello")
        arrived = None
        while arrived is None:
            arrived = driven.turn(0.1)
        driven.rest()
        connection = driven.router.guard.by_route.get(arrived[0])
        assert connection is not None
        now = time.monotonic() + 10 * connections.STALLED_SECONDS
        assert driven.router.guard.may_reply(connection, 1 << 20, now)
        assert connection.peer_violation(now) is None
        later = now + 2 * connections.STALLED_SECONDS
        assert "not read its replies" in str(connection.peer_violation(later))


def test_replies_that_are_read_are_not_counted_for_ever(driven: Driven) -> None:
    with RawPeer(driven.router.address) as peer:
        peer.send(b"hello")
        arrived = None
        while arrived is None:
            arrived = driven.turn(0.1)
        for _ in range(2 * connections.REPLIES_MAX // (4 << 20)):
            driven.router.send(arrived[0], bytes(4 << 20))
            assert len(peer._frame()[1]) == 4 << 20
        assert driven.cuts == 0


# ---- subscribers --------------------------------------------------------------------------------


def test_a_subscriber_that_subscribes_to_too_much_is_cut(driven: Driven) -> None:
    with RawPeer(driven.router.publisher, "SUB") as peer:
        for number in range(connections.SUBSCRIPTION_BYTES_MAX // 2):
            with contextlib.suppress(OSError):
                peer.send(b"\x01" + struct.pack(">I", number))
        driven.until(lambda: driven.cuts)
        driven.until(lambda: peer.is_cut)


def test_a_long_topic_is_refused(driven: Driven) -> None:
    with RawPeer(driven.router.publisher, "SUB") as peer:
        with contextlib.suppress(OSError):  # it may be cut while it sends
            peer.send(b"\x01" + bytes(1 << 20))
        driven.until(lambda: peer.is_cut)


def test_a_subscriber_that_does_not_read_is_cut_and_others_hear(driven: Driven) -> None:
    with (
        RawPeer(driven.router.publisher, "SUB") as deaf,
        RawPeer(driven.router.publisher, "SUB") as other,
    ):
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send(b"\x01news")
        other.send(b"\x01news")
        heard = 0
        while not driven.cuts:
            driven.router.publish(b"news" + bytes(1 << 20))
            driven.turn(0.001)
            other.socket.settimeout(0.05)
            try:
                heard += len(other._frame()[1]) > 1 << 20
            except TimeoutError:
                pass
            assert heard < 200
        assert "does not read" in driven.said[-1]
        assert heard > connections.PUBLISHED_AHEAD_MAX >> 20


# ---- how many -----------------------------------------------------------------------------------


def test_one_address_gets_a_share_of_the_connections_and_others_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routers, "CONNECTIONS_SPARE", 16)
    driven = Driven(max_clients=1)
    try:
        share = share_of(connections_max(1))
        with crowd() as peers:
            for _ in range(share + 5):
                peers.append(RawPeer(driven.router.address, shake=False))
                driven.turn(0.001)
            driven.until(lambda: driven.cuts >= 5)
            assert "127.0.0.2" in driven.said[-1]
            driven.until(lambda: len(driven.router.guard) == share)
            with socket.create_connection(_endpoint(driven.router.address)) as local:
                driven.until(lambda: len(driven.router.guard) == share + 1)
                local.settimeout(0)
                with pytest.raises(BlockingIOError):
                    _read_all(local)
    finally:
        driven.router.close()


def _read_all(sock: socket.socket) -> None:
    """Read until the other end has closed the connection; BlockingIOError if it has not."""
    while sock.recv(1_000):
        pass


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


@pytest.mark.long
def test_a_global_that_has_no_descriptors_left_serves_those_it_has_and_rests() -> None:
    """ZeroMQ would otherwise try to accept the next connection repeatedly, without a pause."""
    address = f"tcp://127.0.0.1:{free_port()}"
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)); "
        "sys.argv = ['dstore', 'global', '--quiet', '--address', sys.argv[1]]; "
        "runpy.run_module('dstore', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, address],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        with dstore.Node(address) as node, crowd() as peers:
            node.set("k", "v")
            for _ in range(400):
                try:
                    peers.append(RawPeer(address, shake=False))
                except OSError:
                    break
            node.set("k", "w", replace=True)
            assert node.global_stats()["cut"] > 100
            time.sleep(1.0)  # until it is idle
            before, started = _seconds_of(process.pid), time.monotonic()
            time.sleep(1.0)
            busy = (_seconds_of(process.pid) - before) / (time.monotonic() - started)
            assert busy < 0.5, "it is never idle"
            assert node.get("k") == "w"
        with dstore.Node(address) as node:
            assert node.get("k") == "w"
    finally:
        kill(process)


def _seconds_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_peers_that_come_and_go_leave_nothing(driven: Driven) -> None:
    for turn in range(60):
        with RawPeer(driven.router.address) as peer, RawPeer(driven.router.publisher, "SUB") as sub:
            sub.send(b"\x01" + wire.PREFIX)
            peer.send(b"%d" % turn)
            while driven.turn(0.1) is None:
                pass
    driven.until(lambda: not len(driven.router.guard))
    assert not driven.router.guard.by_route
    for table in (driven.router.guard._requests, driven.router.guard._subscribers):
        assert not table.count_by_source
    assert driven.cuts == 0


def test_messages_of_a_peer_that_has_left_are_not_counted_for_the_next_one(driven: Driven) -> None:
    """The next connection may have the same descriptor before the messages were taken."""
    for _ in range(20):
        with RawPeer(driven.router.address) as gone:
            gone.send(bytes(1 << 20))
        with RawPeer(driven.router.address) as peer:
            peer.send(b"new")
            seen: set[int] = set()
            while not seen >= {1 << 20, 3}:
                arrived = driven.turn(0.1)
                if arrived is not None:
                    seen.add(len(arrived[1]))
            for _ in range(3):
                peer.send(bytes(1 << 20))
                driven.until(lambda: driven.turn(0.1) is not None)
            driven.rest()
    assert driven.cuts == 0


def test_a_hello_of_a_peer_that_has_gone_takes_no_place() -> None:
    """The answer would reach no peer, and the address to count the session for is unknown."""
    served = dstore.Global("tcp://127.0.0.1:0", max_clients=4)
    served.bind()
    try:
        assert served._loop is not None
        router = served._loop.router
        assert router is not None
        with crowd() as peers:
            for _ in range(4):
                peers.append(RawPeer(served.address))
                peers[-1].say(Hello(os.urandom(16), 0, 0, "gone"))
            _follow_until(router, 4)
        _follow_until(router, 0)
        served.start()
        with dstore.Node(served.address) as node:
            metrics = node.global_stats()
            assert metrics["refused"] == 0
            assert others_left(node) == 0
    finally:
        served.close()


def _follow_until(router: Router, connections: int) -> None:
    """Wait for this number of connections, without taking a message."""
    end = time.monotonic() + PATIENCE
    while len(router.guard) != connections:
        assert time.monotonic() < end
        router.guard.update(time.monotonic())


def test_a_limit_of_descriptors_bounds_the_connections() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, limits[1]))
        assert connections_max(100_000) == 1_024 - 128
        assert connections_max(10) == 552
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert share_of(100) == 75
    assert [share_of(few) for few in (1, 2, 3)] == [1, 2, 3]


def test_the_publisher_of_an_idle_global_forgets_those_who_have_left(
    free_global: dstore.Global, node: MakeNode
) -> None:
    """ZeroMQ's PUB forgets them only when it is used, and days may pass without a broadcast."""
    for _ in range(50):
        with RawPeer(free_global.publisher, "SUB") as peer:
            peer.send(b"\x01" + wire.PREFIX)
    assert free_global._loop is not None
    router = free_global._loop.router
    assert router is not None
    end = time.monotonic() + PATIENCE
    while len(router.guard) > 0 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(router.guard) == 0
    assert zmq.zmq_version_info() >= (4, 3)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_router_that_is_lost_ends_without_the_garbage_collector() -> None:
    """Ctrl-C may come right after it was made. In a cycle its context could end before its sockets,
    and wait for them for ever."""
    gc.disable()
    try:
        router = Router("tcp://127.0.0.1:0", None)
        context, lost = router._context, weakref.ref(router)
        for lock in router._locks:
            lock.release()
        del router
        assert lost() is None
        context.term()  # all its sockets are closed
    finally:
        gc.enable()

"""How a Router with keys counts bytes, of which CURVE adds some."""

from __future__ import annotations

import itertools
import os
import time

import zmq

from dstore.access.connect import Connect
from dstore.config import FRAME_BYTES_MAX
from dstore.protocol import wire
from dstore.transport import connection as connections
from dstore.transport.connection import CURVE, Connection
from tests.integration.driven_router import MIB, KeyedRouter, alice, bob, folder, keyed
from tests.integration.keyed import NOTHING_WITHIN

__all__ = ["alice", "bob", "folder", "keyed"]


def test_a_connection_of_many_small_messages_owes_nothing(
    keyed: KeyedRouter, alice: Connect
) -> None:
    """33 bytes more for each frame, uncounted, would be 660,000 that nobody has sent."""
    count = 10_000
    with keyed.peer(alice) as peer:
        taken = 0
        for number in range(count):
            if number % 4:
                peer.send(b"x" * (number % 300))
            else:
                peer.send(b"x" * (number % 300), b"y" * (number % 1000))
            if not number % 500:
                while keyed.take(0.02) is not None:
                    taken += 1
        while taken < count:
            assert keyed.take() is not None
            taken += 1
        keyed.rest()
        (connection,) = keyed.requests
        assert connection.messages == count
        assert -connections.CURVE_HANDSHAKE_BYTES <= connection.unread <= 0
        assert connection.heartbeat_bytes < 500
        assert connection.unfinished <= 0
    assert keyed.said == []


def test_replies_are_counted_as_they_are_acknowledged(keyed: KeyedRouter, bob: Connect) -> None:
    """If they were counted without what CURVE adds, much could be under way after a while."""
    with keyed.peer(bob) as peer:
        peer.send(b"hi")
        arrived = keyed.take()
        assert arrived is not None
        for _ in range(50):
            for _ in range(100):
                keyed.router.send(arrived[0], b"small")
            for _ in range(100):
                assert peer.receive() == b"small"
            keyed.take(0.01)
        keyed.rest()
        (connection,) = keyed.requests
        assert -2_000 - 2 * 5_000 <= connection.replies - connection.acknowledged <= 0


def test_an_upload_of_64_mib_is_taken(keyed: KeyedRouter, alice: Connect) -> None:
    chunk = os.urandom(MIB)
    with keyed.peer(alice) as peer:
        for number in range(64):
            peer.send(wire.PREFIX + b"%d" % number, chunk)
            if number >= 8:  # as a Local has them under way
                arrived = keyed.take()
                assert arrived is not None and arrived[2] == chunk
        for _ in range(8):
            assert keyed.take() is not None
        keyed.rest()
        (connection,) = keyed.requests
        assert -connections.CURVE_HANDSHAKE_BYTES <= connection.unread <= 0
    assert keyed.said == []


def test_the_largest_frame_is_taken_and_a_larger_one_is_not(
    keyed: KeyedRouter, alice: Connect
) -> None:
    with keyed.peer(alice) as peer:
        peer.send(bytes(FRAME_BYTES_MAX))
        arrived = keyed.take()
        assert arrived is not None and len(arrived[1]) == FRAME_BYTES_MAX
        peer.send(bytes(FRAME_BYTES_MAX + 1))
        assert keyed.take(NOTHING_WITHIN) is None


def test_the_heartbeats_of_a_day_are_no_subscriptions(keyed: KeyedRouter, bob: Connect) -> None:
    """Measures one heartbeat and the beginning of a subscriber, and counts a day of them."""
    with keyed.peer(bob, zmq.SUB, heartbeat_ms=50) as peer:
        peer.socket.setsockopt(zmq.SUBSCRIBE, wire.PREFIX + b"more")
        keyed.until(lambda: keyed.subscribers)
        (live,) = keyed.subscribers
        counts: set[int] = set()

        def several() -> bool:
            live.heartbeat_credit = 1e6  # this one sends them twenty times as often as a Local
            live.refresh(0, time.monotonic())
            counts.add(live.received)
            return len(counts) > 12

        keyed.until(several)
    assert keyed.said == []
    ordered = sorted(counts)
    steps = [after - before for before, after in itertools.pairwise(ordered)]
    heartbeat, begun = steps[-1], max(ordered) - heartbeat_sum(steps)
    assert heartbeat == 42
    quiet = Connection(0, None, 0, 0.0, CURVE)
    quiet.received = begun
    for second in range(1, 86_401):
        quiet.received += heartbeat
        quiet.discount_heartbeats(float(second))
        assert quiet.subscriber_violation(0) is None
    quiet.received += connections.CURVE_SUBSCRIPTION_BYTES_MAX + connections.HEARTBEATS_SAVED_MAX
    quiet.received += connections.CURVE_HANDSHAKE_BYTES
    quiet.discount_heartbeats(86_401.0)
    assert quiet.subscriber_violation(0) is not None


def heartbeat_sum(steps: list[int]) -> int:
    """The bytes of heartbeats at the end of these steps."""
    total = 0
    for each in reversed(steps):
        if each % 42:
            break
        total += each
    return total


def test_a_subscriber_of_many_topics_is_cut(keyed: KeyedRouter, bob: Connect) -> None:
    with keyed.peer(bob, zmq.SUB) as peer:
        keyed.until(lambda: keyed.subscribers)
        for number in range(500):
            peer.socket.setsockopt(zmq.SUBSCRIBE, b"topic %d" % number)
        keyed.until(lambda: any("subscribes" in each for each in keyed.said))

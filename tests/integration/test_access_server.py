"""A Global with keys, seen from the network: who is admitted, whose a message is, who is cut."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore.access import running
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.config import FRAME_BYTES_MAX
from dstore.core.authority.identity import ANYONE, Identity, Role
from dstore.errors import AddressError, KeyFolderError
from dstore.protocol import wire
from dstore.protocol.messages import Stats, StatsReply, Sync, Synced
from dstore.server import listener as server_listener
from dstore.transport import connection as connections
from dstore.transport import guard as guards
from dstore.transport.connection import CURVE, Connection, Denied
from dstore.transport.router import Router
from dstore.transport.zap import Doorkeeper
from tests.faults import handshakes
from tests.faults.meter import Meter, descriptors
from tests.faults.raw_curve import RawKeys
from tests.faults.raw_peer import RawPeer, crowd
from tests.integration.keyed import NOTHING_WITHIN, KeyedPeer
from tests.integration.processes import PATIENCE, GlobalProcess

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.create()
    return made


def stranger_to(connect: Connect) -> Connect:
    """A client that knows the server key, and whose own key is not known there."""
    public, secret = zmq.curve_keypair()
    return Connect(connect.address, connect.server_keys, "x", [], public.decode(), secret.decode())


class KeyedRouter:
    """A Router with keys whose loop the test drives."""

    def __init__(self, folder: KeyFolder, address: str = "tcp://127.0.0.1:0", era: bytes = b""):
        self.said: list[str] = []
        self.denied: list[tuple[Denied, str | None]] = []
        self.folder = folder
        self.ring = folder.load()
        self.router = Router(
            address,
            None,
            keys=self.ring,
            warn=lambda text, *arguments: self.said.append(text % arguments),
            deny=lambda why, source: self.denied.append((why, source)),
            era=era,
        )

    def peer(self, connect: Connect | None, kind: int = zmq.DEALER, **how: Any) -> KeyedPeer:
        router = self.router
        where = router.publisher if kind == zmq.SUB else router.address
        return KeyedPeer(where, connect, kind, **how)

    def take(self, seconds: float = PATIENCE) -> tuple[bytes, bytes, object, Identity] | None:
        """Return the next message, or None if none comes in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.router.guard.check_at = 0.0
            arrived = self.router.receive(0.01)
            if arrived is not None:
                return arrived
        return None

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (self.said, self.denied)
            self.take(0.01)

    def rest(self) -> None:
        """Let the guard look at all connections several times."""
        for _ in range(6):
            self.take(0.02)

    def apply(self) -> list[Identity]:
        """Admit what the folder has now. Returns whose access was revoked."""
        former, self.ring = self.ring, self.folder.load()
        self.router.admit(self.ring)
        revoked = [each for each in former.identities if each not in self.ring.identities]
        for each in revoked:
            each.revoked = True
        return revoked

    @property
    def requests(self) -> list[Connection]:
        return list(self.router.guard._requests.connections.values())

    def requests_of(self, name: str) -> list[Connection]:
        """The connections that are known as those of an identity."""
        return [each for each in self.requests if each.identity and each.identity.name == name]

    @property
    def subscribers(self) -> list[Connection]:
        return list(self.router.guard._subscribers.connections.values())


@pytest.fixture
def alice(folder: KeyFolder) -> Connect:
    return folder.add("alice", Role.WRITE)


@pytest.fixture
def bob(folder: KeyFolder) -> Connect:
    return folder.add("bob", Role.READ)


@pytest.fixture
def keyed(folder: KeyFolder, alice: Connect, bob: Connect) -> Iterator[KeyedRouter]:
    made = KeyedRouter(folder)
    yield made
    made.router.close()


# ---- who is admitted ----------------------------------------------------------------------------


def test_a_message_has_the_identity_of_its_key(
    keyed: KeyedRouter, alice: Connect, bob: Connect
) -> None:
    with keyed.peer(alice) as one, keyed.peer(bob) as two, keyed.peer(alice) as three:
        found: dict[bytes, Identity] = {}
        for number, peer in enumerate((one, two, three)):
            for _ in range(2):
                peer.send(b"%d" % number)
                arrived = keyed.take()
                assert arrived is not None
                found[arrived[1]] = arrived[3]
        assert found[b"0"] is found[b"2"]
        assert [found[b"0"].name, found[b"1"].name] == ["alice", "bob"]
        two.send(b"first", b"second")
        arrived = keyed.take()
        assert arrived is not None and arrived[2] is not None
        assert (arrived[3].name, bytes(arrived[2])) == ("bob", b"second")  # type: ignore[call-overload]


def test_without_keys_all_are_anyone() -> None:
    router = Router("tcp://127.0.0.1:0", None)
    try:
        with KeyedPeer(router.address, None) as peer:
            peer.send(b"hi")
            arrived = None
            while arrived is None:
                arrived = router.receive(PATIENCE)
            assert arrived[3] is ANYONE
    finally:
        router.close()


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.SUB], ids=["requests", "broadcasts"])
def test_others_are_denied(keyed: KeyedRouter, alice: Connect, kind: int) -> None:
    other = zmq.curve_keypair()[0].decode()
    for connect, server_key, cause in (
        (stranger_to(alice), "", Denied.UNKNOWN_KEY),
        (None, "", Denied.OTHER_MECHANISM),
        (alice, other, Denied.OTHER_SERVER_KEY),
    ):
        keyed.rest()  # the former one may have tried again
        keyed.denied.clear()
        with keyed.peer(connect, kind, server_key=server_key) as peer:
            if kind == zmq.DEALER:
                peer.send(b"let me in")
            keyed.until(lambda: keyed.denied)
            keyed.router.publish(wire.PREFIX + b"a secret")
            assert keyed.take(0.2) is None
            assert peer.receive(0.1) is None
        # ZeroMQ on one side may end the connection before the other side knows why.
        assert {why for why, _ in keyed.denied} <= {cause, Denied.BROKEN_OFF}
        assert cause is not Denied.UNKNOWN_KEY or keyed.denied == [(cause, "127.0.0.1")]


def test_a_subscriber_with_a_key_hears_broadcasts(keyed: KeyedRouter, bob: Connect) -> None:
    with keyed.peer(bob, zmq.SUB) as peer:
        keyed.until(lambda: keyed.subscribers)
        heard = None
        end = time.monotonic() + PATIENCE
        while heard is None and time.monotonic() < end:  # it has yet to subscribe
            keyed.router.publish(wire.PREFIX + b"news")
            keyed.take(0.01)
            heard = peer.receive(0.05)
        assert heard == wire.PREFIX + b"news"


def greeting(mechanism: bytes) -> bytes:
    """ZeroMQ's greeting, version 3.1."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


@pytest.mark.parametrize(
    ("mechanism", "sent", "why"),
    [
        (b"NULL", b"", Denied.OTHER_MECHANISM),
        (b"PLAIN", b"", Denied.OTHER_MECHANISM),
        (b"CURVE", b"\x04\x06\x05HELLO", Denied.MALFORMED),
        (b"CURVE", b"\x04\x07\x04PING\0\0", Denied.MALFORMED),
        (b"CURVE", b"\x04\xc8\x05HELLO\1\0" + bytes(192), Denied.OTHER_SERVER_KEY),
    ],
)
def test_a_denial_has_its_cause_and_its_source(
    keyed: KeyedRouter, mechanism: bytes, sent: bytes, why: Denied
) -> None:
    with RawPeer(keyed.router.address, shake=False) as peer:
        keyed.until(lambda: keyed.requests)
        peer.socket.sendall(greeting(mechanism) + sent)
        keyed.until(lambda: keyed.denied)
    assert keyed.denied == [(why, "127.0.0.2")]


def test_one_that_breaks_off_is_counted(keyed: KeyedRouter) -> None:
    with RawPeer(keyed.router.address, shake=False) as peer:
        peer.socket.sendall(greeting(b"CURVE"))
    keyed.until(lambda: keyed.denied)
    assert keyed.denied[0][0] is Denied.BROKEN_OFF


def test_a_peer_of_a_global_without_keys_that_has_keys_is_denied() -> None:
    denied: list[Denied] = []
    router = Router("tcp://127.0.0.1:0", None, deny=lambda why, _: denied.append(why))
    try:
        with RawPeer(router.address, shake=False) as peer:
            peer.socket.sendall(greeting(b"CURVE"))
            end = time.monotonic() + PATIENCE
            while not denied:
                assert time.monotonic() < end
                assert router.receive(0.05) is None
        assert set(denied) == {Denied.OTHER_MECHANISM}
    finally:
        router.close()


def test_if_nobody_answers_who_may_connect_nobody_may(
    folder: KeyFolder, alice: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ZAP_ENFORCE_DOMAIN ZeroMQ would let everybody in who knows the server key."""
    monkeypatch.setattr(Doorkeeper, "_answer_all", lambda self: self._socket.close())
    keyed = KeyedRouter(folder)
    try:
        with keyed.peer(stranger_to(alice), zmq.SUB) as peer, keyed.peer(alice) as other:
            other.send(b"hi")
            for _ in range(10):
                assert keyed.take(0.05) is None
                keyed.router.publish(wire.PREFIX + b"a secret")
            assert peer.receive(0.1) is None
    finally:
        keyed.router.close()


def test_what_asks_in_another_way_is_refused(keyed: KeyedRouter, alice: Connect) -> None:
    doorkeeper = keyed.router._doorkeeper
    assert doorkeeper is not None
    key = zmq.utils.z85.decode(alice.public_key)
    good = [b"1.0", b"7", b"dstore", b"127.0.0.1", b"", b"CURVE", key]
    assert doorkeeper.answer(good) == [b"1.0", b"7", b"200", b"OK", alice.public_key.encode(), b""]
    for bad in (
        [],
        [b"1.0"],
        good[:6],
        [*good, b"more"],
        [b"2.0", *good[1:]],
        [*good[:5], b"NULL"],
        [*good[:5], b"PLAIN", b"alice", b"password"],
        [*good[:5], b"PLAIN", key],
        [*good[:6], key[:31]],
        [*good[:6], key + b"\0"],
        [*good[:6], bytes(32)],
    ):
        assert doorkeeper.answer(bad)[2] == b"400", bad
        assert doorkeeper.answer(bad)[4] == b""


def test_a_look_up_that_fails_admits_nobody_and_ends_nothing(
    keyed: KeyedRouter, alice: Connect
) -> None:
    class Broken:
        server_secret = keyed.ring.server_secret

        @staticmethod
        def identity_of(key: str) -> Identity | None:
            raise RuntimeError(key)

    keyed.router.admit(Broken())
    with keyed.peer(alice) as peer:
        peer.send(b"hi")
        keyed.until(lambda: keyed.denied)
        assert keyed.take(0.1) is None
    keyed.router.admit(keyed.ring)
    with keyed.peer(alice) as peer:
        peer.send(b"hi")
        assert keyed.take() is not None


def test_another_ring_is_admitted_at_once(keyed: KeyedRouter, folder: KeyFolder) -> None:
    carol = folder.add("carol", Role.READ)
    with keyed.peer(carol) as peer:
        peer.send(b"hi")
        keyed.until(lambda: keyed.denied)
    keyed.apply()
    with keyed.peer(carol) as peer:
        peer.send(b"hi")
        arrived = keyed.take()
        assert arrived is not None and arrived[3].name == "carol"


# ---- who is cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["tcp", "ipc"])
def test_the_connections_of_an_identity_are_cut_and_no_other_that_has_spoken(
    folder: KeyFolder, alice: Connect, bob: Connect, over: str, tmp_path: Path
) -> None:
    address = "tcp://127.0.0.1:0" if over == "tcp" else f"ipc://{tmp_path}/g"
    keyed = KeyedRouter(folder, address)
    try:
        with (
            keyed.peer(alice) as one,
            keyed.peer(bob) as two,
            keyed.peer(alice),
            keyed.peer(bob, zmq.SUB) as listener,
        ):
            one.send(b"1")
            two.send(b"2")
            routes = {}
            for _ in range(2):
                arrived = keyed.take()
                assert arrived is not None
                routes[arrived[1]] = arrived[0]
            keyed.until(lambda: len(keyed.requests) == 3 and keyed.subscribers)
            former = {each for each in keyed.requests if each.identity is not None}
            subscribed = keyed.subscribers[0]
            folder.revoke("alice")
            (revoked,) = keyed.apply()
            keyed.router.cut_identity(revoked)
            assert subscribed.cut
            assert {each.identity.name for each in former if not each.cut} == {"bob"}  # type: ignore[union-attr]
            keyed.until(lambda: len(keyed.requests) == 1)
            keyed.until(lambda: any(each is not subscribed for each in keyed.subscribers))
            one.send(b"again")
            two.send(b"go on")
            arrived = keyed.take()
            assert arrived is not None and arrived[:2] == (routes[b"2"], b"go on")
            keyed.router.send(routes[b"1"], b"not for alice")
            keyed.router.send(routes[b"2"], b"for bob")
            assert two.receive() == b"for bob"
            assert one.receive(0.1) is None
            heard = None
            while heard is None:  # an honest subscriber comes back by itself
                keyed.router.publish(wire.PREFIX)
                keyed.take(0.01)
                heard = listener.receive(0.05)
        assert keyed.said == []
    finally:
        keyed.router.close()


def test_what_a_revoked_identity_has_sent_before_is_dropped(
    keyed: KeyedRouter, folder: KeyFolder, alice: Connect, bob: Connect
) -> None:
    with keyed.peer(alice) as one, keyed.peer(bob) as two:
        one.send(b"first")
        assert keyed.take() is not None
        one.send(b"waits in the queue")
        one.send(b"waits in", b"the queue")
        assert keyed.router._router.poll(int(PATIENCE * 1000))
        folder.revoke("alice")
        keyed.apply()
        two.send(b"taken")
        arrived = keyed.take()
        assert arrived is not None and arrived[1] == b"taken"
        assert keyed.take(0.1) is None


def test_one_who_was_revoked_between_handshake_and_first_message_is_cut(
    keyed: KeyedRouter, folder: KeyFolder, alice: Connect
) -> None:
    with keyed.peer(alice) as one:
        keyed.until(lambda: [each for each in keyed.requests if each.peer])
        keyed.until(lambda: _received(keyed) > 500)  # the handshake is complete
        folder.revoke("alice")
        keyed.apply()
        one.send(b"hi")
        keyed.until(lambda: keyed.router.guard.cuts)
        assert keyed.take(0.1) is None


def _received(keyed: KeyedRouter) -> int:
    for each in keyed.requests:
        each.refresh(0, time.monotonic())
    return sum(each.received for each in keyed.requests)


def test_an_identity_has_a_share_of_the_connections(
    keyed: KeyedRouter, alice: Connect, bob: Connect
) -> None:
    """Whatever addresses it comes from."""
    keyed.router.guard._requests._connections_max = 8  # of which 6 are a share
    where = keyed.router.address.removeprefix("tcp://")
    with contextlib.ExitStack() as peers:

        def another(connect: Connect, number: int) -> KeyedPeer:
            address = f"tcp://127.0.0.{number}:0;{where}"
            return peers.enter_context(KeyedPeer(address, connect))

        for number in range(6):
            another(alice, 2 + number % 2).send(b"hi")
            assert keyed.take() is not None
        assert keyed.router.guard.cuts == 0
        seventh = another(alice, 4)
        seventh.send(b"one too many")
        keyed.until(lambda: keyed.said)
        assert keyed.said[0].endswith("6 connections of alice are here")
        seventh.close()
        another(bob, 4).send(b"bob")
        keyed.until(
            lambda: (
                "bob"
                in {each.identity.name for each in keyed.requests if each.identity is not None}
            )
        )
        assert len(keyed.router.guard._requests.count_by_identity) == 2
    keyed.until(lambda: not keyed.requests)
    assert keyed.router.guard._requests.count_by_identity == {}


def raw_keys(connect: Connect) -> RawKeys:
    return RawKeys.decoded(connect.server_keys[0], connect.public_key, connect.secret_key)


def test_silent_connections_make_room_for_new_ones(
    keyed: KeyedRouter, alice: Connect, bob: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An admitted client could otherwise occupy all connections, and say nothing on them."""
    monkeypatch.setattr(guards, "SILENT_SECONDS", 0.0)
    guard = keyed.router.guard
    guard._requests._connections_max = 8  # of which 6 are a share of an address
    with crowd() as peers, keyed.peer(bob) as speaker:
        speaker.send(b"hi")
        assert keyed.take() is not None
        for number in range(7):
            peers.append(
                RawPeer(
                    keyed.router.address, source=f"127.0.0.{2 + number % 2}", keys=raw_keys(alice)
                )
            )
        keyed.until(lambda: len(keyed.requests) == 8)
        silent = keyed.requests[1:]
        assert guard.cuts == 0
        with keyed.peer(bob) as one, keyed.peer(bob) as two:
            for peer in (one, two):
                peer.send(b"another")
            for _ in range(2):
                arrived = keyed.take()
                assert arrived is not None and arrived[1] == b"another"
        assert [each.cut for each in silent] == [True] * 2 + [False] * 5
        assert guard.cuts == 2
        assert "8 connections are here" in keyed.said[-1]
        speaker.send(b"still here")
        arrived = keyed.take()
        assert arrived is not None and arrived[1] == b"still here"


def test_what_has_not_been_silent_for_long_makes_no_room(
    keyed: KeyedRouter, alice: Connect, bob: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "SILENT_SECONDS", 10 * PATIENCE)
    guard = keyed.router.guard
    guard._requests._connections_max = 2
    with keyed.peer(bob) as speaker, crowd() as peers:
        speaker.send(b"hi")
        assert keyed.take() is not None
        for source in ("127.0.0.2", "127.0.0.3"):
            peers.append(RawPeer(keyed.router.address, source=source, shake=False))
            keyed.until(lambda: guard.cuts or len(keyed.requests) == len(peers) + 1)
        keyed.until(lambda: guard.cuts)
        assert [each.source for each in keyed.requests if not each.cut][1:] == ["127.0.0.2"]
        keyed.until(lambda: peers[1].is_cut)
        assert not peers[0].is_cut


def test_a_message_of_many_frames_bans_its_identity_and_not_its_address(
    keyed: KeyedRouter, alice: Connect, bob: Connect
) -> None:
    """Honest clients may be behind the same address."""
    guard = keyed.router.guard
    with keyed.peer(alice) as one, keyed.peer(alice) as other, keyed.peer(bob) as two:
        for peer in (other, two):
            peer.send(b"hi")
            assert keyed.take() is not None
        of_alice, of_bob = keyed.requests_of("alice"), keyed.requests_of("bob")
        one.send(b"a", b"b", b"c")
        keyed.until(lambda: guard.cuts == 2)
        assert [each.cut for each in of_alice] == [True]  # the other one, at once
        assert "more than two frames" in keyed.said[0]
        assert "another one of alice sent too many frames" in keyed.said[1]
        with keyed.peer(bob) as later:
            later.send(b"from bob")
            arrived = keyed.take()
            assert arrived is not None and arrived[1] == b"from bob"
            assert arrived[3].name == "bob"
            assert not any(each.cut for each in (*of_bob, *keyed.requests_of("bob")))
        with keyed.peer(alice) as again:
            again.send(b"not heard")
            keyed.until(lambda: "came from alice just now" in keyed.said[-1])
        one.close()
        other.close()
        keyed.until(lambda: not keyed.requests_of("alice"))
        guard._banned_until.clear()  # as when it has ended
        with keyed.peer(alice) as again:
            again.send(b"heard again")
            arrived = keyed.take()
            assert arrived is not None and arrived[1] == b"heard again"


def test_what_a_banned_identity_has_sent_before_is_dropped(
    keyed: KeyedRouter, alice: Connect, bob: Connect
) -> None:
    with keyed.peer(alice) as one, keyed.peer(bob) as two:
        one.send(b"a", b"b", b"c")
        one.send(b"waits behind it")
        one.send(b"waits", b"behind it")
        assert keyed.router._router.poll(int(PATIENCE * 1000))
        two.send(b"taken")
        arrived = keyed.take()
        assert arrived is not None and arrived[1] == b"taken"
        assert keyed.take(0.1) is None
        assert keyed.router.guard.cuts == 1


# ---- bytes that CURVE adds ----------------------------------------------------------------------


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


# ---- a Global -----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder: KeyFolder, address: str = "tcp://127.0.0.1:0") -> Iterator[dstore.Global]:
    with dstore.Global(address, keys=folder.path, lease=1.0) as server:
        yield server


def applied(folder: KeyFolder, generation: int) -> None:
    """Wait until the running Global has applied a generation."""
    result = running.wait_applied(folder.path, generation, PATIENCE)
    assert result.confirmed and not result.missing, result


def counters(peer: KeyedPeer) -> dict[str, Any]:
    reply = peer.ask(Stats(peer.epoch, peer.session, 1))
    assert isinstance(reply, StatsReply)
    return dict(reply.metrics)


def test_a_global_with_keys_answers_its_clients_alone(folder: KeyFolder, alice: Connect) -> None:
    with served(folder) as server, KeyedPeer(server.address, alice) as one:
        one.join()
        with KeyedPeer(server.address, None) as plain:
            assert plain.is_refused()
        with KeyedPeer(server.address, stranger_to(alice)) as other:
            assert other.is_refused()
        figures = counters(one)
        assert figures["denied_unknown_key"] == 1
        assert figures["denied"] == sum(figures[f"denied_{each.name.lower()}"] for each in Denied)


def test_who_is_added_is_admitted_and_who_is_revoked_is_not_answered(folder: KeyFolder) -> None:
    with served(folder) as server:
        carol = folder.add("carol", Role.READ)
        applied(folder, folder.generation)
        with KeyedPeer(server.address, carol) as one:
            one.join()
            applied(folder, folder.revoke("carol"))
            # It is reported only when nothing is answered any more.
            assert one.is_refused()
            with KeyedPeer(server.address, carol) as again:
                assert again.is_refused()
        folder.add("carol", Role.READ)
        applied(folder, folder.generation)
        with KeyedPeer(server.address, carol) as former:  # the name is not the key
            assert former.is_refused()


def test_who_was_heard_is_reported(folder: KeyFolder, alice: Connect, bob: Connect) -> None:
    with served(folder) as server, KeyedPeer(server.address, alice) as one:
        begun = time.time()
        one.join()
        end = time.monotonic() + PATIENCE
        while True:
            (status,) = running.statuses(folder.path)
            if status.clients["alice"].last_seen is not None:
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        assert begun - 1 <= status.clients["alice"].last_seen <= time.time()
        assert status.clients["bob"] == (None, 0)
        assert status.process == os.getpid()
    assert running.statuses(folder.path) == []


@pytest.mark.parametrize("over", ["tcp", "ipc"])
def test_with_another_server_key_sessions_and_values_stay(
    folder: KeyFolder, over: str, tmp_path: Path
) -> None:
    folder.rotate()
    alice = folder.add("alice", Role.WRITE)
    present, following = alice.server_keys
    where = "tcp://127.0.0.1:0" if over == "tcp" else f"ipc://{tmp_path}/g"
    with served(folder, where) as server:
        address, publisher = server.address, server.publisher
        with KeyedPeer(address, alice, server_key=present) as one:
            one.join()
            applied(folder, folder.finish_rotation())
            assert one.is_refused()
        with KeyedPeer(address, alice, server_key=following) as two:
            synced = two.ask(Sync(one.epoch, one.secret, 1, 0, 0, False))
            assert isinstance(synced, Synced)
            assert synced.session == one.session
        with KeyedPeer(publisher, alice, zmq.SUB, server_key=following):
            assert (server.address, server.publisher) == (address, publisher)
        server.stop()  # wakes the present router
        server.close()


def test_routes_of_the_former_router_name_no_peer_of_the_next(
    folder: KeyFolder, alice: Connect
) -> None:
    """ZeroMQ numbers the peers of each socket, and two may get the same number."""
    keyed = KeyedRouter(folder, era=b"\0\0\0\1")
    try:
        with keyed.peer(alice) as peer:
            peer.send(b"hi")
            arrived = keyed.take()
            assert arrived is not None
            route = arrived[0]
            former = route.removesuffix(b"\0\0\0\1")
            assert former != route
            for stale in (former, former + b"\0\0\0\2"):
                assert not keyed.router.knows(stale)
                assert keyed.router.peer_of(stale) is None
                keyed.router.send(stale, b"an answer for another one")
            assert keyed.router.knows(route)
            assert keyed.router.peer_of(route) == "127.0.0.1"
            keyed.router.send(route, b"an answer")
            assert peer.receive() == b"an answer"
    finally:
        keyed.router.close()


def test_if_it_cannot_listen_for_a_moment_it_tries_again(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.create()
    folder.rotate()
    alice = folder.add("alice", Role.WRITE)
    sockets, elsewhere = tmp_path / "sockets", tmp_path / "elsewhere"
    sockets.mkdir()
    with served(folder, f"ipc://{sockets}/g") as server:
        router = server._loop.router  # type: ignore[union-attr]
        sockets.rename(elsewhere)
        generation = folder.finish_rotation()
        while server._loop.router._listening if router is None else router._listening:  # type: ignore[union-attr]
            time.sleep(0.01)  # until the former one is closed
        elsewhere.rename(sockets)
        applied(folder, generation)
        with KeyedPeer(server.address, alice, server_key=alice.server_keys[1]) as peer:
            peer.join()


def test_if_it_cannot_listen_again_it_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_listener, "REBIND_TIMEOUT", 0.3)
    folder = KeyFolder(tmp_path / "keys")
    folder.create()
    folder.rotate()
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    server = dstore.Global(f"ipc://{sockets}/g", keys=folder.path)
    server.bind()
    shutil.rmtree(sockets)
    folder.finish_rotation()
    with pytest.raises(AddressError, match=r"sockets/g"):
        server.run()
    server.close()
    assert running.statuses(folder.path) == []


@pytest.mark.long
def test_a_folder_that_is_damaged_changes_nothing_and_is_reported_once(
    folder: KeyFolder, alice: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dstore.global")
    with served(folder) as server, KeyedPeer(server.address, alice) as one:
        one.join()
        key = Path(folder.path, "server.key")
        good = key.read_bytes()
        folder.add("bob", Role.READ)
        key.write_bytes(b"nonsense")
        end = time.monotonic() + PATIENCE
        while not said(caplog, "stays in force"):
            assert time.monotonic() < end
            counters(one)
        time.sleep(4 * 0.25)
        assert len(said(caplog, "stays in force")) == 1
        counters(one)
        key.write_bytes(good)
        applied(folder, folder.generation)
        assert len(said(caplog, "can be read again")) == 1


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if text in each.getMessage()]


def test_denials_are_logged_at_a_bounded_rate(
    folder: KeyFolder, alice: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dstore.global")
    with served(folder) as server, KeyedPeer(server.address, alice) as one:
        one.join()
        begun = time.monotonic()
        for _ in range(50):
            with RawPeer(server.address, shake=False) as raw:
                raw.socket.sendall(greeting(b"NULL"))
                with contextlib.suppress(OSError):
                    while raw.socket.recv(1 << 16):
                        pass
        lines = said(caplog, "only one of both sides uses keys")
        assert 1 <= len(lines) <= 2 + time.monotonic() - begun
        assert counters(one)["denied_other_mechanism"] == 50


# ---- strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count", [3_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_handshakes_at_random_end_nothing_and_take_nothing(
    folder: KeyFolder, alice: Connect, count: int
) -> None:
    with GlobalProcess(lease=600.0, options=["--keys", folder.path]) as place:
        host, _, port = place.address.rpartition(":")
        publisher = f"{host}:{int(port) + 1}"
        pid = place.process.pid
        with KeyedPeer(place.address, alice) as honest:
            honest.join()

            def shake(address: str) -> None:
                with KeyedPeer(address, alice) as peer:
                    peer.join()

            sample = handshakes.recorded(place.address, shake)
            assert sample.startswith(handshakes.SIGNATURE[:1]) and len(sample) > 500
            addresses, dice = [place.address, publisher], random.Random(count)

            def some(part: int) -> None:
                begun = handshakes.play(addresses, dice, part, sample, source="127.0.3.1")
                assert begun > part // 2

            some(500)  # from here on it has what it always needs
            calm = descriptors(pid)
            with Meter(pid) as meter:
                for _ in range(10):
                    some(count // 10)
                    figures = counters(honest)
            assert figures["denied"] > count // 20
            assert meter.grown < 16 * MIB
            end = time.monotonic() + PATIENCE
            while descriptors(pid) > calm + 3:
                assert time.monotonic() < end
                time.sleep(0.05)
            with KeyedPeer(place.address, alice) as another:
                another.join()
            assert place.process.poll() is None


# ---- its settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "publisher"),
    [
        ("tcp://*:0", None),
        ("tcp://0.0.0.0:0", None),
        ("tcp://[::]:0", None),
        ("tcp://127.0.0.1:0", "tcp://*:0"),
    ],
)
def test_an_address_that_others_can_reach_needs_keys(
    folder: KeyFolder, address: str, publisher: str | None
) -> None:
    server = dstore.Global(address, publisher=publisher)
    with pytest.raises(AddressError, match=r"(?s)dstore access init.*--insecure.*insecure=True"):
        server.bind()
    server.close()
    for settings in ({"insecure": True}, {"keys": folder.path}):
        with dstore.Global(address, publisher=publisher, **settings):
            pass


def test_loopback_and_ipc_need_no_keys_and_may_have_some(folder: KeyFolder, tmp_path: Path) -> None:
    for address in (
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
        "tcp://localhost:0",
        f"ipc://{tmp_path}/g",
    ):
        for keys in (None, folder.path):
            with dstore.Global(address, keys=keys):
                pass


def test_a_folder_that_is_none_is_one_line_and_may_be_tried_again(tmp_path: Path) -> None:
    server = dstore.Global("tcp://127.0.0.1:0", keys=tmp_path / "keys")
    with pytest.raises(KeyFolderError, match="dstore access init"):
        server.bind()
    KeyFolder(tmp_path / "keys").create()
    with server:
        assert "serving" in repr(server)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dstore", "global", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_says_what_is_wrong_in_one_line(folder: KeyFolder, tmp_path: Path) -> None:
    for options, says in (
        (["--keys", str(tmp_path / "none")], "dstore access init"),
        (["--keys", folder.path, "--insecure"], "one of them"),
        (["--keys", ""], "--keys"),
    ):
        ran = command("--address", "tcp://127.0.0.1:0", *options)
        assert ran.returncode == 2, ran
        assert says in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert ran.stdout == ""
    ran = command("--address", "tcp://*:0")
    assert ran.returncode not in (0, -signal.SIGTERM)
    assert "--insecure" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_command_serves_with_keys(folder: KeyFolder, alice: Connect) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "dstore", "global", "--address", "tcp://*:0", "--keys", folder.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            assert started.stdout is not None and started.stderr is not None
            port = started.stdout.readline().rsplit(":", 1)[1].strip()
            with KeyedPeer(f"tcp://127.0.0.1:{port}", alice) as one:
                one.join()
        finally:
            started.terminate()
        assert started.stderr.read() == ""
        assert started.wait() == 0


def test_a_child_that_was_forked_holds_neither_port_nor_folder(
    folder: KeyFolder, alice: Connect
) -> None:
    with served(folder) as server:
        address, publisher = server.address, server.publisher
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            server.close()
            assert running.statuses(folder.path) == []
            with (
                dstore.Global(address, publisher=publisher, keys=folder.path) as other,
                KeyedPeer(other.address, alice) as one,
            ):
                one.join()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

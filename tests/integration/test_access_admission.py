"""Who is admitted to a Global with keys, and whose a message is."""

from __future__ import annotations

import time

import pytest
import zmq

from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.core.authority.identity import ANYONE, Identity, Role
from dstore.protocol import wire
from dstore.transport.connection import Denied
from dstore.transport.router import Router
from dstore.transport.zap import Doorkeeper
from tests.faults.raw_peer import RawPeer
from tests.integration.driven_router import (
    KeyedRouter,
    alice,
    bob,
    folder,
    greeting,
    keyed,
    stranger_to,
)
from tests.integration.keyed import KeyedPeer
from tests.integration.processes import PATIENCE

__all__ = ["alice", "bob", "folder", "keyed"]


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

"""Whose connections a Global with keys cuts."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import zmq

from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.protocol import wire
from dstore.transport import guard as guards
from tests.faults.raw_curve import RawKeys
from tests.faults.raw_peer import RawPeer, crowd
from tests.integration.driven_router import KeyedRouter, alice, bob, folder, keyed
from tests.integration.keyed import KeyedPeer
from tests.integration.processes import PATIENCE

__all__ = ["alice", "bob", "folder", "keyed"]


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

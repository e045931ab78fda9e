"""A Global with keys: its clients, its key folder while it runs, its reports, and strangers."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore.access import running
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.core.authority.identity import Role
from dstore.errors import AddressError
from dstore.protocol.messages import Stats, StatsReply, Sync, Synced
from dstore.server import listener as server_listener
from dstore.transport.connection import Denied
from tests.faults import handshakes
from tests.faults.meter import Meter, descriptors
from tests.faults.raw_peer import RawPeer
from tests.integration.driven_router import (
    MIB,
    KeyedRouter,
    alice,
    bob,
    folder,
    greeting,
    keyed,
    served,
    stranger_to,
)
from tests.integration.keyed import KeyedPeer
from tests.integration.processes import PATIENCE, GlobalProcess

__all__ = ["alice", "bob", "folder", "keyed"]


# ---- a Global ---------------------------------------------------------------------------------


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


# ---- strangers --------------------------------------------------------------------------------


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

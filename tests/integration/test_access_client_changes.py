"""Clients of a Global whose keys change, or that only looks like a wrong server: they recover."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from pathlib import Path

import pytest

import dstore
from dstore.access.connect import Connect
from dstore.core.local.operations import direct, fetching
from dstore.protocol.messages import Get, Set, Stage
from dstore.testing import running_global
from dstore.transport import router as routers
from dstore.transport.curve import new_pair
from tests.faults.raw_curve import RawKeys
from tests.faults.raw_peer import RawPeer, crowd
from tests.integration.keyed_router import (
    LARGE,
    Keys,
    calls,
    check_errors,
    file,
    keyed_global,
    keys,
    note_error,
    patient,
    recovered,
    server,
)
from tests.integration.owners import until
from tests.integration.processes import PATIENCE, free_port

__all__ = ["file", "keys", "server"]

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01CURVE".ljust(64, b"\0")


@pytest.fixture
def seldom_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request wait for minutes before it is sent again, so that this ends no call."""
    monkeypatch.setattr(direct, "RESEND_FIRST", 10 * PATIENCE)
    monkeypatch.setattr(fetching, "RESEND_MAX", 10 * PATIENCE)


# ---- what changes while a Node is in use ------------------------------------------------------


def test_a_revoked_client_keeps_its_cache_for_the_lease_and_comes_back(
    keys: Keys, file: str, tmp_path: Path
) -> None:
    with patient(file) as node:
        node.set("key", 1)
        lease_end = node._state.lease_end
        keys.revoke(file)
        until(lambda: node._state.denied is not None, "the Node knows that it is denied")
        check_errors(calls(node, tmp_path), dstore.AccessDenied, "does not admit 'worker'")
        assert node._state.session  # it is not ours to end: its lease may be out
        assert node._state.lease_end >= lease_end
        until(lambda: node.stats()["lease_left"] == 0, "the lease ends")
        with pytest.raises(dstore.AccessDenied):
            node.get("key")
        keys.add(file)
        assert recovered(node, lambda node: node.get("key")) == 1
        node.set("new", 2)


def test_a_cached_value_is_read_while_access_is_denied(keys: Keys, tmp_path: Path) -> None:
    with keyed_global(keys, lease=PATIENCE) as server:
        file = keys.client(tmp_path / "worker.json", server.address)
        with patient(file) as node:
            node.set("key", 1)
            keys.revoke(file)
            until(lambda: node._state.denied is not None, "the Node knows that it is denied")
            assert node.get("key") == 1


@pytest.mark.usefixtures("seldom_sent_again")
def test_calls_at_work_end_when_their_client_is_revoked(keys: Keys, file: str) -> None:
    """A write that was sent has an unknown outcome; the others have none."""
    keys.holds = lambda message: type(message) in (Set, Get, Stage)
    with patient(file) as node:
        node.join()
        watch = node.watch()
        assert watch.take(PATIENCE) is not None
        started = {
            "set": lambda: node.set("key", 1),
            "get": lambda: node.get("key"),
            "wait": lambda: node.wait("other"),
            "set_large": lambda: node.set("large", LARGE),
            "watch": lambda: next(watch),
        }
        errors: dict[str, BaseException] = {}
        threads = [
            threading.Thread(target=note_error, args=(errors, name, call))
            for name, call in started.items()
        ]
        for thread in threads:
            thread.start()
        assert keys.held.wait(PATIENCE)
        until(lambda: len(node._state.in_flight) == 1, "the read is under way")
        until(lambda: bool(node._state.writer.writing), "the write is under way")
        keys.revoke(file)
        for thread in threads:
            thread.join(PATIENCE)
        assert set(errors) == set(started)
        unknown = errors.pop("set")
        assert isinstance(unknown, dstore.OutcomeUnknown)
        assert "does not admit 'worker'" in unknown.reason
        large = errors.pop("set_large")  # its first SET may have been sent
        assert isinstance(large, (dstore.AccessDenied, dstore.OutcomeUnknown))
        assert {type(error) for error in errors.values()} == {dstore.AccessDenied}
        keys.holds = lambda message: False
        keys.add(file)
        assert recovered(node, lambda node: node.get("new", "absent")) == "absent"
        node.set("new", 1)
        node.delete("new")
        event = watch.take(PATIENCE)
        while event is not None and event.key != "new":  # resyncs
            event = watch.take(PATIENCE)
        assert event is not None


@pytest.mark.usefixtures("seldom_sent_again")
def test_tasks_at_work_end_when_their_client_is_revoked(keys: Keys, file: str) -> None:
    keys.holds = lambda message: type(message) in (Set, Get)

    async def use() -> None:
        async with dstore.AsyncNode.from_file(file, timeout=10 * PATIENCE) as node:
            await node.join()
            tasks = [
                asyncio.ensure_future(each)
                for each in (node.set("key", 1), node.get("key"), node.wait("other"))
            ]
            state = node.node._state
            at_work = lambda: bool(state.in_flight and state.writer.writing)  # noqa: E731
            await asyncio.to_thread(until, at_work, "the calls are under way")
            keys.revoke(file)
            ended = asyncio.gather(*tasks, return_exceptions=True)
            errors = await asyncio.wait_for(ended, PATIENCE)
            assert isinstance(errors[0], (dstore.OutcomeUnknown, dstore.AccessDenied))
            assert [type(each) for each in errors[1:]] == [dstore.AccessDenied] * 2
            with pytest.raises(dstore.AccessDenied):
                await asyncio.wait_for(node.get("key"), PATIENCE)

    asyncio.run(use())


@pytest.mark.long
def test_a_global_that_is_started_again_with_keys_or_without_is_found_again(
    keys: Keys, tmp_path: Path
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    file = keys.client(tmp_path / "worker.json", address)
    with patient(file) as keyed, dstore.Node(address, timeout=10 * PATIENCE) as plain:
        with keyed_global(keys, address):
            keyed.set("key", 1)
            with pytest.raises(dstore.WrongServer, match="asks for keys"):
                plain.get("key")
        with running_global(address):
            assert recovered(plain, lambda node: node.get("key", "absent")) == "absent"
            until(lambda: keyed._state.denied is not None, "the Node finds another server")
            with pytest.raises(dstore.WrongServer, match="does not use keys"):
                keyed.get("other")
        with keyed_global(keys, address):
            assert recovered(keyed, lambda node: node.get("key", "absent")) == "absent"


def test_no_call_fails_when_the_server_changes_its_key(keys: Keys, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    file = keys.client(tmp_path / "worker.json", address)
    after = Keys()
    after.admitted = keys.admitted
    errors: list[BaseException] = []
    rounds = [0]
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            try:
                node.set(f"key {rounds[0]}", 1)
                node.get(f"absent {rounds[0]}", None)
                rounds[0] += 1
            except dstore.OutcomeUnknown:  # Global was ended in the middle of the write
                rounds[0] += 1
            except BaseException as error:
                errors.append(error)
                return

    def goes_on() -> None:
        enough = rounds[0] + 20
        until(lambda: rounds[0] > enough or bool(errors), "calls go on")

    with patient(file) as node:
        thread = threading.Thread(target=use)
        with keyed_global(keys, address):
            thread.start()
            goes_on()
            present = Connect.load(file)
            both = [*present.server_keys, after.server_public]
            Connect(address, both, present.name, [], present.public_key, present.secret_key).save(
                file
            )
        with keyed_global(after, address):
            goes_on()
            over.set()
            thread.join(PATIENCE)
            assert not errors


def test_a_client_whose_file_is_mended_comes_back(
    keys: Keys, server: dstore.Global, tmp_path: Path
) -> None:
    path = keys.client(tmp_path / "worker.json", server.address, server_keys=[new_pair()[0]])
    with patient(path) as node:
        with pytest.raises(dstore.WrongServer):
            node.get("key")
        keys.client(tmp_path / "worker.json", server.address)
        assert recovered(node, lambda node: node.get("key", "absent")) == "absent"


# ---- what only looks like a wrong server ------------------------------------------------------


class Listener:
    """A server that sends something to each connection and ends it after an answer.

    That is one of more than ``enough`` bytes; a greeting has 64.
    """

    def __init__(self, greeting: bytes, enough: int = 0) -> None:
        self._greeting, self._enough = greeting, enough
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.accepted: list[float] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.accepted.append(time.monotonic())
                with connection, contextlib.suppress(OSError):
                    if self._greeting:
                        connection.sendall(self._greeting)
                        connection.settimeout(PATIENCE)
                        received = 0
                        while received <= self._enough:
                            more = len(connection.recv(4096))
                            received += more or self._enough + 1

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)


@pytest.mark.long
def test_a_proxy_without_a_global_is_no_wrong_server(keys: Keys, tmp_path: Path) -> None:
    with Listener(b"") as proxy:
        path = keys.client(tmp_path / "worker.json", proxy.address)
        with dstore.Node.from_file(path, timeout=2) as node:
            with pytest.raises(dstore.GlobalUnavailable, match=r"connection (closed|reset)"):
                node.get("key")
            assert node._state.denied is None


@pytest.mark.long
def test_what_ends_connections_that_it_has_greeted_is_no_wrong_server(
    keys: Keys, tmp_path: Path
) -> None:
    with Listener(GREETING) as full:
        path = keys.client(tmp_path / "worker.json", full.address)
        with dstore.Node.from_file(path, timeout=2) as node:
            with pytest.raises(dstore.GlobalUnavailable, match="accepts no further connections"):
                node.get("key")
            assert node._state.denied is None


@pytest.mark.long
def test_a_global_that_has_no_room_is_no_wrong_server(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "CONNECTIONS_SPARE", 4)  # 8 in all, of which 6 are a share
    with keyed_global(keys, max_clients=1) as server, crowd() as peers:
        path = keys.client(tmp_path / "worker.json", server.address)
        connect = Connect.load(path)
        raw = RawKeys.decoded(keys.server_public, connect.public_key, connect.secret_key)
        for _ in range(6):
            peers.append(RawPeer(server.address, source="127.0.0.1", keys=raw))
        with dstore.Node.from_file(path, timeout=3) as node:
            # It may even be cut before it is greeted.
            with pytest.raises(dstore.GlobalUnavailable, match=r"accepts no further|closed|reset"):
                node.get("key")
            assert node._state.denied is None
            for peer in peers:
                peer.close()
            until(lambda: bool(node._state.session), "the Node has joined")
            assert node.get("key", "absent") == "absent"


@pytest.mark.long
def test_a_wrong_server_is_not_flooded(keys: Keys, tmp_path: Path) -> None:
    with Listener(GREETING, len(GREETING)) as other:
        path = keys.client(tmp_path / "worker.json", other.address)
        with patient(path) as node:
            with pytest.raises(dstore.WrongServer):
                node.get("key")
            before = len(other.accepted)
            for _ in range(50):
                with pytest.raises(dstore.WrongServer):
                    node.get("key")
            until(lambda: len(other.accepted) >= before + 2, "the server is tried again")
            later = other.accepted[before - 1 :]
            pauses = [end - begin for begin, end in itertools.pairwise(later)]
            assert min(pauses) > 0.5
        assert node._settings.connect is not None

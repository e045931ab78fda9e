"""A Router with keys whose loop the test drives, its key folder, and its clients."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.core.authority.identity import Identity, Role
from dstore.transport.connection import Connection, Denied
from dstore.transport.router import Router
from tests.integration.keyed import KeyedPeer
from tests.integration.processes import PATIENCE

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


def greeting(mechanism: bytes) -> bytes:
    """ZeroMQ's greeting, version 3.1."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


@contextlib.contextmanager
def served(folder: KeyFolder, address: str = "tcp://127.0.0.1:0") -> Iterator[dstore.Global]:
    with dstore.Global(address, keys=folder.path, lease=1.0) as server:
        yield server

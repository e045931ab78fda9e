"""A Global that asks for keys, and what its clients have."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import dstore
from dstore.access.connect import Connect
from dstore.core.authority.identity import Identity, Role
from dstore.protocol import wire
from dstore.protocol.messages import Refusal, Refused, ToGlobal
from dstore.server import listener
from dstore.testing.running import ANY_PORT
from dstore.transport.curve import new_pair
from dstore.transport.router import Arrived, Router
from tests.integration.owners import until
from tests.integration.processes import PATIENCE


class Keys:
    """The keys of one server, and the clients that it admits; it is the ring of a Router, too.

    ``denies`` returns why a message is refused, or None; it is asked about each. ``held`` receives
    each message that :attr:`holds` says is to get no answer.
    """

    identities = ()
    concealed = False
    generation = 0

    def __init__(self) -> None:
        self.server_public, secret = new_pair()
        self.server_secret = secret.encode()
        self.admitted: dict[str, Identity] = {}
        self.denies: Callable[[ToGlobal], str | None] = lambda message: None
        self.holds: Callable[[ToGlobal], bool] = lambda message: False
        self.held = threading.Event()
        self.cutting = threading.Event()

    def identity_of(self, public_key: str) -> Identity | None:
        return self.admitted.get(public_key)

    def client(self, path: Path, address: str, **changes: Any) -> str:
        """Write the connect file of a new client, and return its path. It is admitted."""
        public, secret = new_pair()
        self.admitted[public] = Identity(path.stem, Role.WRITE)
        fields = {"server_keys": [self.server_public], "name": path.stem, "prefixes": [], **changes}
        Connect(address=address, public_key=public, secret_key=secret, **fields).save(path)
        return str(path)

    def revoke(self, path: str) -> None:
        """Admit a client no more, and cut all connections; those of others come back."""
        self.admitted.pop(Connect.load(path).public_key, None)
        self.cutting.set()

    def add(self, path: str) -> None:
        """Admit a client again."""
        self.admitted[Connect.load(path).public_key] = Identity("again", Role.WRITE)


class KeyedRouter(Router):
    """A router with keys that holds some messages, and refuses some."""

    def __init__(self, clients: Keys, *given: Any, **named: Any) -> None:
        self.clients = clients
        super().__init__(*given, **{**named, "keys": clients})

    def receive(self, timeout: float) -> Arrived | None:
        if self.clients.cutting.is_set():
            self.clients.cutting.clear()
            for table in (self.guard._requests, self.guard._subscribers):
                for connection in list(table.connections.values()):
                    self.guard.cut(connection, "its identity was revoked")
        arrived = super().receive(min(timeout, 0.05))
        if arrived is None:
            return None
        message = wire.decode_to_global(*arrived[1:3])
        if self.clients.holds(message):
            self.clients.held.set()
            return None
        why = self.clients.denies(message)
        if why is None:
            return arrived
        envelope = getattr(message, "request", 0)
        refused = Refused(*_session_of(message), envelope, Refusal.DENIED, why)
        self.send(arrived[0], wire.encode(refused))
        return None


def _session_of(message: Any) -> tuple[int, int]:
    return getattr(message, "epoch", 0), getattr(message, "session", 0)


@contextlib.contextmanager
def keyed_global(keys: Keys, address: str = ANY_PORT, **options: Any) -> Iterator[dstore.Global]:
    """Run a Global that asks for keys, in a thread."""

    def router(*given: Any, **named: Any) -> Router:
        return KeyedRouter(keys, *given, **named)

    server = dstore.Global(address, **{"lease": 1.0, **options})
    with mock.patch.object(listener, "Router", router):
        server.start()
    with server:
        yield server


LARGE = bytes(range(256)) * 1024


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def server(keys: Keys) -> Iterator[dstore.Global]:
    with keyed_global(keys) as server:
        yield server


@pytest.fixture
def file(keys: Keys, server: dstore.Global, tmp_path: Path) -> str:
    return keys.client(tmp_path / "worker.json", server.address)


def patient(path: str | None, **settings: Any) -> dstore.Node:
    """A Node whose calls would wait for minutes: an error of theirs is one that comes at once."""
    return dstore.Node(connect=path, timeout=10 * PATIENCE, **settings)


def calls(node: dstore.Node, folder: Path) -> dict[str, Callable[[], object]]:
    """One call of each kind."""
    small, large = folder / "small", folder / "large"
    small.write_bytes(b"small")
    large.write_bytes(LARGE)
    return {
        "get": lambda: node.get("absent"),
        "get_many": lambda: node.get_many(["absent", "other"]),
        "contains": lambda: "absent" in node,
        "set": lambda: node.set("new", 1),
        "set_large": lambda: node.set("new", LARGE),
        "set_many": lambda: node.set_many({"new": 1, "newer": 2}),
        "replace": lambda: node.set("key", 2, replace=True),
        "delete": lambda: node.delete("key"),
        "delete_many": lambda: node.delete_many(["key", "other"], wait=False),
        "put": lambda: node.put(b"value"),
        "put_large": lambda: node.put(LARGE),
        "put_file": lambda: node.put_file(small),
        "put_large_file": lambda: node.put_file(large),
        "set_file": lambda: node.set_file("new", large, replace=True),
        "get_file": lambda: node.get_file("absent", folder / "out"),
        "expire": lambda: node.expire("key", 60),
        "persist": lambda: node.persist("key"),
        "ttl": lambda: node.ttl("key"),
        "keys": lambda: list(node.keys()),
        "wait": lambda: node.wait("absent"),
        "global_stats": node.global_stats,
    }


def check_errors(
    calls: dict[str, Callable[[], object]], expected: type[Exception], text: str
) -> None:
    """Make all calls; each has to raise this error with this text."""
    errors: dict[str, BaseException] = {}
    for name, call in calls.items():
        note_error(errors, name, call)
    assert {name: type(errors.get(name)) for name in calls} == dict.fromkeys(calls, expected)
    assert all(text in str(error) for error in errors.values())


def note_error(errors: dict[str, BaseException], name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException as error:
        errors[name] = error


def recovered(node: dstore.Node, get: Callable[[dstore.Node], Any]) -> Any:
    """Ask until the Node is let in again. Returns the answer."""
    answers: list[Any] = []

    def asked() -> bool:
        with contextlib.suppress(dstore.AccessDenied, dstore.WrongServer):
            answers.append(get(node))
        return bool(answers)

    until(asked, "the Node recovers")
    return answers[0]

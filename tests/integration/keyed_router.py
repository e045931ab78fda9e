"""A Global that asks for keys, and what its clients have."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import zmq
from zmq.utils import z85

import dstore
from dstore.access.connect import Connect
from dstore.protocol import wire
from dstore.protocol.messages import Buffer, Refusal, Refused, ToGlobal
from dstore.server import loop
from dstore.testing.running import ANY_PORT
from dstore.transport.router import Router

ZAP = "inproc://zeromq.zap.01"


class Keys:
    """The keys of one server, and the clients that it admits.

    ``denies`` returns why a message is refused, or None; it is asked about each. ``held`` receives
    each message that :attr:`holds` says is to get no answer.
    """

    def __init__(self) -> None:
        self.public_key, self.secret_key = new_pair()
        self.admitted: set[str] = set()
        self.denies: Callable[[ToGlobal], str | None] = lambda message: None
        self.holds: Callable[[ToGlobal], bool] = lambda message: False
        self.held = threading.Event()
        self.cutting = threading.Event()

    def client(self, path: Path, address: str, **changes: Any) -> str:
        """Write the connect file of a new client, and return its path. It is admitted."""
        public, secret = new_pair()
        self.admitted.add(public)
        fields = {"server_keys": [self.public_key], "name": path.stem, "prefixes": [], **changes}
        Connect(address=address, public_key=public, secret_key=secret, **fields).save(path)
        return str(path)

    def revoke(self, path: str) -> None:
        """Admit a client no more, and cut all connections; those of others come back."""
        self.admitted.discard(Connect.load(path).public_key)
        self.cutting.set()

    def add(self, path: str) -> None:
        """Admit a client again."""
        self.admitted.add(Connect.load(path).public_key)


class KeyedRouter(Router):
    """A router that asks for keys."""

    def __init__(self, keys: Keys, *given: Any, **named: Any) -> None:
        self.keys = keys
        self._zap: threading.Thread | None = None
        super().__init__(*given, **named)

    def _bind(self, sock: zmq.Socket[bytes], address: str) -> str:
        if self._zap is None:
            handler = self._context.socket(zmq.REP)
            handler.bind(ZAP)
            self._zap = threading.Thread(target=self._admit, args=(handler,))
            self._zap.start()
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret_key.encode())
        sock.setsockopt(zmq.ZAP_DOMAIN, b"dstore")
        return super()._bind(sock, address)

    def _admit(self, handler: zmq.Socket[bytes]) -> None:
        with handler, contextlib.suppress(zmq.ContextTerminated):
            while True:
                version, request, _, _, _, _, key = handler.recv_multipart()
                name = z85.encode(key)
                code = b"200" if name.decode() in self.keys.admitted else b"400"
                handler.send_multipart([version, request, code, b"", name, b""])

    def receive(self, timeout: float) -> tuple[bytes, bytes, Buffer | None] | None:
        if self.keys.cutting.is_set():
            self.keys.cutting.clear()
            for table in (self.guard._requests, self.guard._subscribers):
                for connection in list(table.connections.values()):
                    self.guard.cut(connection, "its identity was revoked")
        arrived = super().receive(min(timeout, 0.05))
        if arrived is None:
            return None
        message = wire.decode_to_global(*arrived[1:])
        if self.keys.holds(message):
            self.keys.held.set()
            return None
        why = self.keys.denies(message)
        if why is None:
            return arrived
        envelope = getattr(message, "request", 0)
        refused = Refused(*_session_of(message), envelope, Refusal.DENIED, why)
        self.send(arrived[0], wire.encode(refused))
        return None


def _session_of(message: Any) -> tuple[int, int]:
    return getattr(message, "epoch", 0), getattr(message, "session", 0)


def new_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


@contextlib.contextmanager
def keyed_global(keys: Keys, address: str = ANY_PORT, **options: Any) -> Iterator[dstore.Global]:
    """Run a Global that asks for keys, in a thread."""

    def router(*given: Any, **named: Any) -> Router:
        return KeyedRouter(keys, *given, **named)

    server = dstore.Global(address, **{"lease": 1.0, **options})
    with mock.patch.object(loop, "Router", router):
        server.start()
    with server:
        yield server

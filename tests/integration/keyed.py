"""Clients with keys, made of ZeroMQ's own sockets, for tests of a Global with keys."""

from __future__ import annotations

import contextlib
import os

import zmq

from dstore.access.connect import Connect
from dstore.protocol import wire
from dstore.protocol.messages import NO_SESSION, Hello, ToGlobal, ToLocal, Welcome
from tests.ending import Closing
from tests.integration.processes import PATIENCE

NOTHING_WITHIN = 0.5
"""Seconds after which a peer that has no answer will have none."""


class KeyedPeer(Closing):
    """A socket in a context of its own. Without ``connect`` it has no keys.

    ``server_key`` is what it expects; by default that of the connect file.
    """

    def __init__(
        self,
        address: str,
        connect: Connect | None,
        kind: int = zmq.DEALER,
        *,
        server_key: str = "",
        heartbeat_ms: int = 0,
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        self.epoch = 0
        self.session = self.secret = NO_SESSION
        sock = self.socket
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IPV6, 1)
        if connect is not None:
            sock.curve_serverkey = (server_key or connect.server_keys[0]).encode()
            sock.curve_publickey = connect.public_key.encode()
            sock.curve_secretkey = connect.secret_key.encode()
        sock.setsockopt(zmq.SNDTIMEO, int(NOTHING_WITHIN * 1000))
        if heartbeat_ms:
            sock.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        if kind == zmq.SUB:
            sock.setsockopt(zmq.SUBSCRIBE, wire.PREFIX)
        sock.connect(address)

    def send(self, *frames: bytes) -> None:
        """Send a message; it is lost if ZeroMQ has given the connection up."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames)

    def receive(self, seconds: float = PATIENCE) -> bytes | None:
        """Return the next message of one frame, or None if none comes in time."""
        return self.socket.recv() if self.socket.poll(int(seconds * 1000)) else None

    def ask(self, message: ToGlobal, seconds: float = PATIENCE) -> ToLocal | None:
        """Send a message. Returns the answer, or None if none comes in time."""
        self.send(wire.encode(message))
        frame = self.receive(seconds)
        return None if frame is None else wire.decode_to_local(frame)

    def join(self) -> Welcome:
        welcome = self.ask(hello())
        assert isinstance(welcome, Welcome), welcome
        self.epoch, self.session, self.secret = welcome.epoch, welcome.session, welcome.secret
        return welcome

    def is_refused(self) -> bool:
        """Whether a greeting has no answer."""
        return self.ask(hello(), NOTHING_WITHIN) is None

    def close(self) -> None:
        self._context.destroy(linger=0)


def hello() -> Hello:
    return Hello(os.urandom(16), 0, 0, "keyed")

"""A peer that implements ZeroMQ's wire protocol (ZMTP 3.1, RFC 37), so that tests can break it.

ZeroMQ's own sockets cannot send half a frame, claim the name of another peer, or refuse to read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from dstore.protocol import wire
from dstore.protocol.messages import (
    NO_SESSION,
    Buffer,
    Goodbye,
    Hello,
    Sync,
    Synced,
    ToGlobal,
    ToLocal,
    Welcome,
)
from tests.ending import Closing
from tests.faults.raw_curve import MECHANISM, Curve, RawKeys

SOURCE = "127.0.0.2"
"""The source address of raw peers, so that they do not count with honest ones."""
MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes) -> bytes:
    """The first 64 bytes of a client's connection."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: Buffer, flags: int = 0) -> bytes:
    """One frame as it is sent."""
    return frame_head(len(body), flags) + bytes(body)


def frame_head(size: int, flags: int = 0) -> bytes:
    """The head of a frame with a body of this size."""
    if size > 255:
        return struct.pack(">BQ", flags | LONG, size)
    return bytes([flags, size])


class RawPeer(Closing):
    """A TCP connection after the handshake. ``identity`` is the routing id that it claims.

    With ``keys`` it speaks CURVE, else without a key.
    """

    def __init__(
        self,
        address: str,
        kind: str = "DEALER",
        identity: bytes = b"",
        *,
        timeout: float = 10.0,
        shake: bool = True,
        source: str = SOURCE,
        keys: RawKeys | None = None,
    ) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        host = host.strip("[]")
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.epoch = 0
        self.session = self.secret = NO_SESSION
        self._request = 0
        self._curve = None if keys is None else Curve(keys)
        try:
            self.socket.settimeout(timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.bind((source, 0))
            self.socket.connect((host, int(port)))
            if shake:
                self._shake(kind, identity)
        except BaseException:
            self.socket.close()
            raise

    def _shake(self, kind: str, identity: bytes) -> None:
        curve = self._curve
        ours = greeting(b"NULL" if curve is None else MECHANISM)
        self.socket.sendall(ours)
        theirs = self._exactly(len(ours))
        if theirs[12:32] != ours[12:32]:
            raise ConnectionError(f"Global asks for {theirs[12:32]!r}")
        properties = {b"Socket-Type": kind.encode(), b"Identity": identity}
        metadata = b"".join(
            bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
            for name, value in properties.items()
        )
        if curve is None:
            self.socket.sendall(frame(b"\x05READY" + metadata, COMMAND))
            self._raw_frame()
            return
        self.socket.sendall(frame(curve.hello(), COMMAND))
        _, welcome = self._raw_frame()
        self.socket.sendall(frame(curve.initiate(welcome, metadata), COMMAND))
        curve.ready(self._raw_frame()[1])

    # ---- sending --------------------------------------------------------------------------

    def send(self, *frames: Buffer) -> None:
        """Send one message. Raises OSError when the connection has been cut."""
        last = len(frames) - 1
        self.socket.sendall(
            b"".join(self.frame(each, MORE if at < last else 0) for at, each in enumerate(frames))
        )

    def frame(self, body: Buffer, flags: int = 0) -> bytes:
        """One frame as this connection sends it: encrypted, if it has keys."""
        if self._curve is None:
            return frame(body, flags)
        return frame(self._curve.sealed(body, flags))

    def frames(self, body: Buffer, flags: int, count: int) -> bytes:
        """The same frame ``count`` times."""
        if self._curve is None:
            return frame(body, flags) * count
        return b"".join(self.frame(body, flags) for _ in range(count))

    def say(self, message: ToGlobal) -> None:
        data = wire.data_of(message)
        self.send(wire.encode(message), *([] if data is None else [data]))

    def ask(self, message: ToGlobal) -> ToLocal:
        """Send a message and return the answer; skip invalidations, which are not answers."""
        self.say(message)
        answer = self.hear()
        while isinstance(answer, Synced) and not isinstance(message, Sync):
            answer = self.hear()
        return answer

    def join(self) -> Welcome:
        welcome = self.ask(Hello(os.urandom(16), 0, 0, "raw"))
        assert isinstance(welcome, Welcome), welcome
        self.epoch, self.session, self.secret = welcome.epoch, welcome.session, welcome.secret
        return welcome

    @property
    def envelope(self) -> tuple[int, int, int]:
        """Epoch, session and the number of a new request."""
        self._request += 1
        return self.epoch, self.session, self._request

    # ---- receiving ------------------------------------------------------------------------

    def hear(self) -> ToLocal:
        """Receive the next message of one frame. Raises OSError when there is none."""
        while True:
            flags, body = self._frame()
            if not flags & COMMAND:
                return wire.decode_to_local(body)

    def _frame(self) -> tuple[int, bytes]:
        flags, body = self._raw_frame()
        return (flags, body) if self._curve is None else self._curve.opened(body)

    def _raw_frame(self) -> tuple[int, bytes]:
        flags, size = self._exactly(2)
        if flags & LONG:
            size = int.from_bytes(bytes([size]) + self._exactly(7), "big")
        return flags, self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            more = self.socket.recv(count - len(got))
            if not more:
                raise ConnectionError("the connection was cut")
            got += more
        return bytes(got)

    @property
    def is_cut(self) -> bool:
        """Whether the other end has closed the connection."""
        self.socket.settimeout(0)
        try:
            while self.socket.recv(1 << 16):
                pass
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            pass
        return True

    # ---- end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Send GOODBYE, if it has joined, and close the connection."""
        if self.session:
            with contextlib.suppress(OSError):
                self.socket.settimeout(0.1)
                self.say(Goodbye(self.epoch, self.secret))
        self.socket.close()


@contextlib.contextmanager
def crowd() -> Iterator[list[RawPeer]]:
    """A list of peers, all of which are closed at the end."""
    peers: list[RawPeer] = []
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()

"""Who may connect: the answers to ZeroMQ's question, by the ZAP protocol (RFC 27).

With CURVE a peer has proved that it has the secret key of its public key. ZeroMQ then asks in its
own context whether that key may connect, and waits with the handshake until it is answered. It also
asks nobody and lets everybody in if nobody is there to be asked, unless the socket enforces its
domain; see :func:`close_to_others`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq
from zmq.utils import z85

from dstore.core.authority.identity import Identity
from dstore.errors import AddressError
from dstore.runtime import native
from dstore.runtime.logs import Log
from dstore.transport.limits import no_threads

log = Log("dstore.global")

DOMAIN = b"dstore"
REFUSED_MAX = 1_000
"""Addresses of refused peers that are kept until they are taken."""
KEY_BYTES = 32
"""Bytes of a public key."""
_ENDPOINT = "inproc://zeromq.zap.01"  # RFC 27 fixes it
_VERSION = b"1.0"
_MECHANISM = b"CURVE"
_ALLOWED, _UNKNOWN, _FAILED = (b"200", b"OK"), (b"400", b"unknown key"), (b"500", b"failed")


class KeyRing(Protocol):
    """The keys of one moment. It never changes; a new one takes its place."""

    @property
    def server_secret(self) -> bytes:
        """The secret key of this server, in Z85."""

    @property
    def identity_of(self) -> Callable[[str], Identity | None]:
        """Finds the identity that has a public key, given in Z85."""


def close_to_others(sock: zmq.Socket[bytes], secret: bytes) -> None:
    """Have a socket that is not bound yet admit only peers that the doorkeeper admits."""
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Doorkeeper:
    """Answers which public keys may connect, in a thread that ends with the context.

    Create it before the sockets of the context are bound. ``ring`` may be replaced at any time, and
    ``refused`` has the addresses of the peers that were refused, until the caller takes them.
    Raises AddressError if there can be no more threads.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], ring: KeyRing) -> None:
        self.ring = ring
        self.refused: deque[str] = deque(maxlen=REFUSED_MAX)
        self._socket = context.socket(zmq.REP)
        try:
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.bind(_ENDPOINT)
            self._thread = native.Thread(self._answer_all, "dstore-access")
            self._thread.start()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, RuntimeError):
                raise AddressError(no_threads(error)) from None
            raise

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, once the context has."""
        self._thread.join(timeout)

    def _answer_all(self) -> None:
        with self._socket:
            while True:
                try:
                    self._socket.send_multipart(self.answer(self._socket.recv_multipart()))
                except zmq.ContextTerminated:
                    return
                except zmq.ZMQError:  # ZeroMQ has not asked in turn; the next question is in turn
                    log.exception("a handshake is not answered")

    def answer(self, question: Sequence[bytes]) -> list[bytes]:
        """Return the answer to a question, both in the frames of RFC 27. Raises nothing."""
        user = b""
        try:
            status, user = self._judge(question)
        except Exception:
            log.exception("the keys of a peer cannot be looked up; it is refused")
            status = _FAILED
        if status is not _ALLOWED:
            self.refused.append(question[3].decode("latin-1") if len(question) > 3 else "")
        request = question[1] if len(question) > 1 else b""
        return [_VERSION, request, *status, user, b""]

    def _judge(self, question: Sequence[bytes]) -> tuple[tuple[bytes, bytes], bytes]:
        if len(question) != 7 or question[0] != _VERSION or question[5] != _MECHANISM:
            return _UNKNOWN, b""
        if len(question[6]) != KEY_BYTES:
            return _UNKNOWN, b""
        key = z85.encode(question[6])
        identity = self.ring.identity_of(key.decode())
        if identity is None or identity.revoked:
            return _UNKNOWN, b""
        return _ALLOWED, key

"""The client's side of ZeroMQ's CURVE handshake (RFC 26), for raw peers that have keys.

The cryptography is libsodium's, by way of PyNaCl; this module lays out the commands only.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_open_afternm
from nacl.public import Box, PrivateKey, PublicKey
from zmq.utils import z85

from dstore.protocol.messages import Buffer

MECHANISM = b"CURVE"


class RawKeys(NamedTuple):
    """The public key of a server and the key pair of a client, 32 bytes each."""

    server: bytes
    public: bytes
    secret: bytes

    @classmethod
    def decoded(cls, server: str, public: str, secret: str) -> RawKeys:
        """Return keys that are given in Z85, as in a connect file."""
        return cls(*(bytes(z85.decode(each)) for each in (server, public, secret)))


class Curve:
    """One connection: commands of the handshake, then the frames of both directions.

    Call :meth:`hello`, :meth:`initiate` and :meth:`ready` in turn.
    """

    def __init__(self, keys: RawKeys) -> None:
        self._keys = keys
        self._own = PrivateKey.generate()
        self._sent = 0
        self._shared = b""

    def hello(self) -> bytes:
        """Return the body of the HELLO command."""
        nonce = self._nonce()
        box = Box(self._own, PublicKey(self._keys.server))
        sealed = box.encrypt(bytes(64), b"CurveZMQHELLO---" + nonce).ciphertext
        return b"\x05HELLO\x01\x00" + bytes(72) + bytes(self._own.public_key) + nonce + sealed

    def initiate(self, welcome: bytes, metadata: bytes) -> bytes:
        """Return the body of the INITIATE command that answers WELCOME. Raises CryptoError."""
        nonce, sealed = welcome[8:24], welcome[24:]
        opened = Box(self._own, PublicKey(self._keys.server)).decrypt(sealed, b"WELCOME-" + nonce)
        theirs, cookie = opened[:32], opened[32:]
        vouch_nonce = os.urandom(16)
        vouch = Box(PrivateKey(self._keys.secret), PublicKey(theirs)).encrypt(
            bytes(self._own.public_key) + self._keys.server, b"VOUCH---" + vouch_nonce
        )
        self._shared = crypto_box_beforenm(theirs, bytes(self._own))
        inner = self._keys.public + vouch_nonce + vouch.ciphertext + metadata
        short = self._nonce()
        box = crypto_box_afternm(inner, b"CurveZMQINITIATE" + short, self._shared)
        return b"\x08INITIATE" + cookie + short + box

    def ready(self, command: bytes) -> bytes:
        """Return the metadata of the READY command. Raises ConnectionError if it is another one."""
        if not command.startswith(b"\x05READY"):
            raise ConnectionError(f"the handshake ended with {command[:40]!r}")
        nonce = b"CurveZMQREADY---" + command[6:14]
        return bytes(crypto_box_open_afternm(command[14:], nonce, self._shared))

    def sealed(self, body: Buffer, flags: int) -> bytes:
        """Return the body of a MESSAGE for a frame of these flags (1 more, 4 command)."""
        inner = bytes([(flags & 1) | (flags >> 1 & 2)]) + bytes(body)
        nonce = self._nonce()
        box = crypto_box_afternm(inner, b"CurveZMQMESSAGEC" + nonce, self._shared)
        return b"\x07MESSAGE" + nonce + box

    def opened(self, message: bytes) -> tuple[int, bytes]:
        """Return the flags and the body of a frame in a MESSAGE."""
        nonce = b"CurveZMQMESSAGES" + message[8:16]
        inner = bytes(crypto_box_open_afternm(message[16:], nonce, self._shared))
        return (inner[0] & 1) | (inner[0] & 2) << 1, inner[1:]

    def _nonce(self) -> bytes:
        self._sent += 1
        return self._sent.to_bytes(8, "big")

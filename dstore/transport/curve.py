"""The keys of CURVE, ZeroMQ's encryption and authentication, as text of 40 characters (Z85)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import zmq
from zmq.utils import z85

KEY_CHARACTERS = 40
"""Characters of a key: 32 bytes in Z85, ZeroMQ's form of Base85."""
_KEY = re.compile(rf"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{{}}@%$#]{{{KEY_CHARACTERS}}}")


class ClientKeys(NamedTuple):
    """What the sockets of one client need. The repr does not show the secret.

    ``server_keys`` has the public key of the server: one, or during a rotation also the next one.
    ``name`` is that of the client's identity, for messages.
    """

    public_key: str
    secret_key: str
    server_keys: Sequence[str]
    name: str = ""

    def __repr__(self) -> str:
        return f"<ClientKeys of {self.name!r}>"


def available() -> bool:
    """Whether ZeroMQ has been built with CURVE, as that of pyzmq's wheels is."""
    return bool(zmq.has("curve"))


def is_key(text: object) -> bool:
    """Whether this is the text of a key, public or secret."""
    if not isinstance(text, str) or _KEY.fullmatch(text) is None:
        return False
    try:
        return len(z85.decode(text)) == KEY_CHARACTERS * 4 // 5
    except Exception:  # five characters that stand for more than four bytes
        return False


def is_pair(public_key: str, secret_key: str) -> bool:
    """Whether the two are keys, and the public one belongs to the secret one."""
    if not is_key(public_key) or not is_key(secret_key):
        return False
    return zmq.curve_public(secret_key.encode()) == public_key.encode()


def options(keys: ClientKeys, server_key: str) -> dict[zmq.SocketOption, str]:
    """Return the options with which a socket connects to the server that has this key."""
    return {
        zmq.CURVE_PUBLICKEY: keys.public_key,
        zmq.CURVE_SECRETKEY: keys.secret_key,
        zmq.CURVE_SERVERKEY: server_key,
    }


def new_pair() -> tuple[str, str]:
    """Return a new public key and its secret key. Raises OSError if this ZeroMQ has no CURVE."""
    try:
        public, secret = zmq.curve_keypair()
    except zmq.ZMQError as error:
        raise OSError(
            error.errno, f"ZeroMQ makes no keys here ({error}); install pyzmq from a wheel"
        ) from None
    return public.decode("ascii"), secret.decode("ascii")

"""Key pairs of CURVE, which ZeroMQ makes: 40 characters in Z85 for each key."""

from __future__ import annotations

import re

import zmq

_Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


def new_pair() -> tuple[str, str]:
    """Return a new public key and its secret key. Raises OSError if this ZeroMQ has no CURVE."""
    try:
        public, secret = zmq.curve_keypair()
    except zmq.ZMQError as error:
        raise _no_curve(error) from None
    return public.decode("ascii"), secret.decode("ascii")


def public_of(secret: str) -> str:
    """Return the public key of a secret key. Raises OSError if this ZeroMQ has no CURVE."""
    try:
        return zmq.curve_public(secret.encode("ascii")).decode("ascii")
    except zmq.ZMQError as error:
        raise _no_curve(error) from None


def is_key(text: object) -> bool:
    """Whether a text has the form of a key."""
    return isinstance(text, str) and _Z85_KEY.fullmatch(text) is not None


def _no_curve(error: zmq.ZMQError) -> OSError:
    return OSError(error.errno, f"ZeroMQ makes no keys here ({error}); install pyzmq from a wheel")

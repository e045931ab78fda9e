"""What a key is: bytes, which Python code names by a text.

:data:`~dstore.protocol.messages.Key` is that text: the bytes decoded as UTF-8, where each byte that is not
UTF-8 becomes a lone surrogate (``surrogateescape``, PEP 383). Each key has exactly one such text,
so that texts can be compared for equality, and be dictionary keys, in place of the bytes.

Order and prefixes are another matter. The text of ``b"\\xc3"`` is no prefix of ``"é"``, though the
bytes are, and sorts after all of ``"漢"``. Whatever orders keys or looks for a prefix takes
:func:`to_bytes` or :func:`in_order`.
"""

from __future__ import annotations

from dstore.protocol.messages import Key


def from_bytes(raw: bytes) -> Key:
    """The text that names the key of these bytes."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(key: Key) -> bytes:
    """The bytes of a key."""
    return key.encode("utf-8", "surrogateescape")


def in_order(key: Key) -> str:
    """A text with one character per byte of the key: these texts sort as the bytes do, and a
    prefix of the bytes is a prefix here.

    For most keys, which are ASCII, it is the key itself, so that an order of them needs no copies.
    """
    return key if key.isascii() else to_bytes(key).decode("latin-1")


def from_order(ordered: str) -> Key:
    """The key whose :func:`in_order` this is."""
    return ordered if ordered.isascii() else from_bytes(ordered.encode("latin-1"))


def public(key: Key) -> str | bytes:
    """The key as programs see it: text, or bytes where these are not UTF-8."""
    if key.isascii():
        return key
    raw = to_bytes(key)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw

"""Keys: a key is bytes, and Python code represents it by a text.

That text, a :data:`~dstore.protocol.messages.Key`, is the bytes decoded as UTF-8, where each byte
that is not UTF-8 becomes a lone surrogate (``surrogateescape``, PEP 383). Each key has exactly one
such text. So texts can be compared for equality, and be dictionary keys, in place of the bytes.

For order and prefixes this does not hold. The text of ``b"\\xc3"`` is no prefix of ``"é"``, though
the bytes are, and it sorts after all of ``"漢"``. Code that orders keys or looks for a prefix uses
:func:`to_bytes` or :func:`in_order`.
"""

from __future__ import annotations

from dstore.protocol.messages import Key


def from_bytes(raw: bytes) -> Key:
    """Return the text of a key."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(key: Key) -> bytes:
    """Return the bytes of a key."""
    return key.encode("utf-8", "surrogateescape")


def key_bytes(key: Key) -> int:
    return len(key) if key.isascii() else len(to_bytes(key))


def in_order(key: Key) -> str:
    """Return a text with one character per byte of the key.

    These texts sort as the bytes do, and a prefix of the bytes is a prefix of the text. For an
    ASCII key, as most are, it is the key itself, so that an order of them needs no copies.
    """
    return key if key.isascii() else to_bytes(key).decode("latin-1")


def from_order(ordered: str) -> Key:
    """Return the key of a text that :func:`in_order` has returned."""
    return ordered if ordered.isascii() else from_bytes(ordered.encode("latin-1"))


def public(key: Key) -> str | bytes:
    """Return the key as programs see it: text, or bytes that are not UTF-8."""
    if key.isascii():
        return key
    raw = to_bytes(key)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw

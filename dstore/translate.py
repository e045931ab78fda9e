"""Between what a program says and what the protocol says: keys and outcomes."""

from __future__ import annotations

from typing import NamedTuple

from dstore import config, content
from dstore.errors import InvalidKey, RequestRefused, StoreFull, ValueCorrupt
from dstore.messages import DelResult, DelStatus, Key, SetItem, SetStatus
from dstore.wire import key_bytes


class Deletion(NamedTuple):
    """A deletion: how many Locals that held the value confirmed, how many leases ran out instead.

    With ``wait=False`` nobody has been waited for: ``pending`` Locals were yet to confirm.
    """

    confirmed: int
    expired: int
    pending: int


def key_text(key: str | bytes) -> Key:
    if isinstance(key, bytes):
        return key.decode("utf-8", "surrogateescape")
    if not isinstance(key, str):
        raise InvalidKey(f"a key is text or bytes, not {type(key).__name__}")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InvalidKey("the key is not valid text (lone surrogates); use bytes") from None
    return str(key)


def key_name(key: str | bytes) -> Key:
    if type(key) is str and key.isascii() and 0 < len(key) <= config.KEY_BYTES_MAX:
        return key  # as most keys are
    text = key_text(key)
    size = key_bytes(text)
    if not size:
        raise InvalidKey(f"the key is empty; a key has 1 to {config.KEY_BYTES_MAX} bytes")
    if not 1 <= size <= config.KEY_BYTES_MAX:
        raise InvalidKey(
            f"a key has 1 to {config.KEY_BYTES_MAX} bytes, not {size}; a hash of it is a good key"
        )
    return text


def public_key(key: Key) -> str | bytes:
    if key.isascii():
        return key
    raw = key.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def settable(key: str | bytes) -> Key:
    """The name of a key that a program may bind a value of its choice to."""
    name = key_name(key)
    if content.is_address(name):
        raise InvalidKey(
            f"keys that begin with {config.CONTENT_PREFIX!r} are content addresses; use put()"
        )
    return name


def deletion(result: DelResult) -> Deletion | None:
    if result.status is DelStatus.MISSING:
        return None
    if result.status is DelStatus.FAILED:
        raise RequestRefused("Global's storage failed; the key is not deleted")
    return Deletion(result.confirmed, result.expired, result.pending)


def check_written(item: SetItem, status: SetStatus) -> None:
    if status is SetStatus.FULL:
        raise StoreFull(
            f"Global has no room for {item.key!r} ({item.stored.size:,} bytes); delete "
            "something, or start it with a higher --memory-limit"
        )
    if status is SetStatus.MISMATCH:
        raise ValueCorrupt(
            f"{item.key!r} was not written: its value was damaged on its way, or its file was "
            "changed while it was read"
        )
    if status is SetStatus.FAILED:
        raise RequestRefused(f"Global's storage failed; {item.key!r} was not written")

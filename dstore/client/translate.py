"""Translation between a program's keys and results and those of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar, cast

from dstore import config
from dstore.errors import InvalidKey, RequestRefused
from dstore.protocol.content import PLAIN, Addresses
from dstore.protocol.keys import key_bytes, public
from dstore.protocol.messages import DelResult, DelStatus, Key


class Deletion(NamedTuple):
    """The result of a deletion, in numbers of Locals that held the value.

    ``confirmed`` Locals have confirmed the invalidation; of ``expired`` ones the lease has ended
    instead. ``pending`` Locals had yet to confirm when the call returned, with ``wait=False``.
    """

    confirmed: int
    expired: int
    pending: int


def key_text(key: str | bytes) -> Key:
    """Return the text that names a key, or a prefix of keys. Raises InvalidKey.

    It is made from the text or bytes that the object *is*. A class derived from ``str`` or
    ``bytes``, such as ``class K(str, Enum)``, may have methods of its own; none of them is called.
    """
    kind: type = type(key)  # isinstance believes what an object says of its ``__class__``
    if issubclass(kind, str):
        raw = _utf8(cast("str", key))
    elif issubclass(kind, bytes):
        raw = cast("bytes", key)
    else:
        advice = "; give bytes(key)" if issubclass(kind, (bytearray, memoryview)) else ""
        raise InvalidKey(f"a key is text or bytes (str or bytes), not {kind.__name__}{advice}")
    return bytes.decode(raw, "utf-8", "surrogateescape")


def _utf8(text: str) -> bytes:
    try:
        return str.encode(text, "utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise InvalidKey(
            f"the key has U+{surrogate:04X}, half of a character, at index {error.start}, and "
            "UTF-8 cannot encode that; correct the text, or give the key as bytes"
        ) from None


def key_name(key: str | bytes) -> Key:
    """Return the text that names a key, of 1 to 511 bytes. Raises InvalidKey."""
    if type(key) is str and key.isascii() and 0 < len(key) <= config.KEY_BYTES_MAX:
        return key  # the fast path, for most keys
    text = key_text(key)
    size = key_bytes(text)
    if not size:
        raise InvalidKey(f"the key is empty; a key has 1 to {config.KEY_BYTES_MAX} bytes")
    if size > config.KEY_BYTES_MAX:
        raise InvalidKey(
            f"the key has {size:,} bytes, and a key has at most {config.KEY_BYTES_MAX}; shorten "
            "it, or take a hash of it as the key"
        )
    return text


Named = TypeVar("Named", bound="str | bytes")


def key_names(
    keys: Iterable[Named], name_of: Callable[[str | bytes], Key] = key_name
) -> dict[Named, Key]:
    """Return the names of many keys, as a dict from the caller's objects to the names.

    Results are keyed by the same objects. Raises InvalidKey, also for objects that cannot be keys
    of a dict of results: those without a hash, and those that their class calls equal though they
    are different keys.
    """
    names: dict[Named, Key] = {}
    for key in keys:
        name = name_of(key)
        try:
            known = names.setdefault(key, name)
        except TypeError:
            raise InvalidKey(
                f"{type(key).__name__} has no hash, so that no result can be named by the key "
                f"{public(name)!r}; give it as plain str or bytes"
            ) from None
        if known != name:
            raise InvalidKey(
                f"{public(known)!r} and {public(name)!r} are different keys, but equal as "
                f"{type(key).__name__}; give them as plain str or bytes"
            )
    return names


def settable(key: str | bytes, addresses: Addresses = PLAIN) -> Key:
    """Return the name of a key that a program may set. Raises InvalidKey for content addresses."""
    name = key_name(key)
    if name in addresses:
        begins = name[: name.index(config.CONTENT_PREFIX) + len(config.CONTENT_PREFIX)]
        raise InvalidKey(
            f"{public(name)!r} begins with {public(begins)!r}, as content addresses do; "
            "choose another key, or store the value under its own hash (put() in a program, "
            "`dstore put`, ADD in the REPL)"
        )
    return name


def deletion(result: DelResult) -> Deletion | None:
    """Translate the outcome of a DEL; None if the key was missing. Raises RequestRefused."""
    if result.status is DelStatus.MISSING:
        return None
    if result.status is DelStatus.FAILED:
        raise RequestRefused("Global's storage failed; the key is not deleted")
    return Deletion(result.confirmed, result.expired, result.pending)

"""What an identity may ask for: the roles that messages need, and the keys that they name.

A message is looked at before anything of it is executed, so that one that names a single forbidden
key changes nothing. What belongs to a session is not decided here: see ``state.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstore.core.authority.effects import Refuse
from dstore.core.authority.identity import Identity, Role
from dstore.protocol import messages as m
from dstore.protocol.keys import public

PREFIXES_SHOWN = 3
"""Prefixes that a refusal names, so that its text is no longer than one in a message may be."""
_OF_WRITERS = (m.Set, m.Del, m.Expire, m.Stage)
_OF_MANY = (m.Get, m.Del, m.Expire)
_OF_ONE = (m.Wait, m.Ttl)


def check(identity: Identity, message: Any) -> None:
    """Raise Refuse if this identity may not send this message."""
    needed = Role.WRITE if _writes(message) else Role.READ
    if identity.role < needed:
        raise Refuse(
            m.Refusal.DENIED,
            f"{identity.name!r} has the role {identity.role.name.lower()}, and this needs "
            f"{needed.name.lower()}; use a connect file of that role (`dstore access add NAME "
            f"--role {needed.name.lower()} ...` makes one, where Global has its keys)",
        )
    forbidden = unseen(identity, keys_of(message))
    if forbidden is not None:
        raise Refuse(
            m.Refusal.DENIED,
            f"{identity.name!r} may not use the key {public(forbidden)!r}, only keys that begin "
            f"with {_shown(identity.prefixes)}",
        )


def unseen(identity: Identity, keys: Sequence[m.Key]) -> m.Key | None:
    """Return the first of these keys that an identity does not see, or None if it sees all."""
    if identity.prefixes:
        for key in keys:
            if not identity.sees(key):
                return key
    return None


def keys_of(message: Any) -> Sequence[m.Key]:
    """Return the keys of which a message asks for something, all of which have to be seen.

    A SCAN, an OFFER and a FETCH are answered as if there were no key that is not seen. An UNWAIT
    withdraws only what the same identity has asked for.
    """
    if isinstance(message, _OF_MANY):
        return message.keys
    if isinstance(message, _OF_ONE):
        return (message.key,)
    if isinstance(message, m.Set):
        return [item.key for item in message.items]
    return ()


def _writes(message: Any) -> bool:
    if isinstance(message, m.Hello):
        return message.kind is m.Kind.WRITER
    return isinstance(message, _OF_WRITERS)


def _shown(prefixes: Sequence[m.Key]) -> str:
    shown = " or ".join([repr(public(each)) for each in prefixes[:PREFIXES_SHOWN]])
    further = len(prefixes) - PREFIXES_SHOWN
    return f"{shown} (or {further} others)" if further > 0 else shown

"""Identities: who a session belongs to, and what it may do."""

from __future__ import annotations

from enum import IntEnum

from dstore.protocol.keys import in_order
from dstore.protocol.messages import Key


class Role(IntEnum):
    """What an identity may do; each role includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


class Identity:
    """One client of a Global with keys. Compared by identity; only ``revoked`` changes."""

    def __init__(self, name: str, role: Role, prefixes: tuple[Key, ...]) -> None:
        self.name = name
        self.role = role
        self.prefixes = prefixes
        self.revoked = False

    def __repr__(self) -> str:
        return f"<Identity {self.name!r} {self.role.name.lower()}>"

    def sees(self, key: Key) -> bool:
        """Whether the key is below one of the prefixes; without prefixes all keys are."""
        ordered = in_order(key)
        return not self.prefixes or any(ordered.startswith(in_order(p)) for p in self.prefixes)


ANYONE = Identity("", Role.ADMIN, ())
"""The identity of all clients of a Global without keys."""

"""Who sends a message: a name with a role, and the keys that it may see."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """What an identity may do; each role includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


class Identity:
    """One name that may use Global. Compared by identity; only ``revoked`` ever changes."""

    __slots__ = ("name", "prefixes", "revoked", "role")

    def __init__(self, name: str, role: Role, prefixes: tuple[str, ...] = ()) -> None:
        self.name = name
        self.role = role
        self.prefixes = prefixes
        self.revoked = False

    def __repr__(self) -> str:
        return f"<Identity {self.name} {self.role.name.lower()}>"

    def sees(self, key: str) -> bool:
        """Whether it may see and write this key."""
        return not self.prefixes or key.startswith(self.prefixes)


ANYONE = Identity("", Role.ADMIN, ())
"""The identity of all who use a Global without keys."""

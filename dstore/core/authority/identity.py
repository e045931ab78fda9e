"""Identities: who a message comes from, and what it may name.

A Global with keys knows by which key a connection was made, and so which identity its messages come
from. There is one object for each name, so identities are compared with ``is``. A Global without
keys, and Global itself on its own host, has :data:`ANYONE`.
"""

from __future__ import annotations

from enum import IntEnum

from dstore.protocol.content import Addresses
from dstore.protocol.keys import from_order, in_order
from dstore.protocol.messages import Key


class Role(IntEnum):
    """What an identity may do. Each role includes those before it."""

    READ = 1  # get, keys, watch, wait, ttl, and the figures of stats
    WRITE = 2  # also set, delete, put and expire
    ADMIN = 3  # also see the sessions of others in stats


class Identity:
    """One name with its role and the prefixes of the keys that it sees; none: it sees all keys.

    A prefix counts in bytes, and may end within a character. ``revoked`` is the only thing that
    ever changes, once, to True.
    """

    __slots__ = ("_ordered", "addresses", "name", "prefixes", "revoked", "role")

    def __init__(self, name: str, role: Role, prefixes: tuple[Key, ...] = ()) -> None:
        self.name = name
        self.role = role
        self.prefixes = prefixes
        self.revoked = False
        self.addresses = Addresses(prefixes)
        # In the order of their bytes, without those that others include: disjoint parts of the
        # order of all keys, one after the other.
        ordered: list[str] = []
        for prefix in sorted(map(in_order, prefixes)):
            if not ordered or not prefix.startswith(ordered[-1]):
                ordered.append(prefix)
        self._ordered = tuple(ordered)

    def __repr__(self) -> str:
        revoked = " revoked" if self.revoked else ""
        return f"<Identity {self.name!r} {self.role.name} prefixes={self.prefixes!r}{revoked}>"

    def sees(self, key: Key) -> bool:
        """Whether this identity may name a key, and hear that it was deleted."""
        return not self.prefixes or in_order(key).startswith(self._ordered)

    def within(self, prefix: Key) -> list[Key]:
        """Return prefixes of exactly the keys that have ``prefix`` and that this identity sees.

        They are disjoint, and in the order of their bytes.
        """
        asked = in_order(prefix)
        if not self.prefixes or asked.startswith(self._ordered):
            return [prefix]
        return [from_order(each) for each in self._ordered if each.startswith(asked)]


ANYONE = Identity("", Role.ADMIN)
"""Everybody who can reach a Global without keys. Never revoked."""

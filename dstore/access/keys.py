"""Stand-in: a key folder with the files ``server``, ``generation`` and ``names/NAME``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from dstore.core.authority.identity import Identity, Role
from dstore.errors import DstoreError


class KeyRing(NamedTuple):
    """The keys of one generation."""

    generation: int
    server_secret: str
    identities: tuple[Identity, ...]
    identity_of: Callable[[str], Identity | None]
    concealed: bool


class KeyFolder:
    """A folder of keys."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: dict[tuple[str, str], Identity] = {}

    @property
    def generation(self) -> int:
        try:
            return os.stat(os.path.join(self.path, "generation")).st_mtime_ns
        except OSError as error:
            raise DstoreError(f"cannot read the key folder {self.path}: {error.strerror}") from None

    def load(self) -> KeyRing:
        generation = self.generation
        found: dict[tuple[str, str], Identity] = {}
        try:
            secret = self._read("server")
            for name in sorted(os.listdir(os.path.join(self.path, "names"))):
                key, role, *prefixes = self._read(f"names/{name}").split()
                known = self._known.get((name, key))
                found[name, key] = known or Identity(name, Role[role.upper()], tuple(prefixes))
        except (OSError, ValueError, KeyError) as error:
            raise DstoreError(f"the key folder {self.path} is damaged: {error}") from None
        for each, identity in self._known.items():
            if each not in found:
                identity.revoked = True
        self._known = found
        of_key = {key: identity for (_, key), identity in found.items()}
        identities = tuple(found.values())
        concealed = any(each.prefixes for each in identities)
        return KeyRing(generation, secret, identities, of_key.get, concealed)

    def _read(self, name: str) -> str:
        with open(os.path.join(self.path, name), encoding="ascii") as file:
            return file.read().strip()

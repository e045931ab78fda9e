"""The keys of a run with several Globals: all of them ask for keys, and each client has its own."""

from __future__ import annotations

import os
from pathlib import Path

import dstore
from dstore.access.keys import KeyFolder
from dstore.core.authority.identity import Role
from tests.integration.processes import PATIENCE

WORKER, OWNER, PROBES, END = ROLES = {
    "worker": Role.WRITE,
    "owner": Role.READ,
    "probes": Role.WRITE,
    "end": Role.READ,
}
"""The clients, by name."""


class Keys:
    """A key folder below ``folder``, with a connect file for each client."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "keys"

    def make(self, address: str) -> None:
        """Make the folder and the files. ``address`` is that of the Globals for clients."""
        keys = KeyFolder(self.path)
        keys.create()
        for name, role in ROLES.items():
            keys.add(name, role, address=address).save(self.connect(name))

    def connect(self, name: str) -> str:
        """The connect file of a client."""
        return os.fspath(self._folder / f"{name}.json")


def admits_all(address: str) -> bool:
    """Whether the Global at an address answers a client without keys."""
    try:
        with dstore.Node(address, host="off", shm="", timeout=PATIENCE) as node:
            node.join()
    except (dstore.WrongServer, dstore.AccessDenied):
        return False
    return True

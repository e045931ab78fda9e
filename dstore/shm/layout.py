"""The names of the folders and files in shared memory.

::

    <root>/dstore-<uid>/            mode 0700
        <epoch, 16 hex digits>/
            lock                    every process that uses the epoch holds a shared lock on it
            global/                 values that belong to Global, never evicted
            copies/                 values that Nodes have written or fetched, evictable
                <token, 32 hex digits>          sealed: the whole value, which never changes
                <token, 32 hex digits>.part     partial: one process is writing it
        <epoch>.<16 hex digits>/    a folder that no process uses any more, being removed
"""

from __future__ import annotations

import os
import re

LOCK, GLOBAL, COPIES = "lock", "global", "copies"
PART = ".part"
TOKEN_BYTES = 16
EPOCH_MAX = (1 << 64) - 1

EPOCH_NAME = re.compile("[0-9a-f]{16}")
REMOVED_NAME = re.compile("[0-9a-f]{16}[.][0-9a-f]{16}")
"""The epoch and a random number."""
SEALED_NAME = re.compile("[0-9a-f]{32}")
PART_NAME = re.compile("[0-9a-f]{32}[.]part")


def user_folder() -> str:
    """The folder in the root that has all epochs of this user."""
    return f"dstore-{os.geteuid()}"


def epoch_folder(epoch: int) -> str:
    return f"{epoch:016x}"


def global_file(token: bytes) -> str:
    """The sealed file of a value of Global's. Raises ValueError if this is no token."""
    return f"{GLOBAL}/{_file(token)}"


def copy_file(token: bytes) -> str:
    """The sealed file of a copy. Raises ValueError if this is no token."""
    return f"{COPIES}/{_file(token)}"


def search_order(token: bytes) -> tuple[str, str, str]:
    """Where to look for a sealed file.

    Global may move a file from the copies to its own between the first two looks.
    """
    return global_file(token), copy_file(token), global_file(token)


def check(token: bytes) -> None:
    """Raise ValueError if this is no token."""
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")


def _file(token: bytes) -> str:
    check(token)
    return token.hex()

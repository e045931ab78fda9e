"""One copy of a large value per host: files in shared memory, one for each token.

A token names one write and is never used again. So a sealed file never changes, and its readers
need no notice of anything. Every process of the host and user that wants the bytes maps them
read-only. An unlinked file stays readable for the processes that have it mapped, so the kernel
counts the references. Shared memory maps tokens to bytes and nothing else: which token a key has,
a Node learns from Global.

All memory is reserved before it is written, since a full file system would otherwise show as a
SIGBUS in a process that touches the next page.
"""

from __future__ import annotations

from dstore.shm.bulk import SharedBulk, bulk_for
from dstore.shm.mapping import is_whole
from dstore.shm.memory import WARNING_SECONDS, HostMemory, open_memory
from dstore.shm.partial_files import NoRoom
from dstore.shm.root import check_root, clean
from dstore.shm.writer import Writer

__all__ = [
    "WARNING_SECONDS",
    "HostMemory",
    "NoRoom",
    "SharedBulk",
    "Writer",
    "bulk_for",
    "check_root",
    "clean",
    "is_whole",
    "open_memory",
]

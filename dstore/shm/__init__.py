"""One copy of a large value per host: files in shared memory, one for each token.

A token names one write and is never used again. So a sealed file never changes, and its readers
need no notice of anything. Every process of the host and user that wants the bytes maps them
read-only. An unlinked file stays readable for the processes that have it mapped, so the kernel
counts the references. Shared memory maps tokens to bytes and nothing else: which token a key has,
a Node learns from Global.

All memory is reserved before it is written, since a full file system would otherwise show as a
SIGBUS in a process that touches the next page.

==================  =========================================================
``layout``          the names of folders and files
``directory``       folders that are held open, and the safe way to them
``files``           opening, removing and touching files
``mapping``         read-only mappings
``locks``           locks between processes, and between threads of one
``partial_files``   the life of a partial file
``folder``          the life of an epoch's folder
``writer``          writing one value
``sealed_files``    finding and reading complete values
``eviction``        choosing and removing copies to make room
``room``            reserving memory, and the limit on copies
``root``            where shared memory lies
``memory``          :class:`HostMemory`, which puts them together
``bulk``            Global's large values; ``private_bulk`` without shared memory
==================  =========================================================
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

"""One copy of a large value per host: files in shared memory, one for each token.

A token names one write and is never used again, so a file that has its final name never changes,
and no reader needs to be told of anything. The bytes are mapped read-only by every process of the
host and user that wants them; a file that is unlinked stays readable for those who have it mapped,
so the kernel counts the references. Here bytes are shared by token and nothing else: which token a
key has, a Node learns from Global.

``place.py`` holds folders open, ``locks.py`` tells who lives, ``folder.py`` is the life of an
epoch's folder, ``parts.py`` the life of an unfinished file, ``eviction.py`` makes room,
``mapping.py`` maps, ``memory.py`` puts them together, ``bulk.py`` is for Global. All memory is
reserved before it is written, since a full file system would otherwise show as a SIGBUS in a
process that touches the next page.
"""

from __future__ import annotations

from dstore.shm.bulk import SharedBulk, bulk_for
from dstore.shm.mapping import is_whole
from dstore.shm.memory import COMPLAINTS_EVERY, HostMemory, check_root, clean, open_memory
from dstore.shm.parts import NoRoom, Writer

__all__ = [
    "COMPLAINTS_EVERY",
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

"""A writable mapping of a file that forked children do not get.

A child may give up its rights, and must not be able to change then what its parent's other children
read. So the system leaves the mapping out of a child (``MADV_DONTFORK``). But a gap in its memory
would soon be filled by something else, which the end of the mapping would then take away; and the
thread that forks may be in the middle of a read, below a signal handler. So for a fork by Python
the mapping is let through, and the first thing that the child does is to put private memory of
zeros in its place, in one step. Zeros are an empty table.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from typing import Any

try:
    import ctypes
except ImportError:  # a Python that was built without it
    AVAILABLE = False
else:
    AVAILABLE = hasattr(mmap, "MADV_DONTFORK")

MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_NONE = 0


class Mapping:
    """The first ``size`` bytes of a file: ``view``. It ends with the last view of it.

    Needs no descriptor once it is made. Raises OSError.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._library = library = _c_library()
        self.size = size
        self._address = _map(library, None, size, mmap.MAP_SHARED, descriptor)
        pages = (ctypes.c_ubyte * size).from_address(self._address)
        weakref.finalize(pages, library.munmap, self._address, size).atexit = False
        self.view = memoryview(pages).cast("B")
        self.keep_from_children()

    def keep_from_children(self) -> None:
        """Have the system leave the mapping out of forked children."""
        self._advise(mmap.MADV_DONTFORK)

    def let_through(self) -> None:
        """Have a child get the mapping, which then calls :meth:`become_empty`."""
        self._advise(mmap.MADV_DOFORK)

    def become_empty(self) -> None:
        """Put private zeros in the place of the file, in this process."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
        for protection in (_READ_WRITE, _NONE):  # the latter if memory is short
            with contextlib.suppress(OSError):
                _map(self._library, self._address, self.size, flags, -1, protection)
                return

    def _advise(self, advice: int) -> None:
        if self._library.madvise(self._address, self.size, advice):
            raise _error()


def _map(
    library: Any,
    address: int | None,
    size: int,
    flags: int,
    descriptor: int,
    protection: int = _READ_WRITE,
) -> int:
    found = library.mmap(address, size, protection, flags, descriptor, 0)
    if found == ctypes.c_void_p(-1).value:
        raise _error()
    return int(found)


def _error() -> OSError:
    code = ctypes.get_errno() or errno.EINVAL
    return OSError(code, os.strerror(code))


def _c_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = pointer
    library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
    library.munmap.argtypes = (pointer, size)
    library.madvise.argtypes = (pointer, size, number)
    return library

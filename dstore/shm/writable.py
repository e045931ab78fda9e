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

from dstore.runtime import native

try:
    import ctypes
except ImportError:  # a Python that was built without it
    AVAILABLE = False
else:
    AVAILABLE = hasattr(mmap, "MADV_DONTFORK")

PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Mapping:
    """The first ``size`` bytes of a file: ``view``. It ends with the last view of it.

    Needs no descriptor once it is made. Raises OSError.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._library = library = _library
        self.size = size
        self._address = _map(library, None, size, mmap.MAP_SHARED, descriptor)
        pages = (ctypes.c_ubyte * size).from_address(self._address)
        self._end = weakref.finalize(pages, library.munmap, self._address, size)
        self._end.atexit = False
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
        alive = self._end.peek()
        if alive is None:
            return
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
        for protection in (_READ_WRITE, PROT_NONE):  # the latter if memory is short
            with contextlib.suppress(OSError):
                _map(self._library, self._address, self.size, flags, -1, protection)
                return

    def _advise(self, advice: int) -> None:
        # While this is held, another thread cannot end the mapping: then something else could be at
        # its address, which would be missing in each later child.
        alive = self._end.peek()
        if alive is not None and self._library.madvise(self._address, self.size, advice):
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


_library: Any = _c_library() if AVAILABLE else None
"""Opened when this is imported: that takes a tenth of the time of a Node's first answer."""


# ---- mappings that look after themselves ------------------------------------------------------

_mapped: dict[int, Mapping] = {}
"""The mappings of :func:`map_writable`, by the id of their memory."""
_gate = native.RLock()
"""Held while one is made, and during a fork.

Other locks are taken inside it during a fork, by other hooks. So what may run while such a lock is
held, as a finalizer may, must not take this one.
"""


def map_writable(descriptor: int, size: int) -> memoryview:
    """Map the first ``size`` bytes of a file, as long as there is a view of them. Raises OSError.

    The memory of the file must be reserved. In a forked child the view is of private zeros.
    """
    with _gate:
        mapping = Mapping(descriptor, size)
        view, pages = mapping.view, mapping.view.obj
        del mapping.view
        _mapped[id(pages)] = mapping
        weakref.finalize(pages, _mapped.pop, id(pages), None).atexit = False
    return view


def _before_fork() -> None:
    _gate.acquire()
    for mapping in list(_mapped.values()):
        mapping.let_through()


def _after_fork_in_parent() -> None:
    for mapping in list(_mapped.values()):
        mapping.keep_from_children()
    _gate.release()


def _after_fork_in_child() -> None:
    global _gate
    _gate = native.RLock()
    for mapping in list(_mapped.values()):
        mapping.become_empty()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)

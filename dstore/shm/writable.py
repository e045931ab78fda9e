"""Writable shared mappings that a forked child does not have.

The child may drop privileges, and must not keep a way to write what its parent's readers trust. So
the mapping is marked ``MADV_DONTFORK``: in the child there is a hole at its address, and a process
that touches a hole is ended by SIGSEGV. Three things follow:

- No child may be forked between the mapping and the mark. A lock, held during each fork, prevents
  that.
- The child must never unmap the address: by then something else may be there. So its mappings are
  detached from their finalizers.
- The child's copies of the views point into the hole. So, as soon as Python's hooks run, the hole
  is filled with private memory. Until then, code that may run in a child compares process ids
  before it touches a view, whatever the order of the hooks.
"""

from __future__ import annotations

import contextlib
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
    """Whether this system and this Python have what a writable mapping needs."""

MAP_FIXED_NOREPLACE = 0x100000
"""Linux: map at exactly this address, or fail if something is there."""

_mapped: dict[int, tuple[int, Any]] = {}
"""The size and the finalizer of each mapping, by its address."""
_lock = native.RLock()
"""Held while a mapping is made, and during a fork.

Other locks are taken inside it during a fork, by other hooks. So what may run while such a lock is
held, as a finalizer may, must not take this one.
"""


def map_writable(descriptor: int, size: int) -> memoryview:
    """Map the first ``size`` bytes of a file, as long as there is a view of them. Raises OSError.

    The memory of the file must be reserved. In a forked child the view must not be touched.
    """
    with _lock:
        address = _call(None, size, mmap.MAP_SHARED, descriptor)
        if _library().madvise(address, size, mmap.MADV_DONTFORK):
            error = _error()
            _library().munmap(address, size)
            raise error
        pages = (ctypes.c_ubyte * size).from_address(address)
        end = weakref.finalize(pages, _unmap, address, size)
        end.atexit = False  # views may be in use until the very end of the process
        _mapped[address] = size, end
    return memoryview(pages).cast("B")


def _unmap(address: int, size: int) -> None:
    del _mapped[address]  # first: another thread may be given the same address
    _library().munmap(address, size)


def _call(address: int | None, size: int, flags: int, descriptor: int) -> int:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    found: int | None = _library().mmap(address, size, protection, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise _error()
    return found


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


_c: Any = None


def _library() -> Any:
    global _c
    if _c is None:
        library = ctypes.CDLL(None, use_errno=True)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        library.mmap.restype = pointer
        library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
        library.munmap.argtypes = (pointer, size)
        library.madvise.argtypes = (pointer, size, number)
        _c = library
    return _c


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = native.RLock()
    for address, (size, end) in _mapped.items():
        end.detach()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        with contextlib.suppress(OSError):  # something else is there already
            found = _call(address, size, flags, -1)
            if found != address:  # a kernel before 4.17 takes the address for a wish
                _library().munmap(found, size)
    _mapped.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


# ---- the mapping of a table ---------------------------------------------------------------------

MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


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
        for protection in (_READ_WRITE, mmap.PROT_NONE):  # the latter if memory is short
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


def _c_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = pointer
    library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
    library.munmap.argtypes = (pointer, size)
    library.madvise.argtypes = (pointer, size, number)
    return library

"""Read-only mappings that need no descriptor, and access to mapped bytes that may be missing.

A mapping does not need the descriptor that it was made from, and a process may map more values than
it may have descriptors. But ``mmap.mmap`` keeps a duplicate of the descriptor; only from Python
3.13 on it has an argument against that. Before, the C library is called directly.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import weakref

from dstore.runtime import native
from dstore.runtime.native import system

MAPS_MAX = 32_768
"""Mappings of values that a process has at a time. The system allows some 65,000 mappings of any
kind, and libzmq ends a process that cannot get one more.
"""
PIPE_BYTES = 1 << 16
"""Bytes that are copied through a pipe at a time; fewer if the pipe holds less."""
_live: set[int] = set()  # a number for each mapping

if sys.version_info >= (3, 13):
    AVAILABLE = True

    def _mapped(descriptor: int, size: int) -> memoryview:
        pages = mmap.mmap(
            descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, trackfd=False
        )
        _live.add(id(pages))
        weakref.finalize(pages, _live.discard, id(pages)).atexit = False
        return memoryview(pages)

else:
    import functools

    try:
        import ctypes
    except ImportError:  # a Python that was built without it
        AVAILABLE = False
    else:
        AVAILABLE = True

    @functools.cache
    def _c_library() -> ctypes.CDLL:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        )
        library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        return library

    def _mapped(descriptor: int, size: int) -> memoryview:
        library = _c_library()
        address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        pages = (ctypes.c_ubyte * size).from_address(address)
        # All views of the pages refer to this object, so that it ends after the last of them.
        end = weakref.finalize(pages, _unmap, address, size)
        end.atexit = False  # views may be in use until the very end of the process
        _live.add(address)
        return memoryview(pages).cast("B").toreadonly()

    def _unmap(address: int, size: int) -> None:
        _live.discard(address)  # first: another thread may be given the same address
        _c_library().munmap(address, size)


def read_only(descriptor: int, size: int) -> memoryview:
    """Map the first ``size`` bytes of a file, as long as there is a view of them.

    The caller knows that the file has these bytes and keeps them. Raises OSError, as when the
    process has too many mappings.
    """
    if not size:
        return memoryview(b"")
    if len(_live) >= MAPS_MAX:
        raise OSError(errno.ENOMEM, f"this process has {MAPS_MAX:,} values mapped")
    return _mapped(descriptor, size)


class Pipe:
    """Has the system read mapped bytes that this process must not touch.

    A process that touches a page which the file has lost is ended by SIGBUS. A system call that
    reads it returns an error. A file that is cut short loses its last page in any case.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def copy(self, view: memoryview) -> memoryview:
        """Copy mapped bytes. Raises OSError if they are not there any more. For one thread."""
        copy = bytearray()
        while len(copy) < len(view):
            count = system.write(self._writer, view[len(copy) : len(copy) + PIPE_BYTES])
            copy += system.read(self._reader, count)
        return memoryview(copy).toreadonly()

    def reaches(self, view: memoryview) -> bool:
        """Return whether the last byte is there. Safe from any thread."""
        try:
            system.write(self._writer, view[-1:])
            system.read(self._reader, PIPE_BYTES)
        except BlockingIOError:  # another thread has read it
            return True
        except OSError:
            return False
        return True


def copied(view: memoryview) -> memoryview | None:
    """Copy mapped bytes. Returns None if they are gone, or no descriptors are left."""
    with contextlib.suppress(OSError), contextlib.closing(Pipe()) as pipe:
        return pipe.copy(view)
    return None


def is_whole(view: memoryview) -> bool:
    """Whether all mapped bytes are there, since the file has not been cut short.

    Takes half a microsecond. The first call opens a pipe, which stays open.
    """
    pipe = _pipe or _open_pipe()
    return pipe is None or pipe.reaches(view)


def _open_pipe() -> Pipe | None:
    """Return the pipe of this process, or None if no descriptors are left: nothing is checked."""
    global _pipe
    with _pipe_lock:
        if _pipe is None:
            with contextlib.suppress(OSError):
                _pipe = Pipe()
        return _pipe


_pipe: Pipe | None = None
_pipe_lock = native.Lock()


@native.in_forked_child
def _after_fork_in_child() -> None:
    global _pipe, _pipe_lock
    pipe, _pipe, _pipe_lock = _pipe, None, native.Lock()  # the old pipe is the parent's
    if pipe is not None:
        pipe.close()

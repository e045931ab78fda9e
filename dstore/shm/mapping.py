"""Read-only mappings that need no descriptor.

A mapping lives without the descriptor it was made from, and there may be more mapped values than
a process may have descriptors. But ``mmap.mmap`` keeps a duplicate of it, unless told not to,
which it can be from Python 3.13 on. Before that, the C library is asked directly.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import weakref

MAPS_MAX = 32_768
"""So many mappings a process has at a time. The system allows some 65,000 in all, of whatever, and
libzmq ends a process that can get no further one.
"""
PIPE_BYTES = 1 << 16
"""So much is copied through a pipe at a time; it takes less if that is what it holds."""
_live: set[int] = set()  # a number for each of them

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
        # All views of the pages hold this object, so that it goes after the last of them.
        end = weakref.finalize(pages, _unmap, address, size)
        end.atexit = False  # views may be in use until the very end of the process
        _live.add(address)
        return memoryview(pages).cast("B").toreadonly()

    def _unmap(address: int, size: int) -> None:
        _live.discard(address)  # first, since another thread may be given the same
        _c_library().munmap(address, size)


def read_only(descriptor: int, size: int) -> memoryview:
    """The first ``size`` bytes of the file, mapped as long as anybody refers to the view.

    The file has that many bytes, and keeps them. Raises OSError, as when a process has too many
    mappings.
    """
    if not size:
        return memoryview(b"")
    if len(_live) >= MAPS_MAX:
        raise OSError(errno.ENOMEM, f"this process has {MAPS_MAX:,} values mapped")
    return _mapped(descriptor, size)


def copied(view: memoryview) -> memoryview | None:
    """A copy of mapped bytes; None if they are not there any more.

    Who touches a page that a file has lost is ended by SIGBUS. The system itself gets an error
    when it does so in a call. So here it is the system that reads, into a pipe.
    """
    copy = bytearray()
    try:
        ends = os.pipe()
    except OSError:  # there are no more descriptors
        return None
    try:
        reader, writer = ends
        os.set_blocking(writer, False)
        while len(copy) < len(view):
            count = os.write(writer, view[len(copy) : len(copy) + PIPE_BYTES])
            copy += os.read(reader, count)
    except OSError:
        return None
    finally:
        for end in ends:
            os.close(end)
    return memoryview(copy).toreadonly()

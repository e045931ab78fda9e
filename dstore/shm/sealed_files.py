"""Sealed files: finding, reading, adopting and removing values that are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from dstore.shm import files, layout, mapping
from dstore.shm.directory import Directory


def find(here: Directory, token: bytes, size: int) -> memoryview | None:
    """Map a value and touch its file. None unless it is there in full and has ``size`` bytes."""
    for name in layout.search_order(token):
        with contextlib.suppress(FileNotFoundError):
            return _map(here, name, size)
    return None


def _map(here: Directory, name: str, size: int) -> memoryview | None:
    """None if the file has another size or cannot be mapped. Raises FileNotFoundError."""
    try:
        with files.open_sealed(here, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            view = mapping.read_only(file.fileno(), size)
            with contextlib.suppress(OSError):  # the file system may be read-only by now
                files.touch(file.fileno())
            return view
    except FileNotFoundError:
        raise
    except OSError:
        return None


def exists(
    here: Directory, token: bytes, *, for_global: bool = False, size: int | None = None
) -> bool:
    """Whether a value is there in full: among Global's own, or without ``for_global`` anywhere.

    With ``size``, a file of another size does not count.
    """
    # The copies first, since a file moves from there to Global's own, and never back.
    names = [] if for_global else [layout.copy_file(token)]
    names.append(layout.global_file(token))
    return any(
        status is not None and size in (None, status.st_size)
        for status in (files.status(here, name) for name in names)
    )


def read(
    here: Directory,
    token: bytes,
    size: int,
    offset: int,
    count: int,
    allocate: Callable[[int], bytearray | memoryview],
) -> memoryview | None:
    """Copy a part of a value of ``size`` bytes. None if the file has lost it.

    Raises FileNotFoundError if there is no file, and OSError or OverflowError if it cannot be read,
    as when no descriptors are left or the offset is out of range.
    """
    for name in layout.search_order(token):
        with contextlib.suppress(FileNotFoundError), files.open_sealed(here, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            part = allocate(count)
            # Fewer bytes if the file was cut short just now.
            whole = os.preadv(file.fileno(), [part], offset) == count
            return memoryview(part).toreadonly() if whole else None
    raise FileNotFoundError


def adopt(here: Directory, token: bytes, size: int) -> bool:
    """Move a copy of ``size`` bytes to Global's own files. False if there is none such."""
    copy = layout.copy_file(token)
    try:
        with files.open_sealed(here, copy) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
        os.rename(copy, layout.global_file(token), src_dir_fd=here.fd, dst_dir_fd=here.fd)
        return True
    except OSError:  # there is no such copy, or it was evicted just now
        return False

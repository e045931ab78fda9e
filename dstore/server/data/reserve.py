"""Space on the disk that is kept for deletions.

A deletion needs some space before it frees any, since it is first written to a log. So a file of
some MiB is kept beside the database. When the disk is full it is emptied, which lets deletions go
on, and it is filled again when there is room.
"""

from __future__ import annotations

import errno
import os

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BLOCK = bytes(1 << 16)


class Reserve:
    """A file of ``size`` bytes that takes space on the disk while it is ``held``.

    Used by one thread at a time.
    """

    def __init__(self, path: str, size: int) -> None:
        self.size = size
        self._path = path
        self.held = False

    def __repr__(self) -> str:
        return f"<Reserve of {self.size} bytes{'' if self.held else ', given up'}>"

    def take(self) -> bool:
        """Take the space, if the disk has it. Returns whether it is held. Raises OSError."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._allocate(file)
            os.ftruncate(file, self.size)  # a former reserve may have been larger
            self.held = True
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            os.ftruncate(file, 0)
            self.held = False
        finally:
            os.close(file)
        return self.held

    def release(self) -> None:
        """Give the space back to the disk. Does nothing if there is no file. Raises OSError."""
        self.held = False
        try:
            os.truncate(self._path, 0)
        except FileNotFoundError:
            pass

    def _allocate(self, file: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file, 0, self.size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        for start in range(0, self.size, len(BLOCK)):
            os.pwrite(file, BLOCK[: self.size - start], start)

"""The real disk on which durable contenders keep their data, and what one sync of it takes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.machine import ROOT
from dstore.server.data.mounts import MOUNTINFO, NETWORK, kind_of

VARIABLE = "DSTORE_BENCH_DATA"
"""The variable of the environment that names the folder for data."""
IN_MEMORY = frozenset({"", "tmpfs", "ramfs"})
"""Kinds of file systems whose syncs reach no disk; of the kind ``""`` nothing is known."""
BLOCK = bytes(range(256)) * 16
"""What is written before each sync: a page of a database."""
FILE_BLOCKS = 256


def data_folder() -> str:
    """Return the folder for data. Raises OSError if none is on a disk of this machine."""
    named = os.environ.get(VARIABLE)
    candidates = [named] if named else [tempfile.gettempdir(), "/var/tmp", str(ROOT)]
    seen = {each: disk_kind(each) for each in candidates if os.path.isdir(each)}
    for folder, kind in seen.items():
        if kind not in IN_MEMORY and kind not in NETWORK:
            return folder
    found = ", ".join(f"{folder} ({kind or 'unknown'})" for folder, kind in seen.items())
    raise OSError(f"no folder is on a disk: {found or named}; name one with ${VARIABLE}")


def no_disk() -> str:
    """Return what is missing if there is no disk for data, or an empty text."""
    try:
        data_folder()
    except OSError as error:
        return f"a disk, and {error}"
    return ""


def disk_kind(path: str) -> str:
    """Return the kind of file system of a path, such as ``"ext4"``, or an empty text."""
    try:
        mounts = Path(MOUNTINFO).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return kind_of(os.path.realpath(path), mounts)


class SyncedFile:
    """A file of some pages, which are written over and over, each with a sync of its own."""

    def __init__(self, folder: str) -> None:
        self._file = os.open(os.path.join(folder, "file"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(self._file, BLOCK * FILE_BLOCKS)
        os.fsync(self._file)
        self._at = 0

    def write(self) -> None:
        """Write a page and sync it. The size of the file stays, as that of a log mostly does."""
        os.pwrite(self._file, BLOCK, self._at % FILE_BLOCKS * len(BLOCK))
        self._at += 1
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)

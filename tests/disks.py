"""Small file systems, for tests of what happens when there is no room or the power fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_disk(parent: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size, such as ``"1m"``. To mount it needs root; else the test is skipped."""
    disk = parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        # Lazily: the traceback of a test that fails may hold files open, and a disk that stays
        # would fail the next runs as well.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Write a file ``ballast`` that takes all room of a disk."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", 0) as file:
        while file.write(bytes(4096)) == 4096:
            pass


SHUTDOWN = 0x8004587D
"""The request EXT4_IOC_SHUTDOWN: nothing more is written, not even the journal."""
NO_FLUSH = struct.pack("I", 2)


class PoweredDisk:
    """A file system at ``path`` whose power can fail: then only what was synced is there."""

    def __init__(self, path: Path, image: Path) -> None:
        self.path = path
        self._image = image

    def mount(self) -> None:
        command = ["mount", "-o", "loop", str(self._image), str(self.path)]
        subprocess.run(command, check=True, capture_output=True)

    def lose_power(self) -> None:
        """From now on each write fails, and what was not synced is lost."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, NO_FLUSH)
        finally:
            os.close(folder)

    def restart(self) -> None:
        """Mount it again. No process may have a file of it open."""
        subprocess.run(["umount", str(self.path)], check=True, capture_output=True)
        self.mount()


@contextmanager
def powered_disk(parent: Path, size: int) -> Iterator[PoweredDisk]:
    """An ext4 of this many bytes, in a file. To mount it needs root; else the test is skipped."""
    disk = PoweredDisk(parent / "disk", parent / "image")
    disk.path.mkdir()
    with (parent / "image").open("wb") as image:
        image.truncate(size)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image.name], check=True, capture_output=True)
        disk.mount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be made and mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk.path)], check=True)

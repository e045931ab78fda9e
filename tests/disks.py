"""Small file systems in memory, for tests of what happens when there is no room."""

from __future__ import annotations

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

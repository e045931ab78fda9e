"""A folder that becomes read-only, for tests of key folders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """A function that makes a folder read-only. It needs root; else the test is skipped."""
    with ExitStack() as mounts:

        def make(path: Path) -> None:
            try:
                subprocess.run(["mount", "--bind", path, path], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("no file system can be mounted here")
            mounts.callback(subprocess.check_call, ["umount", "--lazy", path])
            subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)

        yield make

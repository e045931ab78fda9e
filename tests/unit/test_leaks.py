"""The leak check notices each kind of leak, and forgives what ends in time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.leaks import Footprint, left_behind


def test_nothing_new_is_no_leak() -> None:
    assert left_behind(Footprint(), grace=0) == []


def test_a_thread_that_goes_on_is_a_leak() -> None:
    before, stop = Footprint(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-running")
    thread.start()
    assert left_behind(before, grace=0) == ["thread left-running"]
    stop.set()
    assert left_behind(before) == []


def test_an_open_file_is_a_leak(tmp_path: Path) -> None:
    before = Footprint()
    with (tmp_path / "open").open("w"):
        (leak,) = left_behind(before, grace=0)
    assert leak.startswith("descriptor ")
    assert leak.endswith(": " + str(tmp_path / "open"))
    assert left_behind(before, grace=0) == []


def test_a_child_that_runs_is_a_leak() -> None:
    before = Footprint()
    code = "import sys; print(flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # from here on the system knows its command line
        found = left_behind(before, grace=0)
    assert any(leak.startswith(f"child process {child.pid}:") and code in leak for leak in found)
    assert left_behind(before) == []


def test_a_file_in_shared_memory_is_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTORE_SHM", str(tmp_path))
    before = Footprint()
    (tmp_path / "left").touch()
    assert left_behind(before, grace=0) == [f"shared-memory file {tmp_path / 'left'}"]

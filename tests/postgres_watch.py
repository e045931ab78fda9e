"""Ends PostgreSQL servers and removes folders: ``python tests/postgres_watch.py FOLDER OTHER ...``.

It waits until its standard input is closed, which also happens when the process that started it is
killed. Each folder within FOLDER that has a ``postmaster.pid`` is the data of a server. The other
folders are only removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PID_FILE = "postmaster.pid"
SEGMENT_LINE = 6
"""The line of that file with the key and the id of a segment of shared memory."""
PATIENCE = 10.0
"""Seconds; only what cannot end takes them."""


def kill_server(data: Path) -> None:
    """Kill the server of a data folder with SIGKILL: all its processes at once, as in a crash."""
    try:
        lines = (data / PID_FILE).read_text().splitlines()
    except FileNotFoundError:
        return
    pid = int(lines[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # it must not start more processes
        family = [pid, *children(pid)]
        for each in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        _wait_for(family)
    if len(lines) > SEGMENT_LINE and (segment := lines[SEGMENT_LINE].split()):
        # A server that was killed leaves it behind until it is started again.
        subprocess.run(["ipcrm", "-m", segment[1]], stderr=subprocess.DEVNULL, check=False)


def children(pid: int) -> list[int]:
    """Ids of the direct children of a process: a server has no grandchildren."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def _wait_for(pids: Iterable[int]) -> None:
    """Wait until all these processes have ended."""
    until = time.monotonic() + PATIENCE
    left = list(pids)
    while (left := [pid for pid in left if _lives(pid)]) and time.monotonic() < until:
        time.sleep(0.005)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def main(folder: Path, *others: Path) -> None:
    while os.read(sys.stdin.fileno(), 64):
        pass
    for found in folder.glob(f"*/{PID_FILE}"):
        kill_server(found.parent)
    for each in (folder, *others):
        shutil.rmtree(each, ignore_errors=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

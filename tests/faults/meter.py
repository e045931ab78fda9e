"""Memory and descriptors of a process, as the system counts them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.ending import Beside

SAMPLE_SECONDS = 0.01


class Meter(Beside):
    """Measures by how much the memory of a process grows at most, while the block runs."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.before = self.most = memory(pid)

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                self.most = max(self.most, memory(self._pid))

    @property
    def grown(self) -> int:
        return self.most - self.before


def memory(pid: int) -> int:
    """Return the resident bytes of a process, without those that it shares."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def peak(pid: int) -> int:
    """Return the most bytes that a process has had resident since it started."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))

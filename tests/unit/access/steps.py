"""Kill a process between any two changes that it makes to files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

CHANGES = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "fchmod",
    "fchown",
    "mkdir",
    "rename",
    "unlink",
    "link",
)
FAILED = 1


def in_child(do: Callable[[], object]) -> int:
    """Run a function in a forked child. Returns the exit code: 0 or FAILED, or minus the signal."""
    return ended(started(do))


def started(do: Callable[[], object]) -> int:
    """Start a forked child that runs a function. Returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for the end of a child. Returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(step: int, do: Callable[[], object]) -> bool:
    """Run a function in a child that is killed before this call of one of ``CHANGES``.

    Returns False if it has ended before that.
    """
    left = step

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **keywords)

        return stepped

    def child() -> None:
        for name in CHANGES:
            setattr(os, name, stepping(getattr(os, name)))
        do()

    code = in_child(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0

"""How helpers of tests and benchmarks end: with their block, whatever happens in it.

Nothing of them stays: a process is reaped, its pipes are closed, and a thread is joined.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

PATIENCE = 30.0
"""Seconds to wait for a process or a thread; only what has gone wrong takes them."""

Some = TypeVar("Some")


class Closing(ABC):
    """A context manager that is closed at the end of its block."""

    @abstractmethod
    def close(self) -> None:
        """End it."""

    def __enter__(self: Some) -> Some:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Beside(ABC):
    """A context manager whose ``_run`` runs in a thread during its block.

    ``_run`` returns soon after ``_over`` has been set, which the end of the block does.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @abstractmethod
    def _run(self) -> None:
        """Work until ``_over`` is set."""

    def __enter__(self: Some) -> Some:
        self._thread.start()  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process with SIGKILL if it is running, reap it, and close its pipes. Idempotent."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Do the same with all processes of its group; it was started as the leader of a session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    kill(process)


def end(process: subprocess.Popen[Any], patience: float = PATIENCE) -> int:
    """Ask a process, which may be stopped, to end. Returns its exit code.

    In each case it is reaped, and its pipes are closed. Raises subprocess.TimeoutExpired if it does
    not end within ``patience`` seconds, after it was killed.
    """
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        return process.wait(patience)
    finally:
        kill(process)


def join(process: BaseProcess, patience: float = PATIENCE) -> int | None:
    """Wait until a process of multiprocessing ends by itself, and kill it if it does not in time.

    Returns its exit code, or None if it was killed here. The object cannot be used afterwards.
    """
    process.join(patience)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code

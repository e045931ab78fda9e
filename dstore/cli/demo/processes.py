"""Starts and ends the processes of the demo: one Global, and a crew of workers.

None of them hears the terminal's Ctrl-C: the parent does, and ends them in order, so that each
worker says goodbye while Global is still there to hear it.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import dstore
from dstore.cli.demo.worker import Failed, Progress, work

START_SECONDS_MAX = 20.0
GRACE_SECONDS = 5.0
_FIRST_LINE = "Dstore server listening on "

Message = TypeVar("Message")


class ProcessFailed(Exception):
    """A process of the demo died or gave up. The message is one line for the user."""


@contextmanager
def global_process() -> Iterator[str]:
    """Run ``dstore global`` on a free port as a process of its own; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dstore", "global", "--address", "tcp://127.0.0.1:0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(dstore.__file__).parent.parent,  # so that it runs this very dstore
        start_new_session=True,
    )
    try:
        yield f"tcp://{_place_announced(process)}"
    finally:
        with process:  # closes the pipe, and waits
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _place_announced(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not wait([process.stdout.fileno()], START_SECONDS_MAX):
        raise ProcessFailed(f"Global did not come up within {START_SECONDS_MAX:.0f} seconds")
    line = process.stdout.readline().strip()
    if not line.startswith(_FIRST_LINE):
        raise ProcessFailed(f"Global did not come up; it said {line!r}")
    return line[len(_FIRST_LINE) :]


class Crew:
    """The worker processes, numbered from 1, and the pipes to them."""

    def __init__(self) -> None:
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}

    def start(self, size: int, address: str) -> None:
        """Start the workers; they join Global by themselves."""
        context = multiprocessing.get_context("spawn")
        with _interrupts_ignored():  # a child inherits that for good
            for number in range(1, size + 1):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(number, address, theirs), daemon=True)
                self._processes[number], self._pipes[number] = process, ours
                process.start()
                theirs.close()  # the worker's own end: its death must end the pipe

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def numbers(self) -> list[int]:
        return list(self._pipes)

    @property
    def pids(self) -> str:
        return ", ".join(str(process.pid) for process in self._processes.values())

    def tell(self, message: object) -> None:
        """Send one message to every worker. Raises ProcessFailed if one has died."""
        for number, pipe in self._pipes.items():
            try:
                pipe.send(message)
            except OSError:
                raise self._death(number) from None

    def gather(
        self, kind: type[Message], on_progress: Callable[[int], Any] = lambda files: None
    ) -> list[Message]:
        """Wait until every worker has sent one ``kind`` of message; return them by number.

        Raises ProcessFailed as soon as a worker dies or gives up.
        """
        numbers = {pipe: number for number, pipe in self._pipes.items()}
        answers: dict[int, Message] = {}
        while len(answers) < len(numbers):
            for pipe in wait([p for p, number in numbers.items() if number not in answers]):
                assert isinstance(pipe, Connection)
                message = self._receive(numbers[pipe], pipe)
                if isinstance(message, kind):
                    answers[numbers[pipe]] = message
                elif isinstance(message, Progress):
                    on_progress(message.files)
        return [answers[number] for number in sorted(answers)]

    def check(self) -> None:
        """Raise ProcessFailed if a worker has died or has given up."""
        for number, pipe in self._pipes.items():
            if pipe.poll():
                raise ProcessFailed(f"worker {number} sent {self._receive(number, pipe)!r} unasked")

    def close(self) -> None:
        """End all workers: those that still wait or read leave when their pipe closes."""
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes.values():
            if process.pid is None:  # interrupted before it was started
                continue
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def _receive(self, number: int, pipe: Connection) -> object:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        if isinstance(message, Failed):
            raise ProcessFailed(f"worker {number} gave up: {message.reason}")
        return message

    def _death(self, number: int) -> ProcessFailed:
        process = self._processes[number]
        process.join(GRACE_SECONDS)
        code = process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return ProcessFailed(f"worker {number} (process {process.pid}) died {how}")


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

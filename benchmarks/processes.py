"""Processes of a benchmark: start them, let them work, and end them in every case.

A :class:`Worker` enters a context manager in a process of its own and then calls functions on
what that yields. It ends when its pipe is closed, which the system does even if the harness is
killed. Servers, too, are started by a Worker (:func:`program`), and end with it. Ctrl-C is for the
harness alone. Workers are forked from a process that has imported what they need, and nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import describe
from tests.ending import Closing, end, join

CALL_TIMEOUT = 120.0
"""Seconds to wait for the result of a call in a worker."""
END_TIMEOUT = 10.0
"""Seconds to wait for a worker to end, before it is killed."""
POLL_SECONDS = 0.01
PURE = "DSTORE_PURE"
"""The variable of the environment that leaves out the compiled part of dstore."""
HEADSTART_NS = 30_000_000
"""Until a crew starts together: long enough for all its workers to receive the call."""
SHARED = Path(os.environ.get("DSTORE_SHM") or "/dev/shm")
"""The folder in which the hosts of a benchmark have their shared memory."""


class ChildFailed(Exception):
    """A call in a worker failed. The message is one line."""


def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.peers"])
    return context


def _work(connection: Connection, entered: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with entered(*arguments) as subject:
            connection.send((True, os.getpid()))
            _obey(connection, subject)
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send((False, describe(error)))


def _obey(connection: Connection, subject: Any) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(subject, *arguments)
        except Exception as error:
            answer = False, describe(error)
        connection.send(answer)


class Worker(Closing):
    """A process that has entered ``entered(*arguments)``, a context manager.

    ``call(function, ...)`` calls ``function(subject, ...)`` there, where the subject is what the
    context manager yields. Raises ChildFailed if anything fails there.
    """

    def __init__(self, entered: Callable[..., AbstractContextManager[Any]], *arguments: Any):
        context = self._context()
        self._connection, far = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]  # of each real context
            target=_work, args=(far, entered, arguments)
        )
        # Ctrl-C in the middle would leave a child that complains about what it was not sent.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._start()
        finally:
            far.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        self.pid = 0

    def _context(self) -> BaseContext:
        return _forks()

    def _start(self) -> None:
        self._process.start()

    def ready(self) -> Worker:
        """Wait until the context manager has been entered."""
        if not self.pid:
            self.pid = int(self.result())
        return self

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call, without waiting for its result."""
        self.ready()
        try:
            self._connection.send((function, arguments))
        except OSError as error:
            raise ChildFailed(f"a worker has ended: {error}") from None

    def busy(self) -> bool:
        """Return whether the call that was begun is still running."""
        return not self._connection.poll()

    def result(self) -> Any:
        """Wait for the result of the call that was begun."""
        if not self._connection.poll(CALL_TIMEOUT):
            raise ChildFailed(f"a worker did not answer within {CALL_TIMEOUT:g} seconds")
        try:
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            raise ChildFailed("a worker has ended") from None
        if not good:
            raise ChildFailed(answer)
        return answer

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and wait for its result."""
        self.begin(function, *arguments)
        return self.result()

    def leave(self) -> None:
        """Let the worker end, without waiting."""
        self._connection.close()

    def close(self) -> None:
        """Let the worker end, and wait for that."""
        self.leave()
        join(self._process, END_TIMEOUT)


class PureWorker(Worker):
    """A Worker whose process runs dstore without its compiled part.

    It is a new interpreter: in a fork of another process dstore would be imported already.
    """

    def _context(self) -> BaseContext:
        return multiprocessing.get_context("spawn")

    def _start(self) -> None:
        former = os.environ.get(PURE)
        os.environ[PURE] = "1"  # inherited by the new process
        try:
            super()._start()
        finally:
            if former is None:
                del os.environ[PURE]
            else:
                os.environ[PURE] = former


class Crew(Closing):
    """Workers that receive the same calls and start together."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.workers: list[Worker] = []

    def grow(self, size: int, entered: Callable[..., Any], *arguments: Any) -> None:
        """Start workers until there are ``size``. ``entered`` gets the worker's number last."""
        for number in range(len(self.workers), size):
            self.workers.append(self._stack.enter_context(Worker(entered, *arguments, number)))
        for worker in self.workers:
            worker.ready()

    def together(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(subject, start_ns, *arguments)`` in the first ``size`` of them."""
        start = time.monotonic_ns() + HEADSTART_NS
        return self.each(size, function, start, *arguments)

    def beside(
        self, mine: Callable[[int], Any], function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Do the same with all of them, and return the result of ``mine(start_ns)`` here."""
        start = time.monotonic_ns() + HEADSTART_NS
        for worker in self.workers:
            worker.begin(function, start, *arguments)
        try:
            return mine(start)
        finally:
            self._results(len(self.workers))

    def each(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(subject, *arguments)`` in the first ``size`` of them."""
        for worker in self.workers[:size]:
            worker.begin(function, *arguments)
        return self._results(size)

    def _results(self, size: int) -> list[Any]:
        results, failures = [], []
        for worker in self.workers[:size]:  # all of them, so that no answer is left for later
            try:
                results.append(worker.result())
            except ChildFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        return results

    def close(self) -> None:
        """Let all workers end, and wait for that."""
        for worker in self.workers:
            worker.leave()  # all at once, and then wait for each
        self._stack.close()


def wait_until(moment_ns: int) -> None:
    """Sleep until shortly before a moment, then spin."""
    time.sleep(max(0.0, (moment_ns - time.monotonic_ns()) / 1e9 - 0.002))
    while time.monotonic_ns() < moment_ns:
        pass


# Servers ---------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a server is: what a client has to know, and the process whose memory is measured.

    ``folder`` is the shared memory of its host, ``connect`` the connect file that it asks for.
    """

    host: str
    port: int
    pid: int
    folder: str = ""
    connect: str = ""


def itself(subject: Any) -> Any:
    return subject


@contextmanager
def server(entered: Callable[..., AbstractContextManager[Any]], *arguments: Any) -> Iterator[Any]:
    """Enter a context manager in a process of its own. Yields a copy of what it yields."""
    with Worker(entered, *arguments) as worker:
        yield worker.call(itself)


@contextmanager
def _program(command: Sequence[str], port: int, base: str, folder: str) -> Iterator[Place]:
    with nullcontext(folder) if folder else temporary_folder(base) as folder:
        words = [word.format(port=port, folder=folder) for word in command]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(process, words[0], port)
            yield Place("127.0.0.1", port, process.pid, folder)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it was killed
                end(process, END_TIMEOUT / 2)


def program(
    command: Sequence[str], port: int = 0, *, base: str = "", folder: str = ""
) -> AbstractContextManager[Place]:
    """Run a program that listens on ``{port}`` (0: any) and has ``{folder}`` for its files.

    That is ``folder`` itself, which stays, or else a new folder in ``base``, which goes.
    """
    return server(_program, command, port or free_port(), base, folder)


def temporary_folder(base: str = "") -> tempfile.TemporaryDirectory[str]:
    """Return a context manager that makes a folder, in ``base``, and removes it at the end."""
    return tempfile.TemporaryDirectory(prefix="dstore-bench-", dir=base or None)


def _wait_for(process: subprocess.Popen[bytes], name: str, port: int) -> None:
    deadline = time.monotonic() + CALL_TIMEOUT / 4
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(POLL_SECONDS)
    raise OSError(f"{name} did not start")


def free_port() -> int:
    """Return a free port below the range from which systems choose ports by themselves."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port


@contextmanager
def hosts() -> Iterator[Callable[[str], str]]:
    """Play several hosts on one machine: a folder in shared memory for each name."""
    with temporary_folder(str(SHARED) if SHARED.is_dir() else "") as folder:

        def host(name: str) -> str:
            path = os.path.join(folder, name)
            os.makedirs(path, exist_ok=True)
            return path

        yield host


def running_seconds(pid: int) -> float:
    """Return how long the present threads of a process have run on a core."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def proportional(pid: int) -> int:
    """Return the bytes of memory of a process. What it shares with others counts in part."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc does not say how much memory the process has")


def resident(pid: int) -> int:
    """Return the bytes of private memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc does not say how much private memory the process has")

"""What happens in the demo, phase by phase, in the parent process.

It loads the files of a folder, has the workers read them, deletes and replaces some of them while
the workers keep reading, and reports whether every answer was right. With a data folder it kills
Global between the deletions and the replacements, and starts it again: what was stored must be
there, and what was deleted must not.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Any

from dstore import DstoreError, Node, config
from dstore.cli import console
from dstore.cli.demo.files import FolderError, read_folder
from dstore.cli.demo.worker import PASSES, Key, LoadedFile, WorkerReport, digest_of, work
from dstore.quoting import visible
from dstore.testing import StartedGlobal, global_process

PART = 5
"""One file in five is deleted, and another one in five is replaced."""
CHANGE_SECONDS_MAX = 7.0
"""Deleting stops after this time, and so does replacing, so that a slow machine ends too."""
END_SECONDS_MAX = 5.0
RESTART_SECONDS_MAX = 30.0
"""A call that needs Global waits at most this long, while Global is started again."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CACHE_BYTES = 1 << 20
"""The parent only writes, and has no use for a large cache."""
REPLACEMENT_TITLE = b"# replaced by the dstore demo\n"


class DemoFailed(Exception):
    """A process ended, or an answer was wrong. The message is one line for the user."""


def main(folder: str | None, workers: int, *, data: bool = False) -> int:
    """Run the demo over ``folder`` (None: the sources of Python's standard library).

    ``data``: Global keeps its keys in a temporary folder, is killed in the middle, and starts
    again. Returns the exit code: 0 for a good verdict, 1 for a bad one, 2 for a folder that cannot
    be used or a Global that does not start, 130 after an interrupt. It handles signals: call it
    from the main thread.
    """
    try:
        contents, skipped = read_folder(folder)
        with _processes() as stack:
            reads, writes = _play(stack, contents, skipped, workers, data=data)
    except FolderError as error:
        console.complain(str(error), "dstore demo")
        return console.EXIT_USAGE
    except KeyboardInterrupt:
        console.complain("interrupted", "dstore demo")
        return console.EXIT_INTERRUPTED
    except (DstoreError, DemoFailed) as error:
        say(f"verdict: BAD: {error}")
        return console.EXIT_REFUSED
    except RuntimeError as error:  # Global did not start
        console.complain(str(error), "dstore demo")
        return console.EXIT_USAGE
    say(
        f"verdict: good: {reads:,} reads, every byte equal to the file; {writes:,} deletions and "
        "replacements, no stale read after any was confirmed"
        + (", and all of it held when Global was killed and started again" if data else "")
    )
    return console.EXIT_OK


def _play(
    stack: ExitStack,
    contents: dict[Key, bytes],
    skipped: dict[str, int],
    size: int,
    *,
    data: bool,
) -> tuple[int, int]:
    """Play all phases. Returns the number of reads and the number of writes."""
    options, timeout = [], config.TIMEOUT_DEFAULT
    if data:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dstore-demo-"))
        options, timeout = ["--data", f"{place}/data"], RESTART_SECONDS_MAX
    server = stack.enter_context(global_process(*options, start_new_session=True))
    address = server.address
    workers = stack.enter_context(Workers(size, len(contents), address, timeout))
    node = stack.enter_context(
        Node(address, label="demo", cache_bytes=CACHE_BYTES, timeout=timeout)
    )
    pids = ", ".join(str(process.pid) for process in workers.processes.values())
    say(f"Global listens on {address}; {size} workers: processes {pids}")
    files = _load(node, contents)
    for reason, count in sorted(skipped.items()):
        say(f"skipped {count:,} {'file' if count == 1 else 'files'}: {reason}")
    workers.gather()
    workers.send(files)
    for number in range(1, PASSES + 1):
        with phase(f"reading, pass {number}") as result:
            workers.gather()
            result.append(f"pass {number}: each worker has read each file")

    confirmed: list[int] = []

    def delete(key: Key) -> None:
        confirmed.append(node.delete(key).confirmed)

    def replace(key: Key) -> None:
        node.set(key, REPLACEMENT_TITLE + contents[key], replace=True)

    writes = _change("deleted", [each for each in files if each.becomes == ""], delete, workers)
    say(f"  {sum(confirmed):,} times a Local that held the file confirmed that it had dropped it")
    if data:
        _kill_and_start_again(stack, server, options, node, len(files) - writes)
    writes += _change("replaced", [each for each in files if each.becomes], replace, workers)
    workers.send("stop")
    reports = workers.gather()
    _show(reports)
    for report in reports:
        if report.proofs < writes:
            raise DemoFailed(f"worker {report.number} did not read every file after its change")
    return sum(report.hits + report.misses for report in reports), writes


def _load(node: Node, contents: dict[Key, bytes]) -> list[LoadedFile]:
    """Store each file, and decide what becomes of it."""
    keys = list(contents)
    random.Random(1).shuffle(keys)
    part = max(1, len(keys) // PART)
    files = []
    with phase("loading") as result:
        for number, key in enumerate(keys):
            content = contents[key]
            becomes = "" if number < part else None
            if part <= number < 2 * part:
                becomes = digest_of(REPLACEMENT_TITLE + content)
            node.set(key, content)
            files.append(LoadedFile(number, key, digest_of(content), becomes))
        mib = sum(map(len, contents.values())) / 2**20
        result.append(f"loaded {len(keys):,} files ({mib:,.1f} MiB)")
    return files


def _change(
    what: str, files: list[LoadedFile], write: Callable[[Key], None], workers: Workers
) -> int:
    """Write each path while the workers read. Returns how many were written."""
    times: list[float] = []
    end = time.monotonic() + CHANGE_SECONDS_MAX
    with phase(f"{what[:-2]}ing") as result:
        for file in files:
            if wait(workers.processes, 0):  # one has ended, or has given up
                workers.gather()
            start = time.monotonic()
            if start > end:
                break
            write(file.key)
            workers.confirmed[file.number] = 1
            times.append((time.monotonic() - start) * 1e3)
        took = f"{median(times):.1f} ms each, at most {max(times):.1f} ms" if times else ""
        result.append(f"{what} {len(times):,} files while the workers kept reading: {took}")
    return len(times)


def _kill_and_start_again(
    stack: ExitStack, server: StartedGlobal, options: list[str], node: Node, keys: int
) -> None:
    """Kill Global while the workers read, and see that it has all keys when it starts again."""
    with phase("killing Global, and starting it again") as result:
        server.process.kill()
        server.process.wait()
        options = [
            *options,
            "--publisher",
            "tcp://127.0.0.1:0",
        ]  # the next port may be taken by now
        again = global_process(*options, address=server.address, start_new_session=True)
        pid = stack.enter_context(again).process.pid
        found = node.global_stats()["keys"]
        if found != keys:
            raise DemoFailed(f"Global was killed with {keys:,} files and came back with {found:,}")
        result.append(
            f"killed Global (process {server.process.pid}) with signal 9 and started it again "
            f"(process {pid}): it has all {keys:,} files that it had"
        )


def _show(reports: Sequence[WorkerReport]) -> None:
    print()
    say("What each worker read (hit: answered by its own Local; miss: by Global)")
    rows = [("worker", "hits", "misses", "hit", "miss")]
    for each in reports:
        hit, miss = (f"{microseconds:,.1f} µs" for microseconds in each.medians)
        rows.append((str(each.number), f"{each.hits:,}", f"{each.misses:,}", hit, miss))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    print()


# What a person sees ------------------------------------------------------------------------


@contextmanager
def phase(title: str) -> Iterator[list[str]]:
    """Show that a phase is going on, and then the line that the body puts into the list."""
    result: list[str] = []
    start = time.monotonic()
    with _spinner(title):
        yield result
    say(f"{result[0]} ({time.monotonic() - start:.1f} s)")


def _spinner(title: str) -> AbstractContextManager[object]:
    if not sys.stdout.isatty() or find_spec("rich") is None:
        return nullcontext()
    from rich.console import Console

    return Console(highlight=False).status(title)


def say(line: str) -> None:
    line = visible(line)
    if sys.stdout.isatty():
        line = textwrap.fill(line, shutil.get_terminal_size().columns, break_on_hyphens=False)
    print(line, flush=True)


# The processes ------------------------------------------------------------------------------


@contextmanager
def _processes() -> Iterator[ExitStack]:
    """A stack of processes that is unwound in order.

    SIGTERM and SIGHUP interrupt the block as Ctrl-C does. No second signal disturbs the unwinding.
    """
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in SIGNALS}
    try:
        with ExitStack() as stack:
            try:
                yield stack
            finally:
                for signum in SIGNALS:
                    signal.signal(signum, signal.SIG_IGN)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


class Workers:
    """The worker processes, and the pipes to them.

    ``confirmed`` is memory that all processes share: the byte of a file becomes 1 when its deletion
    or replacement has been confirmed.
    """

    def __init__(self, size: int, files: int, address: str, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.confirmed = context.RawArray("b", files)
        self.processes: dict[Connection, BaseProcess] = {}
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the workers, which inherit it
        try:
            for number in range(1, size + 1):
                ours, theirs = context.Pipe()
                arguments = (number, address, timeout, self.confirmed, theirs)
                process = context.Process(target=work, args=arguments, daemon=True)
                process.start()
                self.processes[ours] = process
                theirs.close()  # so that the pipe ends when the worker does
        finally:
            signal.signal(signal.SIGINT, before)

    def send(self, message: object) -> None:
        """Send one message to each worker. Raises DemoFailed if one has ended."""
        for pipe in self.processes:
            try:
                pipe.send(message)
            except OSError:
                raise self._death(pipe) from None

    def gather(self) -> list[Any]:
        """Receive one message of each worker.

        Raises DemoFailed as soon as one has ended, or reports a fault.
        """
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self.processes):
            for pipe in wait([pipe for pipe in self.processes if pipe not in answers]):
                assert isinstance(pipe, Connection)
                try:
                    answer = answers[pipe] = pipe.recv()
                except (EOFError, OSError):
                    raise self._death(pipe) from None
                if isinstance(answer, WorkerReport) and answer.fault:
                    raise DemoFailed(answer.fault)
        return [answers[pipe] for pipe in self.processes]

    def _death(self, pipe: Connection) -> DemoFailed:
        number = [*self.processes].index(pipe) + 1
        process = self.processes[pipe]
        process.join(END_SECONDS_MAX)
        code = process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return DemoFailed(f"worker {number} (process {process.pid}) died {how}")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *unused: object) -> None:
        """End all workers: each of them ends when its pipe closes."""
        for pipe in self.processes:
            pipe.close()
        for process in self.processes.values():
            process.join(END_SECONDS_MAX)
            process.kill()
            process.join()

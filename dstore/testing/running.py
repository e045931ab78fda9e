"""A Global for tests: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from dstore.server.server import Global
from dstore.shm.root import ROOT_DEFAULT, ROOT_VARIABLE

ANY_PORT = "tcp://127.0.0.1:0"
BANNER = "Dstore server listening on "
"""The first line that ``dstore global`` prints begins with this; the address follows."""
START_TIMEOUT = 30.0
"""Seconds to wait for that line."""
STOP_TIMEOUT = 10.0
"""Seconds to wait for a process that was asked to end, before it is killed."""

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@contextmanager
def private_shared_memory() -> Iterator[str]:
    """Use a new folder for large values, and remove it at the end. Yields its path.

    Until then ``$DSTORE_SHM`` names it, for this process and for those that it starts: what they
    share there, they share with no other program.
    """
    base = ROOT_DEFAULT if os.path.isdir(ROOT_DEFAULT) else None
    former = os.environ.get(ROOT_VARIABLE)
    # Nodes that are still open may remove files of theirs at the same time.
    with tempfile.TemporaryDirectory(
        prefix="dstore-test-", dir=base, ignore_cleanup_errors=True
    ) as folder:
        os.environ[ROOT_VARIABLE] = folder
        try:
            yield folder
        finally:
            if former is None:
                del os.environ[ROOT_VARIABLE]
            else:
                os.environ[ROOT_VARIABLE] = former


@contextmanager
def running_global(address: str = ANY_PORT, **settings: Any) -> Iterator[Global]:
    """Run a Global in a thread of this process, by default at a free port. Yields the Global.

    ``settings`` are those of :class:`dstore.Global`. Without ``shm`` it has a shared-memory folder
    of its own, see :func:`private_shared_memory`. Nodes should be closed before the block ends.

    Raises what :class:`dstore.Global` and its ``start`` raise.
    """
    with ExitStack() as stack:
        if "shm" not in settings:
            settings["shm"] = stack.enter_context(private_shared_memory())
        yield stack.enter_context(Global(address, **settings))


class StartedGlobal(NamedTuple):
    """A Global that runs as a process, and the address for Nodes."""

    address: str
    process: subprocess.Popen[str]


def start_global(*options: str, address: str = ANY_PORT, **popen: Any) -> StartedGlobal:
    """Start ``dstore global`` as a process and wait until it listens. The caller ends it.

    ``options`` are those of the command line, ``popen`` keywords of :class:`subprocess.Popen`, such
    as ``env``, ``stderr`` or ``start_new_session``. The process runs the dstore of this one.

    Raises RuntimeError if the process ends, or does not listen within ``START_TIMEOUT``.
    """
    environment = dict(popen.pop("env", os.environ))
    path = [str(_PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    process = subprocess.Popen(
        [sys.executable, "-m", "dstore", "global", "--address", address, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        env=environment,
        **popen,
    )
    try:
        return StartedGlobal(announced_address(_first_line(process)), process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()  # it prints nothing else


@contextmanager
def global_process(*options: str, address: str = ANY_PORT, **popen: Any) -> Iterator[StartedGlobal]:
    """Run ``dstore global`` as a process, which ends with the block. Yields address and process.

    Parameters and errors are those of :func:`start_global`. The block may stop or kill the process.
    """
    started = start_global(*options, address=address, **popen)
    process = started.process
    try:
        yield started
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def announced_address(line: str) -> str:
    """The address in the first line of ``dstore global``. Raises RuntimeError for another line."""
    if not line.startswith(BANNER):
        raise RuntimeError(f"Global did not start; its first line is {line!r}")
    place = line.removeprefix(BANNER).rstrip("\n")
    return place if place.startswith("ipc://") else f"tcp://{place}"


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not wait([process.stdout.fileno()], START_TIMEOUT):
        raise RuntimeError(f"Global did not start within {START_TIMEOUT:.0f} seconds")
    return process.stdout.readline()

"""ZeroMQ contexts, and the descriptors and threads that must be left before one is asked for.

A ZeroMQ context that finds no descriptor for its polls, or no thread for itself, ends the process;
sockets that it opens later only fail. So dstore checks beforehand that there is enough.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from typing import Any

import zmq

from dstore.errors import DstoreError
from dstore.runtime import native
from dstore.runtime.native import signals_blocked

SPARE_DESCRIPTORS = 8
"""Descriptors to leave for the rest of the process: a file, an import, a name look-up."""
LINK_DESCRIPTORS = 24
"""Descriptors of a Local that is connected and has one request channel. (A test compares it.)"""
CHANNEL_DESCRIPTORS = 2
"""Descriptors of a further channel: its mailbox and its connection."""
GLOBAL_DESCRIPTORS = 36
"""Descriptors of a Global that listens, with two ipc paths, the memory of large values, and the
page and the host cache of its host.
"""
ACCESS_DESCRIPTORS = 3
"""Further descriptors of a Global with keys: of the thread that answers who may connect, its file
in the key folder, and one to read that folder.
"""
CONTEXT_THREADS = 3
"""Threads of a ZeroMQ context: for input and output, for closing, and dstore's that uses it."""
ACCESS_THREADS = 1
"""The further thread of a context that admits only peers with keys."""
ZERO_COPY_THREADS = 3
"""Threads of the further context that pyzmq needs to send without copying."""
SOCKETS_DEFAULT = 1023
"""Sockets that a ZeroMQ context permits by default."""
SOCKETS_MAX = 65_535
"""Sockets that a ZeroMQ context can permit at most."""


def shortage(count: int) -> str | None:
    """What is missing, and what to do, unless ``count`` descriptors and some to spare are left."""
    taken: list[int] = []
    with signals_blocked():  # Ctrl-C would lose a descriptor that is not in the list yet
        try:
            taken += os.pipe()
            while len(taken) < count + SPARE_DESCRIPTORS:
                taken.append(os.dup(taken[0]))
        except OSError as problem:
            return _no_descriptors(problem, count, len(taken))
        finally:
            for each in taken:
                os.close(each)
    return None


def _no_descriptors(problem: OSError, count: int, free: int) -> str:
    wanted = f"{count + SPARE_DESCRIPTORS} descriptors are needed"
    if problem.errno == errno.ENFILE:
        return f"{wanted}, and the whole system has no more than {free} left (fs.file-max)"
    return (
        f"{wanted}, and this process has no more than {free} of {descriptor_limit():,} left; "
        "close files and connections, or raise its limit (ulimit -n)"
    )


def _try_threads(count: int) -> None:
    """Raise RuntimeError unless ``count`` more threads can be started."""
    over = native.ThreadEvent()
    started: list[native.Thread] = []
    try:
        for _ in range(count):
            thread = native.Thread(over.wait, "dstore-probe")
            thread.start()
            started.append(thread)
    finally:
        over.set()
        for thread in started:
            thread.join()


def no_threads(problem: RuntimeError) -> str:
    return (
        f"the system gives no more threads ({problem}); "
        "end some, or raise the limit (ulimit -u, or pids of the container)"
    )


def no_socket(problem: zmq.ZMQError) -> str:
    missing = shortage(CHANNEL_DESCRIPTORS)
    if missing is not None or problem.errno != errno.EMFILE:
        return missing or f"cannot open a socket: {problem.strerror}"
    return (
        f"ZeroMQ permits {sockets_max():,} sockets for one Node, and all are open; let fewer "
        "threads call it at a time, or raise the limit of descriptors (ulimit -n) and create the "
        "Node again"
    )


def sockets_max() -> int:
    """How many sockets a context may have: one for each connection that there can be."""
    return min(max(descriptor_limit() // CHANNEL_DESCRIPTORS, SOCKETS_DEFAULT), SOCKETS_MAX)


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def new_context(
    descriptors: int,
    error: type[DstoreError],
    *,
    threads: int = CONTEXT_THREADS,
    zero_copy: bool = False,
) -> zmq.Context[zmq.Socket[bytes]]:
    """A context. Raises ``error`` if not as many ``descriptors`` and ``threads`` are left.

    With ``zero_copy`` pyzmq starts now what it needs to send without copying: a further context for
    the whole process. Otherwise that would start with the first large message, when the process may
    be short of descriptors.
    """
    missing = shortage(descriptors)
    if missing is not None:
        raise error(missing)
    try:
        _try_threads(threads + (ZERO_COPY_THREADS if zero_copy else 0))
        if zero_copy:
            zmq.Frame(bytearray(1), copy=False, copy_threshold=0)
    except RuntimeError as problem:
        raise error(no_threads(problem)) from None
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, sockets_max())
    return made


class Termination:
    """Terminates a context in a thread of its own, and one call at a time: two would abort.

    A context terminates when all of its sockets are closed. One that Ctrl-C found half made is held
    by the traceback, which may be that of the error during which this is called, as at the end of a
    ``with`` block. So the wait has a timeout; the thread goes on, and the context terminates when
    the traceback is gone.
    """

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._lock = native.Lock()  # only taken where no signal handler runs

    def wait(self, timeout: float) -> bool:
        """Terminate the context; return after at most ``timeout`` seconds.

        May be called again, as after Ctrl-C. Returns False if no thread can be started: there can
        be no more, or Python is about to exit.
        """
        thread = native.Thread(self.run, "dstore-close")
        try:
            thread.start()
        except RuntimeError:
            return False
        thread.join(timeout)
        return True

    def run(self) -> None:
        """Terminate the context in the calling thread, however long that takes."""
        with self._lock:
            self._context.term()  # does nothing if it is terminated

"""What the system must have left before ZeroMQ is asked for anything.

A ZeroMQ context that finds no descriptor for its polls, or no thread for itself, ends the
process; sockets that it opens later only fail. So the room is looked for beforehand.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import partial
from typing import Any

import zmq

from dstore.errors import DstoreError
from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread

resource: Any
try:
    import resource  # now: later there may be no descriptor for that
except ImportError:  # Windows
    resource = None

SPARE_DESCRIPTORS = 8
"""What others in the process may take in the meantime: a file, an import, a name look-up."""
LINK_DESCRIPTORS = 24
"""What the context of a Local has open once it is connected, with one request channel. (A test
compares it.)
"""
CHANNEL_DESCRIPTORS = 2
"""The same of a further channel: its mailbox, and its connection."""
GLOBAL_DESCRIPTORS = 30
"""What a Global has open that listens, two locks of ipc paths and the memory of large values
included.
"""
CONTEXT_THREADS = 3
"""Two of a ZeroMQ context, for input and output and for closing sockets; and the one that uses it.
"""
ZERO_COPY_THREADS = 3
"""Two of a further context, and one that uses it."""

SOCKETS_DEFAULT, SOCKETS_MAX = 1023, 65_535
"""How many sockets a context of ZeroMQ has if it is not told, and at most."""


class Shortage(Exception):
    """The system does not give what is needed; the text says what, and what to do."""


def context(
    descriptors: int, error: type[DstoreError], *, zero_copy: bool = False
) -> zmq.Context[zmq.Socket[bytes]]:
    """A context that may have as many sockets as the limit of descriptors permits.

    With ``zero_copy`` pyzmq starts now what it needs to send without a copy: a further context, for
    the whole process, which would otherwise start with the first large message, wherever that finds
    the process short of descriptors.

    Raises ``error`` if there is no room for it with its sockets.
    """
    try:
        need_descriptors(descriptors)
        need_threads(CONTEXT_THREADS + (ZERO_COPY_THREADS if zero_copy else 0))
        if zero_copy:
            zmq.Frame(bytearray(1), copy=False, copy_threshold=0)
    except Shortage as shortage:
        raise error(str(shortage)) from None
    except RuntimeError as problem:
        raise error(no_threads(problem)) from None
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, sockets_max())
    return made


def need_descriptors(count: int) -> None:
    """Raise Shortage unless ``count`` descriptors, and some to spare, can be had now."""
    taken: list[int] = []
    with signals_left_to_this_thread():  # Ctrl-C would lose one that is not in the list yet
        try:
            taken += os.pipe()
            while len(taken) < count + SPARE_DESCRIPTORS:
                taken.append(os.dup(taken[0]))
        except OSError as problem:
            raise Shortage(_no_descriptors(problem, count, len(taken))) from None
        finally:
            for each in taken:
                os.close(each)


def _no_descriptors(problem: OSError, count: int, free: int) -> str:
    wanted = f"{count + SPARE_DESCRIPTORS} descriptors are needed"
    if problem.errno == errno.ENFILE:
        return f"{wanted}, and the whole system has no more than {free} left (fs.file-max)"
    limit = _descriptor_limit()
    of = f" of {limit:,}" if limit is not None else ""
    return (
        f"{wanted}, and this process has no more than {free}{of} left; "
        "close files and connections, or raise its limit (ulimit -n)"
    )


def need_threads(count: int) -> None:
    """Raise Shortage unless ``count`` threads can be started now."""
    gate = native.Lock()
    started: list[native.Thread] = []
    try:
        with gate:
            for _ in range(count):
                thread = native.Thread(partial(_pass, gate), "dstore-probe")
                thread.start()
                started.append(thread)
    except RuntimeError as problem:
        raise Shortage(no_threads(problem)) from None
    finally:
        for thread in started:
            thread.join()


def _pass(gate: native.Lock) -> None:
    with gate:
        pass


def no_threads(problem: RuntimeError) -> str:
    """What to say when Python could not start a thread."""
    return (
        f"the system gives no more threads ({problem}); "
        "end some, or raise the limit (ulimit -u, or pids of the container)"
    )


def no_socket(problem: zmq.ZMQError) -> str:
    """Why ZeroMQ gave no further socket."""
    try:
        need_descriptors(CHANNEL_DESCRIPTORS)
    except Shortage as shortage:
        return str(shortage)
    if problem.errno != errno.EMFILE:
        return f"cannot open a socket: {problem.strerror}"
    return (
        f"ZeroMQ permits {sockets_max():,} sockets for one Node, and has opened them; let fewer "
        "threads call it at a time, or raise the limit of descriptors (ulimit -n) before the Node "
        "is made: it decides"
    )


def sockets_max() -> int:
    """How many sockets a context may have: as many as there can be connections."""
    limit = _descriptor_limit()
    if limit is None:
        return SOCKETS_DEFAULT
    return min(max(limit // CHANNEL_DESCRIPTORS, SOCKETS_DEFAULT), SOCKETS_MAX)


def _descriptor_limit() -> int | None:
    """The limit of this process; None where the system does not tell."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft

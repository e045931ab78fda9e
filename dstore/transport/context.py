"""Creating a ZeroMQ context, and terminating it without waiting too long."""

from __future__ import annotations

from typing import Any

import zmq

from dstore.errors import DstoreError
from dstore.runtime import native
from dstore.transport import limits
from dstore.transport.limits import CONTEXT_THREADS, ZERO_COPY_THREADS, Shortage


def new_context(
    descriptors: int, error: type[DstoreError], *, zero_copy: bool = False
) -> zmq.Context[zmq.Socket[bytes]]:
    """A context that may have as many sockets as the limit of descriptors permits.

    With ``zero_copy`` pyzmq starts now what it needs to send without copying: a further context for
    the whole process. Otherwise that would start with the first large message, when the process may
    be short of descriptors.

    Raises ``error`` if the system does not have ``descriptors`` and the threads left.
    """
    try:
        limits.need_descriptors(descriptors)
        limits.need_threads(CONTEXT_THREADS + (ZERO_COPY_THREADS if zero_copy else 0))
        if zero_copy:
            zmq.Frame(bytearray(1), copy=False, copy_threshold=0)
    except Shortage as shortage:
        raise error(str(shortage)) from None
    except RuntimeError as problem:
        raise error(limits.no_threads(problem)) from None
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, limits.sockets_max())
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

"""The end of a ZeroMQ context, for which nobody waits longer than is good."""

from __future__ import annotations

from typing import Any

import zmq

from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread


class Ending:
    """Terminates one context, in a thread of its own, and once: two at a time would abort.

    A context ends when all of its sockets are closed. One that Ctrl-C found half made is held by
    the traceback, which may be that of the error during which this is called. So the wait for it
    has an end; the thread goes on, and the context ends when the traceback is gone.
    """

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._lock = native.Lock()  # only threads take it that no signal interrupts

    def wait(self, stall_timeout: float) -> None:
        """Terminate it, and wait for at most ``stall_timeout`` seconds. May be called again, after
        Ctrl-C for one.
        """
        thread = native.Thread(self._end, "dstore-close")
        try:
            with signals_left_to_this_thread():
                thread.start()
        except RuntimeError:  # there can be no more threads, or Python is about to exit
            self._end()
            return
        thread.join(stall_timeout)

    def _end(self) -> None:
        with self._lock:
            self._context.term()  # if it is over, this does nothing

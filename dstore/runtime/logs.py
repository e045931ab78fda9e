"""Logging that is safe in the threads of dstore, also under eventlet.

Under eventlet the locks of :mod:`logging` work for the greenlets of one thread only. A native
thread that finds one taken waits for ever, and one that holds it blocks all greenlets. So the
threads of dstore defer their lines there, and wake a greenlet that logs them. (gevent's locks work
between threads.)
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections import deque
from collections.abc import Callable
from functools import partial

from dstore.quoting import visible
from dstore.runtime import clock, native

DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING
DEFERRED_MAX = 1000
"""Lines that wait for a greenlet; beyond that the oldest are dropped."""
PAUSE = 1.0
"""Seconds between two lines at least, by default."""


class Log:
    """Logs like the ``logging.Logger`` of this name."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, *arguments: object) -> None:
        self.log(logging.DEBUG, message, *arguments)

    def info(self, message: str, *arguments: object) -> None:
        """Log news: something has happened as it should, and nobody need do anything."""
        self.log(logging.INFO, message, *arguments)

    def warning(self, message: str, *arguments: object) -> None:
        """Log that something is wrong, or that what was logged as wrong is over."""
        self.log(logging.WARNING, message, *arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """Log an error, with the exception that is being handled."""
        self.log(logging.ERROR, message, *arguments, error=sys.exc_info()[1])

    def log(
        self, level: int, message: str, *arguments: object, error: BaseException | None = None
    ) -> None:
        line = partial(self._logger.log, level, message, *arguments, exc_info=error, stacklevel=3)
        if native.is_own_thread() and _eventlet_has_patched():
            deferred.append(line)
            for wake in tuple(_wakers):
                wake()
        else:
            line()


deferred: deque[Callable[[], None]] = deque(maxlen=DEFERRED_MAX)
_wakers: list[Callable[[], None]] = []


def wake_with(wake: Callable[[], None]) -> None:
    """Register what to call, from any thread, when a greenlet is to call :func:`log_deferred`."""
    _wakers[:] = [wake]


def log_deferred() -> None:
    """Log the deferred lines. For a greenlet, or at the exit of the program."""
    while deferred:
        deferred.popleft()()


def _eventlet_has_patched() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


atexit.register(log_deferred)


class RateLimitedLog:
    """Warnings of one kind about what others do, at most one in ``pause`` seconds.

    If two threads log at once, it may count too few omitted lines.
    """

    def __init__(self, log: Log, pause: float = PAUSE) -> None:
        self._log = log
        self._pause = pause
        self._next_at = float("-inf")
        self._omitted = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a line, or count it for the next one that is logged.

        Arguments may contain text of an unknown peer; it is quoted, so that it cannot add a line.
        """
        now = clock.now()
        if now < self._next_at:
            self._omitted += 1
            return
        if self._omitted:
            message += f" ({self._omitted} more since the last such line)"
        self._next_at, self._omitted = now + self._pause, 0
        self._log.warning(message, *map(_quoted, arguments))


def _quoted(argument: object) -> object:
    return argument if isinstance(argument, (int, float)) else visible(str(argument))

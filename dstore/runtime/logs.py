"""Logging, also from the threads of dstore.

Under eventlet the locks of :mod:`logging` are made for the greenlets of one thread. A thread of the
system that finds one taken waits for ever, and one that holds it lets nobody go on. There the
threads of dstore only note their lines, and a greenlet, which is woken for it, logs them. (gevent's
locks work between threads.)
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections import deque
from collections.abc import Callable

from dstore.runtime import native

INFO, WARNING = logging.INFO, logging.WARNING
NOTED_MAX = 1000
"""Lines that wait for a greenlet; if there are more, the oldest go."""


class Log:
    """Logs as a ``logging.Logger`` of this name does."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __repr__(self) -> str:
        return f"<Log {self._logger.name}>"

    def debug(self, message: str, *arguments: object) -> None:
        self.log(logging.DEBUG, message, *arguments)

    def warning(self, message: str, *arguments: object) -> None:
        self.log(logging.WARNING, message, *arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """An error, with the exception that is being handled."""
        self.log(logging.ERROR, message, *arguments, error=sys.exc_info()[1])

    def log(
        self, level: int, message: str, *arguments: object, error: BaseException | None = None
    ) -> None:
        if native.is_own_thread() and _eventlet_has_patched():
            _noted.append(lambda: self._log(level, message, arguments, error))
            for wake in tuple(_wakers):
                wake()
        else:
            self._log(level, message, arguments, error)

    def _log(
        self,
        level: int,
        message: str,
        arguments: tuple[object, ...],
        error: BaseException | None,
    ) -> None:
        self._logger.log(level, message, *arguments, exc_info=error, stacklevel=4)


_noted: deque[Callable[[], None]] = deque(maxlen=NOTED_MAX)
_wakers: list[Callable[[], None]] = []


def wake_with(wake: Callable[[], None]) -> None:
    """Have this called, in any thread, when lines are noted; then a greenlet is to log them."""
    _wakers[:] = [wake]


def anything_noted() -> bool:
    """Whether there is something for :func:`log_noted`."""
    return bool(_noted)


def log_noted() -> None:
    """Log what has been noted. In a greenlet, or at the end of the program."""
    while _noted:
        _noted.popleft()()


def _eventlet_has_patched() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


atexit.register(log_noted)

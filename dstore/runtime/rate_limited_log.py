"""Log lines about what unknown peers send, at most one a second."""

from __future__ import annotations

from dstore.quoting import visible
from dstore.runtime import clock
from dstore.runtime.logs import Log

PAUSE = 1.0
"""Seconds between two lines at least, by default."""


class RateLimitedLog:
    """Warnings of one kind. If two threads log at once, it may count too few omitted lines."""

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

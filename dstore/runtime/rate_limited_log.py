"""Log lines about what strangers send, at most one a second."""

from __future__ import annotations

from dstore.quoting import visible
from dstore.runtime import clock
from dstore.runtime.logs import Log

PAUSE = 1.0
"""Least seconds between two lines, unless said otherwise."""


class RateLimitedLog:
    """Warnings of one kind. For one thread at a time; two at once may count one too few."""

    def __init__(self, log: Log, pause: float = PAUSE) -> None:
        self._log = log
        self._pause = pause
        self._next_at = float("-inf")
        self._left_out = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a line, or count it for the next one that is logged.

        The arguments may be or have text of strangers, which shall not begin a line of its own.
        """
        now = clock.now()
        if now < self._next_at:
            self._left_out += 1
            return
        if self._left_out:
            message += f" ({self._left_out} more since the last such line)"
        self._next_at, self._left_out = now + self._pause, 0
        self._log.warning(message, *map(_harmless, arguments))


def _harmless(argument: object) -> object:
    return argument if isinstance(argument, (int, float)) else visible(str(argument))

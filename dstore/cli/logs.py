"""Log records on standard error: one line for each, whatever the text in it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from dstore.quoting import visible

SERVER_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLIENT_LINE = "dstore: %(message)s"


class OneLine(logging.Formatter):
    """Escapes what would begin a line or steer a terminal.

    The lines of a traceback are indented, so that none of them can pass for a record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {visible(line)}" for line in lines)


def log_to_stderr(line: str, level: int = logging.WARNING) -> None:
    """Write log records from ``level`` on to standard error, each in the form of ``line``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(line))
    logging.basicConfig(handlers=[handler], level=level)

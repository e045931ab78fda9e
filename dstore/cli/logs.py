"""Log records on standard error, one line for each record."""

from __future__ import annotations

import logging
import sys
from typing import Any

from dstore.quoting import visible

SERVER_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLIENT_LINE = "dstore: %(message)s"


class OneLine(logging.Formatter):
    """A formatter that escapes what would begin a line or steer a terminal.

    The lines of a traceback are indented, so that none of them looks like a record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {visible(line)}" for line in lines)


def log_to_stderr(line: str, level: int = logging.WARNING) -> None:
    """Write log records of ``level`` and above to standard error, in the form of ``line``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(line))
    logging.basicConfig(handlers=[handler], level=level)

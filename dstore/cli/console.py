"""What every command shares: exit codes, standard streams, and lines of errors and logs.

Text that others may have written passes through ``quoting`` before a person reads it: here for
errors, in ``tables`` for counters, in ``show`` for keys and values.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from dstore import checks, config
from dstore.quoting import visible

EXIT_OK = 0
EXIT_REFUSED = 1
"""A missing or an occupied key, a full store, or access that is denied: Global has answered, and
the answer is no.
"""
EXIT_USAGE = 2
"""The command line, a key, a value, an address or a file is wrong."""
EXIT_UNREACHED = 3
"""Global cannot be reached, another server is in its place, or it was lost during a write, whose
outcome is unknown.
"""
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""The exit code that a shell reports for a program that SIGPIPE has ended."""

BUILT_IN_ERRORS = (TypeError, ValueError, OSError, MemoryError, RecursionError)
"""The errors that a command may raise besides those of dstore; each becomes one line."""
STDIN_CLOSED = "standard input is closed, so there is nothing to read"
SERVER_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLIENT_LINE = "dstore: %(message)s"
MESSAGE_MAX = 2000
"""The number of characters of an error message that are shown."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, without terminal controls."""
    return _line_of(str(error)) or type(error).__name__


def said(error: BaseException) -> str:
    """Return the message of an error on one line; for an OSError the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{visible(str(error.filename))}: " if error.filename else ""
        return where + _line_of(error.strerror)
    if isinstance(error, MemoryError):
        return "there is not enough memory for that"
    if isinstance(error, RecursionError):
        return "the answer is nested too deeply to be shown"
    return one_line(error)


def _line_of(message: str) -> str:
    line = visible(" ".join(message[: MESSAGE_MAX + 1].split()))
    return line if len(line) <= MESSAGE_MAX else f"{line[:MESSAGE_MAX]} ..."


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this block as Ctrl-C does.

    No half file is left, and the Node says goodbye to Global. It works in the main thread alone. A
    signal that is ignored stays ignored, as nohup requires.
    """

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)  # as a shell reports a program that this signal has ended

    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                before[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def plain(address: str) -> str:
    """Return an address, or several, as people write it, without ``tcp://``."""
    return address.removeprefix("tcp://").replace(",tcp://", ",")


def complain(message: str, program: str = "dstore") -> None:
    """Print one line on standard error, which may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: {visible(message)}", file=sys.stderr, flush=True)


class OneLine(logging.Formatter):
    """A formatter that escapes what would begin a line or steer a terminal.

    The lines of a traceback are indented, so that none of them looks like a record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {visible(line)}" for line in lines)


def log_to_stderr(line: str, level: int) -> None:
    """Write log records of ``level`` and above to standard error, in the form of ``line``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(line))
    logging.basicConfig(handlers=[handler], level=level)


def in_utf8(stream: Any, errors: str, **more: str) -> None:
    """Let a standard stream read or write UTF-8, whatever the locale or PYTHONIOENCODING says.

    Keys and values are bytes, and the same bytes everywhere: a C locale must not hide half of them.
    """
    reconfigure(stream, encoding="utf-8", errors=errors, **more)


def reconfigure(stream: Any, **settings: str) -> None:
    """Change a standard stream. A replacement for one, as tests have, stays as it is."""
    if change := getattr(stream, "reconfigure", None):
        change(**settings)


def text_or_bytes(raw: bytes) -> str | bytes:
    """Return what was typed or passed: text, or bytes that are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def lifetime(text: str) -> float:
    """Return after how many seconds a key is to expire, as it was typed or passed.

    Raises ValueError for what is not a number of seconds, or not one that Global takes.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= config.TTL_MAX:
        raise ValueError(
            f"{checks.shown(text)} is not a number of seconds that is more than 0 and at most "
            f"{config.TTL_MAX:,.0f}"
        )
    return number


def drop_stdout() -> None:
    """Discard what is still to be printed, since the reader of the pipe has gone."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

"""What every command shares: exit codes, and how errors and counters are put into lines.

All that a person reads and others may have written passes through ``quoting``: here for error
lines and counters, in ``repl.show`` for keys and values.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, TextIO

from dstore.quoting import quoted, visible

EXIT_OK = 0
EXIT_REFUSED = 1
"""A missing or an occupied key, a full store: Global has answered, and the answer is no."""
EXIT_USAGE = 2
"""The command line, a key, a value, an address or a file is wrong."""
EXIT_UNREACHED = 3
"""Global cannot be reached; or it was lost during a write, which may or may not have happened."""
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""What a shell reports of a program that SIGPIPE ended."""

BUILT_IN_ERRORS = (TypeError, ValueError, OSError, MemoryError, RecursionError)
"""What a command may raise besides the errors of dstore; each becomes one line."""
STDIN_CLOSED = "standard input is closed, so there is nothing to read"
MESSAGE_MAX = 2000
"""Characters of an error message that are shown. (A refusal of Global may have any number.)"""


def one_line(error: BaseException) -> str:
    """What an error says, on one line, fit for a terminal."""
    return _line_of(str(error)) or type(error).__name__


def said(error: BaseException) -> str:
    """The same, and for what the system refused: the file, and why."""
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
    """SIGTERM and SIGHUP end this block as Ctrl-C does: no half file stays, and a goodbye is said.

    If this is the main thread; what is ignored stays ignored, as nohup wants it.
    """

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)  # what a shell says of one that died of it

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) is signal.SIG_DFL:
                before[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def plain(address: str) -> str:
    """An address as people write it: ``tcp://`` goes without saying."""
    return address.removeprefix("tcp://")


def complain(message: str, program: str = "dstore") -> None:
    """One line on standard error; nobody may be listening."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: {visible(message)}", file=sys.stderr, flush=True)


def be_lenient(stream: TextIO, errors: str) -> None:
    """Let one character that a stream cannot encode spoil itself, and not the whole line or run."""
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors=errors)


def counter_lines(counters: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Counters, one on each line; a counter that is a table itself is unfolded."""
    for key, value in counters.items():
        name = f"{within}{quoted(str(key))}"
        if isinstance(value, Mapping):
            yield from counter_lines(value, f"{name}.")
        else:
            yield f"{name:<26} {_figure(value)}"


def _figure(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return quoted(str(value))


def in_utf8(stream: Any, errors: str, newline: str | None = None) -> None:
    """Have a standard stream read or write UTF-8, whatever the locale or PYTHONIOENCODING says.

    Keys and values are bytes, and the same ones everywhere: a C locale must not hide half of them.
    A stand-in for a stream, as tests have, stays as it is.
    """
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(encoding="utf-8", errors=errors, newline=newline)


def text_or_bytes(raw: bytes) -> str | bytes:
    """What somebody typed or passed: text, or bytes where these are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def drop_stdout() -> None:
    """Send what is still to be printed nowhere: whoever read it has gone."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

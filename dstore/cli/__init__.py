"""The ``dstore`` command: ``arguments`` parses a command line, and ``commands`` carries it out."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from dstore import errors
from dstore.cli import console
from dstore.cli.arguments import parse
from dstore.cli.commands import run

EXTRA_MODULES = {"cmd2", "rich"}
"""What the extra ``dstore[cli]`` installs. The prompt, the demo and progress bars need it; servers
and workers do not.
"""


UNREACHED = (errors.GlobalUnavailable, errors.WrongServer, errors.OutcomeUnknown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of this process. Returns the exit code."""
    options = None
    _open_closed_outputs()
    _buffer_output()
    console.reconfigure(sys.stdout, errors="backslashreplace")
    try:
        try:
            options = parse(sys.argv[1:] if argv is None else argv)
            code = run(options)
        except SystemExit as leaving:  # argparse has printed the reason
            code = leaving.code if isinstance(leaving.code, int) else console.EXIT_USAGE
        sys.stdout.flush()
    except KeyboardInterrupt:
        return console.EXIT_INTERRUPTED
    except BrokenPipeError:
        console.drop_stdout()
        return console.EXIT_PIPE_CLOSED
    except ModuleNotFoundError as missing:
        module = (missing.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            raise
        console.complain(f"this command needs {module}: pip install 'dstore[cli]'")
        return console.EXIT_USAGE
    except (errors.DstoreError, *console.BUILT_IN_ERRORS) as error:
        console.complain(_said(error, getattr(options, "address", None)))
        try:
            sys.stdout.flush()
        except OSError:  # or Python's exit would fail on it again
            console.drop_stdout()
        return _exit_code(error)
    return code


def _open_closed_outputs() -> None:
    """Replace standard output or error if the shell closed it; Python then has None there.

    Printing to a closed standard output must be an error, as in other programs, since the output
    would be lost. So its replacement can only be read.
    """
    if sys.stdout is None:
        refuses = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = open(refuses, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _buffer_output() -> None:
    """Buffer standard output even if PYTHONUNBUFFERED is set.

    Without a buffer, a write that a full disk takes only in part counts as complete.
    """
    bare = getattr(sys.stdout, "buffer", None)
    if isinstance(bare, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(bare), encoding=sys.stdout.encoding, line_buffering=True
        )


def _said(error: Exception, address: str | None) -> str:
    if isinstance(error, errors.GlobalUnavailable) and address is not None:
        return f"{console.one_line(error)} (address: {console.plain(address)})"
    if isinstance(error, errors.KeyOccupied):
        return f"{error.key!r} is occupied; delete it first, or use --replace"
    return console.said(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, UNREACHED):
        return console.EXIT_UNREACHED
    if isinstance(error, errors.AccessDenied):
        return console.EXIT_REFUSED
    if isinstance(error, console.BUILT_IN_ERRORS):
        return console.EXIT_USAGE
    return console.EXIT_REFUSED

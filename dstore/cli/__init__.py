"""The ``dstore`` command. ``arguments`` reads the line, with ``kinds`` to check its parts;
``oneshot`` and ``serve`` do the work.

What a command needs (ZeroMQ, the line editor) is imported by that command alone, so that
``dstore get`` in a shell loop starts quickly.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from dstore import errors
from dstore.cli import console

EXTRA_MODULES = {"cmd2", "rich"}
"""What the extra ``dstore[cli]`` installs. Only the prompt, the demo and progress bars need it, so
that a server or a worker can do without.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``dstore`` command line (default: this process's own); returns the exit code."""
    from dstore.cli.arguments import parse

    address = ""
    _open_closed_outputs()
    _buffer_output()
    console.be_lenient(sys.stdout, "backslashreplace")
    try:
        try:
            options = parse(sys.argv[1:] if argv is None else argv)
            address = getattr(options, "address", "")
            code: int = options.run(options)
        except SystemExit as leaving:  # argparse has said what there was to say
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
        console.complain(_said(error, address))
        _flush_or_drop()
        return _exit_code(error)
    return code


def _flush_or_drop() -> None:
    """If standard output is what failed, it shall not fail again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        console.drop_stdout()


def _open_closed_outputs() -> None:
    """Stand in for what the shell closed, in which case Python has None there.

    What is printed to standard output is then an error, as of other programs: it would be lost.
    """
    if sys.stdout is None:
        refuses = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = open(refuses, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _buffer_output() -> None:
    """Put a buffer before standard output where PYTHONUNBUFFERED has taken it away.

    Without one, what a full disk takes only in part counts as written.
    """
    bare = getattr(sys.stdout, "buffer", None)
    if isinstance(bare, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(bare), encoding=sys.stdout.encoding, line_buffering=True
        )


def _said(error: Exception, address: str) -> str:
    if isinstance(error, errors.GlobalUnavailable):
        return f"{console.one_line(error)} (address: {console.plain(address)})"
    if isinstance(error, errors.KeyOccupied):
        return f"{error.key!r} is occupied; delete it first, or use --replace"
    return console.said(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, (errors.GlobalUnavailable, errors.OutcomeUnknown)):
        return console.EXIT_UNREACHED
    if isinstance(error, console.BUILT_IN_ERRORS):
        return console.EXIT_USAGE
    return console.EXIT_REFUSED

"""The commands of the command line: each takes the parsed options and returns the exit code.

What a command needs (ZeroMQ, the line editor, rich) is imported when it runs, so that ``dstore
get`` in a shell loop starts quickly.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TypeAlias

from dstore.cli import console
from dstore.quoting import visible

Command: TypeAlias = Callable[[Namespace], int]
SERVER_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLIENT_LINE = "dstore: %(message)s"


def run(options: Namespace) -> int:
    """Carry out a parsed command line. Returns the exit code; raises what goes wrong."""
    command: str = options.command
    if command != "global":
        log_to_stderr(CLIENT_LINE, logging.WARNING)
    return {"global": _global, "repl": _repl, "demo": _demo}.get(command, _oneshot)(options)


def _global(options: Namespace) -> int:
    from dstore.cli.serve import serve

    level = logging.ERROR if options.quiet else logging.WARNING
    if options.verbose:
        level = logging.INFO if options.verbose == 1 else logging.DEBUG
    log_to_stderr(SERVER_LINE, level)
    console.in_utf8(sys.stdout, "surrogateescape")
    return serve(options)


def _repl(options: Namespace) -> int:
    from dstore.cli.repl import main

    if sys.stdin is None:
        raise ValueError(console.STDIN_CLOSED)
    return main(options.address, options.timeout)


def _demo(options: Namespace) -> int:
    from dstore.cli.demo.story import main

    return main(options.folder, options.workers)


def _oneshot(options: Namespace) -> int:
    from dstore.cli.oneshot import COMMANDS

    console.in_utf8(sys.stdout, "surrogateescape")
    with console.leaving_on_signals():
        return COMMANDS[options.command](options)


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

"""The functions that carry out the commands of the command line.

Each takes the parsed options and returns the exit code. What a command needs (ZeroMQ, the line
editor, rich) is imported when that command runs, so that ``dstore get`` in a shell loop starts
quickly.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TypeAlias

from dstore.cli import console

Command: TypeAlias = Callable[[Namespace], int]


def _global(options: Namespace) -> int:
    from dstore.cli.serve import serve

    console.in_utf8(sys.stdout, "surrogateescape")
    return serve(options)


def _repl(options: Namespace) -> int:
    from dstore.cli.repl import main

    if sys.stdin is None:
        raise ValueError(console.STDIN_CLOSED)
    _log_as_client()
    return main(options.address, options.timeout)


def _demo(options: Namespace) -> int:
    from dstore.cli.demo import main

    _log_as_client()
    return main(options.folder, options.workers)


def _oneshot(name: str) -> Command:
    def run(options: Namespace) -> int:
        from dstore.cli import oneshot

        command: Command = getattr(oneshot, name)
        console.in_utf8(sys.stdout, "surrogateescape")
        _log_as_client()
        with console.leaving_on_signals():
            return command(options)

    return run


def _log_as_client() -> None:
    from dstore.cli.logs import CLIENT_LINE, log_to_stderr

    log_to_stderr(CLIENT_LINE)


COMMANDS: dict[str, Command] = {
    "global": _global,
    "repl": _repl,
    "demo": _demo,
    "set": _oneshot("set_"),
    "put": _oneshot("put"),
    "del": _oneshot("delete"),
    "get": _oneshot("get"),
    "keys": _oneshot("keys"),
    "stats": _oneshot("stats"),
}
"""Every command by the name under which it is typed."""

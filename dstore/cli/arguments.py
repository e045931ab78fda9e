"""The command line: what may be typed, and which function does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dstore import config
from dstore.cli import console
from dstore.cli.kinds import address, as_passed, between, between_sizes, count, folder, size

SHM_VARIABLE = "DSTORE_SHM"
SHM_DEFAULT = "/dev/shm"

EPILOG = f"""\
Every command takes --help. Without --address, ${config.ADDRESS_VARIABLE} names Global, and without
that it is {config.ADDRESS_DEFAULT}. ${SHM_VARIABLE} is the folder, in memory, where the processes
of a host share one copy of each large value (default: {SHM_DEFAULT}; empty: none).

Exit codes: {console.EXIT_OK} done; {console.EXIT_REFUSED} the key is missing or occupied, or the \
store is full; {console.EXIT_USAGE} wrong usage or bad input; {console.EXIT_UNREACHED} Global \
cannot be reached.
"""
STDIN_CLOSED = "standard input is closed, so there is nothing to read"
WORKERS_DEFAULT, WORKERS_MAX = 4, 64


class Paragraphs(argparse.HelpFormatter):
    """Fits text into the width of the terminal, and keeps its paragraphs apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(each, width, indent) for each in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not hide that its help cannot be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)

    def error(self, message: str) -> NoReturn:
        console.complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(console.EXIT_USAGE)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, with the function that carries them out as ``run``.

    Raises SystemExit, as argparse does, for --help, --version and wrong usage.
    """
    options, left = _parser().parse_known_args(argv)
    if left:
        parser: Parser = options.parser
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="dstore",
        description="A key-value store with a cache in every process that is never stale.",
        epilog=EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    parser.set_defaults(run=lambda _: _show_help(parser), parser=parser)
    _add_programs(commands)
    _add_writers(commands)
    _add_readers(commands)
    return parser


def _show_help(parser: Parser) -> int:
    parser.print_help(sys.stderr)
    return console.EXIT_USAGE


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from dstore.version import __version__

        print(f"dstore {__version__}")
        parser.exit()


_Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add(
    commands: _Commands[Parser], name: str, run: Callable[[argparse.Namespace], int], about: str
) -> Parser:
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_client(
    commands: _Commands[Parser], name: str, run: Callable[[argparse.Namespace], int], about: str
) -> Parser:
    parser = _add(commands, name, run, about)
    parser.add_argument(
        "--address", type=address, default=config.address_default(), help="where Global listens"
    )
    parser.add_argument(
        "--timeout",
        type=between(config.TIMEOUT_MIN, config.TIMEOUT_MAX, "seconds"),
        default=config.TIMEOUT_DEFAULT,
        metavar="SECONDS",
        help="how long to wait for Global (default: %(default)g)",
    )
    return parser


# The commands -------------------------------------------------------------------------------


def _add_programs(commands: _Commands[Parser]) -> None:
    serve = _add(commands, "global", _serve, "run Global, the one authority")
    serve.add_argument(
        "--address",
        "--bind",
        type=address,
        default=config.address_default(),
        help="where to take requests (default: %(default)s)",
    )
    serve.add_argument(
        "--publisher", type=address, help="where to publish deletions (default: the next port)"
    )
    serve.add_argument(
        "--lease",
        type=between(config.LEASE_MIN, config.LEASE_MAX, "seconds"),
        default=config.LEASE_DEFAULT,
        metavar="SECONDS",
        help="how long a Local may answer from its cache before it asks again (default: "
        "%(default)g)",
    )
    serve.add_argument(
        "--log-length",
        type=count(config.LOG_LENGTH_MAX),
        default=config.LOG_LENGTH_DEFAULT,
        metavar="N",
        help="how many deletions to remember (default: %(default)s)",
    )
    serve.add_argument(
        "--memory-limit",
        type=size,
        default=config.MEMORY_LIMIT_DEFAULT,
        metavar="SIZE",
        help="refuse more than this, for example 512M or 4G (default: 4G)",
    )
    serve.add_argument(
        "--max-clients",
        type=count(config.CLIENTS_MAX),
        default=config.CLIENTS_MAX_DEFAULT,
        metavar="N",
        help="how many Locals may be joined at one time (default: %(default)s)",
    )
    serve.add_argument(
        "--value-limit",
        type=size,
        default=config.VALUE_LIMIT_DEFAULT,
        metavar="SIZE",
        help="refuse a value that has more than this (default: 4G)",
    )
    serve.add_argument(
        "--large-from",
        type=between_sizes(config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX),
        default=config.LARGE_FROM_DEFAULT,
        metavar="SIZE",
        help="from this size on a value travels in chunks, and the processes of a host share one "
        "copy of it (default: 64K)",
    )
    serve.add_argument(
        "--shm",
        type=folder,
        metavar="DIR",
        help="a folder in memory (a tmpfs) for large values, where the processes of this host read "
        f'them; "" for none, so that each has its own copies (default: ${SHM_VARIABLE}, else '
        f"{SHM_DEFAULT})",
    )
    serve.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more, twice for all of it"
    )
    serve.add_argument("-q", "--quiet", action="store_true", help="log errors only")

    _add_client(commands, "repl", _talk, "talk to Global at a prompt, or in a script on stdin")

    demo = _add(commands, "demo", _demo, "watch several processes share the files of a folder")
    demo.add_argument("folder", nargs="?", help="default: the sources of Python's library")
    demo.add_argument("--workers", type=count(WORKERS_MAX), default=WORKERS_DEFAULT, metavar="N")


def _add_writers(commands: _Commands[Parser]) -> None:
    set_ = _add_client(commands, "set", _oneshot("set_"), "bind a value to a new key")
    set_.add_argument("key", type=as_passed)
    _add_value(set_)
    set_.add_argument("--replace", action="store_true", help="the key may be occupied")

    put = _add_client(
        commands, "put", _oneshot("put"), "store a value under its BLAKE3 hash, and print that key"
    )
    _add_value(put)

    delete = _add_client(commands, "del", _oneshot("delete"), "delete keys everywhere")
    delete.add_argument("keys", type=as_passed, nargs="+", metavar="key")
    delete.add_argument(
        "--no-wait", action="store_true", help="do not wait until no Local can read them"
    )


def _add_value(parser: Parser) -> None:
    parser.add_argument(
        "value", nargs="?", help="stored as text; without it, or for -, stdin is stored as bytes"
    )
    parser.add_argument("--file", metavar="F", help="store the bytes of a file instead")
    _add_quiet(parser)


def _add_quiet(parser: Parser) -> None:
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no bar that shows how far a large file is"
    )


def _add_readers(commands: _Commands[Parser]) -> None:
    get = _add_client(commands, "get", _oneshot("get"), "write a key's value to standard output")
    get.epilog = (
        "Bytes and text are written as they are, a NumPy array as a .npy file (on a terminal as "
        "NumPy shows it), other values as JSON (bytes in them as Base64). A value that only some "
        "program can read, such as a pickled one, is written as it is stored, but not to a "
        "terminal. A newline is added to text and JSON on a terminal, and nowhere else. What would "
        "steer a terminal, or not be seen, is written there as escapes such as \\x1b."
    )
    get.add_argument("key", type=as_passed)
    get.add_argument(
        "-o", "--output", metavar="FILE", help="write to a file, which appears when it is whole"
    )
    _add_quiet(get)

    keys = _add_client(commands, "keys", _oneshot("keys"), "list keys, one on each line")
    keys.epilog = (
        "A pipe or a file gets the bytes of each key, a terminal gets those keys that it could not "
        "show on one line as Python writes them."
    )
    keys.add_argument("prefix", type=as_passed, nargs="?", default="")
    keys.add_argument("-0", "--null", action="store_true", help="end each with NUL, for xargs -0")

    stats = _add_client(commands, "stats", _oneshot("stats"), "show the counters of Global")
    stats.add_argument("--json", action="store_true", help="as one JSON object")


# What carries them out, imported when it is needed ------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from dstore.cli.serve import serve

    console.in_utf8(sys.stdout, "surrogateescape")
    return serve(options)


def _log_as_client() -> None:
    from dstore.cli.logs import CLIENT_LINE, log_to_stderr

    log_to_stderr(CLIENT_LINE)


def _talk(options: argparse.Namespace) -> int:
    from dstore.cli.repl import main

    if sys.stdin is None:
        raise ValueError(STDIN_CLOSED)
    _log_as_client()
    return main(options.address, options.timeout)


def _demo(options: argparse.Namespace) -> int:
    from dstore.cli.demo import main

    _log_as_client()
    return main(options.folder, options.workers)


def _oneshot(name: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        from dstore.cli import oneshot

        command: Callable[[argparse.Namespace], int] = getattr(oneshot, name)
        console.in_utf8(sys.stdout, "surrogateescape")
        _log_as_client()
        with console.leaving_on_signals():
            return command(options)

    return run

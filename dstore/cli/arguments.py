"""The grammar of the command line. ``commands`` has the functions that carry out the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from dstore import config
from dstore.cli import console
from dstore.cli.commands import COMMANDS
from dstore.cli.kinds import address, as_passed, between, between_sizes, count, folder, size

SHM_VARIABLE = "DSTORE_SHM"
SHM_DEFAULT = "/dev/shm"

EPILOG = f"""\
Every command takes --help. Without --address, the variable ${config.ADDRESS_VARIABLE} names \
Global, and without that variable Global is at {config.ADDRESS_DEFAULT}. The variable \
${SHM_VARIABLE} names the folder in memory where the processes of a host share one copy of each \
large value (default: {SHM_DEFAULT}; an empty value turns sharing off).

Exit codes: {console.EXIT_OK} done; {console.EXIT_REFUSED} the key is missing or occupied, or the \
store is full; {console.EXIT_USAGE} wrong usage or bad input; {console.EXIT_UNREACHED} Global \
cannot be reached.
"""
WORKERS_DEFAULT, WORKERS_MAX = 4, 64


class Paragraphs(argparse.HelpFormatter):
    """Wraps text to the width of the terminal and keeps its paragraphs apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(each, width, indent) for each in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, and fails if help is not written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)  # argparse itself hides an OSError here

    def error(self, message: str) -> NoReturn:
        console.complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(console.EXIT_USAGE)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line. ``run`` is the function that carries them out.

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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    parser.set_defaults(run=lambda _: _show_help(parser), parser=parser)
    _add_programs(parsers)
    _add_writers(parsers)
    _add_readers(parsers)
    return parser


def _show_help(parser: Parser) -> int:
    parser.print_help(sys.stderr)
    return console.EXIT_USAGE


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from dstore.version import __version__

        print(f"dstore {__version__}")
        parser.exit()


_Parsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse has no public name for it


def _add(parsers: _Parsers, name: str, about: str) -> Parser:
    parser = parsers.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(run=COMMANDS[name], parser=parser)
    return parser


def _add_client(parsers: _Parsers, name: str, about: str) -> Parser:
    parser = _add(parsers, name, about)
    parser.add_argument(
        "--address",
        type=address,
        default=config.address_default(),
        help="the address at which Global listens (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=between(config.TIMEOUT_MIN, config.TIMEOUT_MAX, "seconds"),
        default=config.TIMEOUT_DEFAULT,
        metavar="SECONDS",
        help="how long to wait for an answer of Global (default: %(default)g)",
    )
    return parser


# The commands -------------------------------------------------------------------------------


def _add_programs(parsers: _Parsers) -> None:
    serve = _add(parsers, "global", "run Global, the one authority")
    serve.add_argument(
        "--address",
        "--bind",
        type=address,
        default=config.address_default(),
        help="the address at which to take requests (default: %(default)s)",
    )
    serve.add_argument(
        "--publisher",
        type=address,
        help="the address at which to broadcast invalidations (default: the next port)",
    )
    serve.add_argument(
        "--lease",
        type=between(config.LEASE_MIN, config.LEASE_MAX, "seconds"),
        default=config.LEASE_DEFAULT,
        metavar="SECONDS",
        help="how long a Local may answer from its cache before it must renew its lease "
        "(default: %(default)g)",
    )
    serve.add_argument(
        "--log-length",
        type=count(config.LOG_LENGTH_MAX),
        default=config.LOG_LENGTH_DEFAULT,
        metavar="N",
        help="how many recent invalidations to keep for Locals that catch up "
        "(default: %(default)s)",
    )
    serve.add_argument(
        "--memory-limit",
        type=size,
        default=config.MEMORY_LIMIT_DEFAULT,
        metavar="SIZE",
        help="how much memory all keys and values may take, for example 512M or 4G (default: 4G)",
    )
    serve.add_argument(
        "--max-clients",
        type=count(config.CLIENTS_MAX),
        default=config.CLIENTS_MAX_DEFAULT,
        metavar="N",
        help="how many Locals may be connected at the same time (default: %(default)s)",
    )
    serve.add_argument(
        "--value-limit",
        type=size,
        default=config.VALUE_LIMIT_DEFAULT,
        metavar="SIZE",
        help="how large one value may be (default: 4G)",
    )
    serve.add_argument(
        "--large-from",
        type=between_sizes(config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX),
        default=config.LARGE_FROM_DEFAULT,
        metavar="SIZE",
        help="the size from which on a value travels in chunks, and the processes of a host share "
        "one copy of it (default: 64K)",
    )
    serve.add_argument(
        "--shm",
        type=folder,
        metavar="DIR",
        help="the folder in memory (a tmpfs) where the processes of this host read large values; "
        f'"" for none, so that each process has its own copy (default: ${SHM_VARIABLE}, or '
        f"{SHM_DEFAULT} without it)",
    )
    serve.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more; give it twice to log all"
    )
    serve.add_argument("-q", "--quiet", action="store_true", help="log errors only")

    _add_client(parsers, "repl", "talk to Global at a prompt, or from a script on standard input")

    demo = _add(parsers, "demo", "watch several processes share the files of a folder")
    demo.add_argument(
        "folder",
        nargs="?",
        help="the folder whose files are shared (default: the sources of Python's library)",
    )
    demo.add_argument(
        "--workers",
        type=count(WORKERS_MAX),
        default=WORKERS_DEFAULT,
        metavar="N",
        help="how many processes read the files (default: %(default)s)",
    )


def _add_writers(parsers: _Parsers) -> None:
    set_ = _add_client(parsers, "set", "bind a value to a new key")
    _add_key(set_)
    _add_value(set_)
    set_.add_argument(
        "--replace", action="store_true", help="replace the value of a key that is occupied"
    )

    put = _add_client(parsers, "put", "store a value under its BLAKE3 hash, and print that key")
    _add_value(put)

    delete = _add_client(parsers, "del", "delete keys everywhere")
    delete.add_argument(
        "keys", type=as_passed, nargs="+", metavar="key", help="the keys to be deleted"
    )
    delete.add_argument(
        "--no-wait",
        action="store_true",
        help="return without waiting until no Local can read the values any more",
    )


def _add_key(parser: Parser) -> None:
    parser.add_argument("key", type=as_passed, help="the key of the value")


def _add_value(parser: Parser) -> None:
    parser.add_argument(
        "value",
        nargs="?",
        help="the value, stored as text; if it is missing or -, standard input is stored as bytes",
    )
    parser.add_argument("--file", metavar="F", help="store the bytes of this file instead")
    _add_quiet(parser)


def _add_quiet(parser: Parser) -> None:
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="show no progress bar for a large value"
    )


def _add_readers(parsers: _Parsers) -> None:
    get = _add_client(parsers, "get", "write a key's value to standard output")
    get.epilog = (
        "Bytes and text are written as they are, a NumPy array as a .npy file (on a terminal as "
        "NumPy shows it), other values as JSON (bytes in them as Base64). A value that only some "
        "program can read, such as a pickled one, is written as it is stored, but not to a "
        "terminal. On a terminal, and nowhere else, a newline follows text and JSON, and "
        "characters that would steer the terminal or stay invisible are written as escapes such "
        "as \\x1b."
    )
    _add_key(get)
    get.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to this file, which appears when it is complete",
    )
    _add_quiet(get)

    keys = _add_client(parsers, "keys", "list keys, one on each line")
    keys.epilog = (
        "A pipe or a file gets the bytes of each key. A terminal gets a key that does not fit on "
        "one line, or would steer the terminal, as Python writes it."
    )
    keys.add_argument(
        "prefix",
        type=as_passed,
        nargs="?",
        default="",
        help="list only the keys that begin with this (default: all keys)",
    )
    keys.add_argument(
        "-0", "--null", action="store_true", help="end each key with NUL, for xargs -0"
    )

    stats = _add_client(parsers, "stats", "show the counters of Global")
    stats.add_argument("--json", action="store_true", help="print them as one JSON object")

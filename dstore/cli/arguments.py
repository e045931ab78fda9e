"""The grammar of the command line."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from dstore import config
from dstore.cli import console
from dstore.cli.console import text_or_bytes
from dstore.cli.help import HELP
from dstore.server.parameters import DATABASE_SCHEMES
from dstore.shm.root import ROOT_DEFAULT, ROOT_VARIABLE
from dstore.version import __version__

EPILOG = f"""\
Every command takes --help. Without --address and --connect, the variable \
${config.CONNECT_VARIABLE} names a connect file, which has the address of a Global that asks for \
keys, and the keys; without it, ${config.ADDRESS_VARIABLE} names Global, and without that variable \
Global is at {config.ADDRESS_DEFAULT}. The variable \
${ROOT_VARIABLE} names the folder in memory where the processes of a host share one copy of each \
large value (default: {ROOT_DEFAULT}; an empty value turns sharing off).

Exit codes: {console.EXIT_OK} done; {console.EXIT_REFUSED} the key is missing or occupied, the \
store is full, data is damaged, or access is denied; {console.EXIT_USAGE} wrong usage or bad \
input; {console.EXIT_UNREACHED} Global cannot be reached, or what listens there is another server.
"""
DIGITS_MAX = 20
"""More digits are refused here, since Python has its own error for thousands of digits."""
_BETWEEN_ADDRESSES = re.compile(r",\s*(?=(?:tcp|ipc)://|[^,/]+:\d+\s*(?:,|$))")
"""A comma in the path of an ipc address is part of the path."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)
DRAIN_WAIT = 60.0
WORKERS_DEFAULT, WORKERS_MAX = 4, 64
ROLES = ("read", "write", "admin")


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
    """Return the options of a command line, whose ``command`` is the name of the command.

    Raises SystemExit, as argparse does, for --help, --version and wrong usage.
    """
    options, left = _parser().parse_known_args(argv)
    parser: Parser = options.parser
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if options.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(console.EXIT_USAGE)
    if "connect" in options:
        options.address = _address_of(options)
    return options


def _address_of(options: argparse.Namespace) -> str | None:
    """Return the address of Global, or None if a connect file has it."""
    if options.address is not None or options.connect or config.connect_default():
        given: str | None = options.address
        return given
    return some_addresses(config.address_default())


def _parser() -> Parser:
    parser = Parser(
        prog="dstore",
        description="A key-value store with a cache in every process that is never stale.",
        epilog=EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"dstore {__version__}",
        help="show the version and exit",
    )
    parsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    parser.set_defaults(command=None, parser=parser)
    _add_programs(parsers)
    _add_writers(parsers)
    _add_readers(parsers)
    _add_data(parsers)
    _add_access(parsers)
    _add_cluster(parsers)
    return parser


_Parsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse has no public name for it


def _add(parsers: _Parsers, name: str, about: str) -> Parser:
    parser = parsers.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(command=name, parser=parser)
    return parser


def _add_client(parsers: _Parsers, name: str, about: str) -> Parser:
    parser = _add(parsers, name, about)
    seconds = between(config.TIMEOUT_MIN, config.TIMEOUT_MAX, "seconds")
    _add_address(parser)
    _option(parser, "--timeout", type=seconds, default=config.TIMEOUT_DEFAULT, metavar="SECONDS")
    return parser


def _add_address(parser: Parser) -> None:
    _option(parser, "--address", type=some_addresses)
    _option(parser, "--connect", metavar="FILE")


def _option(parser: Parser, *names: str, **how: Any) -> None:
    parser.add_argument(*names, **{"help": HELP[names[-1]], **how})


# The commands -------------------------------------------------------------------------------


def _add_programs(parsers: _Parsers) -> None:
    serve = _add(parsers, "global", "run Global, the one authority")
    lease = between(config.LEASE_MIN, config.LEASE_MAX, "seconds")
    length, clients = count(config.LOG_LENGTH_MAX), count(config.CLIENTS_MAX)
    large = between_sizes(config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX)
    _option(serve, "--address", "--bind", type=address, default=config.address_default())
    _option(serve, "--publisher", type=address)
    _option(serve, "--lease", type=lease, default=config.LEASE_DEFAULT, metavar="SECONDS")
    _option(serve, "--log-length", type=length, default=config.LOG_LENGTH_DEFAULT, metavar="N")
    _option(serve, "--memory-limit", type=size, default=config.MEMORY_LIMIT_DEFAULT, metavar="SIZE")
    _option(serve, "--max-clients", type=clients, default=config.CLIENTS_MAX_DEFAULT, metavar="N")
    _option(serve, "--value-limit", type=size, default=config.VALUE_LIMIT_DEFAULT, metavar="SIZE")
    _option(serve, "--large-from", type=large, default=config.LARGE_FROM_DEFAULT, metavar="SIZE")
    _option(serve, "--shm", type=folder, metavar="DIR")
    _option(serve, "--host-cache", type=host_cache, metavar="SIZE")
    _option(serve, "--data", type=data_folder, metavar="DIR")
    _option(serve, "--engine", type=database_url, metavar="URL")
    _option(serve, "--advertise", type=address, metavar="ADDRESS")
    least, most = config.OWNERSHIP_LEASE_MIN, config.OWNERSHIP_LEASE_MAX
    ownership = between(least, most, "seconds")
    _option(serve, "--ownership-lease", type=ownership, metavar="SECONDS")
    _option(serve, "--keys", type=data_folder, metavar="DIR")
    _option(serve, "--insecure", action="store_true")
    _add_logging(serve)

    host = _add(parsers, "host", "let the processes of this host share one cache of Global")
    host.epilog = (
        "Global does this by itself on its own host. On every other host one such process of each "
        "user is enough. It prints a line, and tells systemd, when the processes can use it. With "
        "a cluster there is one cache for each of its Globals."
    )
    _add_address(host)
    _option(host, "--host-cache", type=host_cache, metavar="SIZE")
    _option(host, "--shm", type=folder, metavar="DIR")
    _add_logging(host)

    _add_client(parsers, "repl", "talk to Global at a prompt, or from a script on standard input")

    demo = _add(parsers, "demo", "watch several processes share the files of a folder")
    _option(demo, "folder", nargs="?")
    _option(demo, "--workers", type=count(WORKERS_MAX), default=WORKERS_DEFAULT, metavar="N")
    _option(
        demo,
        "--data",
        action="store_true",
        help="let Global keep the files on a disk, kill it in the middle, and start it again",
    )


def _add_logging(parser: Parser) -> None:
    _option(parser, "-v", "--verbose", action="count", default=0)
    _option(parser, "-q", "--quiet", action="store_true", help="log errors only")


def _add_writers(parsers: _Parsers) -> None:
    set_ = _add_client(parsers, "set", "bind a value to a new key")
    _option(set_, "key", type=as_passed)
    _add_value(set_)
    _option(set_, "--replace", action="store_true")

    put = _add_client(parsers, "put", "store a value under its BLAKE3 hash, and print that key")
    put.epilog = (
        "A value that is stored already lives until the later of both times: --ttl never shortens "
        "its life, and without --ttl it stays."
    )
    _add_value(put)

    delete = _add_client(parsers, "del", "delete keys everywhere")
    _option(delete, "keys", type=as_passed, nargs="+", metavar="key")
    _option(delete, "--no-wait", action="store_true")

    expire = _add_client(parsers, "expire", "let a key expire after a number of seconds")
    expire.epilog = "It takes the place of an earlier time to live, whether that was longer or not."
    _option(expire, "key", type=as_passed)
    _option(expire, "seconds", type=lifetime)

    persist = _add_client(parsers, "persist", "let a key stay until it is deleted")
    _option(persist, "key", type=as_passed)


def _add_value(parser: Parser) -> None:
    _option(parser, "value", nargs="?")
    _option(parser, "--file", metavar="F")
    _option(parser, "--ttl", type=lifetime, metavar="SECONDS")
    _option(parser, "-q", "--quiet", action="store_true")


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
    _option(get, "key", type=as_passed)
    _option(get, "-o", "--output", metavar="FILE")
    _option(get, "-q", "--quiet", action="store_true")

    ttl = _add_client(parsers, "ttl", "print in how many seconds a key expires")
    ttl.epilog = 'It prints a number such as 59.972, or "never" if the key does not expire.'
    _option(ttl, "key", type=as_passed)

    keys = _add_client(parsers, "keys", "list keys, one on each line")
    keys.epilog = (
        "A pipe or a file gets the bytes of each key. A terminal gets a key that does not fit on "
        "one line, or would steer the terminal, as Python writes it."
    )
    _option(keys, "prefix", type=as_passed, nargs="?", default="")
    _option(keys, "-0", "--null", action="store_true")

    stats = _add_client(parsers, "stats", "show the counters of Global")
    _option(stats, "--json", action="store_true")


def _add_data(parsers: _Parsers) -> None:
    check = _add(parsers, "check", "look for damage in a data folder that no Global uses")
    check.epilog = (
        "All checksums of keys and values are compared, and all pages of the database. Each "
        "damaged key is on a line of standard output, and all else on standard error. The exit "
        "code is 0 if nothing is damaged, else 1. A backup can be checked, too."
    )
    _option(check, "data", type=data_folder)
    _option(check, "--json", action="store_true", help="print the result as one JSON object")
    _option(check, "-q", "--quiet", action="store_true")

    backup = _add(parsers, "backup", "copy a data folder, while its Global runs or not")
    backup.epilog = (
        "It runs on the machine that has the folder, as the user of Global. The backup is the "
        "state at one moment, and appears when it is complete. Large values are hard links if "
        "both folders are on one file system: then copy the backup to another disk."
    )
    _option(backup, "data", type=data_folder)
    _option(backup, "target", type=data_folder)
    _option(backup, "-q", "--quiet", action="store_true")

    restore = _add(parsers, "restore", "copy a backup to a new data folder")
    restore.epilog = (
        "The folder must not exist, or be empty. A Global that uses it answers nothing before the "
        "longest lease has passed that its original may have given."
    )
    _option(restore, "backup", type=data_folder)
    _option(restore, "data", type=data_folder, help="the folder to be made, or an empty one")
    _option(restore, "-q", "--quiet", action="store_true")


def _add_access(parsers: _Parsers) -> None:
    about = "say who may use a Global: keys, roles, revocation"
    group = _add(parsers, "access", about)
    group.set_defaults(command=None)  # without one of the following it prints its help
    group.epilog = (
        "These commands work on the files of a key folder. Run them on Global's machine, as the "
        "user of Global."
    )
    actions = group.add_subparsers(metavar="ACTION", parser_class=Parser)

    init = _add_action(actions, "access", "init", "make a key folder with a new server key")
    _option(init, "folder", metavar="DIR", type=data_folder, help="the key folder to be made")

    add = _add_keys(actions, "add", "add a client, and write its connect file")
    add.epilog = (
        "The connect file has the address, the public key of Global, and the secret key of the "
        "client, which is kept nowhere else. Without -o it goes to standard output. Nothing is "
        "added if it cannot be written."
    )
    _option(add, "name", metavar="NAME")
    _option(add, "--role", choices=ROLES, required=True)
    _option(add, "--prefix", type=as_passed, action="append", default=[])
    _option(
        add,
        "--address",
        type=some_addresses,
        required=True,
        help="the address at which the client reaches Global; of a cluster several may be given, "
        "with commas between them",
    )
    _option(add, "-o", "--output", metavar="FILE", help="write to this file, which must be new")
    _add_wait(add)

    list_ = _add_keys(actions, "list", "list the clients")
    _option(list_, "--json", action="store_true")

    revoke = _add_keys(actions, "revoke", "revoke a client, at every running Global")
    _option(revoke, "name", metavar="NAME")
    _add_wait(revoke)

    rotate = _add_keys(actions, "rotate", "change the server key, in two steps")
    _option(rotate, "--finish", action="store_true")
    _add_wait(rotate)

    update = _add_keys(actions, "update", "put the present server keys into a connect file")
    _option(update, "connect_file", metavar="FILE")


def _add_cluster(parsers: _Parsers) -> None:
    about = "prepare the database of a cluster of Globals, and see how it is"
    group = _add(parsers, "cluster", about)
    group.set_defaults(command=None)  # without one of the following it prints its help
    group.epilog = (
        "A password is better kept out of the URL, since other users of the machine may see the "
        "arguments of a command: libpq takes it from $PGPASSWORD, from ~/.pgpass, or from a "
        "service file (postgresql:///?service=NAME). All other variables of libpq count as well."
    )
    actions = group.add_subparsers(metavar="ACTION", parser_class=Parser)

    init = _add_database(actions, "init", "prepare a database for a cluster of Globals")
    init.epilog = (
        "Nothing is changed in a database that is prepared already, except that the tables of a "
        "former dstore are brought up to date; end all members before."
    )
    _option(init, "--no-standby", action="store_true")

    status = _add_database(actions, "status", "show members, partitions and the standby")
    _option(status, "--json", action="store_true")

    drain = _add_database(actions, "drain", "let a member hand over its partitions to the others")
    drain.epilog = (
        "It returns when the member owns nothing any more, and can be stopped. A Global that is "
        "started again is a new member."
    )
    _option(drain, "member", metavar="MEMBER")
    seconds = between(config.TIMEOUT_MIN, config.TIMEOUT_MAX, "seconds")
    _option(drain, "--wait", type=seconds, default=DRAIN_WAIT, metavar="SECONDS")


def _add_database(actions: _Parsers, name: str, about: str) -> Parser:
    parser = _add_action(actions, "cluster", name, about)
    _option(parser, "url", metavar="URL", type=database_url)
    return parser


def _add_action(actions: _Parsers, command: str, name: str, about: str) -> Parser:
    parser = _add(actions, name, about)
    parser.set_defaults(command=command, action=name)
    return parser


def _add_keys(actions: _Parsers, name: str, about: str) -> Parser:
    parser = _add_action(actions, "access", name, about)
    folder_help = "the key folder, which `dstore access init` makes"
    _option(parser, "--keys", metavar="DIR", type=data_folder, required=True, help=folder_help)
    return parser


def _add_wait(parser: Parser) -> None:
    seconds = between(config.TIMEOUT_MIN, config.TIMEOUT_MAX, "seconds")
    _option(
        parser,
        "--timeout",
        type=seconds,
        default=config.TIMEOUT_DEFAULT,
        metavar="SECONDS",
        help="how long to wait until the running Globals have confirmed (default: %(default)g)",
    )


# Types of arguments: each checks a text and converts it --------------------------------------


def address(text: str) -> str:
    """Return an address. ``tcp://`` may be left out, as it is where dstore prints an address."""
    return text if "://" in text else f"tcp://{text}"


def some_addresses(text: str) -> str:
    """Return one or several addresses, with commas between them; see :func:`address`."""
    return ",".join(map(address, _BETWEEN_ADDRESSES.split(text)))


def as_passed(text: str) -> str | bytes:
    """Return an argument as the shell passed it: text, or bytes that are not UTF-8.

    The bytes count, whatever the locale: what ``dstore keys`` has written is the same key again.
    """
    try:
        return text_or_bytes(os.fsencode(text))
    except UnicodeEncodeError:  # it did not come from a shell
        return text


def between(low: float, high: float, unit: str) -> Callable[[str], float]:
    """Return a converter for a number in a range."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ArgumentTypeError(f"{text!r} is not between {low:g} and {high:g} {unit}")
        return number

    return convert


def lifetime(text: str) -> float:
    """Return after how many seconds a key is to expire."""
    try:
        return console.lifetime(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def count(high: int) -> Callable[[str], int]:
    """Return a converter for a whole number from 1 to ``high``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or len(text) > DIGITS_MAX or not 1 <= int(text) <= high:
            raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {high:,}")
        return int(text)

    return convert


def folder(text: str) -> str:
    """Return a folder that exists, or "" for none."""
    if text and not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is not a folder")
    return text


def database_url(text: str) -> str:
    """Return the URL of a database. It is not shown, since it may have a password."""
    if not text.startswith(DATABASE_SCHEMES):
        raise ArgumentTypeError("the URL of a database begins with postgresql://")
    return text


def data_folder(text: str) -> str:
    """Return the path of a folder, which need not be there yet."""
    if not text:
        raise ArgumentTypeError("a folder has a name")
    return text


def between_sizes(low: int, high: int, such: str = "64K") -> Callable[[str], int]:
    """Return a converter for a number of bytes in a range, with K, M, G or T for powers of 1024."""
    between = "" if high == config.SIZE_MAX else f" between {low:,} and {high:,} bytes"

    def convert(text: str) -> int:
        match = _SIZE.fullmatch(text.strip())
        number = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match else 0
        if not low <= number <= high:  # it may be infinite
            raise ArgumentTypeError(f"{text!r} is not a size{between}, such as {such}")
        return int(number)

    return convert


def host_cache(text: str) -> int:
    """Return the size of a host cache; 0 stands for none."""
    low, high = config.HOST_CACHE_MIN, config.HOST_CACHE_MAX
    return 0 if text.strip() == "0" else between_sizes(low, high, "256M, or 0")(text)


size = between_sizes(1, config.SIZE_MAX, "512M or 4G")

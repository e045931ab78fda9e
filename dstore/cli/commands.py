"""The commands of the command line: each takes the parsed options and returns the exit code.

They raise what goes wrong; ``main`` turns that into one line.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from codecs import getincrementaldecoder
from collections.abc import Iterator

from dstore.cli import console, data, values
from dstore.cli.access import access
from dstore.cli.arguments import as_passed
from dstore.cli.cluster import cluster
from dstore.cli.progress import progress_bar
from dstore.cli.serve import own, serve
from dstore.cli.show import array_repr, is_array, shown, unreadable
from dstore.cli.tables import stats_lines
from dstore.client.node import Node
from dstore.errors import KeyMissing, UnknownCodec
from dstore.quoting import visible


def run(options: Namespace) -> int:
    """Carry out a parsed command line. Returns the exit code."""
    if options.command in SERVICES:
        return SERVICES[options.command](options)
    console.log_to_stderr(console.CLIENT_LINE, logging.WARNING)
    if options.command in PROGRAMS:
        return PROGRAMS[options.command](options)
    console.in_utf8(sys.stdout, "surrogateescape")
    with console.leaving_on_signals():
        return COMMANDS[options.command](options)


def repl(options: Namespace) -> int:
    from dstore.cli.repl import main  # here, since it needs the extra dstore[cli]

    if sys.stdin is None:
        raise ValueError(console.STDIN_CLOSED)
    return main(options.address, options.timeout, connect=options.connect)


def demo(options: Namespace) -> int:
    from dstore.cli.demo.story import main  # here, since it imports a lot

    return main(options.folder, options.workers, data=options.data)


SERVICES = {"global": serve, "host": own}
"""Commands that run until they are stopped, and log as servers do."""
PROGRAMS = {"repl": repl, "demo": demo}
"""Commands that handle signals themselves."""


# Commands that ask Global once and end ------------------------------------------------------


def set_(options: Namespace) -> int:
    large, value = _value(options)
    with _node(options) as node, progress_bar(quiet=options.quiet) as progress:
        if large:
            node.set_file(
                options.key, large, replace=options.replace, ttl=options.ttl, progress=progress
            )
        else:
            node.set(options.key, value, replace=options.replace, ttl=options.ttl)
    return console.EXIT_OK


def put(options: Namespace) -> int:
    large, value = _value(options)
    with _node(options) as node, progress_bar(quiet=options.quiet) as progress:
        if large:
            address = node.put_file(large, ttl=options.ttl, progress=progress)
        else:
            address = node.put(value, ttl=options.ttl)
    print(address)
    return console.EXIT_OK


def delete(options: Namespace) -> int:
    """Delete keys. Each one is tried, even if another one is missing."""
    with _node(options) as node:
        deleted = node.delete_many(options.keys, wait=not options.no_wait)
    missing = [key for key in options.keys if key not in deleted]
    for key in missing:
        console.complain(str(KeyMissing(key)))
    return console.EXIT_REFUSED if missing else console.EXIT_OK


def expire(options: Namespace) -> int:
    with _node(options) as node:
        node.expire(options.key, options.seconds)
    return console.EXIT_OK


def persist(options: Namespace) -> int:
    with _node(options) as node:
        node.persist(options.key)
    return console.EXIT_OK


def ttl(options: Namespace) -> int:
    with _node(options) as node:
        seconds = node.ttl(options.key)
    print("never" if seconds is None else f"{seconds:.3f}")
    return console.EXIT_OK


def get(options: Namespace) -> int:
    """Write a value, and nothing else, to standard output or a file."""
    to_file = options.output not in (None, "-")
    with _node(options) as node, progress_bar(quiet=options.quiet) as progress:
        if to_file:
            values.get_to_file(node, options.key, options.output, progress)
            return console.EXIT_OK
        if sys.stdout.isatty():
            sys.stdout.writelines(_for_people(node, options.key))
            return console.EXIT_OK
        data = values.as_bytes(node, options.key)
    sys.stdout.buffer.writelines(values.pieces(data))
    sys.stdout.buffer.flush()
    return console.EXIT_OK


def _for_people(node: Node, key: str | bytes) -> Iterator[str]:
    """Yield a value as a terminal shows it, piece by piece.

    Newlines and tabs stay, since nothing but the value is shown. What would steer a terminal, is
    invisible, or is not UTF-8 is escaped. Raises ValueError if only a program can read the value.
    """
    try:
        value = node.get(key)
    except UnknownCodec as error:
        raise ValueError(unreadable(error.codec, "-o FILE")) from None
    if is_array(value):
        yield f"{visible(array_repr(value), lines=True)}\n"
        return
    decoder = getincrementaldecoder("utf-8")("backslashreplace")
    for piece in values.pieces(values.written(value)):
        yield visible(decoder.decode(piece), lines=True)
    yield decoder.decode(b"", final=True)
    if not isinstance(value, (bytes, memoryview)):
        yield "\n"


def keys(options: Namespace) -> int:
    """List keys: a pipe gets their bytes, and a terminal gets each key on one line."""
    end = "\0" if options.null else "\n"
    at_terminal = sys.stdout.isatty()
    with _node(options) as node:
        for key in node.keys(options.prefix):
            if at_terminal:
                sys.stdout.write(shown(key) + end)
            else:
                raw = key.encode() if isinstance(key, str) else key
                sys.stdout.buffer.write(raw + end.encode())
    sys.stdout.flush()
    return console.EXIT_OK


def stats(options: Namespace) -> int:
    with _node(options) as node:
        counters, here = node.global_stats(), node.stats()
        others = max(0, node.host_processes() - 1)
    counters["host_processes"] = others  # without this one
    counters.update((name, here[name]) for name in ("compiled", "membership", "owner"))
    if options.json:
        print(json.dumps(counters, default=str))
        return console.EXIT_OK
    for line in stats_lines(counters):
        print(line)
    return console.EXIT_OK


def _node(options: Namespace) -> Node:
    node = Node(options.address, connect=options.connect, timeout=options.timeout)
    options.address = node.address  # which a connect file may have, for messages
    return node


def _value(options: Namespace) -> tuple[str | None, str | bytes | bytearray | None]:
    """Return a file that is so large that the Node reads it itself, or else the value.

    The value is the text of the command line, or the bytes of a file or of standard input.
    """
    if options.value is not None and options.file is not None:
        raise ValueError("give either a value or --file, not both")
    if options.file not in (None, "-"):
        if values.is_large_file(options.file):
            return options.file, None
        with open(options.file, "rb") as file:
            return None, values.read_all(file, options.file)
    if options.file is None and options.value not in (None, "-"):
        return None, as_passed(options.value)
    if sys.stdin is None:
        raise ValueError(console.STDIN_CLOSED)
    return None, values.read_all(sys.stdin.buffer, "standard input")


COMMANDS = {
    "set": set_,
    "put": put,
    "del": delete,
    "expire": expire,
    "persist": persist,
    "get": get,
    "ttl": ttl,
    "keys": keys,
    "stats": stats,
    "check": data.check,
    "backup": data.make_backup,
    "restore": data.restore_backup,
    "access": access,
    "cluster": cluster,
}

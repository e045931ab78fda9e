"""The commands that ask Global once and leave: set, put, del, get, keys, stats.

Each returns its exit code and raises what goes wrong; ``main`` turns that into a line.
"""

from __future__ import annotations

import base64
import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dstore import config, console
from dstore.cli.arguments import STDIN_CLOSED, as_passed
from dstore.node import Node


def set_(options: Namespace) -> int:
    """Bind a value to a key."""
    value = _value(options)
    with _node(options) as node:
        node.set(options.key, value, replace=options.replace)
    return console.EXIT_OK


def put(options: Namespace) -> int:
    """Store a value under its content address and print that."""
    value = _value(options)
    with _node(options) as node:
        print(node.put(value))
    return console.EXIT_OK


def delete(options: Namespace) -> int:
    """Delete keys; every one is tried, whether or not another is missing."""
    with _node(options) as node:
        deleted = node.delete_many(options.keys, wait=not options.no_wait)
    missing = [key for key in options.keys if key not in deleted]
    for key in missing:
        console.complain(f"no value is bound to {key!r}")
    return console.EXIT_REFUSED if missing else console.EXIT_OK


def get(options: Namespace) -> int:
    """Write a value, and nothing else, to standard output or a file."""
    with _node(options) as node:
        value = node.get(options.key)
    data = written(value)
    if options.output not in (None, "-"):
        Path(options.output).write_bytes(data)
        return console.EXIT_OK
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() and not isinstance(value, bytes):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return console.EXIT_OK


def keys(options: Namespace) -> int:
    """List keys as the bytes that they are."""
    end = b"\0" if options.null else b"\n"
    with _node(options) as node:
        for key in node.keys(options.prefix):
            sys.stdout.buffer.write((key.encode() if isinstance(key, str) else key) + end)
    sys.stdout.buffer.flush()
    return console.EXIT_OK


def stats(options: Namespace) -> int:
    """Show what Global counts."""
    with _node(options) as node:
        counters = node.global_stats()
    if options.json:
        print(json.dumps(counters, default=str))
        return console.EXIT_OK
    for line in console.counter_lines(counters):
        print(line)
    return console.EXIT_OK


# Values in and out --------------------------------------------------------------------------


def _node(options: Namespace) -> Node:
    with console.signals_stay_here():
        return Node(options.address, timeout=options.timeout)


def _value(options: Namespace) -> str | bytes:
    """The value that the command line names: its own text, or the bytes of a file or of stdin."""
    if options.value is not None and options.file is not None:
        raise ValueError("give either a value or --file, not both")
    if options.file not in (None, "-"):
        with open(options.file, "rb") as file:
            return _read(file, options.file)
    if options.file is None and options.value not in (None, "-"):
        return as_passed(options.value)
    if sys.stdin is None:
        raise ValueError(STDIN_CLOSED)
    return _read(sys.stdin.buffer, "standard input")


def _read(file: BinaryIO, name: str) -> bytes:
    data = file.read(config.VALUE_BYTES_MAX + 1)
    if len(data) > config.VALUE_BYTES_MAX:
        raise ValueError(
            f"{name} has more than the {config.VALUE_BYTES_MAX:,} bytes that one value may have"
        )
    return data


def written(value: object) -> bytes:
    """A value as bytes: bytes and text as they are, everything else as JSON.

    JSON has no bytes, so bytes within a list or a dict become Base64 text; keys of a dict that
    are neither text nor numbers become text too.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(_plain(value), ensure_ascii=False).encode()


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    return value


def _plain_key(key: object) -> Any:
    plain = _plain(key)
    return json.dumps(plain) if isinstance(plain, (list, dict)) else plain

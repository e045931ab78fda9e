"""What Tab offers at the REPL: commands, keys, and the paths of files, as they have to be typed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dstore.cli.console import text_or_bytes
from dstore.cli.repl.text import (
    BLANKS,
    BYTES,
    BYTES_QUOTES,
    COMMAND_OF,
    COMMANDS,
    QUOTES,
    USAGES,
    as_typed,
    escaped,
    unescaped,
)
from dstore.quoting import is_plain

_TAKES_KEY = ("set", "get", "del", "keys", "setfile", "getfile")
_TAKES_PATH_TOO = ("setfile", "getfile")
_WHOLE_KEY = re.compile(
    rf"""({BYTES.pattern}|"[^"]*"|'[^']*'|(?!b["'])[^{BLANKS}"'][^{BLANKS}]*)[{BLANKS}]+""",
    re.DOTALL,
)
"""A key with the blanks after it: what comes next is not of it."""
_BEGUN_BYTES = re.compile(
    r"""((?:\\[nrt\\'"]|\\x[0-9a-fA-F]{2}|[^\\])*)(?:\\|\\x|\\x[0-9a-fA-F])?""", re.DOTALL
)
"""What may follow ``b'``: whole characters and escapes, then perhaps the beginning of an escape."""
_ESCAPED_CHARACTER = re.compile(r"\\.", re.DOTALL)

Find = Callable[[Any], Iterable["str | bytes"]]
"""Finds what begins with a text: keys, or the paths of files, where folders end with a slash."""


class Completed(NamedTuple):
    """What Tab offers: replacements for everything typed from ``start`` on."""

    start: int
    texts: list[str]


def complete(typed: str, keys: Find, paths: Find) -> Completed:
    """What Tab offers after the typed part of a line; ``keys`` and ``paths`` find what there is."""
    line = typed.lstrip()
    word, space, _ = line.partition(" ")
    if not space:
        return Completed(len(typed) - len(word), list(_command_words(word)))
    command = COMMAND_OF.get(word.upper())
    argument = line[len(word) :].lstrip()
    if command == "help":
        texts = [text.strip() for text in _command_words(argument)]
    elif command == "putfile":
        texts = list(_path_words(argument, paths))
    elif command in _TAKES_PATH_TOO and (key := _WHOLE_KEY.match(argument)):
        argument = argument[key.end() :]
        texts = list(_path_words(argument, paths))
    elif command in _TAKES_KEY:
        after = " " if command == "set" or command in _TAKES_PATH_TOO else ""
        texts = [text + after for text in _key_words(argument, keys)]
    else:
        texts = []
    return Completed(len(typed) - len(argument), texts)


def _command_words(begun: str) -> Iterator[str]:
    for word, command in COMMANDS.items():
        if word.upper().startswith(begun.upper()):
            after = " " if " " in USAGES[command].line else ""
            yield (word.lower() if begun.islower() else word) + after


def _key_words(begun: str, keys: Find) -> Iterator[str]:
    quote, prefix = _begun(begun)
    if prefix is not None:
        for key in keys(prefix):
            text = _typeable(key, quote)
            if text is not None and _goes_on(text, begun, quote):
                yield text


def _path_words(begun: str, paths: Find) -> Iterator[str]:
    quote, prefix = _begun(begun)
    if prefix is not None:
        found = (text_or_bytes(os.fsencode(path)) for path in paths(prefix))
        for path in sorted(found, key=os.fsencode):
            text = _typeable(path, quote)
            if text is not None and _goes_on(text, begun, quote):
                open_ended = text[-2:-1] == "/" and text[-1] in QUOTES
                yield text[:-1] if open_ended else text  # in a folder one goes on


def _begun(word: str) -> tuple[str, str | bytes | None]:
    """The quote that a word begins with, and the rest; None if the word has ended before."""
    if word.startswith(BYTES_QUOTES):
        quote = word[:2]
        whole = _BEGUN_BYTES.fullmatch(word[2:])
        if whole is None or quote[1] in _ESCAPED_CHARACTER.sub("", whole[1]):
            return quote, None
        return quote, unescaped(whole[1])
    quote = word[:1] if word[:1] in QUOTES else ""
    prefix = word[len(quote) :]
    ended = quote in prefix if quote else any(blank in prefix for blank in BLANKS)
    return quote, None if ended else as_typed(prefix)


def _goes_on(text: str, begun: str, quote: str) -> bool:
    """Whether this is what was begun; in bytes half of an escape may have been typed."""
    return quote not in BYTES_QUOTES or text.startswith(begun)


def _typeable(key: str | bytes, quote: str) -> str | None:
    """The key as it has to be typed after this quote, or none; None if it cannot be."""
    if quote in BYTES_QUOTES:
        return escaped(key, quote)
    if isinstance(key, bytes) or not is_plain(key):
        return None if quote else escaped(key)
    odd = re.search(r"\s", key) or key.startswith((*QUOTES, *BYTES_QUOTES))
    if not quote and not odd:
        return key
    for mark in (quote,) if quote else ('"', "'"):
        if mark not in key:
            return f"{mark}{key}{mark}"
    return None if quote else escaped(key)

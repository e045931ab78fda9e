"""What Tab offers at the REPL: commands, keys, and the paths of files, as they have to be typed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dstore.quoting import is_plain
from dstore.repl.text import BLANKS, COMMAND_OF, COMMANDS, QUOTES, USAGES

_TAKES_KEY = ("set", "get", "del", "keys", "setfile", "getfile")
_TAKES_PATH_TOO = ("setfile", "getfile")
_WHOLE_KEY = re.compile(rf"""("[^"]*"|'[^']*'|[^{BLANKS}"'][^{BLANKS}]*)[{BLANKS}]+""")
"""A key with the blanks after it: what comes next is not of it."""

Find = Callable[[str], Iterable["str | bytes"]]
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
            if text is not None:
                yield text


def _path_words(begun: str, paths: Find) -> Iterator[str]:
    quote, prefix = _begun(begun)
    if prefix is not None:
        for path in sorted(map(os.fsdecode, paths(prefix))):
            text = _typeable(path, quote)
            if text is not None:
                open_ended = path.endswith("/") and text[0] in QUOTES
                yield text[:-1] if open_ended else text  # in a folder one goes on


def _begun(word: str) -> tuple[str, str | None]:
    """The quote that a word begins with, and the rest; None if the word has ended before."""
    quote = word[:1] if word[:1] in QUOTES else ""
    prefix = word[len(quote) :]
    ended = quote in prefix if quote else any(blank in prefix for blank in BLANKS)
    return quote, None if ended else prefix


def _typeable(key: str | bytes, quote: str) -> str | None:
    """The key as it has to be typed; None if no line can hold it."""
    if isinstance(key, bytes) or not is_plain(key):
        return None
    if not quote and not re.search(r"\s", key) and key[:1] not in QUOTES:
        return key
    for mark in (quote,) if quote else ('"', "'"):
        if mark not in key:
            return f"{mark}{key}{mark}"
    return None

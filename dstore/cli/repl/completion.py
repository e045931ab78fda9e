"""Completions for Tab at the REPL: commands, keys, and paths of files, as they are typed."""

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
"""A complete key with the blanks after it."""
_BEGUN_BYTES = re.compile(
    r"""((?:\\[nrt\\'"]|\\x[0-9a-fA-F]{2}|[^\\])*)(?:\\|\\x|\\x[0-9a-fA-F])?""", re.DOTALL
)
"""What may follow ``b'``: complete characters and escapes, and perhaps a begun escape."""
_ESCAPED_CHARACTER = re.compile(r"\\.", re.DOTALL)

Find = Callable[[Any], Iterable["str | bytes"]]
"""A function that finds what begins with a text: keys or paths; folders end with a slash."""


class Completed(NamedTuple):
    """Completions: replacements for everything that was typed from ``start`` on."""

    start: int
    texts: list[str]


def complete(typed: str, keys: Find, paths: Find) -> Completed:
    """Return the completions of the typed part of a line."""
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
                yield text[:-1] if open_ended else text  # a path goes on in a folder


def _begun(word: str) -> tuple[str, str | bytes | None]:
    """Return the quote at the start of a word, and the rest, or None if the word is complete."""
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
    """Return whether a text goes on from what was typed, which may end in half an escape."""
    return quote not in BYTES_QUOTES or text.startswith(begun)


def _typeable(key: str | bytes, quote: str) -> str | None:
    """Return a key as it is typed after a quote (may be empty), or None if that is impossible."""
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

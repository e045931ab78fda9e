"""Completions for Tab at the REPL: commands, keys, and paths of files, as they are typed."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import re
import threading
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
from dstore.runtime.native import signals_blocked

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
    takes = USAGES[command].line.split()[1:] if command else []
    argument = line[len(word) :].lstrip()
    if "path" in takes[1:] and (key := _WHOLE_KEY.match(argument)):
        argument = argument[key.end() :]
        del takes[0]
    texts: list[str] = []
    if takes == ["[command]"]:
        texts = [text.strip() for text in _command_words(argument)]
    elif takes == ["path"]:
        texts = list(_path_words(argument, paths))
    elif takes[:1] in (["key"], ["[prefix]"]):
        after = " " if takes[1:] else ""
        texts = [text + after for text in _words(argument, keys)]
    return Completed(len(typed) - len(argument), texts)


def _command_words(begun: str) -> Iterator[str]:
    for word, command in COMMANDS.items():
        if word.upper().startswith(begun.upper()):
            after = " " if " " in USAGES[command].line else ""
            yield (word.lower() if begun.islower() else word) + after


def _words(begun: str, find: Find) -> Iterator[str]:
    quote, prefix = _begun(begun)
    for key in () if prefix is None else find(prefix):
        text = _typeable(key, quote)
        # What was typed may end in half an escape, which the prefix does not have.
        if text is not None and (quote not in BYTES_QUOTES or text.startswith(begun)):
            yield text


def _path_words(begun: str, find: Find) -> Iterator[str]:
    def paths(prefix: str | bytes) -> list[str | bytes]:
        return sorted((text_or_bytes(os.fsencode(path)) for path in find(prefix)), key=os.fsencode)

    for text in _words(begun, paths):
        in_folder = text[-2:-1] == "/" and text[-1] in QUOTES
        yield text[:-1] if in_folder else text  # a path goes on in a folder


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


# Finding keys and paths ---------------------------------------------------------------------


class KeyFinder:
    """Looks for keys, or for paths, so that a person who has pressed Tab never waits long.

    A thread asks, since a Node may take as long as its timeout, and a network file system any
    time. One question is under way at a time; until it is answered, others find nothing.
    """

    def __init__(self, keys: Find, limit: int, wait: float) -> None:
        self._keys = keys
        self._limit = limit
        self._wait = wait
        self._busy = threading.Lock()

    def find(self, prefix: str | bytes) -> list[str | bytes]:
        """Return at most ``limit`` keys with a prefix, or none after ``wait`` seconds."""
        if not self._busy.acquire(blocking=False):
            return []
        answer: queue.SimpleQueue[list[str | bytes]] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._ask, args=(prefix, answer), name="dstore-tab", daemon=True
        )
        try:
            with signals_blocked():
                thread.start()
        except RuntimeError:  # the system allows no more threads
            self._busy.release()
            return []
        try:
            return answer.get(timeout=self._wait)
        except queue.Empty:
            return []

    def _ask(self, prefix: str | bytes, answer: queue.SimpleQueue[list[str | bytes]]) -> None:
        found: list[str | bytes] = []
        with contextlib.suppress(Exception):  # Tab reports no errors
            found.extend(itertools.islice(self._keys(prefix), self._limit))
        answer.put(found)
        self._busy.release()


def find_paths(begun: str | bytes) -> Iterator[str]:
    """Yield the paths that begin like this, in any order; folders end with a slash.

    ``~`` stays as it was typed. Hidden files are included if the dot was typed. Raises OSError.
    """
    begun = os.fsdecode(begun.encode() if isinstance(begun, str) else begun)
    if begun == "~":
        yield "~/"
        return
    folder, slash, name = begun.rpartition("/")
    with os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not name.startswith(".")
            if entry.name.startswith(name) and not hidden:
                yield folder + slash + entry.name + ("/" if entry.is_dir() else "")

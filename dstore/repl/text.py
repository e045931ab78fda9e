"""What the REPL reads and writes, as plain functions: no terminal, no Node.

How a line is read. The first word is the command, in any case. What follows is the key, then the
value, which is the rest of the line as it stands: ``>``, ``|``, ``;``, ``#``, ``?`` and the
backslash mean themselves.

- A key ends at the first space. A key with spaces goes in quotes, single or double.
- Spaces around a value are dropped. A value that is one quoted whole (it begins and ends with the
  same quote, which does not occur in between) loses these quotes, so ``"  a "`` keeps its spaces
  and ``""`` is the empty text. In every other value quotes are ordinary characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dstore.console import one_line
from dstore.errors import KeyMissing, KeyOccupied

MISSING = "Key-Value mapping doesn't exist"
UPDATED = "Database updated"
QUOTES = ("'", '"')
BLANKS = " \t"

_WORD = re.compile(rf"[{BLANKS}]*([^{BLANKS}]*)[{BLANKS}]*(.*?)[{BLANKS}]*", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that would break a line in two or steer the terminal."""


class Usage(NamedTuple):
    """How one command is typed, what it does, lines that show it, and what else to know."""

    line: str
    about: str
    examples: tuple[str, ...]
    rule: str = ""


USAGES = {
    "set": Usage(
        "SET key value",
        "bind a value to a new key (PUT is the same)",
        ("SET greeting good morning to all", 'SET "a key with spaces" 42', 'SET blank ""'),
        "The value is the rest of the line. Quotes around all of it keep spaces at its ends.",
    ),
    "get": Usage(
        "GET key",
        "show a value, and who answered (OUT is the same)",
        ("GET greeting", 'GET "a key with spaces"'),
    ),
    "del": Usage(
        "DEL key",
        "delete a key, in every Local too (REM is the same)",
        ("DEL greeting", 'DEL "a key with spaces"'),
    ),
    "add": Usage(
        "ADD value",
        "bind a value to its own BLAKE3 hash, and print that key",
        ("ADD the same value always gets the same key",),
    ),
    "keys": Usage("KEYS [prefix]", "list the keys that begin with a prefix", ("KEYS", "KEYS gr")),
    "stats": Usage("STATS", "show the counters of this Local and of Global", ("STATS",)),
    "help": Usage("HELP [command]", "show this list, or more about one command", ("HELP SET",)),
    "exit": Usage(".exit", "leave (Ctrl-D does the same)", (".exit",)),
}

COMMANDS = {
    "SET": "set",
    "PUT": "set",
    "GET": "get",
    "OUT": "get",
    "DEL": "del",
    "REM": "del",
    "ADD": "add",
    "KEYS": "keys",
    "STATS": "stats",
    "HELP": "help",
    ".exit": "exit",
}
"""Every word that a line may begin with, as it is shown, and the command that it means."""

_BY_WORD = {word.upper(): command for word, command in COMMANDS.items()}
_TAKES_KEY = ("set", "get", "del", "keys")
_WRITES = ("set", "del", "add")
ASKS_GLOBAL = ("set", "get", "del", "add", "keys", "stats")


class Misuse(Exception):
    """The line is not what its command expects. The message is the one line of help."""

    def __init__(self, command: str, why: str = "") -> None:
        usage = f"Usage: {USAGES[command].line}"
        super().__init__(f"{usage}   ({why or f'HELP {command.upper()} says more'})")


# Reading ------------------------------------------------------------------------------------


def split_word(text: str) -> tuple[str, str]:
    """The first word, and what follows it without the blanks around it."""
    word, rest = _WORD.fullmatch(text).groups()  # type: ignore[union-attr]  # it always matches
    return word, rest


def split_command(line: str) -> tuple[str, str]:
    """The command that a line means ("" for a blank line, "unknown") and what follows it."""
    word, rest = split_word(line)
    if not word:
        return "", ""
    command = _BY_WORD.get(word.upper())
    return (command, rest) if command else ("unknown", line)


def split_key(text: str, command: str) -> tuple[str, str]:
    """The key at the start of the arguments of a command, and what follows it."""
    quote = text[:1]
    if quote not in QUOTES:
        return split_word(text)
    key, closed, rest = text[1:].partition(quote)
    if not closed or rest[:1].strip(BLANKS):
        raise Misuse(command, "a key that begins with a quote ends with the same quote")
    return key, rest.strip(BLANKS)


def only_key(text: str, command: str) -> str:
    """The key of a command that takes nothing else."""
    if not text:
        raise Misuse(command)
    key, rest = split_key(text, command)
    if rest:
        raise Misuse(command)
    return key


def unquoted(value: str) -> str:
    """The value without its quotes, if one pair of them holds the whole of it."""
    quote = value[:1]
    if len(value) >= 2 and quote in QUOTES and value.find(quote, 1) == len(value) - 1:
        return value[1:-1]
    return value


# Writing ------------------------------------------------------------------------------------


def shown(item: Any) -> str:
    """A key or a value on one line: text as it is, everything else as Python would write it.

    Text that would break the line or steer the terminal is written as Python would, too.
    """
    if isinstance(item, str) and not _CONTROL.search(item):
        return item
    return repr(item)


def reply_found(key: str, value: Any, *, from_local: bool, cached: bool) -> str:
    """The reply to a GET that found a value."""
    if from_local:
        return f"db: {shown(key)} -> {shown(value)}"
    updating = "     (Updating Local)" if cached else ""
    return f"global: {shown(key)} -> {shown(value)}{updating}"


def reply_deleted(confirmed: int, expired: int) -> str:
    """The reply to a DEL: how many Locals said that they dropped the key, how many ran out."""
    if not confirmed and not expired:
        return "Key deleted (no Local held it)"
    locals_ = "1 Local" if confirmed == 1 else f"{confirmed} Locals"
    late = f", {expired} expired" if expired else ""
    return f"Key deleted (confirmed by {locals_}{late})"


def reply_refused(error: Exception) -> str:
    """The reply to a command that failed."""
    if isinstance(error, KeyMissing):
        return MISSING
    if isinstance(error, KeyOccupied):
        return "(Updated local) Key occupied!" if error.updated else "Key occupied!"
    return f"Error: {one_line(error)}"


def reply_interrupted(command: str) -> str:
    """The reply to a command that Ctrl-C cut short."""
    in_doubt = ": the write may or may not have happened" if command in _WRITES else ""
    return f"Interrupted{in_doubt}"


def help_lines(topic: str) -> Iterator[str]:
    """HELP: the whole list, or more about the one command whose name is given."""
    command = _BY_WORD.get(topic.upper(), _BY_WORD.get(f".{topic.upper()}"))
    if topic and command is None:
        yield f"No command is called {shown(topic)}. HELP lists them all."
        return
    if command:
        usage = USAGES[command]
        yield f"{usage.line}   {usage.about}"
        if usage.rule:
            yield usage.rule
        yield from (f"    {example}" for example in usage.examples)
        return
    for usage in USAGES.values():
        yield f"  {usage.line:<15} {usage.about}"
    yield "Commands may be typed in any case; Tab completes commands and keys. Examples:"
    for name in ("set", "get", "add"):
        yield from (f"    {example}" for example in USAGES[name].examples)


# Completing ---------------------------------------------------------------------------------


class Completed(NamedTuple):
    """What Tab offers: replacements for everything typed from ``start`` on."""

    start: int
    texts: list[str]


def complete(typed: str, keys: Callable[[str], Iterable[str | bytes]]) -> Completed:
    """What Tab offers after the typed part of a line; ``keys`` lists keys by their prefix."""
    line = typed.lstrip()
    word, space, _ = line.partition(" ")
    if not space:
        return Completed(len(typed) - len(word), list(_command_words(word)))
    command = _BY_WORD.get(word.upper())
    argument = line[len(word) :].lstrip()
    start = len(typed) - len(argument)
    if command == "help":
        return Completed(start, [text.strip() for text in _command_words(argument)])
    if command not in _TAKES_KEY:
        return Completed(start, [])
    after = " " if command == "set" else ""
    return Completed(start, [text + after for text in _key_words(argument, keys)])


def _command_words(begun: str) -> Iterator[str]:
    for word, command in COMMANDS.items():
        if word.upper().startswith(begun.upper()):
            after = " " if " " in USAGES[command].line else ""
            yield (word.lower() if begun.islower() else word) + after


def _key_words(begun: str, keys: Callable[[str], Iterable[str | bytes]]) -> Iterator[str]:
    quote = begun[:1] if begun[:1] in QUOTES else ""
    prefix = begun[len(quote) :]
    if quote in prefix if quote else " " in prefix:
        return  # the key is complete, and nothing after it is a key
    for key in keys(prefix):
        text = _typeable(key, quote)
        if text is not None:
            yield text


def _typeable(key: str | bytes, quote: str) -> str | None:
    """The key as it has to be typed; None if no line can hold it."""
    if isinstance(key, bytes) or _CONTROL.search(key):
        return None
    if not quote and not re.search(r"\s", key) and key[:1] not in QUOTES:
        return key
    for mark in (quote,) if quote else ('"', "'"):
        if mark not in key:
            return f"{mark}{key}{mark}"
    return None

r"""The text that the REPL reads and writes, as plain functions without a terminal or a Node.

How a line is read: the first word is the command, in any case. What follows is the key, then the
value, which is the rest of the line as it stands: ``>``, ``|``, ``;``, ``#``, ``?`` and the
backslash mean themselves.

- A key ends at the first space. A key with spaces goes in quotes, single or double.
- Any key can be written as Python writes bytes: ``b'\xff a\n'``. Only there the backslash begins
  an escape: ``\xff``, ``\n``, ``\r``, ``\t``; ``\\``, ``\'`` and ``\"`` mean the character itself.
  Other characters stand for their UTF-8. Keys that would break a line are shown like this.
- Spaces around a value are dropped. A value that is one quoted whole (it begins and ends with the
  same quote, which does not occur in between) loses these quotes, so ``"  a "`` keeps its spaces
  and ``""`` is the empty text. In every other value quotes are ordinary characters.
- A path is typed like a key: with spaces it goes in quotes. ``~`` is the home folder in both.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from dstore.cli.console import lifetime, said, text_or_bytes
from dstore.cli.show import shown, unreadable
from dstore.errors import KeyMissing, KeyOccupied, UnknownCodec
from dstore.quoting import is_plain

MISSING = "Key-Value mapping doesn't exist"
UPDATED = "Database updated"
QUOTES = ("'", '"')
BYTES_QUOTES = ("b'", 'b"')
BLANKS = " \t"
ABOUT_FROM = 20
"""The column of the list of HELP at which the explanations begin."""

KEY_RULE = "A key with spaces goes in quotes; any bytes can be a key, written as b'\\xff\\n'."
ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", "'": "\\'", '"': '\\"'}
"""Characters that have a short escape in a key that is written as bytes."""
_UNESCAPED = {escape[1:]: character for character, escape in ESCAPED.items()}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
BYTES = re.compile(
    r"""b(?P<quote>["'])(?P<written>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)""", re.DOTALL
)
"""A key that is written as bytes."""
_WORD = re.compile(rf"[{BLANKS}]*([^{BLANKS}]*)[{BLANKS}]*(.*?)[{BLANKS}]*", re.DOTALL)


class Usage(NamedTuple):
    """How one command is typed, and what HELP says about it."""

    line: str
    about: str
    examples: tuple[str, ...]
    rule: str = ""
    also: str = ""
    """Another word for the same command."""
    writes: bool = False
    asks: bool = True
    """Whether the command asks Global."""


USAGES = {
    "set": Usage(
        "SET key value",
        "bind a value to a new key (PUT is the same)",
        ("SET greeting good morning to all", 'SET "a key with spaces" 42', 'SET blank ""'),
        "The value is the rest of the line. Quotes around all of it keep spaces at its ends.",
        writes=True,
        also="PUT",
    ),
    "get": Usage(
        "GET key",
        "show a value, and who answered (OUT is the same)",
        ("GET greeting", 'GET "a key with spaces"', "GET b'\\xff\\x00'"),
        KEY_RULE,
        also="OUT",
    ),
    "del": Usage(
        "DEL key",
        "delete a key, in every Local too (REM is the same)",
        ("DEL greeting", 'DEL "a key with spaces"'),
        writes=True,
        also="REM",
    ),
    "expire": Usage(
        "EXPIRE key seconds",
        "let a key expire that many seconds from now",
        ("EXPIRE greeting 60", 'EXPIRE "a key with spaces" 0.5'),
        "An expiry is a deletion that Global begins by itself. PERSIST prevents it.",
        writes=True,
    ),
    "ttl": Usage("TTL key", "show in how many seconds a key expires", ("TTL greeting",)),
    "persist": Usage(
        "PERSIST key",
        "let a key stay until it is deleted",
        ("PERSIST greeting",),
        writes=True,
    ),
    "add": Usage(
        "ADD value",
        "bind a value to its own BLAKE3 hash, and print that key",
        ("ADD the same value always gets the same key",),
        writes=True,
    ),
    "setfile": Usage(
        "SETFILE key path",
        "bind the bytes of a file to a new key",
        ("SETFILE logo ~/pictures/logo.png", 'SETFILE "the logo" "my pictures/logo.png"'),
        "A path with spaces goes in quotes, as a key does. ~ is your home folder.",
        writes=True,
    ),
    "putfile": Usage(
        "PUTFILE path",
        "bind the bytes of a file to their BLAKE3 hash, and print that key",
        ("PUTFILE ~/pictures/logo.png",),
        writes=True,
    ),
    "getfile": Usage(
        "GETFILE key path",
        "write a value to a file",
        ("GETFILE logo ~/copy.png", 'GETFILE "the logo" "my copy.png"'),
        "Bytes and text are written as they are, arrays as .npy files, other values as JSON.",
    ),
    "keys": Usage(
        "KEYS [prefix]",
        "list the keys that begin with a prefix",
        ("KEYS", "KEYS gr", "KEYS b'\\xff'"),
        "They are in the order of their bytes, each as it can be typed.",
    ),
    "stats": Usage("STATS", "show the counters of this Local and of Global", ("STATS",)),
    "help": Usage(
        "HELP [command]",
        "show this list, or more about one command",
        ("HELP SET",),
        asks=False,
    ),
    "exit": Usage(".exit", "leave (Ctrl-D does the same)", (".exit",), asks=False),
}
COMMANDS = {
    word: command
    for command, usage in USAGES.items()
    for word in (usage.line.split()[0], *usage.also.split())
}
"""Every word that a line may begin with, as it is shown, and the command that it means."""
COMMAND_OF = {word.upper(): command for word, command in COMMANDS.items()}


class Misuse(Exception):
    """A line does not have the form that its command expects. The message says why, or is empty."""


# Reading ------------------------------------------------------------------------------------


def split_word(text: str) -> tuple[str, str]:
    """Return the first word, and what follows it without the blanks around it."""
    word, rest = _WORD.fullmatch(text).groups()  # type: ignore[union-attr]  # it always matches
    return word, rest


def split_command(line: str) -> tuple[str, str]:
    """Return the command of a line ("" for a blank line, or "unknown") and what follows it."""
    word, rest = split_word(line)
    command = COMMAND_OF.get(word.upper(), "unknown") if word else ""
    return command, line if command == "unknown" else rest


def split_key(text: str) -> tuple[str | bytes, str]:
    """Return the key at the start of the arguments of a command, and what follows it."""
    if text.startswith(BYTES_QUOTES):
        return _split_bytes(text)
    quote = text[:1]
    if quote not in QUOTES:
        word, rest = split_word(text)
        return as_typed(word), rest
    key, closed, rest = text[1:].partition(quote)
    if not closed or rest[:1].strip(BLANKS):
        raise Misuse("a key that begins with a quote ends with the same quote")
    return as_typed(key), rest.strip(BLANKS)


def _split_bytes(text: str) -> tuple[str | bytes, str]:
    match = BYTES.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or rest[:1].strip(BLANKS):
        raise Misuse(
            f"a key that begins with {text[:2]} ends with the same quote; or quote all of it"
        )
    try:
        return text_or_bytes(unescaped(match["written"])), rest.strip(BLANKS)
    except ValueError as error:
        raise Misuse(str(error)) from None


def unescaped(text: str) -> bytes:
    """Return the bytes that are written between ``b'`` and the closing quote.

    Raises ValueError for an unknown escape.
    """

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 3:
            return bytes.fromhex(code[1:]).decode("ascii", "surrogateescape")
        if code not in _UNESCAPED:
            raise ValueError(
                f"there is no escape \\{code}; use \\xff, {', '.join(ESCAPED.values())}"
            )
        return _UNESCAPED[code]

    return _ESCAPE.sub(character, text).encode("utf-8", "surrogateescape")


def escaped(key: str | bytes, quote: str = "b'") -> str:
    """Return a key as :func:`unescaped` reads it, between ``quote`` and the closing quote."""
    text = key if isinstance(key, str) else key.decode("utf-8", "surrogateescape")

    def escape(character: str) -> str:
        raw = character.encode("utf-8", "surrogateescape")
        return ESCAPED.get(character) or "".join(f"\\x{byte:02x}" for byte in raw)

    odd = f"\\\t{quote[1]}"
    written = (escape(each) if each in odd or not is_plain(each) else each for each in text)
    return f"{quote}{''.join(written)}{quote[1]}"


def as_typed(text: str) -> str | bytes:
    """Return what was typed, or came through a pipe: text, or bytes that are not UTF-8."""
    return text_or_bytes(text.encode("utf-8", "surrogateescape"))


def only_key(text: str) -> str | bytes:
    key, rest = split_key(text)
    if not text or rest:
        raise Misuse
    return key


def only_path(text: str) -> str:
    path = only_key(text)
    if not path:
        raise Misuse
    raw = path.encode() if isinstance(path, str) else path
    return os.path.expanduser(os.fsdecode(raw))  # the bytes count, whatever the locale


def key_and_path(text: str) -> tuple[str | bytes, str]:
    key, rest = split_key(text)
    return key, only_path(rest)


def key_and_seconds(text: str) -> tuple[str | bytes, float]:
    key, rest = split_key(text)
    if not rest:
        raise Misuse
    try:
        return key, lifetime(rest)
    except ValueError as error:
        raise Misuse(str(error)) from None


def value_of(text: str) -> str | bytes:
    """Return the value that the rest of a line stands for, without quotes around all of it."""
    quote = text[:1]
    if len(text) >= 2 and quote in QUOTES and text.find(quote, 1) == len(text) - 1:
        text = text[1:-1]
    return as_typed(text)


# Writing ------------------------------------------------------------------------------------


def shown_key(key: str | bytes) -> str:
    """Return a key on one line, as it can be typed, but without quotes around spaces."""
    if isinstance(key, bytes) or not is_plain(key) or key.startswith(BYTES_QUOTES):
        return escaped(key)
    return key


def reply_found(key: str | bytes, value: Any, *, from_local: bool, cached: bool) -> str:
    if from_local:
        return f"db: {shown_key(key)} -> {shown(value)}"
    updating = "     (Updating Local)" if cached else ""
    return f"global: {shown_key(key)} -> {shown(value)}{updating}"


def reply_deleted(confirmed: int, expired: int) -> str:
    """Return the reply to a DEL: how many Locals confirmed it, and how many leases expired."""
    if not confirmed and not expired:
        return "Key deleted (no Local held it)"
    locals_ = "1 Local" if confirmed == 1 else f"{confirmed} Locals"
    late = f", {expired} expired" if expired else ""
    return f"Key deleted (confirmed by {locals_}{late})"


def reply_ttl(seconds: float | None) -> str:
    """Return the reply to a TTL: when the key expires, or None for a key that does not."""
    if seconds is None:
        return "Key stays until it is deleted"
    return f"Key expires in {seconds:,.3f} seconds"


def reply_written(size: int, path: str) -> str:
    place = shown(text_or_bytes(os.fsencode(path)))
    return f"Wrote 1 byte to {place}" if size == 1 else f"Wrote {size:,} bytes to {place}"


def reply_refused(error: Exception) -> str:
    if isinstance(error, KeyMissing):
        return MISSING
    if isinstance(error, KeyOccupied):
        return "(Updated local) Key occupied!" if error.updated else "Key occupied!"
    if isinstance(error, UnknownCodec):
        return f"Error: {unreadable(error.codec, 'GETFILE')}"
    return f"Error: {said(error)}"


def reply_misused(command: str, misuse: Misuse) -> str:
    """Return the reply to a line that does not have the form of its command."""
    why = str(misuse) or f"HELP {command.upper()} says more"
    return f"Usage: {USAGES[command].line}   ({why})"


def reply_interrupted(command: str) -> str:
    writes = command in USAGES and USAGES[command].writes
    return "Interrupted" + (": the write may or may not have happened" if writes else "")


def wrapped(line: str, width: int) -> str:
    """Return a line of HELP, wrapped to a number of columns and indented like the list."""
    indent = min(len(line) - len(line.lstrip()) + ABOUT_FROM, width // 3)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def help_lines(topic: str) -> Iterator[str]:
    """Yield the lines of HELP: the whole list, or more about one command."""
    command = COMMAND_OF.get(topic.upper(), COMMAND_OF.get(f".{topic.upper()}"))
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
        yield f"  {usage.line:<{ABOUT_FROM - 1}} {usage.about}"
    yield "Commands may be typed in any case; Tab completes commands, keys and paths."
    yield f"{KEY_RULE} Examples:"
    for name in ("set", "get", "add"):
        yield from (f"    {example}" for example in USAGES[name].examples)

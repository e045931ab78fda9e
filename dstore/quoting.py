"""Make text from other programs safe to show on a terminal or in a log.

Keys, values, labels, refusals and file names may contain any characters. Escape sequences control
a terminal, line breaks forge lines, bidirectional controls reorder what is read, and invisible
characters make different names look alike. They are replaced by the escapes of a Python literal,
such as ``\\x1b``.
"""

from __future__ import annotations

import re

_NOT_ASCII = re.compile(r"[^\x20-\x7e]+")
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Characters that Python calls printable but that are invisible. U+FE0E and U+FE0F are not among
them: they select how an emoji looks, so ordinary text contains them.
"""


def is_plain(text: str) -> bool:
    """Return whether a text can be shown as it is: printable characters, blanks and tabs."""
    return text.replace("\t", "").isprintable() and not _INVISIBLE.search(text)


def visible(text: str, *, lines: bool = False) -> str:
    """Return the text with each unsafe character replaced by its escape.

    All characters that Python calls not printable are unsafe (control and format characters, line
    and other separators, lone surrogates, unassigned ones) and a few invisible ones. Blanks and
    tabs stay, and with ``lines`` so do newlines. Backslashes are not doubled: the result is for
    people, not for parsing.
    """
    stays = "\t\n" if lines else "\t"

    def shown(run: re.Match[str]) -> str:
        if is_plain(run[0]):
            return run[0]
        return "".join(
            each if each in stays or is_plain(each) else _escape(each) for each in run[0]
        )

    return _NOT_ASCII.sub(shown, text)


def quoted(text: str) -> str:
    """Return the text as it is if it can be shown on one line, else as a Python literal."""
    return text if is_plain(text) else visible(repr(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

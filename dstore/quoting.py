"""Text that others wrote, made safe for a terminal and for a log.

Keys, values, labels, refusals and file names may hold anything. Escape sequences steer a terminal,
line breaks forge lines, bidirectional controls reorder what is read, and invisible characters make
two different names look alike. Here they become the escapes of a Python literal, such as ``\\x1b``.
"""

from __future__ import annotations

import re

_NOT_ASCII = re.compile(r"[^\x20-\x7e]+")
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Characters that Python calls printable, and that show nothing. (U+FE0E and U+FE0F are not among
them: they choose how an emoji looks, so ordinary text has them.)
"""


def is_plain(text: str) -> bool:
    """Whether a text can be shown on one line as it is: printable characters, blanks and tabs."""
    return text.replace("\t", "").isprintable() and not _INVISIBLE.search(text)


def visible(text: str, *, lines: bool = False) -> str:
    """The text, with each character that is not to be shown replaced by its escape.

    Those are all that Python calls not printable (control and format characters, line and other
    separators, lone surrogates, unassigned ones) and a few that take no ink. Blanks and tabs stay,
    and with ``lines`` so do newlines. Backslashes stay single: this is not for reading back.
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
    """The text as it is if that can be shown on one line, else as a Python literal."""
    return text if is_plain(text) else visible(repr(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

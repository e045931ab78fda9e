"""Text of others, fit for a terminal and for a log."""

from __future__ import annotations

import ast
import logging
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstore.cli import console, tables
from dstore.cli.console import SERVER_LINE, OneLine
from dstore.quoting import is_plain, quoted, visible
from dstore.runtime.logs import Log, RateLimitedLog

UNSAFE = {
    "escape": "\x1b[2J",
    "window title": "\x1b]0;mine\x07",
    "CSI of one byte": "\x9b2J",
    "delete": "\x7f",
    "backspace": "rm\x08\x08",
    "carriage return": "evil\rgood",
    "newline": "one\ntwo",
    "next line": "one\x85two",
    "line separator": "one\u2028two",
    "paragraph separator": "one\u2029two",
    "lone surrogate": "\udcff",
    "no-break space": "a\xa0b",
    "soft hyphen": "a\xadb",
    "Arabic letter mark": "a\u061cb",
    "combining grapheme joiner": "a\u034fb",
    "Hangul filler": "a\u3164b",
    "braille blank": "a\u2800b",
    "byte order mark": "\ufeffa",
    "tag": "a\U000e0041",
    "variation selector 17": "a\U000e0100",
    **{f"U+{code:X}": f"a{chr(code)}b" for code in range(0x200B, 0x2010)},
    **{
        f"U+{code:X}": f"a{chr(code)}b" for code in (*range(0x202A, 0x202F), *range(0x2060, 0x206A))
    },
}
ORDINARY = [
    "",
    "a key",
    "a\ttab",
    "größe",
    "文字",
    "שלום",
    "❤\ufe0f 😀",
    "back\\slash",
    "[bold]x[/]",
]


@pytest.mark.parametrize("text", UNSAFE.values(), ids=UNSAFE)
def test_what_steers_a_terminal_or_is_not_seen_is_escaped(text: str) -> None:
    assert not is_plain(text)
    for shown in (visible(text), quoted(text)):
        assert is_plain(shown)
        assert shown != text
    assert ast.literal_eval(quoted(text)) == text


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == quoted(text) == text


def test_a_text_of_several_lines_keeps_them_where_that_is_wanted() -> None:
    assert visible("ü\n\t\x1b[1m\r\n", lines=True) == "ü\n\t\\x1b[1m\\r\n"


@settings(deadline=None)
@given(st.text(st.characters()))
def test_no_text_gets_through(text: str) -> None:
    assert is_plain(visible(text))
    assert is_plain(quoted(text))
    assert quoted(text) == text or ast.literal_eval(quoted(text)) == text


@pytest.mark.parametrize("text", UNSAFE.values(), ids=UNSAFE)
def test_error_lines_and_counters_are_escaped(text: str) -> None:
    for line in (
        console.said(ValueError(text)),
        console.said(OSError(2, text, text)),
        *tables.counter_lines({text: {text: text, "n": 1}}),
    ):
        assert is_plain(line)


def test_the_counters_of_a_table_stand_in_one_column() -> None:
    name = "tcp://127.0.0.1:50051"
    lines = list(tables.counter_lines({"keys": 1, "of": {name: {"keys": 2, "bytes_limit": 3}}}))
    assert lines[0] == f"{'keys':<{tables.NAME_WIDTH}} 1"
    assert lines[1:] == [f"of.{name}.keys        2", f"of.{name}.bytes_limit 3"]


def test_an_error_line_has_a_bound() -> None:
    assert len(console.said(ValueError("x" * 10_000_000))) < console.MESSAGE_MAX + 10


@pytest.mark.parametrize("text", UNSAFE.values(), ids=UNSAFE)
def test_text_of_a_peer_forges_no_line_of_the_log(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    RateLimitedLog(Log("dstore.test")).warning("%s came %d times", ValueError(text), 2)
    (record,) = caplog.records
    assert record.getMessage() == f"{visible(text)} came 2 times"


def test_a_log_line_is_one_line_and_a_traceback_is_indented() -> None:
    try:
        raise ValueError("x\n2026-01-01 ERROR dstore: forged \x1b[2J")
    except ValueError:
        raised = sys.exc_info()
    record = logging.LogRecord("dstore", logging.ERROR, "", 0, "a\nb %s", ("c\x1b",), raised)
    first, *others = OneLine(SERVER_LINE).format(record).split("\n")
    assert first.endswith("ERROR dstore: a\\nb c\\x1b")
    assert "    2026-01-01 ERROR dstore: forged \\x1b[2J" in others
    assert all(line.startswith("    ") for line in others)

"""What the REPL replies, line for line. It reads a script, in this process."""

from __future__ import annotations

import io
import re
import socket
import sys
from collections.abc import Callable

import pytest

import dstore
from dstore import config
from dstore.cli import repl
from dstore.cli.repl import text

PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""
MISSING = "Key-Value mapping doesn't exist"

NodeMaker = Callable[..., dstore.Node]
Script = Callable[..., "list[str]"]


@pytest.fixture
def script(
    free_global: dstore.Global,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Script:
    """Obeys lines in this process; returns the replies without the two lines of greeting."""

    def obey(*lines: str, code: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert repl.main(free_global.address, PATIENCE) == code
        out, err = capsys.readouterr()
        assert err == ""
        greeting = f"dstore v{dstore.__version__} (addr: {free_global.address[len('tcp://') :]})"
        first, second, *replies = out.splitlines()
        assert first == greeting
        assert ".exit" in second
        return replies

    return obey


# ---- commands and replies ---------------------------------------------------------------------


def test_the_fixed_replies(script: Script, node: NodeMaker) -> None:
    node().set("elsewhere", "value")
    assert script(
        "SET key value",
        "SET key other",
        "GET key",
        "SET elsewhere other",
        "GET elsewhere",
        "GET nix",
        "DEL nix",
    ) == [
        "Database updated",
        "Key occupied!",
        "db: key -> value",
        "(Updated local) Key occupied!",
        "db: elsewhere -> value",
        MISSING,
        MISSING,
    ]


def test_a_value_that_global_answered_is_local_from_then_on(
    script: Script, node: NodeMaker
) -> None:
    node().set("key", "value")
    assert script("GET key", "GET key") == [
        "global: key -> value     (Updating Local)",
        "db: key -> value",
    ]


@pytest.mark.parametrize(
    ("set_", "get", "del_"), [("set", "get", "del"), ("PUT", "OUT", "REM"), ("pUt", "oUt", "rEm")]
)
def test_commands_have_aliases_and_any_case(script: Script, set_: str, get: str, del_: str) -> None:
    replies = script(f"{set_} k v", f"{get} k", f"{del_} k", f"{get} k")
    assert replies == [
        "Database updated",
        "db: k -> v",
        "Key deleted (confirmed by 1 Local)",
        MISSING,
    ]


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("k several  words here", "k", "several  words here"),
        ("  k \t v  ", "k", "v"),
        ("k a > b | c; d >> e & f", "k", "a > b | c; d >> e & f"),
        ("k # @ ? ! {1} $HOME ~ \\n \\", "k", "# @ ? ! {1} $HOME ~ \\n \\"),
        ("k 'say \"hi\"'", "k", 'say "hi"'),
        ('k "  kept  "', "k", "  kept  "),
        ('k ""', "k", ""),
        ('k say "hi"', "k", 'say "hi"'),
        ('k "a" and "b"', "k", '"a" and "b"'),
        ("k it's", "k", "it's"),
        ("k '", "k", "'"),
        ("it's v", "it's", "v"),
        ('"a key" v', "a key", "v"),
        ("'a \"key\"' v w", 'a "key"', "v w"),
        ("a|b>c;d v", "a|b>c;d", "v"),
        ("größe ä ö ü 😀", "größe", "ä ö ü 😀"),
        ("k .exit", "k", ".exit"),
        ("eof _eof", "eof", "_eof"),
    ],
)
def test_a_line_is_taken_as_it_stands(
    script: Script, node: NodeMaker, typed: str, key: str, value: str
) -> None:
    assert script(f"SET {typed}") == ["Database updated"]
    assert node().get(key) == value


@pytest.mark.parametrize(
    "line",
    ["SET", "SET k", 'SET ""', 'SET "k v', 'SET "k"x v', "GET", "GET a b", "GET 'a' b", "GET 'a",
     "DEL", "DEL a b", "EXPIRE", "EXPIRE k", "EXPIRE 'k 1", "TTL", "TTL a b", "PERSIST",
     "PERSIST a b", "ADD", "KEYS a b", "STATS now", ".exit now"],
)  # fmt: skip
def test_wrong_usage_gets_one_line_of_help(script: Script, line: str) -> None:
    (reply,) = script(line, code=1)
    assert reply.startswith(f"Usage: {line.split()[0]}")


@pytest.mark.parametrize(
    "line",
    ["hello", "exit", "!ls", "@file", "?", "# a comment", "history", "run_script x", "shell ls",
     "alias", "macro", "edit", "quit", "py", "unknown"],
)  # fmt: skip
def test_there_are_no_other_commands(script: Script, line: str) -> None:
    word = line.split()[0]
    assert script(line, code=1) == [
        f"Unknown command {word}. HELP lists the commands, .exit leaves.",
    ]


def test_nothing_runs_after_exit_and_blank_lines_are_skipped(script: Script) -> None:
    assert script("", "   ", "SET k v", ".EXIT", "GET k") == ["Database updated"]


def test_what_cannot_be_stored_is_one_line(script: Script) -> None:
    long = "k" * (config.KEY_BYTES_MAX + 1)
    replies = script('GET ""', f"GET {long}", "SET b3:x y", 'SET "" v', "GET b''", code=1)
    assert len(replies) == 5
    assert all(reply.startswith("Error: ") for reply in replies)
    assert "has 1 to 511 bytes" in replies[0]
    assert "ADD" in replies[2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", "b'\\x00\\xff'"),
        ([1, "a", None], "[1, 'a', None]"),
        (("t", 2.5), "('t', 2.5)"),
        ({"a": b"x"}, "{'a': b'x'}"),
        (7, "7"),
        ("two\nlines", "'two\\nlines'"),
        ("\x1b[2J", "'\\x1b[2J'"),
        ("a\ttab [bold]x[/] 'q'", "a\ttab [bold]x[/] 'q'"),
    ],
)
def test_values_are_shown_on_one_line(
    script: Script, node: NodeMaker, value: object, text: str
) -> None:
    node().set("k", value)
    assert script("GET k", "GET k") == [
        f"global: k -> {text}     (Updating Local)",
        f"db: k -> {text}",
    ]


def test_del_tells_how_many_locals_confirmed(script: Script, node: NodeMaker) -> None:
    with_cache, without_cache = node(), node()
    with_cache.set("k", "v")
    without_cache.set("other", "v")
    assert script("GET k", "DEL k") == [
        "global: k -> v     (Updating Local)",
        "Key deleted (confirmed by 2 Locals)",
    ]


def test_a_key_expires_and_persists(script: Script, node: NodeMaker) -> None:
    node().set("two words", "v")
    replies = script(
        'TTL "two words"',
        'EXPIRE "two words" 2000.5',
        'ttl "two words"',
        'PERSIST "two words"',
        'TTL "two words"',
        'expire "two words" 0.001',
        "TTL nix",
        "EXPIRE nix 1",
        "PERSIST nix",
    )
    left = re.fullmatch(r"Key expires in (\d,\d{3}\.\d{3}) seconds", replies.pop(2))
    assert left is not None
    assert 1_000 < float(left[1].replace(",", "")) <= 2_000.5
    assert replies == [
        "Key stays until it is deleted",
        "Database updated",
        "Database updated",
        "Key stays until it is deleted",
        "Database updated",
        *[MISSING] * 3,
    ]
    while "two words" in node():
        pass


@pytest.mark.parametrize("typed", ["soon", "0", "-1", "nan", "1e10", "5 6", "30s", 5000 * "9"])
def test_what_is_no_time_to_live_is_one_short_line(script: Script, typed: str) -> None:
    replies = script("SET k v", f"EXPIRE k {typed}", "TTL k", code=1)
    assert replies[1].startswith(f"Usage: EXPIRE key seconds   ('{typed[:30]}")
    assert replies[1].endswith(
        "is not a number of seconds that is more than 0 and at most 3,153,600,000)"
    )
    assert len(replies[1]) < 240
    assert replies[2] == "Key stays until it is deleted"


def test_a_value_is_no_time_to_live(script: Script) -> None:
    assert script("SET k EXPIRE k 5", "GET k", "TTL k") == [
        "Database updated",
        "db: k -> EXPIRE k 5",
        "Key stays until it is deleted",
    ]


def test_add_prints_the_content_address(script: Script, node: NodeMaker) -> None:
    first, second = script("ADD some text", 'ADD "some text"')
    assert first == second == node().put("some text")


def test_keys_lists_by_prefix_and_counts(script: Script, node: NodeMaker) -> None:
    node().set_many({"a/1": 1, "a/2": 2, "b c": 3, b"\xff": 4, "new\nline": 5})
    assert script("KEYS a/") == ["a/1", "a/2", "(2 keys)"]
    assert script('KEYS "b c"') == ["b c", "(1 key)"]
    assert set(script("KEYS")) == {
        "a/1", "a/2", "b c", "b'\\xff'", "b'new\\nline'", "(5 keys)"
    }  # fmt: skip


def test_keys_are_listed_in_the_order_of_their_bytes_by_prefixes_of_bytes(
    script: Script, node: NodeMaker
) -> None:
    node().set_many({"é": 1, b"\xc3(": 2, b"\xff": 3, "漢": 4, b"\xc3\xff": 5})
    assert script("KEYS b'\\xc3'") == ["b'\\xc3('", "é", "b'\\xc3\\xff'", "(3 keys)"]
    assert script("KEYS") == [
        "b'\\xc3('", "é", "b'\\xc3\\xff'", "漢", "b'\\xff'", "(5 keys)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (r"b'\xff\x00'", b"\xff\x00"),
        (r'b"\xff"', b"\xff"),
        (r"b'two\nlines \t\r\\ \' \"'", "two\nlines \t\r\\ ' \""),
        (r"b'plain'", "plain"),
        (r"b'ключ \xd0\xba'", "ключ к"),
        (r"b'\xe2\x82'", b"\xe2\x82"),
        (r"""b"it's" """, "it's"),
        ("\"b'text'\"", "b'text'"),
        ("'\\xff'", "\\xff"),
        ("b", "b"),
        ("bb'x'", "bb'x'"),
        ("B'x'", "B'x'"),
        ("\udcff", b"\xff"),
        ("\udcc3\udca9", "é"),
    ],
)
def test_every_key_can_be_named_in_every_command(
    script: Script, node: NodeMaker, typed: str, key: str | bytes
) -> None:
    other = node()
    replies = script(
        f"SET {typed} v", f"SET {typed} w", f"GET {typed}", f"KEYS {typed}", f"DEL {typed}"
    )
    assert replies[:2] == ["Database updated", "Key occupied!"]
    assert replies[2] == f"db: {replies[3]} -> v"
    assert replies[4:] == ["(1 key)", "Key deleted (confirmed by 1 Local)"]
    other.set(key, "theirs")
    assert script(f"GET {typed}") == [
        f"global: {text.shown_key(key)} -> theirs     (Updating Local)"
    ]


def test_a_value_that_is_not_utf8_is_kept_as_bytes(script: Script, node: NodeMaker) -> None:
    first, added, second = script("SET k \udcff\udcfe", "ADD \udcff", "SET l \udcc3\udca9")
    assert (first, second) == ("Database updated", "Database updated")
    assert node().get_many(["k", "l", added]) == {"k": b"\xff\xfe", "l": "é", added: b"\xff"}


def test_stats_show_this_local_and_global(script: Script) -> None:
    lines = script("SET k v", "STATS")
    assert lines.index("This Local") < lines.index("Global")
    assert ["keys", "1"] in [line.split() for line in lines[: lines.index("Global")]]


def test_help_shows_every_command_and_examples(script: Script) -> None:
    lines = script("HELP")
    for usage in text.USAGES.values():
        assert any(line.strip().startswith(usage.line) for line in lines)
    assert script("help set") == script("HELP PUT")
    assert len(script("help set")) > 1
    assert script("help exit") == script("help .exit")
    assert len(script("help nix")) == 1


def test_a_script_with_a_bad_command_runs_to_its_end_and_ends_with_code_1(script: Script) -> None:
    assert script("SET k v", "nonsense", "GET k", code=1)[2] == "db: k -> v"
    assert len(script("GET missing", "SET k w")) == 2  # answers, and no failures


def test_a_global_that_is_down_is_one_line_and_code_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("GET k\nHELP\nSET k v\nKEYS\nSTATS\n"))
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*reserved.getsockname())
        assert repl.main(address, 0.05) == 3
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("Error: ") == 4


def test_ctrl_c_ends_a_script(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dstore.Node, "lookup", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("GET k\nHELP\n"))
    assert repl.main(None, PATIENCE) == 130
    assert capsys.readouterr().out.splitlines()[2:] == ["Interrupted"]

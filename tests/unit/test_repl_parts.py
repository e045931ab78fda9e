"""Parts of the REPL on their own: what Tab offers, its own deletions, the file of typed lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dstore
from dstore.cli.console import text_or_bytes
from dstore.cli.repl import text
from dstore.cli.repl.completion import KeyFinder, complete, find_paths
from dstore.cli.repl.history import HISTORY_LINES_MAX, LineHistory
from dstore.cli.repl.session import OwnDeletions

PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""

KEYS: list[str | bytes] = [
    "a",
    "ab",
    "my key",
    "my 'own'",
    "it's",
    "'quoted",
    "both ' and \" in it",
    b"a\xff",
    "a\nb",
    "b'literal'",
    "x b'y'",
]


@pytest.mark.parametrize(
    ("typed", "replaced", "offered"),
    [
        ("", "", ["SET ", "PUT ", "GET ", "OUT ", "DEL ", "REM ", "EXPIRE ", "TTL ",
                  "PERSIST ", "ADD ", "SETFILE ", "PUTFILE ", "GETFILE ", "KEYS ", "STATS",
                  "HELP ", ".exit"]),
        ("s", "s", ["set ", "setfile ", "stats"]),
        ("  S", "S", ["SET ", "SETFILE ", "STATS"]),
        (".", ".", [".exit"]),
        ("help k", "k", ["keys"]),
        ("nonsense a", "a", []),
        ("stats a", "a", []),
        ("add a", "a", []),
        ("GET a", "a", ["a", "ab", "b'a\\xff'", "b'a\\nb'"]),
        ("set a", "a", ["a ", "ab ", "b'a\\xff' ", "b'a\\nb' "]),
        ("expire a", "a", ["a ", "ab ", "b'a\\xff' ", "b'a\\nb' "]),
        ("expire a ", "a ", []),
        ("ttl 'a", "'a", ["'a'", "'ab'"]),
        ("persist x", "x", ['"x b\'y\'"']),
        ("GET b'a", "b'a", ["b'a'", "b'ab'", "b'a\\xff'", "b'a\\nb'"]),
        ('GET b"a\\', 'b"a\\', ['b"a\\xff"', 'b"a\\nb"']),
        ("GET b'a\\x", "b'a\\x", ["b'a\\xff'"]),
        ("GET b'a\\xf", "b'a\\xf", ["b'a\\xff'"]),
        ("GET b'a\\xff", "b'a\\xff", ["b'a\\xff'"]),
        ("GET b'a\\xfe", "b'a\\xfe", []),
        ("GET b'a\\q", "b'a\\q", []),
        ("GET b'a'", "b'a'", []),
        ("GET b'it\\'", "b'it\\'", ["b'it\\'s'"]),
        ("GET 'a", "'a", ["'a'", "'ab'"]),
        ("GET x", "x", ['"x b\'y\'"']),
        ("GET b", "b", ["b'both \\' and \" in it'", "\"b'literal'\""]),
        ("GET a b", "a b", []),
        ("get my", "my", ['"my key"', '"my \'own\'"']),
        ('get "my', '"my', ['"my key"', '"my \'own\'"']),
        ("get 'my", "'my", ["'my key'"]),
        ('get "my key" ', '"my key" ', []),
        ("get it", "it", ["it's"]),
        ('del "\'', '"\'', ['"\'quoted"']),
        ("get both", "both", ["b'both \\' and \" in it'"]),
        ('get "both', '"both', []),
    ],
)  # fmt: skip
def test_tab_offers_what_can_be_typed(typed: str, replaced: str, offered: list[str]) -> None:
    def keys(prefix: str | bytes) -> list[str | bytes]:
        return [key for key in KEYS if os.fsencode(key).startswith(os.fsencode(prefix))]

    def no_paths(prefix: str) -> list[str | bytes]:
        raise AssertionError(f"no path is typed here: {prefix!r}")

    assert complete(typed, keys, no_paths) == (len(typed) - len(replaced), offered)


@pytest.mark.parametrize(
    ("typed", "replaced", "offered"),
    [
        ("setfile a", "a", ["a ", "ab ", "b'a\\xff' ", "b'a\\nb' "]),
        ("setfile 'my", "'my", ["'my key' "]),
        ("setfile k ", "", ["b'b\\nc'", "docs/", "img.png", '"my docs/', '"my file"']),
        ('SETFILE "my key"  im', "im", ["img.png"]),
        ("GETFILE k\tdo", "do", ["docs/"]),
        ("getfile k docs/", "docs/", ["docs/a", '"docs/b c"']),
        ("getfile b'k\\xff' docs/", "docs/", ["docs/a", '"docs/b c"']),
        ("getfile b'k ", "b'k ", []),
        ("putfile b", "b", ["b'b\\nc'"]),
        ("putfile b'docs/", "b'docs/", ["b'docs/a'", "b'docs/b c'"]),
        ("putfile my", "my", ['"my docs/', '"my file"']),
        ("putfile 'my d", "'my d", ["'my docs/"]),
        ('putfile "docs/', '"docs/', ['"docs/a"', '"docs/b c"']),
        ('putfile "my docs/', '"my docs/', ['"my docs/it\'s"']),
        ("putfile 'my docs/", "'my docs/", []),
        ("putfile img.png x", "img.png x", []),
        ("setfile k img.png ", "img.png ", []),
        ('setfile k "my file" ', '"my file" ', []),
    ],
)
def test_tab_offers_paths_after_the_key(
    typed: str,
    replaced: str,
    offered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keys(prefix: str | bytes) -> list[str | bytes]:
        return [key for key in KEYS if os.fsencode(key).startswith(os.fsencode(prefix))]

    for name in ("img.png", "my file", "docs/a", "docs/b c", "my docs/it's", "b\nc", ".hidden"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    assert complete(typed, keys, find_paths) == (len(typed) - len(replaced), offered)


AWKWARD = [b"b'", b'"', b"'", b"\\", b"\n", b" ", b"\xc3", b"\xa9", b"k"]
ANY_KEY = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.text(min_size=1, max_size=9).map(lambda text: text.encode("utf-8", "ignore") or b"k"),
    st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=9).map(b"".join),
).map(text_or_bytes)  # fmt: skip


@given(ANY_KEY)
def test_any_key_can_be_typed_as_bytes(key: str | bytes) -> None:
    for quote in text.BYTES_QUOTES:
        typed = text.escaped(key, quote)
        assert not any(character in typed for character in "\n\r\t\0\x1b")
        assert text.split_key(typed) == (key, "")
        assert text.split_key(f"{typed}  a value") == (key, "a value")


@given(ANY_KEY)
def test_what_tab_offers_for_a_key_is_that_key_however_much_of_it_was_typed(
    key: str | bytes,
) -> None:
    def keys(prefix: str | bytes) -> list[str | bytes]:
        return [key] if os.fsencode(key).startswith(os.fsencode(prefix)) else []

    (offered,) = complete("get ", keys, keys).texts
    assert text.only_key(offered) == key
    for whole in (offered, *(text.escaped(key, quote) for quote in text.BYTES_QUOTES)):
        for end in range(3, len(whole)):
            begun = whole[:end]
            if begun.startswith(text.BYTES_QUOTES):
                assert complete(f"get {begun}", keys, keys) == (4, [whole])


@given(ANY_KEY)
def test_a_key_is_shown_as_it_is_typed_but_for_quotes(key: str | bytes) -> None:
    shown = text.shown_key(key)
    assert "\n" not in shown
    if isinstance(key, str) and shown == key:
        return
    assert text.only_key(shown) == key


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("b'k", "a key that begins with b' ends with the same quote; or quote all of it"),
        ("b'k\\'", "ends with the same quote"),
        ("b'k'x", "ends with the same quote"),
        ("b\"k'", 'begins with b" ends'),
        ("b'\\q'", "there is no escape \\q; use \\xff, \\n, \\r, \\t, \\\\, \\', \\\""),
        ("b'\\xf'", "there is no escape \\x; use"),
    ],
)
def test_a_key_that_is_half_written_as_bytes_is_told_how(typed: str, said: str) -> None:
    with pytest.raises(text.Misuse) as misuse:
        text.only_key(typed)
    assert said in str(misuse.value)


def test_paths_of_any_bytes_are_typed_in_any_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"\xff")).touch()
    assert complete("putfile b'", list, find_paths).texts == ["b'\\xff'"]
    assert complete("putfile ", list, find_paths).texts == ["b'\\xff'"]
    assert text.only_path("b'\\xff'") == os.fsdecode(b"\xff")
    assert text.only_path("~/\u20ac") == os.path.expanduser("~/\u20ac")


def test_paths_are_found_as_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").touch()
    (tmp_path / ".config").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(find_paths("~")) == ["~/"]
    assert list(find_paths("~/")) == ["~/notes"]
    assert list(find_paths("~/.")) == ["~/.config/"]
    assert list(find_paths(f"{tmp_path}/no")) == [f"{tmp_path}/notes"]
    with pytest.raises(OSError, match="No such file"):
        list(find_paths(f"{tmp_path}/no/"))


def test_tab_shows_a_bounded_number_of_keys_and_no_errors() -> None:
    def fails(prefix: str) -> Iterator[str]:
        yield prefix
        raise dstore.GlobalUnavailable("down")

    assert KeyFinder(lambda prefix: map(str, count()), 3, PATIENCE).find("") == ["0", "1", "2"]
    assert KeyFinder(fails, 3, PATIENCE).find("a") == ["a"]


def test_tab_does_not_wait_for_a_global_that_is_down() -> None:
    up = threading.Event()

    def keys(prefix: str) -> list[str]:
        assert up.wait(PATIENCE)
        return [prefix]

    finder = KeyFinder(keys, 3, 0.01)
    assert finder.find("first") == []
    assert finder.find("while the first is unanswered") == []
    up.set()
    while not finder.find("later"):
        pass


def test_a_deletion_typed_here_is_told_once_and_not_announced() -> None:
    own = OwnDeletions(echo=PATIENCE)
    assert not own.take("k")
    with own.deleting("k"):
        assert own.take("k")
        assert not own.take("k")
    assert not own.take("k")
    with own.deleting("k"):
        assert not own.take("another")
    assert own.take("k")  # the Node's thread was a little late
    assert not own.take("k")


def test_a_deletion_is_another_nodes_if_ours_failed_or_is_long_ago() -> None:
    own = OwnDeletions(echo=0.0)
    with pytest.raises(dstore.KeyMissing), own.deleting("failed"):
        raise dstore.KeyMissing("failed")
    assert not own.take("failed")
    with own.deleting("long ago"):
        pass
    assert not own.take("long ago")


def test_a_long_history_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    history = LineHistory(path)
    assert history.read() == []
    for number in range(2 * HISTORY_LINES_MAX + 1):
        history.add(f"line {number}")
    kept = LineHistory(path).read()
    assert len(kept) == HISTORY_LINES_MAX
    assert kept[-1] == f"line {2 * HISTORY_LINES_MAX}"
    assert path.read_text().split("\n")[:-1] == kept

"""Parts of the REPL on their own: what Tab offers, its own deletions, the file of typed lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import dstore
from dstore.repl.completion import complete
from dstore.repl.history import HISTORY_LINES_MAX, LineHistory
from dstore.repl.key_finder import KeyFinder, find_paths
from dstore.repl.own_deletions import OwnDeletions

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
]


@pytest.mark.parametrize(
    ("typed", "replaced", "offered"),
    [
        ("", "", ["SET ", "PUT ", "GET ", "OUT ", "DEL ", "REM ", "ADD ", "SETFILE ", "PUTFILE ",
                  "GETFILE ", "KEYS ", "STATS", "HELP ", ".exit"]),
        ("s", "s", ["set ", "setfile ", "stats"]),
        ("  S", "S", ["SET ", "SETFILE ", "STATS"]),
        (".", ".", [".exit"]),
        ("help k", "k", ["keys"]),
        ("nonsense a", "a", []),
        ("stats a", "a", []),
        ("add a", "a", []),
        ("GET a", "a", ["a", "ab"]),
        ("set a", "a", ["a ", "ab "]),
        ("GET a b", "a b", []),
        ("get my", "my", ['"my key"', '"my \'own\'"']),
        ('get "my', '"my', ['"my key"', '"my \'own\'"']),
        ("get 'my", "'my", ["'my key'"]),
        ('get "my key" ', '"my key" ', []),
        ("get it", "it", ["it's"]),
        ('del "\'', '"\'', ['"\'quoted"']),
        ("get both", "both", []),
    ],
)  # fmt: skip
def test_tab_offers_what_can_be_typed(typed: str, replaced: str, offered: list[str]) -> None:
    def keys(prefix: str) -> list[str | bytes]:
        return [key for key in KEYS if os.fsencode(key).startswith(prefix.encode())]

    def no_paths(prefix: str) -> list[str | bytes]:
        raise AssertionError(f"no path is typed here: {prefix!r}")

    assert complete(typed, keys, no_paths) == (len(typed) - len(replaced), offered)


@pytest.mark.parametrize(
    ("typed", "replaced", "offered"),
    [
        ("setfile a", "a", ["a ", "ab "]),
        ("setfile 'my", "'my", ["'my key' "]),
        ("setfile k ", "", ["docs/", "img.png", '"my docs/', '"my file"']),
        ('SETFILE "my key"  im', "im", ["img.png"]),
        ("GETFILE k\tdo", "do", ["docs/"]),
        ("getfile k docs/", "docs/", ["docs/a", '"docs/b c"']),
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
    def keys(prefix: str) -> list[str | bytes]:
        return [key for key in KEYS if os.fsencode(key).startswith(prefix.encode())]

    for name in ("img.png", "my file", "docs/a", "docs/b c", "my docs/it's", "b\nc", ".hidden"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    assert complete(typed, keys, find_paths) == (len(typed) - len(replaced), offered)


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

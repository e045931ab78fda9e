"""Files and large values at the REPL: SETFILE, PUTFILE, GETFILE, and a GET that floods nobody."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import dstore
from dstore import config
from dstore.cli import repl
from dstore.cli.show import BEGINNING, SHOWN_MAX
from tests.integration.repl_processes import ENTER, PATIENCE, PROMPT, TAB, Terminal
from tests.integration.terminals import AT_ONCE, CURSOR_HIDDEN, CURSOR_SHOWN, AtTerminal, inked

LARGE = 3 * config.CHUNK_BYTES
LINE_MAX = SHOWN_MAX + 3 * BEGINNING
REPL = "import sys; from dstore.cli.repl import main; sys.exit(main(sys.argv[1], 30.0))"
UPDATED, OCCUPIED = "Database updated", "Key occupied!"

NodeMaker = Callable[..., dstore.Node]
Script = Callable[..., "list[str]"]


@pytest.fixture
def script(
    free_global: dstore.Global,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Script:
    """Obeys lines in this process, in a folder of their own; returns the replies."""
    monkeypatch.chdir(tmp_path)

    def obey(*lines: str, code: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert repl.main(free_global.address, PATIENCE) == code
        out, err = capsys.readouterr()
        assert err == ""
        return out.splitlines()[2:]

    return obey


@pytest.mark.parametrize("size", [0, 1, 1000, LARGE])
def test_a_file_goes_in_and_out(script: Script, node: NodeMaker, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    address = f"b3:{blake3(data).hexdigest()}"
    count = "1 byte" if size == 1 else f"{size:,} bytes"
    assert script(
        "SETFILE k in", "setfile k in", "GetFile k out", "PUTFILE in", f"GETFILE {address} o"
    ) == [
        UPDATED,
        OCCUPIED,
        f"Wrote {count} to out",
        address,
        f"Wrote {count} to o",
    ]
    assert node().get("k") == data
    assert (tmp_path / "out").read_bytes() == (tmp_path / "o").read_bytes() == data


def test_paths_are_quoted_like_keys_and_the_tilde_is_home(
    script: Script, node: NodeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    (tmp_path / "my home").mkdir()
    (tmp_path / "it's a file").write_text("content")
    assert script(
        'SETFILE "a key" "it\'s a file"',
        "GETFILE 'a key' ~/copy",
        "GETFILE 'a key' '~/a copy'",
        "SETFILE copied ~/copy",
    ) == [
        UPDATED,
        f"Wrote 7 bytes to {tmp_path}/my home/copy",
        f"Wrote 7 bytes to {tmp_path}/my home/a copy",
        UPDATED,
    ]
    assert (tmp_path / "my home" / "a copy").read_text() == "content"
    assert node().get("copied") == b"content"


@pytest.mark.parametrize(
    "line",
    ["SETFILE", "SETFILE k", 'SETFILE k ""', "SETFILE k a b", "SETFILE 'k f", "SETFILE k 'f",
     "PUTFILE", "PUTFILE a b", "PUTFILE 'a' b", "GETFILE", "GETFILE k", "GETFILE k a b"],
)  # fmt: skip
def test_wrong_usage_gets_one_line_of_help(script: Script, line: str) -> None:
    (reply,) = script(line, code=1)
    assert reply.startswith(f"Usage: {line.split()[0]}")


def test_what_goes_wrong_with_a_file_is_one_line(
    script: Script, node: NodeMaker, tmp_path: Path
) -> None:
    node().set("k", "v")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert script(
        "SETFILE n none",
        "SETFILE n folder",
        "SETFILE n pipe",
        "PUTFILE none",
        "GETFILE k folder",
        "GETFILE k none/file",
        "GETFILE k /dev/full",
        "GETFILE missing file",
        "SETFILE b3:x /proc/self/status",
        code=1,
    ) == [
        "Error: none: No such file or directory",
        "Error: folder: Is a directory",
        "Error: pipe is not a regular file",
        "Error: none: No such file or directory",
        "Error: folder: Is a directory",
        "Error: none/file: No such file or directory",
        "Error: /dev/full: No space left on device",
        "Key-Value mapping doesn't exist",
        "Error: 'b3:x' begins with 'b3:', as content addresses do; choose another key, or store "
        "the value under its own hash (put() in a program, `dstore put`, ADD in the REPL)",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_is_one_line(script: Script, tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0)
    assert script("SETFILE k secret", code=1) == ["Error: secret: Permission denied"]


def test_a_full_disk_is_one_line(script: Script, node: NodeMaker, tmp_path: Path) -> None:
    node().set("k", bytes(LARGE))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, hard))
    try:
        assert script("GETFILE k out", code=1) == ["Error: out: File too large"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_values_go_to_files_in_the_form_that_others_can_read(
    script: Script, node: NodeMaker, tmp_path: Path
) -> None:
    array = np.arange(12.0).reshape(3, 4)
    node().set_many({"json": {"a": [1, 2]}, "array": array, "text": "größe"})
    node(pickle=True).set("pickle", {1, 2})
    script(*(f"GETFILE {key} {key}" for key in ("json", "array", "text", "pickle")))
    assert json.loads((tmp_path / "json").read_text()) == {"a": [1, 2]}
    with (tmp_path / "array").open("rb") as file:
        assert np.array_equal(np.load(file), array)
    assert (tmp_path / "text").read_text("utf-8") == "größe"
    assert (tmp_path / "pickle").read_bytes() == node().get_buffer("pickle")


def test_get_of_a_large_value_shows_type_size_and_beginning(
    script: Script, node: NodeMaker
) -> None:
    values = {
        "bytes": (bytes(LARGE), f"<{LARGE:,} bytes: b'\\x00\\x00"),
        "text": ("ü" * LARGE, f"<text of {LARGE:,} characters: 'üüü"),
        "list": ([1] * LARGE, f"<list of {LARGE:,} items: [1, 1, "),
        "array": (
            np.zeros((9, 9999)),
            "<array of float64, shape (9, 9999), 719,928 bytes: array([[",
        ),
    }
    node().set_many({key: value for key, (value, _) in values.items()})
    replies = script(*(f"GET {key}" for key in values))
    for reply, (key, (_, shown)) in zip(replies, values.items()):
        assert reply.startswith(f"global: {key} -> {shown}")
        assert reply.endswith("     (Updating Local)")
        assert len(reply) < LINE_MAX
    assert len(replies) == len(values)


def test_text_that_was_typed_is_kept_in_full(script: Script, node: NodeMaker) -> None:
    text = "word " * 100_000 + "end"
    first, second = script(f"SET k {text}", "GET k")
    assert first == UPDATED
    assert len(second) < LINE_MAX
    assert node().get("k") == text


def test_what_only_a_program_can_read_is_one_line(script: Script, node: NodeMaker) -> None:
    node(pickle=True).set("k", {1, 2})
    (reply,) = script("GET k", code=1)
    assert reply.startswith("Error: ")
    assert "'pickle'" in reply
    assert "GETFILE" in reply


@pytest.mark.parametrize("command", ["PUTFILE {}", "SETFILE k {}"])
def test_a_bar_shows_how_far_a_file_is(
    free_global: dstore.Global, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DSTORE_SHM", "")
    file = tmp_path / "file"
    file.write_bytes(bytes(LARGE))
    lines = [
        command.format(file),
        *(["GETFILE k " + str(tmp_path / "out")] if "k" in command else []),
    ]
    with AtTerminal(free_global.address, script=AT_ONCE + REPL) as process:
        code, out, screen = process.end(stdin="".join(f"{line}\n" for line in lines).encode())
    assert code == 0
    assert len(out.splitlines()) == 2 + len(lines)
    assert screen.count(CURSOR_HIDDEN) == screen.count(CURSOR_SHOWN) == len(lines)
    for what in ["reading", "sending", "fetching"][: 1 + len(lines)]:
        assert what in inked(screen)


def test_tab_completes_paths(free_global: dstore.Global, tmp_path: Path) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # it has to fit in a line
        (folder / "my pictures").mkdir()
        (folder / "my pictures" / "logo.png").write_bytes(b"a logo")
        terminal = Terminal(free_global.address, tmp_path / "state")
        stack.callback(terminal.close)
        terminal.expect(PROMPT)
        terminal.type("setf" + TAB)
        terminal.expect("setfile ")
        terminal.type(f'logo "{folder}/my' + TAB)
        terminal.expect("pictures/")
        terminal.type("lo" + TAB)
        terminal.expect('go.png"')
        terminal.type(ENTER)
        terminal.expect(UPDATED)
        terminal.expect(PROMPT)
        terminal.ask("GET logo", "db: logo -> b'a logo'")

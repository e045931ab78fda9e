"""Keys, values and text of a hostile Global at a terminal, and the same exactly in a pipe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.core.authority.partitions import NO_MAP
from dstore.protocol.messages import (
    AskMap,
    Get,
    GetReply,
    MapReply,
    Refusal,
    Refused,
    Scan,
    ScanReply,
    Stats,
    StatsReply,
)
from dstore.quoting import is_plain
from tests.integration.processes import PATIENCE, ROOT
from tests.integration.repl_processes import PROMPT, TAB, Piped, Terminal
from tests.integration.terminals import AtTerminal, inked
from tests.integration.test_bad_global import EPOCH, SESSION, FakeGlobal

DONE, REFUSED, USAGE, UNREACHED = 0, 1, 2, 3
EVIL = "a\nforged: 1\x1b[2J\x1b]0;title\x07\x9b1m\u202egnp\u200b\u2028[red]x[/]"
QUOTED = r"'a\nforged: 1\x1b[2J\x1b]0;title\x07\x9b1m\u202egnp\u200b\u2028[red]x[/]'"
ESCAPED = QUOTED.strip("'")
TYPED = (
    r"b'a\nforged: 1\x1b[2J\x1b]0;title\x07\xc2\x9b1m\xe2\x80\xaegnp\xe2\x80\x8b\xe2\x80\xa8"
    r"[red]x[/]'"
)
"""As a key, which the REPL shows so that it can be typed."""
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

NodeMaker = Callable[..., dstore.Node]


def run(*arguments: str, stdin: str = "", **variables: str) -> tuple[int, bytes, bytes]:
    ran = subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        input=stdin.encode(),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        timeout=PATIENCE,
    )
    assert b"Traceback" not in ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


def on_screen(*arguments: str, **variables: str) -> tuple[int, str]:
    with AtTerminal(*arguments, stdout=True, **variables) as command:
        code, _, screen = command.end()
    return code, screen


@pytest.fixture
def here(free_global: dstore.Global, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, free_global.address)


# ---- keys and values --------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_keys_are_quoted_at_a_terminal_and_exact_in_a_pipe(node: NodeMaker) -> None:
    node().set_many({EVIL: 1, "größe": 2, b"\xff\x1b": 3})
    code, screen = on_screen("keys")
    assert (code, set(screen.splitlines())) == (DONE, {QUOTED, "größe", r"b'\xff\x1b'"})
    code, screen = on_screen("keys", "-0")
    assert (code, set(screen.split("\0"))) == (DONE, {QUOTED, "größe", r"b'\xff\x1b'", ""})
    expected = {EVIL.encode(), "größe".encode(), b"\xff\x1b", b""}
    code, out, _ = run("keys", "-0")
    assert (code, set(out.split(b"\0"))) == (DONE, expected)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("value", "screen"),
    [
        (f"one\n\ttwo {EVIL}\n", "one\n\ttwo a\n" + ESCAPED[3:] + "\n\n"),
        (f"one\n{EVIL}".encode(), "one\na\n" + ESCAPED[3:]),
        (b"ok\n\xff\x1b[2J\r\n", "ok\n\\xff\\x1b[2J\\r\n"),
        (b"-" * ((1 << 20) - 1) + "ü\x1b".encode(), "-" * ((1 << 20) - 1) + "ü\\x1b"),
        ({"a\x7f": "\x1b\u202e\x9b"}, '{"a\\x7f": "\\u001b\\u202e\\x9b"}\n'),
    ],
    ids=["text", "bytes", "not UTF-8", "in two pieces", "json"],
)
def test_values_are_escaped_at_a_terminal_and_exact_in_a_pipe(
    node: NodeMaker, value: Any, screen: str
) -> None:
    node().set("k", value)
    assert on_screen("get", "k") == (DONE, screen)
    if not isinstance(value, dict):
        exact = value if isinstance(value, bytes) else value.encode()
        assert run("get", "k") == (DONE, exact, b"")


@pytest.mark.usefixtures("here")
def test_an_array_with_names_that_steer_is_escaped(node: NodeMaker) -> None:
    numpy = pytest.importorskip("numpy")
    node().set("k", numpy.zeros(2, [("x\x1b[2J", "f8")]))
    code, screen = on_screen("get", "k")
    assert code == DONE
    assert "\x1b" not in screen


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_error_lines_name_what_was_typed_on_one_line() -> None:
    for arguments in (
        ["get", EVIL],
        ["del", EVIL],
        ["set", "k", "--file", EVIL],
        [EVIL],
        ["keys", "--address", EVIL],
        ["demo", EVIL],
        ["global", "--shm", EVIL],
    ):
        with AtTerminal(*arguments) as command:
            code, out, screen = command.end()
        assert code in (REFUSED, USAGE)
        assert out == b""
        (line,) = screen.splitlines()
        assert is_plain(line), line


# ---- a hostile Global -------------------------------------------------------------------------


@pytest.fixture
def hostile() -> Iterator[FakeGlobal]:
    """Refuses every GET with a text that steers a terminal, and has keys and metrics like it."""

    def answer(message: Any) -> Any:
        if isinstance(message, Get):
            if message.keys == ["missing"]:
                return GetReply.of((EPOCH, SESSION, message.request), 0, [None])
            return Refused(EPOCH, SESSION, message.request, Refusal.BAD_MESSAGE, EVIL)
        if isinstance(message, Scan):
            return ScanReply(EPOCH, SESSION, message.request, [EVIL], "")
        if isinstance(message, Stats):
            metrics = {EVIL: 1, "locals": {"1": {"label": EVIL, EVIL: {EVIL: [EVIL]}}}}
            return StatsReply(EPOCH, SESSION, message.request, metrics)
        if isinstance(message, AskMap):
            return MapReply(EPOCH, message.session, message.request, *NO_MAP)
        return Refused(EPOCH, SESSION, message.request, Refusal.BUSY, EVIL)

    running = FakeGlobal(answer)
    yield running
    running.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["get", "k"], REFUSED),
        (["set", "k", "v"], UNREACHED),
        (["del", "k"], UNREACHED),
        (["keys"], DONE),
        (["stats"], DONE),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_text_of_a_hostile_global_steers_nothing(
    hostile: FakeGlobal, arguments: list[str], code: int
) -> None:
    hostile.noise = [b"\x1b[2J\nforged", b"dS\x09\x1b[2J\nforged"]
    got, screen = on_screen(*arguments, "--address", hostile.address, "--timeout", "1")
    assert got == code
    assert all(map(is_plain, screen.splitlines())), screen
    assert not any(line.startswith("forged") for line in screen.splitlines())


def test_the_text_of_a_hostile_global_steers_no_repl(hostile: FakeGlobal, tmp_path: Path) -> None:
    with ExitStack() as stack:
        terminal = Terminal(hostile.address, tmp_path, "--timeout", "1")
        stack.callback(terminal.close)
        terminal.expect(PROMPT)
        terminal.ask("GET k", f"Error: Global refused the request: {ESCAPED[:40]}".split("\\n")[0])
        terminal.ask("KEYS", TYPED)
        terminal.ask("STATS", ESCAPED)
    script = Piped(hostile.address)
    with script.process:
        reply = script.ask("GET k")
        assert reply.startswith("Error: Global refused the request: a forged: 1\\x1b[2J")
        assert is_plain(reply)
        assert script.ask("KEYS") == TYPED
        script.leave()


# ---- the REPL ---------------------------------------------------------------------------------


def test_the_repl_shows_and_announces_odd_keys_on_one_line(
    free_global: dstore.Global, node: NodeMaker, tmp_path: Path
) -> None:
    other = node()
    with ExitStack() as stack:
        terminal = Terminal(free_global.address, tmp_path)
        stack.callback(terminal.close)
        terminal.expect(PROMPT)
        terminal.ask("SET k [bold]text[/] :smile: \u202ex", "Database updated")
        terminal.ask("GET k", r"db: k -> '[bold]text[/] :smile: \u202ex'")
        terminal.ask('SET "a\u200bb" v', "Database updated")
        other.delete("a\u200bb")
        terminal.expect(r"(deleted elsewhere) b'a\xe2\x80\x8bb'")
        terminal.expect(PROMPT)
        other.set_many({"tab/one\x1b[2J": 1, "tab/two": 2})
        terminal.type("GET tab/" + TAB)
        assert "[2J" not in terminal.expect("tab/")


def test_the_repl_works_in_a_window_of_twenty_columns(
    free_global: dstore.Global, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with ExitStack() as stack:
        terminal = Terminal(free_global.address, tmp_path)
        stack.callback(terminal.close)
        terminal.expect(PROMPT)
        terminal.ask("SET k v", "Database updated")
        terminal.ask("HELP", "SET greeting good")
        terminal.ask("STATS", "Global")


# ---- output that takes nothing, or not every character ----------------------------------------


PRINTS = [
    *("keys", "get k", "ttl k", "stats", "put x", "--help", "--version", "repl"),
    "demo tests/unit/shm",
]


@pytest.mark.long
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
@pytest.mark.parametrize(
    ("command", "unbuffered"), [*((command, "") for command in PRINTS), ("get --help", "1")]
)
def test_an_output_that_takes_nothing_is_one_line(
    node: NodeMaker, command: str, unbuffered: str, output: str
) -> None:
    node().set("k", "v")
    ran = subprocess.run(
        ["sh", "-c", f'"$0" -m dstore {command} {output}', sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=PATIENCE,
    )
    why = b"No space left on device" if "full" in output else b"Bad file descriptor"
    assert (ran.returncode, ran.stderr) == (USAGE, b"dstore: " + why + b"\n")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["get large", "keys"])
def test_a_disk_that_fills_up_is_noticed(
    node: NodeMaker, tmp_path: Path, command: str, unbuffered: str
) -> None:
    node().set("large", bytes(100_000))
    node().set_many({f"{number:05}" + "x" * 200: 1 for number in range(500)})
    line = f'ulimit -f 20; exec "$0" -m dstore {command} > {tmp_path}/out'
    ran = subprocess.run(
        ["sh", "-c", line, sys.executable],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert (ran.returncode, ran.stderr) == (USAGE, b"dstore: File too large\n")


@pytest.mark.usefixtures("here")
def test_one_ctrl_d_ends_a_value_that_is_typed(node: NodeMaker) -> None:
    master, slave = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "dstore", "set", "k"], stdin=slave, cwd=ROOT
        ) as command:
            try:
                os.write(master, b"typed\n\x04")
                assert command.wait(PATIENCE) == DONE
            finally:
                command.kill()
    finally:
        os.close(master)
        os.close(slave)
    assert node().get("k") == b"typed\n"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "command", ["set new v", "del k", "get k -o /dev/null", "expire k 1e4", "persist k"]
)
def test_what_prints_nothing_needs_no_output(node: NodeMaker, command: str) -> None:
    node().set("k", "v")
    for output in (">&-", ">&- 2>&-"):
        node().set("k", "v", replace=True)
        node().delete_many(["new"])
        line = f'"$0" -m dstore {command} {output}'
        ran = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, cwd=ROOT)
        assert (ran.returncode, ran.stdout, ran.stderr) == (DONE, b"", b"")


@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_a_global_whose_output_takes_nothing_says_so_and_serves(output: str) -> None:
    line = f'exec "$0" -m dstore global --address 127.0.0.1:0 --shm "" {output}'
    with subprocess.Popen(
        ["sh", "-c", line, sys.executable], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            assert said.startswith("dstore: listening on 127.0.0.1:")
            address = said.removeprefix("dstore: listening on ").partition(";")[0]
            with dstore.Node(f"tcp://{address}") as client:
                client.set("k", 1)
            server.terminate()
            assert server.wait(PATIENCE) == 0
            assert server.stderr.read() == ""
        finally:
            server.kill()


def test_a_demo_whose_reader_leaves_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with subprocess.Popen(
        [sys.executable, "-m", "dstore", "demo", str(tmp_path), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == b""
        assert demo.wait(PATIENCE) == 141


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_a_locale_without_these_characters_spoils_no_command(node: NodeMaker) -> None:
    label = node(label="größe")
    label.set_many({"größe": "文", "k": "ü"})
    code, out, err = run("stats", **C_LOCALE)
    assert (code, err) == (DONE, b"")
    assert "größe".encode() in out
    assert run("get", "k", **C_LOCALE) == (DONE, "ü".encode(), b"")
    assert on_screen("get", "k", **C_LOCALE) == (DONE, "ü\n")
    assert on_screen("keys", "gr", **C_LOCALE) == (DONE, "größe\n")
    code, out, err = run("repl", stdin="GET k\n", **C_LOCALE)
    assert (code, err) == (DONE, b"")
    assert "k -> ü".encode() in out


# ---- the demo at a terminal -------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_the_demo_fits_into_its_window(tmp_path: Path, columns: int, term: str) -> None:
    for number in range(10):
        (tmp_path / f"file{number}").write_text(f"text {number}")
    code, screen = on_screen(
        "demo", str(tmp_path), "--workers", "2", TERM=term, COLUMNS=str(columns)
    )
    assert code == DONE
    assert "…" not in screen
    lines = [line.rpartition("\r")[2] for line in inked(screen).split("\n")]
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("verdict: good") for line in lines)
    assert ("\x1b" in screen) == (term == "xterm")


def test_nobody_listens_and_that_is_one_line_at_a_terminal() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*reserved.getsockname())
        code, screen = on_screen("get", EVIL, "--address", address, "--timeout", "0.1")
    assert code == UNREACHED
    assert screen.count("\n") == 1

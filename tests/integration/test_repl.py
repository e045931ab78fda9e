"""The REPL: in this process, as processes over pipes, and at a (pseudo-)terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import dstore
from dstore import config, repl
from dstore.repl import text

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""
PROMPT = "db> "
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

    def obey(*lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert repl.main(free_global.address, PATIENCE) == 0
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
     "DEL", "DEL a b", "ADD", "KEYS a b", "STATS now", ".exit now"],
)  # fmt: skip
def test_wrong_usage_gets_one_line_of_help(script: Script, line: str) -> None:
    (reply,) = script(line)
    assert reply.startswith(f"Usage: {line.split()[0]}")


@pytest.mark.parametrize(
    "line",
    ["hello", "exit", "!ls", "@file", "?", "# a comment", "history", "run_script x", "shell ls",
     "alias", "macro", "edit", "quit", "py", "unknown"],
)  # fmt: skip
def test_there_are_no_other_commands(script: Script, line: str) -> None:
    word = line.split()[0]
    assert script(line) == [
        f"Unknown command {word}. HELP lists the commands, .exit leaves.",
    ]


def test_nothing_runs_after_exit_and_blank_lines_are_skipped(script: Script) -> None:
    assert script("", "   ", "SET k v", ".EXIT", "GET k") == ["Database updated"]


def test_what_cannot_be_stored_is_one_line(script: Script) -> None:
    long = "k" * (config.KEY_BYTES_MAX + 1)
    replies = script('GET ""', f"GET {long}", "SET b3:x y", "GET \udcff", "SET k \udcff")
    assert len(replies) == 5
    assert all(reply.startswith("Error: ") for reply in replies)


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


def test_add_prints_the_content_address(script: Script, node: NodeMaker) -> None:
    first, second = script("ADD some text", 'ADD "some text"')
    assert first == second == node().put("some text")


def test_keys_lists_by_prefix_and_counts(script: Script, node: NodeMaker) -> None:
    node().set_many({"a/1": 1, "a/2": 2, "b c": 3, b"\xff": 4, "new\nline": 5})
    assert script("KEYS a/") == ["a/1", "a/2", "(2 keys)"]
    assert script('KEYS "b c"') == ["b c", "(1 key)"]
    assert set(script("KEYS")) == {
        "a/1", "a/2", "b c", "b'\\xff'", "'new\\nline'", "(5 keys)"
    }  # fmt: skip


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


# ---- as processes over pipes ------------------------------------------------------------------


class Piped:
    """A REPL whose standard streams are pipes."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dstore", "repl", "--address", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self._in, self._out, self._err = (
            self.process.stdin,
            self.process.stdout,
            self.process.stderr,
        )
        self.greeting = [self.reply(), self.reply()]

    def reply(self) -> str:
        return self._out.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        self._in.write(f"{line}\n")
        self._in.flush()
        return self.reply()

    def alert(self) -> str:
        return self._err.readline().rstrip("\n")

    def leave(self) -> tuple[int, str, str]:
        """The exit code, and what was still to be read."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def piped(free_global: dstore.Global) -> Iterator[Callable[[], Piped]]:
    with ExitStack() as processes:

        def start() -> Piped:
            started = Piped(free_global.address)
            processes.enter_context(started.process)
            processes.callback(started.process.kill)
            return started

        yield start


def test_the_transcript_of_two_repls(piped: Callable[[], Piped]) -> None:
    one, two = piped(), piped()
    assert one.greeting == two.greeting
    assert one.ask("SET key a value") == "Database updated"
    assert two.ask("GET key") == "global: key -> a value     (Updating Local)"
    assert two.ask("GET key") == "db: key -> a value"
    assert two.ask("SET key another") == "Key occupied!"
    assert one.ask("DEL key") == "Key deleted (confirmed by 2 Locals)"
    assert two.alert() == "(deleted elsewhere) key"
    assert two.ask("GET key") == MISSING
    assert two.ask("DEL key") == MISSING
    # what it deletes itself is not announced, what others delete of its own is
    assert two.ask("SET key again") == "Database updated"
    assert two.ask("SET mine too") == "Database updated"
    assert two.ask("DEL key") == "Key deleted (confirmed by 1 Local)"
    assert one.ask("DEL mine") == "Key deleted (confirmed by 1 Local)"
    assert two.alert() == "(deleted elsewhere) mine"
    assert two.ask("KEYS") == "(0 keys)"
    assert one.leave() == (0, "", "")
    assert two.leave() == (0, "", "")


# ---- at a terminal ----------------------------------------------------------------------------

NOT_INK = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[ -/]*[0-~])|\s")
"""Escape sequences, and blanks: a line editor may move over a blank instead of drawing it."""
TAB, ENTER, CTRL_C, CTRL_D, UP = "\t", "\r", "\x03", "\x04", "\x1b[A"
OWN_THE_TERMINAL = """
import os, runpy, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first one to open it gets its Ctrl-C
sys.argv[0] = "dstore"
runpy.run_module("dstore", run_name="__main__")
"""


def inked(text: str) -> str:
    """What of a text is to be seen on a terminal, whichever way it was drawn."""
    return NOT_INK.sub("", text)


class Terminal:
    """A REPL at a terminal. ``expect`` reads on until it has seen a text."""

    def __init__(self, address: str, state: Path, *options: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_THE_TERMINAL, "repl", "--address", address, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env={
                **os.environ,
                "XDG_STATE_HOME": str(state),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
            },
        )
        os.close(slave)
        self._unseen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Read until ``text``, and return what was drawn before it, without blanks."""
        before = self.read_until(text, PATIENCE)
        assert before is not None, f"{text!r} did not come, but {self._unseen!r}"
        return before

    def read_until(self, text: str, patience: float) -> str | None:
        deadline = time.monotonic() + patience
        while inked(text) not in inked(self._unseen):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                return None
            try:
                self._unseen += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the other side has gone
                return None
        before, _, self._unseen = inked(self._unseen).partition(inked(text))
        return before

    def ask(self, line: str, reply: str) -> None:
        """Type a line and read on to the prompt that follows the reply."""
        self.type(line + ENTER)
        self.expect(reply)
        self.expect(PROMPT)

    def wait_until_it_works(self) -> None:
        """Wait until a command runs: the line editor has given the terminal its usual mode back."""
        while not termios.tcgetattr(self._master)[3] & termios.ICANON:
            select.select([], [], [], 0.005)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(free_global: dstore.Global, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as terminals:

        def start(*options: str, address: str = free_global.address) -> Terminal:
            started = Terminal(address, tmp_path, *options)
            terminals.callback(started.close)
            started.expect(PROMPT)
            return started

        yield start


def test_typing_at_a_terminal(terminal: Callable[..., Terminal]) -> None:
    repl_ = terminal()
    repl_.ask("SET key a value", "Database updated")
    repl_.ask("GET key", "db: key -> a value")
    repl_.type("SET never typed to the end")
    repl_.expect("the end")
    repl_.type(CTRL_C)
    while repl_.read_until("^C", 2.0) is None:
        repl_.type(CTRL_C)  # readline can miss one that comes right after a key
    repl_.expect(PROMPT)
    repl_.ask("KEYS", "(1 key)")
    repl_.type(CTRL_D)
    assert repl_.process.wait(PATIENCE) == 0


def test_tab_completes_commands_and_keys(
    terminal: Callable[..., Terminal], node: NodeMaker
) -> None:
    node().set_many({"greeting": "hello", "two words": "quoted"})
    repl_ = terminal()
    repl_.type("ou" + TAB)
    repl_.expect("out ")
    repl_.type("gre" + TAB)
    repl_.expect("ting")
    repl_.type(ENTER)
    repl_.expect("global: greeting -> hello")
    repl_.expect(PROMPT)
    repl_.type('GET "two' + TAB)
    repl_.expect('words"')
    repl_.type(ENTER)
    repl_.expect("global: two words -> quoted")


def test_an_alert_leaves_the_typed_line_alone(
    terminal: Callable[..., Terminal], node: NodeMaker
) -> None:
    other = node()
    other.set("key", "value")
    repl_ = terminal()
    repl_.ask("GET key", "global: key -> value")
    repl_.type("SET half ty")
    repl_.expect("SET half ty")
    other.delete("key")
    repl_.expect("(deleted elsewhere) key")
    repl_.expect("db> SET half ty")  # drawn again below it
    repl_.ask("ped", "Database updated")
    assert other.get("half") == "typed"


def test_ctrl_c_interrupts_a_command_and_stays(terminal: Callable[..., Terminal]) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*reserved.getsockname())
        repl_ = terminal("--timeout", "600", address=address)
        # a Ctrl-C that comes too early is for the line editor, which drops the line
        while True:
            repl_.type("SET k v" + ENTER)
            repl_.wait_until_it_works()
            repl_.type(CTRL_C)
            if repl_.read_until("the write may or may not have happened", 2.0) is not None:
                break
        repl_.expect(PROMPT)
        repl_.ask("HELP SET", "SET blank")
        repl_.type(".exit" + ENTER)
        assert repl_.process.wait(PATIENCE) == 0


def test_typed_lines_come_back_in_the_next_run(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    first = terminal()
    first.ask("SET remembered line", "Database updated")
    first.type(CTRL_D)
    assert first.process.wait(PATIENCE) == 0
    file = tmp_path / "dstore" / "history"
    assert file.read_text() == "SET remembered line\n"
    assert file.stat().st_mode & 0o777 == 0o600
    second = terminal()
    second.type(UP)
    second.expect("SET remembered line")
    second.type(ENTER)
    second.expect("(Updated local) Key occupied!")


def test_without_a_place_for_its_history_it_works(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "dstore").write_text("a file where the folder should be")
    terminal().ask("SET k v", "Database updated")


# ---- the lines typed before -------------------------------------------------------------------


def test_a_long_history_is_shortened(tmp_path: Path) -> None:
    from dstore.repl.history import HISTORY_LINES_MAX, LineHistory

    path = tmp_path / "new" / "history"
    history = LineHistory(path)
    assert history.read() == []
    for number in range(2 * HISTORY_LINES_MAX + 1):
        history.add(f"line {number}")
    kept = LineHistory(path).read()
    assert len(kept) == HISTORY_LINES_MAX
    assert kept[-1] == f"line {2 * HISTORY_LINES_MAX}"
    assert path.read_text().split("\n")[:-1] == kept

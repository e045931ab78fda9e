"""Two REPLs over pipes, as in the README, and one at a (pseudo-)terminal, as a person uses it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import dstore
from tests.integration.repl_processes import (
    CTRL_C,
    CTRL_D,
    CTRL_U,
    ENTER,
    PATIENCE,
    PROMPT,
    TAB,
    UP,
    Piped,
    Terminal,
)

pytestmark = pytest.mark.usefixtures("host_mode")  # the others may share, it does not
MISSING = "Key-Value mapping doesn't exist"

NodeMaker = Callable[..., dstore.Node]


@pytest.fixture
def piped(free_global: dstore.Global) -> Iterator[Callable[[], Piped]]:
    with ExitStack() as processes:

        def start() -> Piped:
            started = Piped(free_global.address)
            processes.enter_context(started.process)
            processes.callback(started.process.kill)
            return started

        yield start


@pytest.mark.usefixtures("host_mode")
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


def test_a_key_that_expires_is_announced_at_a_terminal(
    terminal: Callable[..., Terminal], node: NodeMaker
) -> None:
    node().set("greeting", "hello")
    repl_ = terminal()
    repl_.ask("GET greeting", "global: greeting -> hello")
    repl_.type("exp" + TAB)
    repl_.expect("expire ")
    repl_.type("gre" + TAB)
    repl_.expect("ting")
    repl_.ask("2000", "Database updated")
    repl_.ask("ttl greeting", "Key expires in 1,")
    repl_.type(UP)
    repl_.expect("ttl greeting")
    repl_.type(UP)
    repl_.expect("expire greeting 2000")
    repl_.type(CTRL_U)
    repl_.type("EXPIRE greeting 0.5" + ENTER)
    repl_.expect("Database updated")
    repl_.expect("(deleted elsewhere) greeting")
    repl_.expect(PROMPT)
    repl_.ask("GET greeting", MISSING)
    repl_.ask("TTL greeting", MISSING)


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


@pytest.mark.long
def test_ctrl_d_typed_while_a_command_runs_leaves_after_it(
    terminal: Callable[..., Terminal],
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*reserved.getsockname())
        repl_ = terminal("--timeout", "2", address=address)
        repl_.type("SET k v" + ENTER)
        repl_.wait_until_it_works()
        repl_.type(CTRL_D)
        repl_.expect("Error: ")
        assert repl_.process.wait(PATIENCE) == 3


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_history_of_another_user_is_one_line(
    terminal: Callable[..., Terminal], free_global: dstore.Global, tmp_path: Path
) -> None:
    file = tmp_path / "dstore" / "history"
    file.parent.mkdir()
    file.write_text("SET planted line\n")
    os.chown(file, 65534, 65534)
    repl_ = Terminal(free_global.address, tmp_path)
    try:
        repl_.expect(f"dstore: what is typed is not kept: {file} belongs to another user")
        repl_.expect(PROMPT)
        repl_.ask("SET k v", "Database updated")
    finally:
        repl_.close()
    assert file.read_text() == "SET planted line\n"


def test_without_a_place_for_its_history_it_works(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "dstore").write_text("a file where the folder should be")
    terminal().ask("SET k v", "Database updated")

"""The same keys and values in every locale: pipes, arguments, and a (pseudo-)terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import dstore
from dstore import config
from tests.integration.repl_processes import ENTER, PATIENCE, PROMPT, ROOT, TAB, Terminal

NodeMaker = Callable[..., dstore.Node]

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii:strict in C": {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii:strict",
    },
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
    "real latin-1": {"LC_ALL": "en_US.ISO-8859-1"},
    "UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"},
}
CLEARED = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
KEYS: list[str | bytes] = ["ключ", "é", "漢字", b"\xff", b"\xc3", b"caf\xe9", "two words", "a\rb"]

PASSED: list[str | bytes] = ["ключ", "é", b"\xc3"]
"""Fewer, since each takes processes of its own."""

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def locale_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for $LOCPATH with a locale that is not UTF-8, if the system can make one."""
    folder = tmp_path_factory.mktemp("locales")
    name = LOCALES["real latin-1"]["LC_ALL"]
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
    if not shutil.which(command[0]) or subprocess.run(command, capture_output=True).returncode > 1:
        pytest.skip("the system cannot make a locale of ISO-8859-1")
    return str(folder)


SOME = {"C", "latin-1", "UTF-8"}
"""Those of the default run."""


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in SOME else pytest.mark.long) for name in LOCALES]
)
def locale(request: pytest.FixtureRequest, free_global: dstore.Global) -> dict[str, str]:
    """The environment of a process in one of the locales."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    if request.param == "real latin-1":
        kept["LOCPATH"] = request.getfixturevalue("locale_folder")
    return {**kept, **LOCALES[request.param], config.ADDRESS_VARIABLE: free_global.address}


@pytest.fixture
def run(locale: dict[str, str]) -> Run:
    def run(*arguments: bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        ran = subprocess.run(
            [sys.executable, "-m", "dstore", *arguments],
            input=stdin, env=locale, cwd=ROOT, capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        assert b"Traceback" not in ran.stderr
        return ran

    return run


def as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def test_a_piped_repl_names_every_key_and_shows_every_value(run: Run, node: NodeMaker) -> None:
    one = node()
    for key in KEYS:
        one.set(key, f"значение {key!r}")
    quoted = [b'"%s"' % as_bytes(key) for key in KEYS]
    script = (
        b"".join(b"GET %s\n" % key for key in quoted) + b"SET %s \xd0\xb4\xd0\xb0 \xff\n" % b"n"
    )
    ran = run(b"repl", stdin=script)
    assert ran.stderr == b""
    assert ran.returncode == 0
    replies = ran.stdout.split(b"\n")[2:]
    for key, reply in zip(KEYS, replies):
        assert reply.startswith(b"global: ")
        assert f"-> значение {key!r}     (Updating".encode() in reply
    assert replies[len(KEYS)] == b"Database updated"
    assert one.get("n") == "да ".encode() + b"\xff"


@pytest.mark.long
def test_arguments_are_the_bytes_that_the_shell_passed(run: Run, node: NodeMaker) -> None:
    one = node()
    for key in PASSED:
        assert run(b"set", as_bytes(key), as_bytes(key)).returncode == 0
        assert one.get(key) == key
        ran = run(b"get", as_bytes(key))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, as_bytes(key), b"")
    assert run(b"keys", b"-0").stdout.split(b"\0")[:-1] == sorted(map(as_bytes, PASSED))
    assert run(b"keys", b"\xc3").stdout == b"\xc3\n\xc3\xa9\n"
    assert run(b"del", *map(as_bytes, PASSED)).returncode == 0
    assert list(one.keys()) == []


def test_figures_with_names_that_the_locale_has_not_are_shown(run: Run, node: NodeMaker) -> None:
    node(label="работник").set("k", 1)
    ran = run(b"stats")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert "работник".encode() in ran.stdout


@pytest.mark.long
def test_files_are_named_by_their_bytes(run: Run, node: NodeMaker, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in ("файл".encode(), b"\xff"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"content of " + name)
        ran = run(
            b"repl",
            stdin=b"SETFILE k %b/%b\nGETFILE k %b/%b.copy\nDEL k\n" % (folder, name, folder, name),
        )
        replies = ran.stdout.split(b"\n")[2:]
        assert replies[0] == b"Database updated"
        assert replies[1].startswith(b"Wrote ")
        with open(folder + b"/" + name + b".copy", "rb") as file:
            assert file.read() == b"content of " + name
    assert (
        "файл.copy".encode()
        in run(b"repl", stdin=f"SET k v\nGETFILE k {tmp_path}/файл.copy\n".encode()).stdout
    )


@pytest.fixture
def terminal(
    locale: dict[str, str],
    free_global: dstore.Global,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[], Terminal]]:
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as terminals:

        def start() -> Terminal:
            started = Terminal(free_global.address, tmp_path)
            terminals.callback(started.close)
            started.expect(PROMPT)
            return started

        yield start


def test_a_prompt_takes_and_shows_every_key(
    terminal: Callable[[], Terminal], node: NodeMaker
) -> None:
    one = node()
    one.set_many({"ключ": "да, 漢字", b"\xffbytes": "odd", "a\x1bb": "steers"})
    repl = terminal()
    repl.ask("GET ключ", "global: ключ -> да, 漢字")
    repl.ask("SET новый значение", "Database updated")
    assert one.get("новый") == "значение"
    repl.ask(r"GET b'\xffbytes'", r"global: b'\xffbytes' -> odd")
    repl.ask(r"GET b'a\x1bb'", r"global: b'a\x1bb' -> steers")
    repl.type(r"GET b'\xffb" + TAB)
    repl.expect("ytes'")
    repl.type(ENTER)
    repl.expect(r"db: b'\xffbytes' -> odd")
    repl.expect(PROMPT)
    one.delete("ключ")
    repl.expect("(deleted elsewhere) ключ")

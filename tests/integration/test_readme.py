"""The examples of README.md and of the guide do what these pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from doctest import DocTestParser, Example
from itertools import pairwise
from pathlib import Path

import pytest

import dstore
from dstore import config
from dstore.protocol import wire
from tests.ending import kill

pytestmark = [pytest.mark.usefixtures("host_mode"), pytest.mark.shared]
"""The processes of a reader share the membership of their host."""

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
COMMANDS = ROOT / "docs" / "guide" / "command-line.md"
PROTOCOL = ROOT / "docs" / "protocol.md"
MESSAGES = {**wire._TO_GLOBAL, **wire._TO_LOCAL}
SECONDS_MAX = 30
README_LINES_MAX = 125
LONG_LEASE = 30.0
"""Seconds. An example must not depend on how busy the machine is."""
END = "the answer of this example ends here"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TERMINAL = re.compile(r"terminal (\d)|(?s:^```pycon\n(.*?)^```$)", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.*?) \| .*\|$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a page."""
    return [text for name, text in _BLOCK.findall(page.read_text("utf-8")) if name == language]


def examples_of_guide() -> Iterator[tuple[str, str]]:
    """Each Python program of the guide, with the output that stands directly below it, if any."""
    for page in GUIDE:
        found = [*_BLOCK.findall(page.read_text("utf-8")), ("", "")]
        for (language, code), (below, output) in pairwise(found):
            if language == "python":
                yield code, output if below == "text" else ""


def surroundings(address: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address}


class Terminal:
    """An interactive Python, as a reader of the README starts it."""

    def __init__(self, address: str, errors: Path) -> None:
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-q", "-i", "-u"],
                env=surroundings(address),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def run(self, example: Example) -> str:
        """Type one example. Return what it prints."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{example.source}print({END!r})\n")
        self.process.stdin.flush()
        return "".join(iter(self.process.stdout.readline, f"{END}\n"))

    def close(self) -> None:
        try:
            self.process.communicate(timeout=SECONDS_MAX)
        finally:
            kill(self.process)


@contextmanager
def terminals(address: str, folder: Path) -> Iterator[dict[str, Terminal]]:
    opened: dict[str, Terminal] = {}
    try:
        for name in ("1", "2"):
            opened[name] = Terminal(address, folder / f"errors-{name}")
        yield opened
    finally:
        for terminal in opened.values():
            terminal.close()


@pytest.mark.parametrize("free_global", [LONG_LEASE], indirect=True)
def test_two_terminals_print_what_the_readme_says(
    free_global: dstore.Global, tmp_path: Path
) -> None:
    steps = 0
    name = ""
    with terminals(free_global.address, tmp_path) as opened:
        for terminal, code in _TERMINAL.findall(README.read_text("utf-8")):
            if terminal:
                name = terminal
                continue
            for example in DocTestParser().get_examples(code):
                steps += 1
                assert opened[name].run(example) == example.want, example.source
    assert steps == 9


@pytest.mark.parametrize("free_global", [LONG_LEASE], indirect=True)
@pytest.mark.parametrize(("code", "output"), list(examples_of_guide()))
def test_the_examples_of_the_guide_print_what_they_say_each_time(
    code: str, output: str, free_global: dstore.Global, tmp_path: Path
) -> None:
    if "numpy" in code:
        pytest.importorskip("numpy")
    (tmp_path / "model.bin").write_bytes(b"weights" * (1 << 20))
    (tmp_path / "example.py").write_text(code, "utf-8")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "example.py"],
            cwd=tmp_path,
            env=surroundings(free_global.address),
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == output


def test_the_commands_of_the_guide_succeed(free_global: dstore.Global, tmp_path: Path) -> None:
    lines = blocks(COMMANDS, "sh")[0].splitlines()
    assert lines.pop(0).startswith("dstore global ")  # these two do not end
    assert lines.pop(0).startswith("dstore host ")
    assert all(line.startswith("dstore ") for line in lines)
    (tmp_path / "logo.png").write_bytes(bytes(range(256)))
    done = subprocess.run(
        ["sh", "-e"],
        input="\n".join([f'dstore() {{ "{sys.executable}" -m dstore "$@"; }}', *lines]),
        cwd=tmp_path,
        env=surroundings(free_global.address),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("good morning")
    assert (tmp_path / "copy.png").read_bytes() == bytes(range(256))


def test_the_set_up_scripts_of_the_readme_can_be_run() -> None:
    scripts = [line.split()[0] for line in blocks(README, "sh")[0].splitlines()]
    assert scripts == ["scripts/demo", "scripts/test"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= README_LINES_MAX


def test_every_message_is_documented_with_its_number_and_fields() -> None:
    documented = {
        int(number): (name, tuple(re.findall(r"`(\w+)`", fields)))
        for number, name, fields in _ROW.findall(PROTOCOL.read_text("utf-8"))
    }
    assert documented == {
        number: (kind.__name__, kind._fields) for number, (kind, _) in MESSAGES.items()
    }

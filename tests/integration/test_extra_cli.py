"""dstore without its extra "cli" (cmd2 and rich): what works, and what asks for the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dstore
from dstore.cli.progress import progress_bar
from tests.integration.processes import PATIENCE, ROOT

WITHOUT_EXTRA = """
import sys
sys.modules["cmd2"] = sys.modules["rich"] = None  # so that importing them fails
from dstore.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: str) -> tuple[int, str, str]:
    """Run one command without the extra. Returns exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("command", "module"), [("repl", "cmd2")])
def test_a_command_that_needs_the_extra_says_how_to_get_it(command: str, module: str) -> None:
    expected = f"dstore: this command needs {module}: pip install 'dstore[cli]'\n"
    assert run(command) == (2, "", expected)


def test_other_commands_do_without(free_global: dstore.Global) -> None:
    assert run("set", "k", "v", "--address", free_global.address) == (0, "", "")
    assert run("get", "k", "--address", free_global.address) == (0, "v", "")
    assert run("global", "--help")[0] == 0


def test_another_missing_module_is_an_error_like_any_other() -> None:
    script = WITHOUT_EXTRA.replace('sys.modules["cmd2"]', 'sys.modules["dstore.cli.repl.session"]')
    done = subprocess.run(
        [sys.executable, "-c", script, "repl"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_a_progress_bar_is_shown_with_the_extra_only(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    if not there:
        monkeypatch.setitem(sys.modules, "rich", None)
    with progress_bar() as progress:
        assert (progress is not None) == there

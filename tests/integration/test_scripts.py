"""The scripts that people and CI run. No test here creates a virtual environment: a stand-in for
Python replaces ``venv`` and ``pip`` and records how it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
TYPED = [
    "global",
    "repl",
    "demo",
    "test",
    "check",
    "docs",
    "simulate",
    "soak",
    "crash",
    "cluster",
    "bench",
]
INSTALLED_FROM = [
    "setup.cfg",
    "setup.py",
    "pyproject.toml",
    "dstore/_native.pyx",
    "dstore/_hash.h",
    "dstore/_table.h",
]
SETTING_UP = "Setting up .venv (first use only) ...\n"

# Used as "python". A real Python runs what is passed with -c: the version check and the lock.
STAND_IN = f"""#!/bin/sh
case "$1 $2" in
-c\\ *) exec '{sys.executable}' "$@" ;;
"-m venv")
    mkdir -p "$3/bin" && ln -s "$0" "$3/bin/python"
    printf '#!/bin/sh\\nprintf "<%%s>" dstore "$@"\\n' >"$3/bin/dstore"
    chmod +x "$3/bin/dstore" && echo venv >>"$CALLS" ;;
"-m pip")
    [ "$3" != --version ] || exit 0
    sleep 0.3 # so that two at a time would meet
    for last; do :; done
    echo "pip $last" >>"$CALLS"
    [ -z "${{PIP_FAILS-}}" ] || {{ echo "no such package" && exit 1; }} ;;
*) printf '<%s>' "$PWD" "$@" ;;
esac
"""
TOO_OLD = f"""#!/bin/sh
exec '{sys.executable}' -c 'import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])' "$2"
"""


class Checkout:
    """A copy of what the scripts need, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.elsewhere = folder / "elsewhere"
        self.calls_file = folder / "calls"
        self.environment = {
            **os.environ,
            "CALLS": str(self.calls_file),
            "PYTHON": str(executable(folder / "stand-in", STAND_IN)),
        }
        self.elsewhere.mkdir()
        shutil.copytree(SCRIPTS, self.root / "scripts")
        (self.root / "dstore").mkdir()
        for name in INSTALLED_FROM:
            shutil.copy(ROOT / name, self.root / name)

    def start(self, script: str | Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "scripts" / script, *arguments],
            cwd=self.elsewhere,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str | Path, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        with self.start(script, *arguments) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """The calls of the stand-in since this was called last."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("path", [*(SCRIPTS / name for name in TYPED), ROOT / ".ci" / "run"])
def test_a_script_is_executable(path: Path) -> None:
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", [*TYPED, "_venv"])
def test_a_script_is_posix_shell(name: str) -> None:
    subprocess.run(["sh", "-n", SCRIPTS / name], check=True, timeout=30)


@pytest.mark.parametrize("name", ["global", "repl", "demo"])
def test_a_script_hands_its_arguments_to_the_command(checkout: Checkout, name: str) -> None:
    expected = f"<dstore><{name}><--label><two words><>"
    assert checkout.run(name, "--label", "two words", "") == (0, expected, SETTING_UP)
    assert checkout.calls() == ["venv", "pip .[cli]"]
    assert checkout.run(name, "--label", "two words", "") == (0, expected, "")
    assert checkout.calls() == []


def test_a_script_finds_its_project_through_a_symlink(checkout: Checkout) -> None:
    link = checkout.elsewhere / "link to global"
    link.symlink_to(checkout.root / "scripts" / "global")
    assert checkout.run(link) == (0, "<dstore><global>", SETTING_UP)
    assert (checkout.root / ".venv").is_dir()
    assert list(checkout.elsewhere.iterdir()) == [link]


def test_the_tests_run_in_the_project_with_the_arguments_given(checkout: Checkout) -> None:
    code, out, _ = checkout.run("test", "-k", "one or two")
    assert (code, out) == (0, f"<{checkout.root}><-m><pytest><-k><one or two>")
    assert checkout.calls() == ["venv", "pip .[test]"]


def test_check_says_what_failed_and_refuses_what_it_does_not_know(checkout: Checkout) -> None:
    assert checkout.run("check")[0] == 0
    code, _, err = checkout.run("check", "--unknown")
    assert (code, err) == (2, "usage: scripts/check [--fix]\n")
    executable(Path(checkout.environment["PYTHON"]), '#!/bin/sh\n[ "$2 $3" != "ruff format" ]\n')
    assert checkout.run("check")[::2] == (1, "Failed: ruff format\n")


def test_an_installation_for_more_serves_what_needs_less(checkout: Checkout) -> None:
    checkout.run("check")
    assert checkout.calls() == ["venv", "pip .[dev]"]
    checkout.run("test")
    checkout.run("demo")
    assert checkout.calls() == []
    checkout.run("bench")
    assert checkout.calls() == ["pip .[bench]"]
    checkout.run("check")
    assert checkout.calls() == []


@pytest.mark.long
@pytest.mark.parametrize("name", [*INSTALLED_FROM, "dstore/_native.cpython-310.so"])
def test_what_has_changed_is_installed_once(checkout: Checkout, name: str) -> None:
    checkout.run("demo")
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    checkout.calls()
    assert checkout.run("demo")[2] == SETTING_UP
    assert checkout.run("demo")[2] == ""
    assert checkout.calls() == ["pip .[cli]"]


def test_a_moved_project_is_installed_again(checkout: Checkout) -> None:
    checkout.run("demo")
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run("demo") == (0, "<dstore><demo>", SETTING_UP)
    assert checkout.calls() == ["pip .[cli]"]


def test_a_failed_installation_tells_why_and_is_started_over(checkout: Checkout) -> None:
    checkout.environment["PIP_FAILS"] = "1"
    failure = (1, "", SETTING_UP + "no such package\nSetting up .venv failed.\n")
    assert checkout.run("global") == failure
    assert checkout.run("global") == failure
    del checkout.environment["PIP_FAILS"]
    assert checkout.run("global") == (0, "<dstore><global>", SETTING_UP)
    assert checkout.calls() == ["venv", "pip .[cli]"] * 3


def test_of_scripts_started_at_once_one_installs_and_the_others_wait(checkout: Checkout) -> None:
    started = [checkout.start("repl", str(number)) for number in range(4)]
    for number, process in enumerate(started):
        with process:
            out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, f"<dstore><repl><{number}>")
    assert checkout.calls() == ["venv", "pip .[cli]"]


def test_a_python_that_is_too_old_is_refused_in_one_line(checkout: Checkout) -> None:
    python = executable(checkout.elsewhere / "python3", TOO_OLD)
    checkout.environment["PYTHON"] = str(python)
    code, out, err = checkout.run("global")
    assert (code, out) == (1, "")
    assert err.startswith("dstore needs Python 3.10 or newer")
    assert str(python) in err
    assert err.count("\n") == 1
    assert not (checkout.root / ".venv").exists()


def test_the_first_usable_python_on_the_path_is_taken(checkout: Checkout) -> None:
    executable(checkout.elsewhere / "python3", TOO_OLD)
    shutil.move(checkout.environment.pop("PYTHON"), checkout.elsewhere / "python3.14")
    checkout.environment["PATH"] = f"{checkout.elsewhere}:{os.environ['PATH']}"
    assert checkout.run("global") == (0, "<dstore><global>", SETTING_UP)
    assert checkout.calls() == ["venv", "pip .[cli]"]

"""``pip install dstore``: what the distributions contain, and that the wheel works by itself.

The source distribution is built from a copy of this project, the wheel from that, and the wheel is
installed with its dependencies into an empty virtual environment. pip takes what it needs from
where it is configured to; without a package index these tests fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import dstore
from tests.integration.processes import ROOT

pytestmark = pytest.mark.timeout(300)  # pip may download, and the machine may be busy

BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
WORKER = """
import sys
import dstore
with dstore.Global("tcp://127.0.0.1:0") as server, dstore.Node(server.address) as node:
    node.set("key", {"a": 1})
    assert node.get("key") == {"a": 1}
    assert node.delete("key").confirmed
    assert dstore.AsyncNode
print(dstore.__version__, dstore.__file__)
"""
USE_A_GLOBAL = """
from dstore.cli import main
import dstore
with dstore.Global("tcp://127.0.0.1:0") as server:
    assert main(["set", "key", "value", "--address", server.address]) == 0
    assert main(["get", "key", "--address", server.address]) == 0
"""


class Installed(NamedTuple):
    """The two distributions, and the environment in which the wheel is installed."""

    sdist: Path
    wheel: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from this project."""
        return run([self.folder / "bin" / program, *arguments], self.folder, check=False)


def run(
    command: Sequence[str | Path], cwd: Path, path: str | None = None, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``cwd``, with ``path`` as its PYTHONPATH."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build both distributions and install the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, built, environment = folder / "source", folder / "dist", folder / "environment"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    run([sys.executable, "-m", "venv", environment], folder)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--no-input"]
    pip += ["--disable-pip-version-check"]
    run([*pip, "install", "--target", str(folder / "builder"), "setuptools >= 64"], folder)
    run([sys.executable, "-c", BUILD_SDIST, built], source, str(folder / "builder"))
    (sdist,) = built.iterdir()
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(built), str(sdist)], folder)
    (wheel,) = built.glob("*.whl")
    run([*pip, "install", str(wheel)], folder)
    return Installed(sdist, wheel, environment)


def test_the_wheel_contains_the_package_and_nothing_else(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    metadata = f"dstore-{dstore.__version__}.dist-info/"
    package = {name for name in names if not name.startswith(metadata)}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dstore").rglob("*.py")}
    assert package == {*modules, "dstore/py.typed"}


def test_the_source_distribution_contains_what_the_scripts_need(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    for name in ("dstore/py.typed", "tests/conftest.py", "scripts/_venv", "LICENSE", "README.md"):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("build/")]


def test_a_worker_uses_it_without_a_prompt(installed: Installed) -> None:
    packages = run(
        [installed.folder / "bin" / "python", "-m", "pip", "list", "--format=freeze"],
        installed.folder,
    ).stdout.lower()
    assert "dstore==" in packages
    assert "cmd2" not in packages and "rich" not in packages
    done = installed.run("python", "-W", "error", "-c", WORKER)
    assert (done.returncode, done.stderr) == (0, "")
    version, file = done.stdout.split()
    assert version == dstore.__version__
    assert file.startswith(str(installed.folder))


def test_its_commands_work_and_its_prompt_says_what_is_missing(installed: Installed) -> None:
    done = installed.run("dstore", "--version")
    assert (done.returncode, done.stdout) == (0, f"dstore {dstore.__version__}\n")
    done = installed.run("python", "-c", USE_A_GLOBAL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "value", "")
    done = installed.run("dstore", "repl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dstore: this command needs cmd2: pip install 'dstore[cli]'\n"

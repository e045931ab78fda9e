"""``pip install dstore``: what the distributions contain, and that the wheel works by itself.

The source distribution is built from a copy of this project, the wheel from that, and the wheel is
installed with its dependencies into an empty virtual environment. All this is done twice, the
second time with a compiler for C that fails. pip takes what it needs from where it is configured
to; without a package index these tests fail.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

import dstore
from dstore.compiled import PURE
from tests.conftest import NATIVE
from tests.integration.processes import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
]  # pip may download, and the machine may be busy

BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_native.c"
)
WORKER = """
import sys
import dstore
with dstore.Global("tcp://127.0.0.1:0") as server, dstore.Node(server.address) as node:
    node.set("key", {"a": 1})
    assert node.get("key") == node.get("key") == {"a": 1}
    assert node.delete("key").confirmed
    assert dstore.AsyncNode
print(dstore.__version__, dstore.__file__)
"""
NATIVE_FILE = """
from dstore.compiled import missing, native
print("" if native is None else native.__file__, end="")
assert (native is None) == missing.startswith("it is not built: ")
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

    @property
    def compiled(self) -> list[str]:
        """The names of the compiled modules in the wheel."""
        names = zipfile.ZipFile(self.wheel).namelist()
        return [name for name in names if name.endswith(".so")]

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from this project."""
        return run([self.folder / "bin" / program, *arguments], self.folder, check=False)


def run(
    command: Sequence[str | Path],
    cwd: Path,
    variables: Mapping[str, str] = MappingProxyType({}),
    *,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``cwd``, with ``variables`` in its environment."""
    environment = {**os.environ, **variables}
    for name in {"PYTHONPATH", PURE} - set(variables):
        environment.pop(name, None)
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
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    source, built, builder = folder / "source", folder / "dist", folder / "builder"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    required = re.search(r"^requires = (.+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert required is not None
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    run([*pip, "install", "--target", builder, *ast.literal_eval(required[1])], folder)
    run([sys.executable, "-c", BUILD_SDIST, built], source, {"PYTHONPATH": str(builder)})
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module", params=["compiled", "without a compiler"])
def installed(
    request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """Build the wheel and install it."""
    folder = tmp_path_factory.mktemp("wheel")
    built, environment = folder / "dist", folder / "environment"
    run([sys.executable, "-m", "venv", environment], folder)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--no-input"]
    pip += ["--disable-pip-version-check"]
    compiler = {} if request.param == "compiled" else {"CC": "/bin/false"}
    run([*pip, "wheel", "--no-deps", "--wheel-dir", built, sdist], folder, compiler)
    (wheel,) = built.glob("*.whl")
    run([*pip, "install", wheel], folder)
    made = Installed(sdist, wheel, environment)
    if request.param != "compiled":
        assert made.compiled == []
    elif os.environ.get(NATIVE):  # else there may be no compiler
        assert len(made.compiled) == 1
    return made


def test_the_wheel_contains_the_package_and_nothing_else(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    metadata = f"dstore-{dstore.__version__}.dist-info/"
    package = {name for name in names if not name.startswith(metadata)}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dstore").rglob("*.py")}
    assert package == {*modules, "dstore/py.typed", *installed.compiled}


def test_hits_are_compiled_where_the_compiled_part_is(installed: Installed) -> None:
    done = installed.run("python", "-c", NATIVE_FILE)
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in installed.compiled if done.stdout.endswith(name)] == installed.compiled
    assert bool(done.stdout) == bool(installed.compiled)


def test_the_source_distribution_contains_what_the_scripts_need(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    for name in ("dstore/py.typed", "tests/conftest.py", "scripts/_venv", "LICENSE", "README.md"):
        assert name in names
    assert {"setup.py", "dstore/_native.pyx"} < names
    assert "dstore/_native.c" not in names
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

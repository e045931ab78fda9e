"""Each example runs by itself, proves what it says, and ends with exit code 0."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from dstore import config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECONDS_MAX = 40


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of five Python files, two of which are equal and one of which is broken."""
    for name, content in {
        "one.py": "def hello(word):\n    return word + word\n",
        "two.py": "def hello(word):\n    return word + word\n",
        "three.py": "import os\nprint(os.sep)\n",
        "empty.py": "",
        "broken.py": "def word(:\n  'never closed\n",
    }.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def run(name: str, *arguments: object, address: str = "") -> str:
    """Run one example as a process of its own; return what it printed."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_word_count_by_default_counts_the_standard_library() -> None:
    output = run("word_count.py", "--workers", 3)
    assert re.search(r"\d  self\n", output)
    assert re.search(r"\n[\d,]{6,} words in \d+ files: the same as counted by one process", output)
    assert (
        len(re.findall(r"^worker \d: \d+ files, [1-9]\d* reads from its own", output, re.MULTILINE))
        == 3
    )


def test_word_count_of_a_folder_leaves_nothing_in_a_global_that_runs(
    sources: Path, free_global: dstore.Global
) -> None:
    output = run("word_count.py", sources, "--address", free_global.address, "--workers", 2)
    assert re.search(r"^ +7  word$", output, re.MULTILINE)
    with dstore.Node(free_global.address) as node:
        assert list(node.keys()) == []


def test_shared_config_never_shows_an_outdated_configuration() -> None:
    output = run("shared_config.py", "--workers", 3)
    assert "all workers use version 3" in output
    assert len(re.findall(r"[1-9][\d,]* configurations from own memory, [1-9]", output)) == 3
    assert "4 changes, and after none of them was an outdated configuration read" in output


def test_memoise_computes_each_result_once() -> None:
    output = run("memoise.py", "--workers", 3, "--files", 20)
    computed = [int(count) for count in re.findall(r"worker \d: (\d+) computed", output)]
    assert len(computed) == 3
    assert sum(computed) == 20
    assert "20 inputs, 20 computed, 40 reused" in output


def test_memoise_in_a_global_named_by_the_environment(
    sources: Path, free_global: dstore.Global
) -> None:
    output = run("memoise.py", sources, "--workers", 2, address=free_global.address)
    assert "4 inputs, 4 computed, 4 reused" in output
    with dstore.Node(free_global.address) as node:
        assert len(list(node.keys())) == 4  # the inputs, by their content addresses


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_each_example_is_described(name: str) -> None:
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text()
    assert f"python examples/{name}" in (EXAMPLES / name).read_text()

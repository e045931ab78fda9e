"""Each example runs by itself, checks its own result, and ends with exit code 0."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from dstore import config
from tests.integration.processes import PATIENCE, others_left

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.usefixtures("host_mode"), pytest.mark.shared]
"""As a reader runs them: the processes share the membership of their host."""
SECONDS_MAX = 40
SERVED = {
    "gunicorn_preload.py": "gunicorn --preload",
    "starlette_cache.py": "uvicorn --workers",
}
"""Services, and how they are started; test_gunicorn.py and test_starlette.py do that."""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of five Python files, of which two are equal and one is broken."""
    for name, content in {
        "one.py": "def hello(word):\n    return word + word\n",
        "two.py": "def hello(word):\n    return word + word\n",
        "three.py": "import os\nprint(os.sep)\n",
        "empty.py": "",
        "broken.py": "def word(:\n  'never closed\n",
    }.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def start(name: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one example in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: "", **variables}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def run(name: str, *arguments: object, address: str = "", **variables: str) -> str:
    """Run one example. Return what it printed."""
    done = start(name, *arguments, **{config.ADDRESS_VARIABLE: address, **variables})
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
    # Of deletions each worker reports those of which its own memory had the value.
    assert len(re.findall(r"[1-9][\d,]* configurations from memory, \d deletions", output)) == 3
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


def test_shared_matrix_takes_the_memory_of_one_copy() -> None:
    output = run("shared_matrix.py", "--workers", 3, "--mebibytes", 16)
    assert len(re.findall(r"^worker \d: got 16 MiB in [\d.]+ ms$", output, re.MULTILINE)) == 3
    metrics = r"private +[\d.]+, shared +[\d.]+, proportional +[\d.]+ MiB$"
    assert len(re.findall(rf"^worker \d: (?:before|after): +{metrics}", output, re.MULTILINE)) == 6
    together = r"^3 workers together: [\d.]+ MiB more; one copy is 16 MiB, and copies for all would"
    assert re.search(together, output, re.MULTILINE)
    assert output.endswith("all 3 workers have read the same matrix, and none can change it\n")


def test_shared_matrix_reports_that_nothing_is_shared() -> None:
    output = run("shared_matrix.py", "--workers", 2, "--mebibytes", 8, DSTORE_SHM="")
    assert "(each has its own: is there shared memory, and room in it? df /dev/shm)\n" in output
    assert output.endswith("all 2 workers have read the same matrix, and none can change it\n")


def test_shared_matrix_works_where_the_system_does_not_report_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = importlib.util.spec_from_file_location("shared_matrix", EXAMPLES / "shared_matrix.py")
    assert where is not None
    assert where.loader is not None
    example = importlib.util.module_from_spec(where)
    where.loader.exec_module(example)
    monkeypatch.setattr(example, "SMAPS", "/no/such/file")
    assert example.own_memory() is None
    said = example.judge(16, [(None, None)])
    assert said == "there is no /no/such/file here, so the memory that this took is not known"


def test_shared_model_never_predicts_with_a_replaced_version() -> None:
    output = run("shared_model.py", "--workers", 2)
    right = [int(each) for each in re.findall(r"all workers use version \d: (\d+)% right", output)]
    assert len(right) == 3
    assert right == sorted(right)
    assert len(re.findall(r"^worker \d: [1-9][\d,]* predictions$", output, re.MULTILINE)) == 2
    assert output.endswith("none was used for a prediction after it was replaced\n")


@pytest.mark.long
@pytest.mark.private
@pytest.mark.shared
@pytest.mark.parametrize("free_global", [2 * PATIENCE], indirect=True)  # no session is dropped
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_process_pool_has_one_table_and_leaves_no_session(
    method: str, free_global: dstore.Global, host_mode: str
) -> None:
    address = free_global.address
    output = run("process_pool.py", "--workers", 3, "--start-method", method, "--address", address)
    workers = re.findall(r"^worker \d+: ([\d,]+) tables from own memory$", output, re.MULTILINE)
    assert len(workers) == 3
    sessions = {"shared": 1, "private": 3}[host_mode]
    assert f"\nsessions at Global for 3 workers: {sessions}\n" in output
    hits = sum(int(count.replace(",", "")) for count in workers)
    assert f"\n{hits:,} numbers factorised, all of them correctly\n" in output
    assert "copies of the table, 16 MiB, for 3 workers: 1\n" in output
    with dstore.Node(address) as node:
        assert others_left(node) == 0
        assert list(node.keys()) == []


def test_process_pool_reports_that_nothing_is_shared() -> None:
    output = run("process_pool.py", "--workers", 2, DSTORE_SHM="")
    assert "for 2 workers: 2\n(is there shared memory, and room in it? df /dev/shm)\n" in output


@pytest.mark.parametrize("shm", ["shared with Global", ""])
def test_distribute_folder_sends_nothing_twice(sources: Path, tmp_path: Path, shm: str) -> None:
    (sources / "deeper").mkdir()
    (sources / "deeper" / os.fsdecode(b"not\xffutf-8")).write_bytes(b"any bytes make a name")
    variables = {} if shm else {"DSTORE_SHM": ""}
    output = run("distribute_folder.py", sources, "--mebibytes", 1, **variables)
    published = re.findall(
        r"^published (\d+) files, (\d+) of them skipped: Global has ([\d,]+) bytes more, of which "
        r"([\d,]+) were sent in chunks\nrestored (\d+) files, (\d+) of them fetched$",
        output,
        re.MULTILINE,
    )
    first, second, third = ([int(each.replace(",", "")) for each in row] for row in published)
    assert first[:2] == [10, 0]
    assert first[2] > 1 << 20
    assert first[3] == (0 if shm else 1 << 20)
    assert first[4:] == [10, 10]
    assert second == [10, 10, 0, 0, 10, 0]
    assert third[:2] == [10, 8]
    assert 0 < third[2] < 1100
    assert third[3:] == [0, 10, 3]
    assert output.endswith("what was there already was not sent again\n")


def test_distribute_folder_leaves_content_alone_in_a_global_that_runs(
    sources: Path, free_global: dstore.Global
) -> None:
    run("distribute_folder.py", sources, "--mebibytes", 1, address=free_global.address)
    with dstore.Node(free_global.address) as node:
        assert {key[:3] for key in list(node.keys())} == {config.CONTENT_PREFIX}


def test_engine_in_files_reads_each_file_once() -> None:
    output = run("engine_in_files.py", "--values", 50, "--bytes", 20_000)
    assert re.fullmatch(
        r"50 values in .*\n50 of them were read from their files\n"
        r"all are as they were written, and are gone after their deletion\n",
        output,
    )


@pytest.mark.parametrize("name", ["process_pool.py", "shared_matrix.py", "shared_model.py"])
def test_without_numpy_an_example_says_what_to_install(name: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    done = start(name, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "this example needs NumPy: pip install 'dstore[numpy]'\n"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_each_example_is_described(name: str) -> None:
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text()
    assert SERVED.get(name, f"python examples/{name}") in (EXAMPLES / name).read_text()

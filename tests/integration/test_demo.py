"""``dstore demo`` as a person runs it: real processes, over a small folder that has it all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstore.cli.demo import files

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ordinary files and with each kind of odd one."""
    for number in range(25):
        (tmp_path / f"text{number}.txt").write_text(f"line {number}\n" * number)  # text0: empty
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "Ünïcödé 文.txt").write_text("said in Unicode")
    (tmp_path / os.fsdecode(b"not\xffutf-8")).write_bytes(b"any bytes make a file name")
    (tmp_path / "b3:fake").write_text("a path that looks like a content address")
    deep = tmp_path.joinpath(*["deep" * 40] * 4)
    deep.mkdir(parents=True)
    (deep / "unreachable").write_text("the key of this one is too long")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(files.FILE_BYTES_MAX + 1)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dstore", "demo", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def test_the_verdict_on_a_small_folder_is_good(folder: Path) -> None:
    done = run(folder, "--workers", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert re.match(r"verdict: good: [\d,]+ reads, .*; 10 deletions and replacements", lines[-1])
    for reason in (
        "skipped 1 file: path too long for a key",
        "skipped 1 file: path looks like a content address",
        "skipped 1 file: too large",
        "skipped 1 file: not a plain file",
    ):
        assert reason in lines
    assert any(line.startswith("loaded 28 files") for line in lines)
    assert any(line.startswith("deleted 5 files while") for line in lines)
    assert any(line.startswith("replaced 5 files while") for line in lines)
    assert len([row for row in lines if re.match(r" +[123]  ", row)]) == 3


def test_global_is_killed_and_starts_again(folder: Path) -> None:
    done = run(folder, "--workers", 2, "--data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    (killed,) = (number for number, line in enumerate(lines) if line.startswith("killed Global"))
    assert "with signal 9" in lines[killed]
    assert "it has all 23 files that it had" in lines[killed]
    assert any(line.startswith("deleted 5 files while") for line in lines[:killed])
    assert any(line.startswith("replaced 5 files while") for line in lines[killed:])
    assert re.match(r"verdict: good: .* when Global was killed and started again", lines[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("DELETE FROM kept WHERE rowid = (SELECT max(rowid) FROM kept)", "came back with 22"),
        ("UPDATE kept SET body = x'00'", "gave up: "),
    ],
)
def test_what_a_killed_global_loses_makes_the_verdict_bad(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, harm: str, why: str
) -> None:
    """The demo runs with a Python in which the second Global finds a database that was harmed."""
    patches = tmp_path_factory.mktemp("patches")
    (patches / "sitecustomize.py").write_text(FORGETFUL.format(harm=harm))
    done = subprocess.run(
        command(folder, "--workers", 1, "--data"),
        env=environment(PYTHONPATH=f"{patches}{os.pathsep}{ROOT}"),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    verdict = done.stdout.splitlines()[-1]
    assert re.match(rf"verdict: BAD: .*{why}", verdict)


FORGETFUL = """
import os, sqlite3, sys
if "global" in sys.argv and "--data" in sys.argv:
    database = os.path.join(sys.argv[sys.argv.index("--data") + 1], "dstore.db")
    if os.path.exists(database):
        with sqlite3.connect(database) as connection:
            connection.execute({harm!r})
        connection.close()
"""
"""Code that Python runs at its start: the data folder of a Global that starts again loses rows."""


def test_a_single_empty_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "only").touch()
    done = run(tmp_path, "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: good" in done.stdout


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "has no file that can be loaded"),
        (lambda path: path.touch(), "is not a folder"),
    ],
    ids=["missing", "empty", "file"],
)
def test_a_folder_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, make: object, complaint: str
) -> None:
    assert callable(make)
    make(tmp_path / "place")
    done = run(tmp_path / "place")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"dstore demo: .*{complaint}\n", done.stderr)


class Running:
    """A demo under way over the standard library, and all the processes that it has started."""

    def __init__(self) -> None:
        self._mark = f"DSTORE_DEMO_TEST={uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            command("--workers", 2),
            env=environment(**dict([self._mark.split("=")])),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        self.workers = [int(pid) for pid in self.first_line.rpartition("processes ")[2].split(",")]

    def alive(self) -> list[int]:
        """The processes with our mark in their environment, whoever is their parent now."""
        return [pid for pid in _processes() if self._mark.encode() in _environment_of(pid)]

    def finish(self) -> tuple[str, str]:
        return self.process.communicate(timeout=SECONDS_MAX)


@pytest.fixture
def running() -> Iterator[Running]:
    demo = Running()
    with demo.process:
        try:
            yield demo
        finally:
            for pid in demo.alive():
                os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(running: Running, signum: int) -> None:
    assert len(running.alive()) >= 4  # itself, Global, two workers
    running.process.send_signal(signum)
    _, errors = running.finish()
    assert running.process.returncode == 130
    assert errors == "dstore demo: interrupted\n"
    assert running.alive() == []


def test_a_worker_that_dies_makes_the_verdict_bad(running: Running) -> None:
    os.kill(running.workers[1], signal.SIGKILL)
    output, errors = running.finish()
    assert running.process.returncode == 1
    why = f"worker 2 (process {running.workers[1]}) died by signal 9"
    assert output.splitlines()[-1] == f"verdict: BAD: {why}"
    assert errors == ""
    assert running.alive() == []


def test_what_can_be_read_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    for name in ("stays", "grown", "gone"):
        (tmp_path / name).touch()
    (tmp_path / "gone").unlink()
    (tmp_path / "gone").symlink_to("nowhere")
    with (tmp_path / "grown").open("wb") as grown:
        grown.truncate(files.FILE_BYTES_MAX + 1)
    contents, skipped = files.read_folder(str(tmp_path))
    assert contents == {"stays": b""}
    assert skipped == {"unreadable": 1, "too large": 1}


def test_no_more_than_the_demo_takes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"ten bytes.")
    monkeypatch.setattr(files, "FILES_MAX", 3)
    contents, skipped = files.read_folder(str(tmp_path))
    assert (len(contents), skipped) == (3, {"beyond what the demo takes": 1})
    monkeypatch.setattr(files, "BYTES_MAX", 15)
    assert len(files.read_folder(str(tmp_path))[0]) == 2


def test_the_default_folder_is_the_standard_library() -> None:
    contents, _ = files.read_folder(None)
    assert {"ast.py", "json/decoder.py"} <= set(contents)
    assert not any("site-packages" in str(key) for key in contents)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is not ours
        return b""

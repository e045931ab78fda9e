"""The benchmarks run, and write what they promise. The numbers are not judged here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare import measure
from benchmarks.goals import GOALS
from benchmarks.machine import compiled, why_pure
from benchmarks.processes import PureWorker
from benchmarks.results import Results
from benchmarks.workloads import NAMES

ROOT = Path(__file__).resolve().parents[2]
MARK = "DSTORE_BENCHMARK_OF_A_TEST"
PATIENCE = 10.0
WITHOUT_SERVERS = ("redis-py", "ProxyStore over Redis", "NATS KV")
RAY = "Ray's object store"
COMPILED = {"hot", "hot-lru", "hit", "hit-lru"}
"""The goals of a compiled hit."""


@contextmanager
def benchmark(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A run in the smallest setting, on a system that has no servers of peers installed."""
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", *options]
    environment = {**os.environ, "PATH": str(tmp_path), MARK: str(tmp_path)}
    with subprocess.Popen(
        [*command, "--without", RAY],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def left_of(tmp_path: Path) -> list[str]:
    """Processes that a run has started and that are still there a while after it has ended."""
    deadline = time.monotonic() + PATIENCE
    mark = f"{MARK}={tmp_path}".encode()
    while (left := [each for each in Path("/proc").glob("[0-9]*") if has(each, mark)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return [str(each) for each in left]


def has(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or belongs to somebody else
        return False


def test_all_workloads_run_and_are_reported(tmp_path: Path) -> None:
    with benchmark(tmp_path, "--out", str(tmp_path)) as process:
        out, err = process.communicate(timeout=55)
    assert (process.returncode, err) == (0, "")
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    measured = {each["workload"] for each in found["measurements"]}
    assert measured == {*NAMES, "memory_server", "peak"}
    without = {"hot-redis", "hit-redis", "get_many"}  # Redis is their reference
    if not compiled():
        without |= COMPILED
    reached = {goal["name"] for goal in found["goals"]}
    assert reached == {goal.name for goal in GOALS} - without
    assert all(each["summary"]["n"] > 0 for each in found["measurements"])
    assert {"date", "machine", "revision", "versions"} <= set(found["about"])
    report = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert report.count("\n## ") > len(NAMES)
    for who in WITHOUT_SERVERS:
        assert re.search(rf"^- {who}, in .*: needs ", report, re.MULTILINE)
        assert re.search(rf"^  {who} is left out of \w+: needs ", out, re.MULTILINE)
    assert left_of(tmp_path) == []


def test_a_run_in_pure_python_says_so_and_has_no_compiled_hit(tmp_path: Path) -> None:
    """It is a run of ``benchmarks.compare``, whose dstore is a link to that of this tree."""
    measure(ROOT, tmp_path, ["--scale", "tiny", "--only", "hit", "--without", RAY], pure=True)
    found = Results.from_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found.about["hit"].startswith("pure Python, since ")
    names = {goal.name for goal in found.goals}
    assert {"hot-pure", "hit-pure"} <= names and not names & COMPILED


@contextmanager
def why(*_: object) -> Iterator[str]:
    yield why_pure()


def test_a_process_of_pure_python_has_no_compiled_part() -> None:
    before = dict(os.environ)
    with PureWorker(why) as worker:
        assert worker.call(str)
    assert dict(os.environ) == before


def test_costs_are_counted_on_both_sides() -> None:
    command = [sys.executable, "-m", "benchmarks.costs"]
    options = ["--requests", "40", "--clients", "2", "--window", "0.05"]
    run = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=50, check=True
    )
    lines = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()[2:]]
    spent = {name: [float(each) for each in numbers[:-1]] for name, *numbers in lines}
    for name in ("bare echo, round trip", "dstore, GET", "dstore, DEL", "dstore, 2 clients"):
        wall, asking, _, loop, _, total = spent[name]
        assert 0 < asking < total and 0 < loop < total and wall > 0


def test_ctrl_c_ends_it_and_all_that_it_has_started(tmp_path: Path) -> None:
    with benchmark(tmp_path, "--only", "clients", "growth_locals", "--out", str(tmp_path)) as run:
        assert run.stdout is not None
        while not run.stdout.readline().startswith("[2/2] growth_locals"):
            pass
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert err.splitlines()[-1:] == ["Interrupted; there is no report."]
    assert list(tmp_path.iterdir()) == []
    assert left_of(tmp_path) == []

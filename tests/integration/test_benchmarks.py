"""The benchmarks run, and write what they promise. The numbers are not judged here."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.compare import measure
from benchmarks.goals import GOALS
from benchmarks.machine import compiled, why_pure
from benchmarks.processes import PureWorker, Worker, proportional
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.settings import TINY
from benchmarks.workloads import NAMES
from benchmarks.workloads.host_deletions import host_deletions
from benchmarks.workloads.host_reads import first_reads
from dstore.config import HOST_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
MARK = "DSTORE_BENCHMARK_OF_A_TEST"
PATIENCE = 10.0
WITHOUT_SERVERS = ("redis-py", "ProxyStore over Redis", "NATS KV")
PAGE = 4096
RAY = "Ray's object store"
AGAINST_REDIS = {
    "hot-redis", "hit-redis", "get_many", "host-first", "host-first-pure", "host-many",
    "host-many-pure", "mixed-redis", "mixed-cache", "answer", "answer-asked",
}  # fmt: skip
COMPILED = {"hot", "hot-lru", "hit", "hit-lru"}
"""The goals of a compiled hit."""


@contextmanager
def benchmark(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A run in the smallest setting, on a system that has no servers of peers installed."""
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", *options]
    environment = {**os.environ, "PATH": str(tmp_path), MARK: str(tmp_path)}
    environment.pop(HOST_VARIABLE, None)  # they measure what processes share
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


@pytest.mark.long
def test_all_workloads_run_and_are_reported(tmp_path: Path) -> None:
    with benchmark(tmp_path, "--out", str(tmp_path)) as process:
        out, err = process.communicate(timeout=55)
    assert (process.returncode, err) == (0, "")
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    measured = {each["workload"] for each in found["measurements"]}
    assert measured == {*NAMES, "host_requests", "host_sessions", "memory_server", "peak"}
    without = set(AGAINST_REDIS)
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


@pytest.mark.long
def test_keys_asked_of_global_are_counted_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOST_VARIABLE)
    results = Results(TINY.name, {})
    run = Run(TINY, results, say=lambda _: None, without=frozenset({*WITHOUT_SERVERS, RAY}))
    first_reads(run)
    host_deletions(run)
    asked = [each.summary for each in results.of("host_requests")]
    assert asked and all(0 <= each.median <= 1 for each in asked)
    sessions = {
        int(each.at["Nodes that hold the key"]): each.summary.median
        for each in results.of("host_sessions")
        if each.who == "sessions at Global"
    }
    few, many = TINY.host_nodes
    assert set(sessions) == {0, few, many}
    assert all(1 <= found <= nodes + 1 for nodes, found in sessions.items())


SIZE = 64 << 20


@contextmanager
def mapping(*_: object) -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE) as shared:
        yield shared


def touched_alone_and_by_two(shared: mmap.mmap) -> tuple[int, int]:
    """Return how much memory counts for this process, and then for a child that has the same."""
    before = proportional(os.getpid())
    shared.write(b"x" * SIZE)
    alone = proportional(os.getpid()) - before
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if not child:
            shared.seek(0)
            while shared.read(PAGE):
                pass
            theirs.send(b"it has read all")
            theirs.recv(1)
            os._exit(0)
        ours.recv(20)
        shared_by_two = proportional(child)
        ours.send(b"x")
        os.waitpid(child, 0)
    return alone, shared_by_two


def test_memory_that_several_processes_map_counts_in_part_for_each() -> None:
    with Worker(mapping) as worker:
        alone, by_two = worker.call(touched_alone_and_by_two)
    assert alone > 0.9 * SIZE
    assert 0.4 * SIZE < by_two < 0.9 * SIZE


@contextmanager
def why(*_: object) -> Iterator[str]:
    yield why_pure()


def test_a_process_of_pure_python_has_no_compiled_part() -> None:
    before = dict(os.environ)
    with PureWorker(why) as worker:
        assert worker.call(str)
    assert dict(os.environ) == before


@pytest.mark.long
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

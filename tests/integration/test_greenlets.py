"""Nodes in processes that gevent or eventlet has patched. The process of pytest stays unpatched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import dstore
from tests.integration.green_programs import PATIENCE
from tests.integration.processes import ROOT, GlobalProcess, others_left

COMMAND = [sys.executable, "-m", "tests.integration.green_programs"]
PROGRAMS = ["calls", "waits", "threads", "forks", "signals", "embeds", "logs", "asyncs", "exits"]
USUAL = [("gevent", "before", program) for program in PROGRAMS] + [
    ("gevent", "after", "calls"),
    ("eventlet", "before", "calls"),
    ("eventlet", "before", "waits"),
]
CASES = [
    (name, how, program)
    for name in ("gevent", "eventlet")
    for how in ("before", "after")
    for program in PROGRAMS
] + [
    ("gevent", "nothread", "calls"),
    ("gevent", "socket", "calls"),
    ("gevent", "after", "late"),
    ("gevent", "nothread", "late"),
    ("eventlet", "after", "late"),
]
ALL = [pytest.param(*each, marks=() if each in USUAL else pytest.mark.long) for each in CASES]


@pytest.mark.parametrize(("name", "how", "program"), ALL)
def test_a_patched_process(name: str, how: str, program: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    with GlobalProcess() as served, dstore.Node(served.address) as node:
        node.join()
        done = subprocess.run(
            [*COMMAND, name, how, program, served.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE + 10,
        )
        assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr
        assert "Exception ignored" not in done.stderr
        assert others_left(node) == 0, "it has not said goodbye"

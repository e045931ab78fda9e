"""The benchmarks run, and say what they promise to say. Figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_latency(tmp_path: Path) -> None:
    report = tmp_path / "latency.json"
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", ROOT / "benchmarks" / "latency.py"),
            *("--blocks", "1", "--rounds", "1", "--json", report),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = {result["name"]: result for result in json.loads(report.read_text())["results"]}
    assert list(results) == ["hit, 100 B", "miss, 100 B", "DEL, 1 holder", "DEL, 3 holders"]
    for name, result in results.items():
        assert result["ratio"] > 0
        assert name in done.stdout


def test_large_values(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    report = tmp_path / "large.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "large_values.py", "--quick", "--json", report],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(report.read_text())
    readers = results["eight readers"]
    assert readers["files"] == [readers["bytes sent by Global"]]
    assert results["after kill -9 of all"]["after a clean exit"] == 0

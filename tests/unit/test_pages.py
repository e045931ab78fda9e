"""CONTRIBUTING, SECURITY and the CI configuration name what exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"`((?:dstore|tests|scripts|docs|\.ci)/[\w./]*)", text))
    assert named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_contributing_names_every_script() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    scripts = [path.name for path in (ROOT / "scripts").iterdir() if path.name != "_venv"]
    assert sorted(name for name in scripts if f"`scripts/{name}" not in text) == []


def test_ci_runs_every_python_that_the_metadata_names() -> None:
    metadata = (ROOT / "setup.cfg").read_text("utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", metadata)
    (matrix,) = re.findall(r"python: \[(.*)\]", CI.read_text("utf-8"))
    assert matrix.replace('"', "").split(", ") == versions


def test_ci_and_pre_commit_run_scripts_that_can_be_run() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    run = re.findall(
        r"(?:run|entry): (?:\w+=\w+ )?(\S+)$", CI.read_text("utf-8") + hooks, re.MULTILINE
    )
    tests = ["scripts/test"] * 2  # with the compiled part, and without it
    assert run == [*tests, "scripts/check", "scripts/docs", "scripts/check"]
    assert all(os.access(ROOT / script, os.X_OK) for script in run)

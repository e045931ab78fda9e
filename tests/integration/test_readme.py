"""The README's example prints what it says; links lead somewhere; every message is documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from dstore import config
from dstore.protocol import wire

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
PROTOCOL = ROOT / "docs" / "protocol.md"
MESSAGES = {**wire._TO_GLOBAL, **wire._TO_LOCAL}
SECONDS_MAX = 30
LINES_MAX = 10

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.*?) \| .*\|$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    """The fenced blocks of this language in the README."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return found


# A long lease: the example must not depend on how busy the machine is.
@pytest.mark.parametrize("free_global", [30.0], indirect=True)
def test_the_example_prints_what_the_readme_says(
    free_global: dstore.Global, tmp_path: Path
) -> None:
    example = tmp_path / "example.py"
    example.write_text(blocks("python")[0], "utf-8")
    assert len(blocks("python")[0].splitlines()) <= LINES_MAX
    done = subprocess.run(
        [sys.executable, str(example)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            config.ADDRESS_VARIABLE: free_global.address,
        },
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == blocks("text")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path) -> None:
    for link in _LINK.findall(page.read_text("utf-8")):
        if "://" in link:
            continue
        path = link.partition("#")[0]
        assert (page.parent / path).exists(), f"{page.name} links to {link}"


def test_every_message_is_documented_with_its_number_and_fields() -> None:
    documented = {
        int(number): (name, tuple(re.findall(r"`(\w+)`", fields)))
        for number, name, fields in _ROW.findall(PROTOCOL.read_text("utf-8"))
    }
    assert documented == {
        number: (kind.__name__, kind._fields) for number, (kind, _) in MESSAGES.items()
    }


def test_the_set_up_scripts_of_the_readme_can_be_run() -> None:
    scripts = [line.split()[0] for line in blocks("sh")[0].splitlines()]
    assert scripts == ["scripts/demo", "scripts/test"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_every_file_of_the_package_has_its_place_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    package = ROOT / "dstore"
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        named = f"`{name}`" in text or (f"`{path.parent.name}/`" in text and name.count("/") == 1)
        assert named or name.endswith("/__init__.py"), f"{name} is not in docs/architecture.md"

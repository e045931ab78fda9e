"""The version stands in one place, and is told the same by a checkout and by an installation."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dstore
from dstore import version

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _not_remembered() -> Iterator[None]:
    version.version.cache_clear()
    yield
    version.version.cache_clear()


def test_it_is_the_version_of_the_metadata() -> None:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    assert dstore.__version__ == version.__version__ == metadata["metadata"]["version"]


def test_the_metadata_of_another_project_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = other\nversion = 7\n")
    assert version._from_checkout(tmp_path) is None
    (tmp_path / "setup.cfg").write_text("no section")
    assert version._from_checkout(tmp_path) is None


def test_without_a_checkout_the_installation_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    installed = tmp_path / "dstore-8.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: dstore\nVersion: 8.1\n")
    assert version.version() == "8.1"


def test_nobody_to_ask_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    monkeypatch.setattr("sys.path", [])
    assert version.version() == "0+unknown"


def test_the_number_is_written_nowhere_else() -> None:
    number = re.compile(rf"(?<![\d.]){re.escape(dstore.__version__)}(?![\d.])")
    sources = [*ROOT.glob("dstore/**/*.py"), ROOT / "pyproject.toml"]
    assert [path for path in sources if number.search(path.read_text())] == []

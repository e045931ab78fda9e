"""The version is written in one place."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import dstore
from dstore import version

ROOT = Path(__file__).resolve().parents[2]


def test_the_metadata_takes_the_version_from_the_package() -> None:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    assert metadata["metadata"]["version"] == "attr: dstore.version.__version__"
    assert dstore.__version__ == version.__version__


def test_the_number_is_written_nowhere_else() -> None:
    number = re.compile(rf"(?<![\d.]){re.escape(dstore.__version__)}(?![\d.])")
    sources = [*ROOT.glob("dstore/**/*.py"), ROOT / "pyproject.toml", ROOT / "setup.cfg"]
    named = [path for path in sources if number.search(path.read_text())]
    assert named == [ROOT / "dstore" / "version.py"]

"""The files that the demo shares."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dstore import config
from dstore.cli.console import text_or_bytes
from dstore.protocol.content import PLAIN
from dstore.protocol.keys import from_bytes

FILES_MAX = 10_000
FILE_BYTES_MAX = 8 << 20
BYTES_MAX = 128 << 20
"""The demo holds a folder in memory several times, and therefore takes no more than this of it."""
LIBRARY_SKIPS = {"site-packages", "dist-packages", "__pycache__"}


class FolderError(Exception):
    """The folder cannot be used. The message is one line for the user."""


def read_folder(folder: str | None) -> tuple[dict[str | bytes, bytes], Counter[str]]:
    """Read the files of a folder, or of the standard library's sources if it is None.

    Returns the content of each file by its path in the folder, and how many files were skipped for
    which reason. Raises FolderError if there is no file that can be used.
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder)
    if not root.is_dir():
        raise FolderError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    contents: dict[str | bytes, bytes] = {}
    skipped: Counter[str] = Counter()
    left = BYTES_MAX
    for path in _walk(root, library=folder is None):
        key = os.fsencode(path.relative_to(root).as_posix())
        full = left <= 0 or len(contents) >= FILES_MAX
        content = "beyond what the demo takes" if full else _content(key, path)
        if isinstance(content, str):
            skipped[content] += 1
        else:
            contents[text_or_bytes(key)] = content
            left -= len(content)
    if not contents:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
        why = f" ({reasons})" if reasons else ""
        raise FolderError(f"{root} has no file that can be loaded{why}")
    return contents, skipped


def _walk(root: Path, *, library: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - LIBRARY_SKIPS if library else folders)
        for name in sorted(names):
            if not library or name.endswith(".py"):
                yield Path(parent, name)


def _content(key: bytes, path: Path) -> bytes | str:
    """Return the content of a file, or the reason why it is skipped."""
    if len(key) > config.KEY_BYTES_MAX:
        return "path too long for a key"
    if from_bytes(key) in PLAIN:
        return "path looks like a content address"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a plain file"
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError:
        return "unreadable"
    return "too large" if len(content) > FILE_BYTES_MAX else content

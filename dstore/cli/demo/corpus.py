"""Which files the demo works on, and what becomes of their contents."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from dstore import config

FILES_MAX = 10_000
FILE_BYTES_MAX = 8 << 20
BYTES_MAX = 128 << 20
"""The demo holds a folder several times over in memory, so it takes no more of it than this."""

REPLACEMENT_TITLE = b"# replaced by the dstore demo\n"
_LIBRARY_SKIPS = {"site-packages", "dist-packages", "__pycache__"}

Key = str | bytes


class CorpusError(Exception):
    """The folder cannot be used. The message is one line for the user."""


@dataclass(frozen=True)
class SourceFile:
    """A file that the demo may load: its key is its path relative to the folder."""

    key: Key
    path: Path


@dataclass
class Corpus:
    """The usable files of one folder, and why the other ones are not among them."""

    folder: Path
    files: list[SourceFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def contents(self) -> Iterator[tuple[Key, bytes]]:
        """Yield key and content of each file; one that cannot be read any more is skipped."""
        for file in self.files:
            try:
                with file.path.open("rb") as stream:
                    content = stream.read(FILE_BYTES_MAX + 1)
            except OSError:
                self.skipped["unreadable"] += 1
                continue
            if len(content) > FILE_BYTES_MAX:
                self.skipped["too large"] += 1
                continue
            yield file.key, content


def find_files(folder: str | None) -> Corpus:
    """List the usable files of ``folder``, or of the standard library's sources.

    Raises CorpusError if there is no such folder or no usable file in it.
    """
    corpus = Corpus(Path(sysconfig.get_path("stdlib") if folder is None else folder))
    if not corpus.folder.is_dir():
        what = "is not a folder" if corpus.folder.exists() else "does not exist"
        raise CorpusError(f"{corpus.folder} {what}")
    bytes_taken = 0
    for path in _walk(corpus.folder, library=folder is None):
        key = _key_of(path.relative_to(corpus.folder))
        size, reason = _inspect(key, path)
        if not reason and (len(corpus.files) >= FILES_MAX or bytes_taken + size > BYTES_MAX):
            reason = "beyond what the demo takes"
        if reason:
            corpus.skipped[reason] += 1
            continue
        bytes_taken += size
        corpus.files.append(SourceFile(key, path))
    if not corpus.files:
        raise CorpusError(f"{corpus.folder} has no file that can be loaded{_reasons(corpus)}")
    return corpus


def address_of(content: bytes) -> str:
    """The content address that ``Node.put`` must answer, worked out without it."""
    return config.CONTENT_PREFIX + blake3(content).hexdigest()


def replacement_of(content: bytes) -> bytes:
    """What a file's content is replaced by: something else of about the same size."""
    return (REPLACEMENT_TITLE + content)[:FILE_BYTES_MAX]


def _walk(folder: Path, *, library: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _LIBRARY_SKIPS if library else folders)
        for name in sorted(names):
            if not library or name.endswith(".py"):
                yield Path(parent, name)


def _key_of(relative: Path) -> Key:
    raw = os.fsencode(relative.as_posix())
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _inspect(key: Key, path: Path) -> tuple[int, str]:
    """Return the size of a file and the reason why it cannot be loaded, or ""."""
    raw = key if isinstance(key, bytes) else key.encode("utf-8")
    if len(raw) > config.KEY_BYTES_MAX:
        return 0, "path too long for a key"
    if raw.startswith(config.CONTENT_PREFIX.encode()):
        return 0, "path looks like a content address"
    try:
        status = path.stat()
    except OSError:
        return 0, "unreadable"
    if not stat.S_ISREG(status.st_mode):
        return 0, "not a plain file"
    if not os.access(path, os.R_OK):
        return 0, "unreadable"
    return status.st_size, "too large" if status.st_size > FILE_BYTES_MAX else ""


def _reasons(corpus: Corpus) -> str:
    named = ", ".join(f"{count:,} {reason}" for reason, count in sorted(corpus.skipped.items()))
    return f" ({named})" if named else ""

"""What the tests of the host cache share: the twins, small tables, values that show their key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dstore.core.local.shared import Record
from dstore.shm import records, ring
from dstore.shm.layout import Layout

HASH_KEY = b"sixteen bytes...".ljust(16)


class Twin(NamedTuple):
    """Reader and writer of one kind."""

    name: str
    reader: Any
    writer: Any


def twin(name: str) -> Twin:
    if name == "pure":
        return Twin(name, records.PureReader, ring.PureWriter)
    try:
        import dstore._native as found  # type: ignore[import-not-found]
    except ImportError:
        pytest.skip("the compiled part is not built")
    return Twin(name, found.Reader, found.Writer)


def hash_of(key: str) -> int:
    raw = key.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(raw, digest_size=8, key=HASH_KEY).digest()
    return int.from_bytes(digest, "little")


def token_of(key: str, seq: int) -> bytes:
    return hashlib.sha256(f"{key} {seq}".encode("utf-8", "surrogateescape")).digest()[:16]


def body_of(key: str, seq: int, length: int) -> bytes:
    """A value that names its key and ``seq`` in each part of it."""
    text = f"<{key} {seq}>".encode("utf-8", "surrogateescape")
    return (text * (length // len(text) + 1))[:length]


def is_right(key: str, found: Record) -> bool:
    """Whether a record is one that the tests put for this key."""
    expected = token_of(key, found.seq), body_of(key, found.seq, len(found.body))
    return (found.token, found.body) == expected and found.codec == "bytes"


class Small:
    """A table of any shape in private memory, with a reader and a writer of one kind."""

    def __init__(self, kind: Twin, words: int = 64, small: int = 64, main: int = 256) -> None:
        self.layout = Layout.build(words, small, main)
        self.memory = bytearray(self.layout.total)
        view = memoryview(self.memory)
        self.words = view.cast("Q")
        ring.begin(self.words, self.layout, small, main)
        self.writer = kind.writer(view, self.layout, lambda start, end: end)
        self.reader = kind.reader(view, self.layout, Record)

    def put(self, key: str, seq: int = 1, length: int = 20) -> bool:
        body = body_of(key, seq, length)
        done: bool = self.writer.put(key, hash_of(key), seq, token_of(key, seq), "bytes", body)
        return done

    def find(self, key: str) -> Record | None:
        """What the reader finds, which must be a value of the key."""
        found: Record | None = self.reader.find(key, hash_of(key))
        assert found is None or is_right(key, found), f"{key}: {found}"
        return found

    def present(self, keys: list[str]) -> list[str]:
        """Those of the keys that are there. Marks nothing as read."""
        former = bytes(self.memory)
        found = [key for key in keys if self.find(key) is not None]
        self.memory[:] = former
        return found


def kinds() -> Iterator[str]:
    yield from ("pure", "native")

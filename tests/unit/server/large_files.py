"""Large values on disk, for their tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dstore.core.engine import Bulk
from dstore.protocol import content
from dstore.protocol.messages import Large, Stored
from dstore.server.data.large import LargeFiles, Read
from tests.unit.shm.children import new_token, value_of

SIZE = (2 << 20) + 4099
"""Two chunks and a part of a third."""


def stored_of(token: bytes, body: bytes, codec: str = "bytes") -> Stored:
    return Stored(token, codec, Large(len(body), content.digest(codec, body)))


def new_value(size: int = SIZE) -> tuple[Stored, bytes]:
    token = new_token()
    return stored_of(token, value_of(token, size), "pickle"), value_of(token, size)


def reading(body: bytes) -> Read:
    """Read from a value that is in memory."""
    return lambda token, offset, count: memoryview(body)[offset : offset + count]


def kept(large: LargeFiles, size: int = SIZE) -> tuple[Stored, bytes]:
    stored, body = new_value(size)
    large.keep(stored, reading(body))
    return stored, body


def content_of(bulk: Bulk | LargeFiles, stored: Stored) -> bytes | None:
    """Read all of a value."""
    view = bulk.read(stored.token, 0, stored.size)
    return None if view is None else bytes(view)


def known(*values: Stored) -> dict[bytes, int]:
    return {stored.token: stored.size for stored in values}


def path_of(large: LargeFiles, stored: Stored) -> Path:
    return Path(large.path, stored.token.hex())


@pytest.fixture
def large(tmp_path: Path) -> Iterator[LargeFiles]:
    large = LargeFiles(str(tmp_path / "large"))
    yield large
    large.close()


def restarted(large: LargeFiles, *values: Stored, keep_all: bool = False) -> LargeFiles:
    """What the next Global opens, which has rows of these values."""
    large.close()
    again = LargeFiles(large.path)
    again.remove_orphans(known(*values), keep_all=keep_all)
    return again

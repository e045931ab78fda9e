"""The places for Global's large values keep the contract, and share what can be shared."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.engines.base import Bulk
from dstore.engines.bulk import PrivateBulk
from dstore.shm import SharedBulk, bulk_for
from dstore.testing.bulk_contract import BulkContract
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    Child,
    User,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    stored,
    value_of,
)


class TestPrivateBulk(BulkContract):
    def make(self) -> PrivateBulk:
        return PrivateBulk()


class TestSharedBulk(BulkContract):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> Iterator[None]:
        self.root = tmp_path
        yield
        assert files(tmp_path) == []

    def make(self) -> Bulk:
        bulk = bulk_for(EPOCH, str(self.root))
        assert isinstance(bulk, SharedBulk)
        return bulk


class TestSharedBulkWithoutRoom(TestSharedBulk):
    @pytest.fixture(autouse=True)
    def _full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int, offset: int, count: int) -> None:
            raise OSError(28, "full")

        monkeypatch.setattr(os, "posix_fallocate", full)


@pytest.fixture
def bulk(tmp_path: Path) -> Iterator[SharedBulk]:
    bulk = bulk_for(EPOCH, str(tmp_path))
    assert isinstance(bulk, SharedBulk)
    yield bulk
    bulk.close()
    assert files(tmp_path) == []


def written(bulk: Bulk, token: bytes) -> None:
    bulk.reserve(token, SIZE)
    bulk.write(token, 0, value_of(token))
    bulk.seal(token)


def read(bulk: Bulk, token: bytes) -> bytes | None:
    view = bulk.read(token, 0, SIZE)
    return None if view is None else bytes(view)


def test_without_shared_memory_it_is_private() -> None:
    bulk = bulk_for(EPOCH, "")
    assert isinstance(bulk, PrivateBulk)
    bulk.close()


def test_nodes_of_the_host_find_what_global_has_sealed(bulk: SharedBulk, tmp_path: Path) -> None:
    token = new_token()
    with opened(tmp_path) as node:
        bulk.reserve(token, SIZE)
        bulk.write(token, 0, value_of(token))
        assert node.find(token, SIZE) is None
        bulk.seal(token)
        assert holds(node, token)
        assert node.begin(token, SIZE) is None
        node.drop(token)
        assert holds(node, token)
        bulk.drop(token)
        assert node.find(token, SIZE) is None


def test_global_takes_over_what_a_node_has_written(bulk: SharedBulk, tmp_path: Path) -> None:
    with User(tmp_path) as node, opened(tmp_path, limit=2 * SIZE) as other:
        token = new_token()
        node.call("begin", token, SIZE)
        node.call("write", 0, value_of(token))
        assert not bulk.adopt(token, SIZE), "not before it is sealed"
        assert node.call("seal") == value_of(token)
        assert not bulk.adopt(token, SIZE + 1)
        assert read(bulk, token) is None
        assert bulk.adopt(token, SIZE)
        assert not bulk.adopt(token, SIZE)
        node.kill()
        for _ in range(3):
            stored(other)
        assert holds(other, token), "it is not evicted any more"
        assert read(bulk, token) == value_of(token)
        bulk.drop(token)
        assert not other.linked(token)


def test_what_it_writes_itself_it_does_not_adopt(bulk: SharedBulk, tmp_path: Path) -> None:
    with opened(tmp_path) as node:
        token = stored(node)
        bulk.reserve(token, SIZE)
        assert not bulk.adopt(token, SIZE)
        bulk.drop(token)
        assert bulk.adopt(token, SIZE)


def test_a_value_without_room_is_private_and_that_is_said(
    bulk: SharedBulk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared, private = new_token(), new_token()
    written(bulk, shared)

    def full(descriptor: int, offset: int, count: int) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        for token in (private, new_token(), new_token()):
            written(bulk, token)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "private=<PrivateBulk unsealed=0 sealed=3>" in repr(bulk)
    with opened(tmp_path) as node:
        assert holds(node, shared)
        assert not node.linked(private)
        copy = new_token()
        for token in (private, copy):  # as a Node of this host that has fetched it
            with node.begin(token, SIZE) as writer:  # type: ignore[union-attr]
                writer.write(0, value_of(token))
                writer.seal()
        assert not bulk.adopt(private, SIZE), "it is here already"
        assert read(bulk, private) == value_of(private)
        bulk.drop(private)
        assert read(bulk, private) is None
        assert holds(node, private), "which is the Nodes' own affair"


def test_what_is_being_written_goes_when_it_closes(tmp_path: Path) -> None:
    bulk = bulk_for(EPOCH, str(tmp_path))
    with opened(tmp_path) as node:
        token = new_token()
        bulk.reserve(token, SIZE)
        assert files(folder_of(tmp_path) / "global") == [f"{token.hex()}.part"]
        bulk.close()
        assert files(folder_of(tmp_path) / "global") == []
        stored(node)
    assert files(tmp_path) == []


def test_private_memory_is_not_shared_with_a_child() -> None:
    bulk = PrivateBulk()
    token = new_token()
    bulk.reserve(token, SIZE)

    def body(pipe: Connection) -> None:
        bulk.write(token, 0, b"x" * SIZE)
        pipe.send("written")

    with Child(body) as child:
        assert child.hear() == "written"
    bulk.seal(token)
    assert read(bulk, token) == bytes(SIZE)
    bulk.close()


def test_repr_shows_state(bulk: SharedBulk, tmp_path: Path) -> None:
    written(bulk, new_token())
    bulk.reserve(new_token(), SIZE)
    assert "unsealed=1 sealed=1" in repr(bulk)
    assert str(tmp_path) in repr(bulk)

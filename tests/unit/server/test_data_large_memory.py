"""Large values on disk together with those in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dstore.core.engine import Bulk
from dstore.errors import StoreFull, ValueCorrupt
from dstore.protocol.messages import Stored
from dstore.server.data.durable_bulk import DurableBulk
from dstore.server.data.large import LargeFiles
from dstore.shm import SharedBulk, bulk_for
from dstore.shm.bulk import PrivateBulk
from dstore.testing.bulk_contract import BulkContract, got, raises
from tests.unit.server.large_files import (
    SIZE,
    content_of,
    kept,
    large,
    new_value,
    path_of,
    restarted,
    stored_of,
)
from tests.unit.shm.children import EPOCH, TIMEOUT, begun, files, holds, new_token, opened, value_of

__all__ = ["large"]


class TestOverPrivateBulk(BulkContract):
    """The contract, before any value is kept."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.root = tmp_path / "shm"
        self.root.mkdir()
        self.files = LargeFiles(str(tmp_path / "large"))
        yield
        self.files.close()
        assert files(self.root) == []

    def inner(self) -> Bulk:
        return PrivateBulk()

    def make(self) -> Bulk:
        return DurableBulk(self.inner(), self.files)


class TestOverSharedBulk(TestOverPrivateBulk):
    def inner(self) -> Bulk:
        bulk = bulk_for(EPOCH, str(self.root))
        assert isinstance(bulk, SharedBulk)
        return bulk


class OnDiskAlone(DurableBulk):
    """Each value is kept when it is sealed, and then is no longer in memory."""

    def __init__(self, inner: Bulk, files: LargeFiles) -> None:
        super().__init__(inner, files)
        self.closed = files.close

    def seal(self, token: bytes) -> None:
        super().seal(token)
        body = b"".join(iter(self._pieces(token), b""))
        self.keep(stored_of(token, body))
        self._inner.drop(token)

    def _pieces(self, token: bytes) -> Callable[[], bytes]:
        offset = 0

        def piece() -> bytes:
            nonlocal offset
            view = self._inner.read(token, offset, 1 << 20)
            assert view is not None
            offset += len(view)
            return bytes(view)

        return piece

    def close(self) -> None:
        super().close()
        self.closed()


class TestOnDiskAlone(TestOverSharedBulk):
    """The contract for values that are read from their files, as after a restart."""

    def make(self) -> Bulk:
        return OnDiskAlone(self.inner(), self.files)


@pytest.fixture(params=["shared", "private"])
def make_inner(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Bulk]:
    """Makes the memory of the Global with this epoch."""
    root = tmp_path / "shm"
    root.mkdir()
    return lambda epoch: bulk_for(epoch, str(root) if request.param == "shared" else "")


def written(bulk: Bulk) -> tuple[Stored, bytes]:
    stored, body = new_value()
    bulk.reserve(stored.token, SIZE)
    bulk.write(stored.token, 0, body)
    bulk.seal(stored.token)
    return stored, body


def test_values_survive_a_restart(
    large: LargeFiles, tmp_path: Path, make_inner: Callable[[int], Bulk]
) -> None:
    bulk = DurableBulk(make_inner(EPOCH), large)
    (one, body), (two, _), (three, _) = (written(bulk) for _ in range(3))
    for stored in (one, two):
        bulk.keep(stored)
    bulk.drop(two.token)
    bulk.close()
    again = DurableBulk(make_inner(EPOCH + 1), restarted(large, one))
    assert content_of(again, one) == body
    assert got(again, one.token, SIZE - 5, 9) == body[-5:]
    assert content_of(again, two) is None and content_of(again, three) is None
    again.drop(one.token)
    assert content_of(again, one) is None
    again.close()
    again._files.close()
    assert files(Path(large.path)) == []


def test_a_value_in_memory_is_read_from_there(
    large: LargeFiles, make_inner: Callable[[int], Bulk]
) -> None:
    bulk = DurableBulk(make_inner(EPOCH), large)
    stored, body = written(bulk)
    bulk.keep(stored)
    path_of(large, stored).unlink()
    assert content_of(bulk, stored) == body
    bulk.close()


def test_a_value_whose_shared_memory_was_cut_short_is_read_from_its_file(
    large: LargeFiles, tmp_path: Path
) -> None:
    bulk = DurableBulk(bulk_for(EPOCH, str(tmp_path)), large)
    stored, body = written(bulk)
    bulk.keep(stored)
    (shared,) = (p for p in tmp_path.rglob(stored.token.hex()) if p.parent.name == "global")
    shared.chmod(0o600)
    os.truncate(shared, 7)
    assert content_of(bulk, stored) == body
    bulk.close()


def test_a_value_on_disk_is_not_adopted_and_not_uploaded_again(
    large: LargeFiles, tmp_path: Path
) -> None:
    stored, body = kept(large)
    root = tmp_path / "shm"
    root.mkdir()
    bulk = DurableBulk(bulk_for(EPOCH, str(root)), restarted(large, stored))
    with opened(root) as node:  # which fetches it
        with begun(node, stored.token, SIZE) as writer:
            writer.write(0, body)
            writer.seal()
        assert holds(node, stored.token, SIZE)
        assert not bulk.adopt(stored.token, SIZE)
        other = new_token()
        with begun(node, other, SIZE) as writer:
            writer.write(0, value_of(other, SIZE))
            writer.seal()
        assert bulk.adopt(other, SIZE)
    os.rename(path_of(large, stored), tmp_path / "away")
    assert content_of(bulk, stored) is None
    assert raises(StoreFull, lambda: bulk.reserve(stored.token, SIZE))
    os.rename(tmp_path / "away", path_of(large, stored))
    assert content_of(bulk, stored) == body
    bulk.close()
    bulk._files.close()


def test_global_serves_while_another_thread_keeps_a_value(
    large: LargeFiles, make_inner: Callable[[int], Bulk]
) -> None:
    inner = make_inner(EPOCH)
    bulk = DurableBulk(inner, large)
    (one, body), (two, other) = written(bulk), written(bulk)
    in_the_middle, go_on = threading.Event(), threading.Event()
    refused: list[bool] = []

    def read(token: bytes, offset: int, count: int) -> memoryview | None:
        view = inner.read(token, offset, count)
        if offset:
            in_the_middle.set()
            assert go_on.wait(TIMEOUT)
        return view

    committer = threading.Thread(
        target=lambda: refused.append(raises(ValueCorrupt, lambda: large.keep(one, read)))
    )
    committer.start()
    try:
        assert in_the_middle.wait(TIMEOUT)
        assert content_of(bulk, one) == body
        three, third = written(bulk)
        bulk.keep(two)
        bulk.drop(three.token)
        bulk.drop(one.token)
        assert content_of(bulk, one) is None
        assert content_of(bulk, two) == other
    finally:
        go_on.set()
        committer.join()
    assert refused == [True]
    assert third == value_of(three.token, SIZE)
    assert files(Path(large.path)) == [two.token.hex()]
    bulk.close()


def test_repr_shows_state(large: LargeFiles) -> None:
    kept(large)
    assert "open values=1 under_way=0 to_remove=0" in repr(large)
    bulk = DurableBulk(PrivateBulk(), large)
    assert "PrivateBulk unsealed=0 sealed=0" in repr(bulk) and large.path in repr(bulk)

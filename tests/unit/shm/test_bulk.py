"""SharedBulk and PrivateBulk keep the contract of Bulk, and share the values that can be shared."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.core.engine import Bulk, Lost
from dstore.errors import StoreFull
from dstore.runtime.background import janitor
from dstore.shm import SharedBulk, bulk_for, mapping, room
from dstore.shm import bulk as shm_bulk
from dstore.shm import files as shm_files
from dstore.shm.bulk import BufferPool, PrivateBulk
from dstore.testing.bulk_contract import BulkContract, got, raises
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    Child,
    User,
    begun,
    files,
    folder_of,
    holds,
    janitor_held_up,
    new_token,
    opened,
    stored,
    value_of,
)

PAGE = 4096
PATIENCE = 0.2
"""Seconds in which another thread may do what a lock should keep it from doing."""


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


def test_without_shared_memory_values_are_private() -> None:
    bulk = bulk_for(EPOCH, "")
    assert isinstance(bulk, PrivateBulk)
    bulk.close()


def test_nodes_of_the_host_find_a_value_that_global_has_sealed(
    bulk: SharedBulk, tmp_path: Path
) -> None:
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


def test_global_adopts_a_copy_that_a_node_has_written(bulk: SharedBulk, tmp_path: Path) -> None:
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


def test_global_does_not_adopt_a_value_that_it_writes(bulk: SharedBulk, tmp_path: Path) -> None:
    with opened(tmp_path) as node:
        token = stored(node)
        bulk.reserve(token, SIZE)
        assert not bulk.adopt(token, SIZE)
        bulk.drop(token)
        assert bulk.adopt(token, SIZE)


def test_a_value_without_room_is_private_and_that_is_logged(
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


def test_closing_removes_unfinished_values(tmp_path: Path) -> None:
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


# ---- mappings ---------------------------------------------------------------------------------


def mappings(of: object = "") -> int:
    """How many mappings of files under this path the process has."""
    return sum(str(of) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_the_values_that_were_read_last_are_mapped(
    bulk: SharedBulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_bulk, "MAPS_MAX", 3)
    tokens = [new_token() for _ in range(5)]
    for token in tokens:
        written(bulk, token)
    assert mappings(tmp_path) == 3
    for number in (0, 1, 2, 0, 3):
        assert read(bulk, tokens[number]) == value_of(tokens[number])
    assert [mappings(token.hex()) for token in tokens] == [1, 0, 1, 1, 0]
    view = bulk.read(tokens[2], 0, SIZE)
    for number in (1, 3, 4):
        assert read(bulk, tokens[number]) == value_of(tokens[number])
    assert view is not None and bytes(view) == value_of(tokens[2])
    del view
    assert mappings(tmp_path) == 3
    for token in tokens:
        bulk.drop(token)
    assert mappings(tmp_path) == 0


def test_a_large_value_is_mapped_once_however_many_chunks_are_read(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, whole = [], mapping.read_only

    def counted(descriptor: int, size: int) -> memoryview:
        mapped.append(size)
        return whole(descriptor, size)

    monkeypatch.setattr(mapping, "read_only", counted)
    token = new_token()
    written(bulk, token)
    for offset in range(0, SIZE, 1000):
        assert got(bulk, token, offset, 1000) == value_of(token)[offset : offset + 1000]
    assert mapped == [SIZE]


def test_a_value_that_cannot_be_mapped_is_read(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, size: int) -> memoryview:
        raise OSError(12, "no memory")

    monkeypatch.setattr(mapping, "read_only", refused)
    token = new_token()
    written(bulk, token)
    assert read(bulk, token) == value_of(token)


def test_a_value_without_a_file_is_read_while_it_is_mapped(
    bulk: SharedBulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_bulk, "MAPS_MAX", 1)
    first, second = new_token(), new_token()
    for token in (first, second):
        written(bulk, token)
        (folder_of(tmp_path) / "global" / token.hex()).unlink()
    assert read(bulk, second) == value_of(second)
    assert read(bulk, first) is None
    bulk.drop(first)
    bulk.drop(second)


def test_small_private_values_have_no_mappings_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bulk, size, count = PrivateBulk(), 100_000, 400
    before = mappings()
    tokens = [new_token() for _ in range(count)]
    for token in tokens:
        bulk.reserve(token, size)
        bulk.write(token, 0, value_of(token, size))
        bulk.seal(token)
    for token in tokens[::2]:  # what lay side by side was one mapping for the system
        bulk.drop(token)
    assert mappings() - before < count // 4
    assert got(bulk, tokens[1], 0, size) == value_of(tokens[1], size)
    bulk.close()


def test_without_memory_a_small_private_value_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(size: int) -> bytearray:
        raise MemoryError

    bulk = PrivateBulk()
    monkeypatch.setattr("dstore.shm.bulk.bytearray", refused, raising=False)
    with pytest.raises(StoreFull):
        bulk.reserve(new_token(), SIZE)
    bulk.close()


# ---- nothing takes long -----------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory is reserved a page at a time. Returns how much was reserved after each time."""
    reserved: list[int] = []
    whole = os.posix_fallocate

    def counted(descriptor: int, offset: int, count: int) -> None:
        assert count <= PAGE
        whole(descriptor, offset, count)
        reserved.append(offset + count)

    monkeypatch.setattr("dstore.shm.writer.RESERVE_BYTES", PAGE)
    monkeypatch.setattr(os, "posix_fallocate", counted)
    return reserved


def test_memory_is_reserved_step_by_step_before_it_is_written(
    bulk: SharedBulk, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite

    def checked(descriptor: int, data: memoryview, offset: int) -> int:
        assert steps[-1] >= offset + len(data)
        return whole(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", checked)
    token = new_token()
    bulk.reserve(token, SIZE)
    assert steps == [PAGE]
    for offset in range(0, SIZE, 1000):
        bulk.write(token, offset, value_of(token)[offset : offset + 1000])
        assert steps[-1] <= offset + 1000 + PAGE
    assert steps == [PAGE, 2 * PAGE, 3 * PAGE, SIZE]
    bulk.seal(token)
    assert read(bulk, token) == value_of(token)


def test_a_node_reserves_the_whole_value_before_it_writes(tmp_path: Path, steps: list[int]) -> None:
    with opened(tmp_path) as node, begun(node, new_token()):
        assert steps == [PAGE, 2 * PAGE, 3 * PAGE, SIZE]


def test_room_is_not_promised_twice(
    bulk: SharedBulk, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 2 * SIZE
    monkeypatch.setattr(room, "free", lambda path: most - sum(steps[-1:]))
    first, second, third = new_token(), new_token(), new_token()
    bulk.reserve(first, SIZE)
    bulk.reserve(second, SIZE + PAGE)
    assert "unsealed=1 sealed=0 mapped=0 private=<PrivateBulk unsealed=1" in repr(bulk)
    bulk.drop(first)
    bulk.reserve(third, SIZE + PAGE)
    assert "unsealed=1 sealed=0 mapped=0 private=<PrivateBulk unsealed=1" in repr(bulk)
    assert files(folder_of(tmp_path) / "global") == [f"{third.hex()}.part"]


@pytest.fixture
def full_later(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room when a value is begun, and then other processes take it."""
    whole = os.posix_fallocate

    def full(descriptor: int, offset: int, count: int) -> None:
        if offset >= 2 * PAGE:
            raise OSError(28, "full")
        whole(descriptor, offset, count)

    monkeypatch.setattr(os, "posix_fallocate", full)


@pytest.mark.usefixtures("full_later")
def test_a_value_whose_room_is_taken_begins_again_in_private_memory(
    bulk: SharedBulk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = new_token()
    bulk.reserve(token, SIZE)
    bulk.write(token, 0, value_of(token)[: 2 * PAGE])
    assert raises(Lost, lambda: bulk.write(token, 2 * PAGE, value_of(token)[2 * PAGE :]))
    assert files(folder_of(tmp_path) / "global") == []
    bulk.write(token, 0, value_of(token))
    bulk.seal(token)
    assert read(bulk, token) == value_of(token)
    assert "private=<PrivateBulk unsealed=0 sealed=1>" in repr(bulk)
    assert "Global's own memory" in caplog.text


@pytest.mark.usefixtures("full_later")
def test_a_value_whose_room_is_taken_is_refused_without_private_memory(
    bulk: SharedBulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(size: int) -> memoryview:
        raise MemoryError("no memory")

    token = new_token()
    bulk.reserve(token, SIZE)
    bulk.write(token, 0, value_of(token)[: 2 * PAGE])
    with monkeypatch.context() as patched:
        patched.setattr("dstore.shm.bulk.fresh_memory", refused)
        assert raises(StoreFull, lambda: bulk.write(token, 2 * PAGE, b"x"))
        assert files(folder_of(tmp_path) / "global") == [f"{token.hex()}.part"]
    bulk.drop(token)
    assert files(folder_of(tmp_path) / "global") == []
    assert raises(KeyError, lambda: bulk.seal(token))


def test_a_value_whose_file_is_removed_before_it_is_sealed_is_kept(
    bulk: SharedBulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_bulk, "MAPS_MAX", 1)
    token, other = new_token(), new_token()
    bulk.reserve(token, SIZE)
    bulk.write(token, 0, value_of(token))
    (folder_of(tmp_path) / "global" / f"{token.hex()}.part").unlink()
    bulk.seal(token)
    written(bulk, other)
    assert read(bulk, token) == value_of(token)
    assert read(bulk, other) == value_of(other)
    bulk.drop(token)
    assert read(bulk, token) is None
    assert mappings(token.hex()) == 0


def test_a_full_file_system_is_not_searched_for_each_value(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def none(*arguments: object) -> bool:
        searched.append(arguments)
        return False

    monkeypatch.setattr(room, "free", lambda path: 0)
    monkeypatch.setattr(room, "make_room", none)
    for _ in range(10):
        bulk.reserve(new_token(), SIZE)
    assert len(searched) == 1


@pytest.mark.parametrize("state", ["unsealed", "sealed", "adopted"])
def test_a_large_file_is_unlinked_at_once_and_freed_in_the_background(
    bulk: SharedBulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    for module in (shm_files, shm_bulk):
        monkeypatch.setattr(module, "BACKGROUND_BYTES", SIZE)
    token = new_token()
    if state == "adopted":
        with opened(tmp_path) as node:
            token = stored(node)
        assert bulk.adopt(token, SIZE)
    else:
        bulk.reserve(token, SIZE)
        bulk.write(token, 0, value_of(token))
        if state != "unsealed":
            bulk.seal(token)
    with janitor_held_up():
        bulk.drop(token)
        assert files(folder_of(tmp_path) / "global") == []
        assert mappings(token.hex()) == 1 + (state != "unsealed")
        assert raises(KeyError, lambda: bulk.seal(token))
    assert mappings(token.hex()) == 0


def test_a_chunk_that_is_being_sent_stays_good(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_bulk, "BACKGROUND_BYTES", SIZE)
    token = new_token()
    written(bulk, token)
    view = bulk.read(token, 3, PAGE)
    bulk.drop(token)
    janitor.wait()
    assert view is not None and bytes(view) == value_of(token)[3 : 3 + PAGE]
    del view
    assert mappings(token.hex()) == 0


@pytest.mark.parametrize("sealed", [False, True])
def test_a_chunk_of_a_private_value_stays_good(
    monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    for name in ("BACKGROUND_BYTES", "MAPPED_MIN"):
        monkeypatch.setattr(shm_bulk, name, SIZE)
    bulk, token = PrivateBulk(), new_token()
    bulk.reserve(token, SIZE)
    memory = weakref.ref(bulk._unsealed[token].obj)
    if sealed:
        bulk.seal(token)
    view = bulk.read(token, 0, PAGE)
    with janitor_held_up():
        bulk.drop(token)
        assert memory() is not None
    assert (view is not None) == sealed == (memory() is not None)
    del view
    assert memory() is None
    bulk.close()


# ---- a reader in another thread ---------------------------------------------------------------


class Meanwhile:
    """Lets another thread do something now, unless that has to wait for the calling thread."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=action)

    def begin(self) -> None:
        self._thread.start()
        self._thread.join(PATIENCE)

    def end(self) -> None:
        self._thread.join()
        janitor.wait()


def test_two_threads_are_never_given_one_buffer() -> None:
    pool = BufferPool()
    taken: list[memoryview] = []
    other = Meanwhile(lambda: taken.append(pool.take(PAGE)))

    class Unused(bytearray):
        """A buffer of which another thread learns, too, that it is unused."""

        def pop(self, index: int = -1) -> int:
            last = super().pop(index)
            if not taken:
                other.begin()
            return last

    unused = Unused(1 << 20)
    pool._kept.append(unused)
    taken.append(pool.take(PAGE))
    other.end()
    assert [view.obj is unused for view in taken] in ([True, False], [False, True])


def test_a_shared_value_that_is_dropped_while_it_is_read_is_read(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_bulk, "BACKGROUND_BYTES", SIZE)
    token, whole = new_token(), bulk._memory.read
    written(bulk, token)

    def dropped_first(*arguments: Any) -> memoryview | None:
        bulk.drop(token)
        janitor.wait()
        return whole(*arguments)

    monkeypatch.setattr(bulk._memory, "read", dropped_first)
    assert read(bulk, token) == value_of(token)
    assert read(bulk, token) is None
    assert mappings(token.hex()) == 0


def test_a_value_that_is_dropped_while_it_is_mapped_does_not_stay_mapped(
    bulk: SharedBulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, whole = new_token(), bulk._memory.find
    written(bulk, token)
    del bulk._maps[token]
    other = Meanwhile(lambda: bulk.drop(token))

    def dropped_then(*arguments: Any) -> memoryview | None:
        view = whole(*arguments)
        other.begin()
        return view

    monkeypatch.setattr(bulk._memory, "find", dropped_then)
    assert read(bulk, token) in (value_of(token), None)
    other.end()
    assert mappings(token.hex()) == 0


def test_a_private_value_that_is_dropped_while_it_is_read_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shm_bulk, "BACKGROUND_BYTES", SIZE)
    bulk, token = PrivateBulk(), new_token()
    written(bulk, token)

    class Values(dict[bytes, memoryview]):
        def get(self, key: bytes, default: Any = None) -> Any:
            found = super().get(key, default)
            other.begin()
            return found

    def drop() -> None:
        bulk.drop(token)
        janitor.wait()

    other = Meanwhile(drop)
    monkeypatch.setattr(bulk, "_sealed", Values(bulk._sealed))
    assert read(bulk, token) == value_of(token)
    other.end()
    assert token not in bulk
    bulk.close()


def test_repr_shows_state(bulk: SharedBulk, tmp_path: Path) -> None:
    written(bulk, new_token())
    bulk.reserve(new_token(), SIZE)
    assert "unsealed=1 sealed=1" in repr(bulk)
    assert str(tmp_path) in repr(bulk)

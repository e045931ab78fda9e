"""One process and its large values: written once, sealed, found, adopted, dropped."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import stat
import threading
from collections.abc import Iterator
from functools import partial
from io import FileIO
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.shm import HostMemory, NoRoom, Writer, mapping
from dstore.shm import files as shm_files
from dstore.shm.directory import Directory
from tests.leaks import open_descriptors
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    TIMEOUT,
    Child,
    begun,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    stored,
    value_of,
)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[HostMemory]:
    with opened(tmp_path) as memory:
        yield memory


@pytest.mark.parametrize("for_global", [False, True])
def test_a_sealed_value_is_found(memory: HostMemory, for_global: bool) -> None:
    token = new_token()
    assert memory.find(token, SIZE) is None
    writer = begun(memory, token, for_global=for_global)
    writer.write(4096, value_of(token)[4096:])
    writer.write(0, value_of(token)[:4096])
    assert memory.find(token, SIZE) is None, "not before it is sealed"
    assert not memory.linked(token)
    written = writer.seal()
    assert memory.linked(token)
    assert bytes(written) == value_of(token)
    assert holds(memory, token)


def test_a_view_is_of_bytes_and_read_only(memory: HostMemory) -> None:
    token = new_token()
    writer = begun(memory, token)
    for view in (writer.seal(), memory.find(token, SIZE)):
        assert view is not None
        assert (view.readonly, view.format, view.ndim, view.nbytes) == (True, "B", 1, SIZE)
        assert view.c_contiguous
        with pytest.raises(TypeError):
            view[0] = 1


def test_a_sealed_file_is_read_only_and_in_its_folder(memory: HostMemory, tmp_path: Path) -> None:
    copy, own = stored(memory), stored(memory, for_global=True)
    folder = folder_of(tmp_path)
    for path in (folder / "copies" / copy.hex(), folder / "global" / own.hex()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert path.stat().st_blocks * 512 >= SIZE, "reserved in full"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert files(folder) == sorted(
        ["lock", "copies", "global", f"copies/{copy.hex()}", f"global/{own.hex()}"]
    )


@pytest.mark.parametrize("for_global", [False, True])
def test_another_size_is_another_value(memory: HostMemory, for_global: bool) -> None:
    token = stored(memory, for_global=for_global)
    for size in (SIZE - 1, SIZE + 1, 0):
        assert memory.find(token, size) is None
        assert not memory.linked(token, size)
        assert not memory.adopt(token, size)
        with pytest.raises(NoRoom):  # not None, after which a reader would wait for ever
            memory.begin(token, size)
    assert memory.linked(token, SIZE) and holds(memory, token)


def test_an_empty_value_does_no_harm(memory: HostMemory) -> None:
    token = new_token()
    assert memory.find(token, 0) is None
    with begun(memory, token, 0) as writer:
        writer.write(0, b"")
        assert bytes(writer.seal()) == b""
    found = memory.find(token, 0)
    assert found is not None and bytes(found) == b""
    assert memory.adopt(token, 0)


@pytest.mark.parametrize("bad", [b"", b"short", bytes(17)])
def test_a_token_has_16_bytes(memory: HostMemory, bad: bytes) -> None:
    for call in (
        memory.linked,
        memory.touch,
        memory.drop,
        partial(memory.drop, for_global=True),
        memory.progress,
    ):
        with pytest.raises(ValueError, match="16 bytes"):
            call(bad)
    for use in (memory.find, memory.begin, memory.adopt):
        with pytest.raises(ValueError, match="16 bytes"):
            use(bad, SIZE)


def test_a_value_has_one_writer(memory: HostMemory) -> None:
    token = new_token()
    writer = begun(memory, token)
    assert memory.begin(token, SIZE) is None
    other = begun(memory, token, for_global=True)  # Global's own is another file
    other.abandon()
    writer.abandon()
    begun(memory, token).seal()
    assert memory.begin(token, SIZE) is None, "it is there"
    begun(memory, token, for_global=True).abandon()  # but not yet among Global's own


def test_a_node_does_not_write_a_value_that_global_has(memory: HostMemory) -> None:
    token = stored(memory, for_global=True)
    assert memory.begin(token, SIZE) is None
    assert memory.begin(token, SIZE, for_global=True) is None


def test_an_unsealed_value_leaves_no_file(memory: HostMemory, tmp_path: Path) -> None:
    before = files(tmp_path)
    token = new_token()
    with begun(memory, token) as writer:
        writer.write(0, b"half of it")
    writer.abandon()
    for call in (writer.seal, lambda: writer.write(0, b"x")):
        with pytest.raises(NoRoom):
            call()
    assert files(tmp_path) == before
    assert memory.find(token, SIZE) is None
    begun(memory, token).seal()


def test_after_sealing_nothing_changes(memory: HostMemory) -> None:
    token = new_token()
    with begun(memory, token) as writer:
        writer.write(0, value_of(token))
        writer.seal()
    writer.abandon()
    for call in (writer.seal, lambda: writer.write(0, b"x")):
        with pytest.raises(NoRoom):
            call()
    assert holds(memory, token)


@pytest.mark.parametrize(("offset", "count"), [(SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (-1, 1)])
def test_a_write_has_to_be_within_the_value(memory: HostMemory, offset: int, count: int) -> None:
    with begun(memory, new_token()) as writer:
        with pytest.raises(ValueError, match="not within"):
            writer.write(offset, bytes(count))
        assert writer.size == SIZE


def test_a_partial_write_of_the_system_is_completed(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:1000], offset))
    assert holds(memory, stored(memory))


def test_wide_items_are_written_as_bytes(memory: HostMemory) -> None:
    token = new_token()
    with begun(memory, token, 16) as writer:
        writer.write(8, memoryview(b"abcdefgh").cast("Q"))
        assert bytes(writer.seal()) == bytes(8) + b"abcdefgh"


def test_global_adopts_what_a_node_has_written(memory: HostMemory, tmp_path: Path) -> None:
    token = stored(memory)
    inode = (folder_of(tmp_path) / "copies" / token.hex()).stat().st_ino
    assert memory.adopt(token, SIZE)
    assert holds(memory, token)
    assert (folder_of(tmp_path) / "global" / token.hex()).stat().st_ino == inode
    assert files(folder_of(tmp_path) / "copies") == []
    assert not memory.adopt(token, SIZE), "it has been taken over already"
    memory.drop(token)
    assert holds(memory, token), "a Node cannot drop it any more"
    memory.drop(token, for_global=True)
    assert not memory.linked(token)


def test_a_missing_or_unsealed_value_is_not_adopted(memory: HostMemory) -> None:
    token = new_token()
    assert not memory.adopt(token, SIZE)
    with begun(memory, token):
        assert not memory.adopt(token, SIZE)


def test_find_does_not_miss_a_copy_that_global_is_adopting(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = stored(memory)
    whole = shm_files.open_sealed

    def adopted_first(here: Directory, name: str) -> FileIO:
        if "copies" in name:  # after the look at Global's own
            monkeypatch.undo()
            assert memory.adopt(token, SIZE)
        return whole(here, name)

    monkeypatch.setattr(shm_files, "open_sealed", adopted_first)
    assert holds(memory, token)


def test_a_dropped_value_stays_readable(memory: HostMemory, tmp_path: Path) -> None:
    copy, own = stored(memory), stored(memory, for_global=True)
    views = {token: memory.find(token, SIZE) for token in (copy, own)}
    memory.drop(own)
    memory.drop(copy, for_global=True)
    assert memory.linked(own) and memory.linked(copy), "each has its own place"
    memory.drop(copy)
    memory.drop(own, for_global=True)
    memory.drop(copy)
    memory.drop(own, for_global=True)
    assert files(folder_of(tmp_path)) == ["copies", "global", "lock"]
    for token, view in views.items():
        assert memory.find(token, SIZE) is None
        assert view is not None and bytes(view) == value_of(token)


def test_a_view_outlives_everything(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token = stored(memory)
        view = memory.find(token, SIZE)
        part = None if view is None else view[4096:]
    del memory, view
    gc.collect()
    assert files(tmp_path) == []
    assert part is not None and bytes(part) == value_of(token)[4096:]


def test_progress_grows_while_a_value_is_written(memory: HostMemory, tmp_path: Path) -> None:
    token = new_token()
    assert memory.progress(token) is None
    writer = begun(memory, token)
    first = memory.progress(token)
    assert first is not None
    unfinished = folder_of(tmp_path) / "copies" / f"{token.hex()}.part"
    while os.stat(unfinished).st_ctime_ns == first:  # the system's clock has ticks
        writer.write(0, b"x")
    later = memory.progress(token)
    assert later is not None and later > first
    writer.seal()
    assert memory.progress(token) is None


def test_a_closed_memory_is_empty_and_accepts_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as other, opened(tmp_path) as memory:
        token = new_token()
        sealed, writer = begun(memory, token), begun(memory, new_token())
        sealed.write(0, value_of(token))
        sealed.seal()
        memory.close()
        memory.close()
        assert memory.find(token, SIZE) is None
        assert not memory.adopt(token, SIZE)
        assert not memory.linked(token)
        memory.touch(token)
        with pytest.raises(NoRoom):
            memory.begin(new_token(), SIZE)
        with pytest.raises(NoRoom):
            writer.write(0, b"x")
        with pytest.raises(NoRoom):
            writer.seal()
        assert holds(other, token), "it is there for others"
        sealed.discard()  # as of a value that is not bound, since the Node was closed
        sealed.discard()
        assert other.find(token, SIZE) is None
        assert [name for name in files(tmp_path) if name.endswith(".part")] == []


def test_memories_of_one_process_share_and_exclude_like_those_of_several(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        token = new_token()
        writer = begun(one, token)
        assert two.begin(token, SIZE) is None
        one.close()  # this abandons what was written through it
        with begun(two, token) as other:
            other.write(0, value_of(token))
            other.seal()
        assert holds(two, token)
        with pytest.raises(NoRoom):
            writer.seal()
        assert holds(two, token)
    assert files(tmp_path) == []


def test_closing_does_not_wait_and_does_not_close_the_descriptor_of_a_write(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed descriptor may be another file's the next moment."""
    writer = begun(memory, new_token())
    at_work, go_on = threading.Event(), threading.Event()
    whole = os.pwrite
    written = []

    def slow(descriptor: int, data: memoryview, offset: int) -> int:
        at_work.set()
        assert go_on.wait(TIMEOUT)
        written.append(os.fstat(descriptor).st_nlink)
        return whole(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    thread = threading.Thread(target=writer.write, args=(0, b"late"))
    thread.start()
    assert at_work.wait(TIMEOUT)
    memory.close()
    assert files(tmp_path) == []
    go_on.set()
    thread.join()
    assert written == [0], "into the file that nobody will see"


def test_eight_threads_one_writer(memory: HostMemory) -> None:
    token = new_token()
    start = threading.Barrier(8)
    begun_by: list[Writer | None] = []

    def ask() -> None:
        start.wait()
        begun_by.append(memory.begin(token, SIZE))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (writer,) = filter(None, begun_by)
    writer.abandon()


def test_a_mapping_needs_no_descriptor(tmp_path: Path) -> None:
    count = 2000

    def body(pipe: Connection) -> None:
        few = len(open_descriptors()) + 20  # it has those of the tests
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
        with opened(tmp_path) as memory:
            tokens = [stored(memory, 100) for _ in range(count)]
            views = [memory.find(token, 100) for token in tokens]
            good = [
                view is not None and bytes(view) == value_of(token, 100)
                for token, view in zip(tokens, views)
            ]
            pipe.send((good.count(True), len(open_descriptors()) < few))

    with Child(body) as child:
        assert child.hear() == (count, True)


def test_a_process_with_very_many_mappings_gets_no_more(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [stored(memory) for _ in range(3)]
    gc.collect()
    monkeypatch.setattr(mapping, "MAPS_MAX", len(mapping._live) + 2)
    views = [memory.find(token, SIZE) for token in tokens]
    assert [view is not None for view in views] == [True, True, False]
    with pytest.raises(NoRoom, match="cannot be mapped"):
        memory.begin(tokens[2], SIZE)
    with pytest.raises(NoRoom, match="values mapped"):
        memory.begin(new_token(), SIZE)
    del views[0]
    assert memory.find(tokens[2], SIZE) is not None


def test_memory_is_freed_with_the_last_view(memory: HostMemory) -> None:
    token = stored(memory)
    maps = Path("/proc/self/maps")
    view = memory.find(token, SIZE)
    assert view is not None
    part, array = view[10:20], memoryview(view)
    del view
    gc.collect()
    assert token.hex() in maps.read_text()
    del part, array
    gc.collect()
    assert token.hex() not in maps.read_text()


def test_a_value_that_cannot_be_mapped_is_not_waited_for(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process has as many mappings as it may have."""
    token = stored(memory)

    def refused(descriptor: int, size: int) -> memoryview:
        raise OSError(12, "no memory")

    monkeypatch.setattr("dstore.shm.mapping.read_only", refused)
    assert memory.find(token, SIZE) is None
    with pytest.raises(NoRoom):
        memory.begin(token, SIZE)
    with pytest.raises(NoRoom):
        memory.begin(new_token(), SIZE)
    monkeypatch.undo()
    assert holds(memory, token)


def test_the_system_refuses_a_mapping_and_nothing_is_lost(tmp_path: Path) -> None:
    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            token = stored(memory, 64 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (mmap.PAGESIZE, resource.RLIM_INFINITY))
            found = memory.find(token, 64 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            pipe.send((found is None, holds(memory, token, 64 << 20)))

    with Child(body) as child:
        assert child.hear() == (True, True)


def test_repr_shows_state(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, begun(memory, new_token()) as writer:
        assert f"{EPOCH:016x}" in repr(memory) and "open" in repr(memory)
        assert f"{SIZE} bytes" in repr(writer)
        memory.close()
        assert "closed" in repr(memory)
        assert "over" in repr(writer)

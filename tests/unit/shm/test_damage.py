"""Damage that other processes of the same user do to files and folders in use."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.core.engine import Lost
from dstore.runtime.background import janitor
from dstore.shm import HostMemory, NoRoom, SharedBulk, bulk_for, clean, folder, is_whole, mapping
from dstore.shm import memory as shm_memory
from dstore.testing.bulk_contract import raises
from tests.disks import mounted_disk
from tests.leaks import open_descriptors
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    Child,
    User,
    begun,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    stored,
    value_of,
)

PAGE = 4096


def written(bulk: SharedBulk, token: bytes) -> None:
    bulk.reserve(token, SIZE)
    bulk.write(token, 0, value_of(token))
    bulk.seal(token)


def read(bulk: SharedBulk, token: bytes, offset: int = 0, count: int = SIZE) -> bytes | None:
    view = bulk.read(token, offset, count)
    return None if view is None else bytes(view)


@contextlib.contextmanager
def shared_bulk(root: Path) -> Iterator[SharedBulk]:
    bulk = bulk_for(EPOCH, str(root))
    assert isinstance(bulk, SharedBulk)
    try:
        yield bulk
    finally:
        bulk.close()


# ---- files that are cut short -----------------------------------------------------------------


def test_a_process_that_touches_a_missing_page_is_ended(tmp_path: Path) -> None:
    """This is why mapped files are checked before they are read."""

    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            token = stored(memory)
            view = memory.find(token, SIZE)
            os.truncate(folder_of(tmp_path) / "copies" / token.hex(), PAGE)
            assert view is not None
            pipe.send(bytes(view[:PAGE]) == value_of(token)[:PAGE])
            faulthandler.disable()
            bytes(view)

    with Child(body) as child:
        assert child.hear() is True
        child.ends_by(signal.SIGBUS)


@pytest.mark.parametrize("left", [0, 1, PAGE, SIZE - 1, SIZE + 1, 2 * SIZE])
def test_global_does_not_read_a_file_of_another_size(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    def body(pipe: Connection) -> None:
        with shared_bulk(tmp_path) as bulk:
            token, other = new_token(), new_token()
            for each in (token, other):
                written(bulk, each)
            assert read(bulk, token) == value_of(token)
            os.truncate(folder_of(tmp_path) / "global" / token.hex(), left)
            pipe.send([read(bulk, token, offset, 10) for offset in (0, PAGE, SIZE - 10)])
            assert read(bulk, other) == value_of(other)
            bulk.drop(token)
            written(bulk, token)
            pipe.send(read(bulk, token) == value_of(token))

    with Child(body) as child:
        assert child.hear() == [None, None, None]
        assert child.hear() is True


def test_global_sends_copies_of_the_bytes(tmp_path: Path) -> None:
    """Chunks are copied, since ZeroMQ reads them later in a thread of its own."""

    def body(pipe: Connection) -> None:
        with shared_bulk(tmp_path) as bulk:
            token = new_token()
            written(bulk, token)
            piece = bulk.read(token, 0, SIZE)
            os.truncate(folder_of(tmp_path) / "global" / token.hex(), 0)
            pipe.send(piece is not None and bytes(piece) == value_of(token))

    with Child(body) as child:
        assert child.hear() is True


def test_a_file_that_is_cut_short_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv

    def late(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(folder_of(tmp_path) / "global" / token.hex(), PAGE)
        return whole(descriptor, buffers, offset)

    with shared_bulk(tmp_path) as bulk:
        token = new_token()
        written(bulk, token)
        monkeypatch.setattr(os, "preadv", late)
        assert read(bulk, token) is None


def test_a_file_that_is_removed_after_it_was_cut_short(tmp_path: Path) -> None:
    """Then only the mapping is left, and pages of it are missing."""

    def body(pipe: Connection) -> None:
        with shared_bulk(tmp_path) as bulk:
            token = new_token()
            written(bulk, token)
            path = folder_of(tmp_path) / "global" / token.hex()
            os.truncate(path, PAGE)
            path.unlink()
            pipe.send([read(bulk, token, offset, 10) for offset in (0, 2 * PAGE)])
            pipe.send(value_of(token)[:10])

    with Child(body) as child:
        pieces, beginning = child.hear(), child.hear()
        assert pieces == [beginning, None]


def test_the_system_copies_mapped_bytes_unless_they_are_missing(tmp_path: Path) -> None:
    size = 3 * mapping.PIPE_BYTES + 5

    def copied(view: memoryview) -> bytes | None:
        copy = mapping.copied(view)
        return None if copy is None else bytes(copy)

    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            token = stored(memory, size)
            view = memory.find(token, size)
            assert view is not None
            before = open_descriptors()
            pipe.send(copied(view) == value_of(token, size))
            pipe.send(copied(view[5:5]) == b"")
            os.truncate(folder_of(tmp_path) / "copies" / token.hex(), 2 * PAGE)
            pipe.send(copied(view) is None)
            pipe.send(copied(view[:PAGE]) == value_of(token, size)[:PAGE])
            pipe.send(open_descriptors() == before)

    with Child(body) as child:
        assert [child.hear() for _ in range(5)] == [True] * 5


def test_a_file_that_is_cut_short_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have taken the room of the lost part: the value starts again in private memory."""

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "full")

    with shared_bulk(tmp_path) as bulk:
        token = new_token()
        bulk.reserve(token, SIZE)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            assert raises(Lost, lambda: bulk.write(token, 0, value_of(token)))
        bulk.write(token, 0, value_of(token))
        bulk.seal(token)
        assert read(bulk, token) == value_of(token)


@pytest.mark.parametrize("left", [0, 1, PAGE, SIZE - 6])
def test_a_missing_page_is_noticed(tmp_path: Path, left: int) -> None:
    """Also when the file has no name any more, or another file has its name."""

    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            token = stored(memory)
            view = memory.find(token, SIZE)
            assert view is not None
            path = folder_of(tmp_path) / "copies" / token.hex()
            seen = [is_whole(view)]
            os.truncate(path, left)
            seen.append(is_whole(view))
            path.rename(tmp_path / "kept")
            seen.append(is_whole(view))
            with begun(memory, token) as writer:
                writer.write(0, value_of(token))
                seen.append(is_whole(writer.seal()))
            seen.append(is_whole(view))
            os.truncate(tmp_path / "kept", SIZE)
            seen.append(is_whole(view))
            pipe.send(seen)

    with Child(body) as child:
        assert child.hear() == [True, False, False, True, False, True]


def test_threads_and_forked_children_may_check_for_missing_pages(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        view = memory.find(stored(memory), SIZE)
        assert view is not None
        seen: list[bool] = []

        def ask() -> None:
            seen.extend(is_whole(view) for _ in range(2000))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        with Child(lambda pipe: pipe.send(all(is_whole(view) for _ in range(2000)))) as child:
            assert child.hear() is True
        for thread in threads:
            thread.join()
        assert seen == [True] * 8000


# ---- folders that are removed -----------------------------------------------------------------


def rm_all(root: Path) -> None:
    shutil.rmtree(folder_of(root).parent)


def rm_epoch(root: Path) -> None:
    shutil.rmtree(folder_of(root))


def rm_places(root: Path) -> None:
    for name in ("copies", "global"):
        shutil.rmtree(folder_of(root) / name)


def rm_contents(root: Path) -> None:
    rm_places(root)
    (folder_of(root) / "lock").unlink()


Removal = Callable[[Path], None]
removals = pytest.mark.parametrize("remove", [rm_all, rm_epoch, rm_places, rm_contents])


@removals
@pytest.mark.parametrize("for_global", [False, True])
def test_a_removed_folder_is_created_again_with_one_warning(
    tmp_path: Path, remove: Removal, for_global: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_descriptors()
    with opened(tmp_path) as memory:
        old = stored(memory, for_global=for_global)
        view = memory.find(old, SIZE)
        for _ in range(3):
            remove(tmp_path)
            assert memory.find(old, SIZE) is None and not memory.linked(old)
            tokens = [stored(memory, for_global=for_global) for _ in range(3)]
            assert all(holds(memory, token) for token in tokens)
            clean(str(tmp_path))
            with User(tmp_path) as other:
                assert other.call("find", tokens[0], SIZE) == value_of(tokens[0])
                other.call("close")
        assert view is not None and bytes(view) == value_of(old)
        (record,) = caplog.records
        assert (
            "removed by another program" in record.getMessage()
            and "a new one was created" in record.getMessage()
        )
    assert files(tmp_path) == []
    del record
    caplog.clear()
    assert open_descriptors() == before


@removals
def test_all_memories_of_a_process_meet_in_the_new_folder(tmp_path: Path, remove: Removal) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two, User(tmp_path) as user:
        remove(tmp_path)
        token = stored(one)
        assert two.linked(token) == (remove in (rm_places, rm_contents)), "in the same folder"
        assert holds(one, stored(two)) and holds(two, token)
        theirs = new_token()
        assert user.call("begin", theirs, SIZE)
        user.call("write", 0, value_of(theirs))
        assert user.call("seal") == value_of(theirs)
        assert holds(one, theirs) and holds(two, theirs)
        user.call("close")
        one.close()
        if remove is rm_contents:  # the lock of the second one has no name: it enters again
            janitor.wait()
            token = stored(two)
        assert holds(two, token)
    assert files(tmp_path) == []


def test_an_unfinished_value_in_a_removed_folder_begins_again(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token = new_token()
        writer = begun(memory, token)
        rm_all(tmp_path)
        stored(memory)
        with pytest.raises(NoRoom):
            writer.write(0, value_of(token))
        with begun(memory, token) as writer:
            writer.write(0, value_of(token))
            writer.seal()
        assert holds(memory, token)


def test_global_keeps_its_values_when_their_folder_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shared_bulk(tmp_path) as bulk, opened(tmp_path) as node:
        adopted, own, late = stored(node), new_token(), new_token()
        assert bulk.adopt(adopted, SIZE)
        written(bulk, own)
        bulk.reserve(late, SIZE)
        bulk.write(late, 0, value_of(late)[:PAGE])
        rm_all(tmp_path)
        bulk.write(late, PAGE, value_of(late)[PAGE:])
        bulk.seal(late)
        new = new_token()
        written(bulk, new)
        for token in (adopted, own, late, new):
            assert read(bulk, token) == value_of(token)
            assert read(bulk, token, PAGE) == value_of(token)[PAGE:]
        assert not node.linked(own)
        copy = stored(node)
        assert node.linked(new) and bulk.adopt(copy, SIZE)
        for token in (adopted, own, late, new, copy):
            bulk.drop(token)
            assert read(bulk, token) is None
        assert len(caplog.records) == 2, "Global, and the Node"
    assert files(tmp_path) == []


def file_in_place(path: Path) -> None:
    path.write_bytes(b"mine")


def link_in_place(path: Path) -> None:
    (path.parent / "aim").mkdir(0o700, exist_ok=True)
    path.symlink_to(path.parent / "aim")


def open_in_place(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("put", [file_in_place, link_in_place, open_in_place])
@pytest.mark.parametrize("which", ["user", "epoch", "copies"])
def test_a_file_in_place_of_the_folder_stays_with_one_warning(
    tmp_path: Path,
    put: Callable[[Path], None],
    which: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = folder_of(tmp_path)
    path = {"user": ours.parent, "epoch": ours, "copies": ours / "copies"}[which]
    monkeypatch.setattr(shm_memory, "ENTER_RETRY_SECONDS", 0.0)
    with opened(tmp_path) as memory:
        shutil.rmtree(path)
        put(path)
        before = files(tmp_path)
        if put is file_in_place or which != "copies":
            for _ in range(5):
                with pytest.raises(NoRoom):
                    memory.begin(new_token(), SIZE)
                assert memory.find(new_token(), SIZE) is None
            (record,) = caplog.records
            assert "cannot be used any more" in record.getMessage()
            assert files(tmp_path) == before
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        assert holds(memory, stored(memory)), "it is good again"
    shutil.rmtree(tmp_path / "aim", ignore_errors=True)
    janitor.wait()


def test_a_folder_that_cannot_be_entered_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be entered is not tried again for each value."""
    tried = []
    whole = folder.enter

    def counted(root: str, epoch: int, tries: int = folder.ENTER_TRIES) -> object:
        tried.append(tries)
        return whole(root, epoch, tries)

    with opened(tmp_path) as memory:
        rm_all(tmp_path)
        folder_of(tmp_path).parent.touch()
        monkeypatch.setattr(folder, "enter", counted)
        for _ in range(5):
            with pytest.raises(NoRoom):
                memory.begin(new_token(), SIZE)
        assert tried == [1]
        folder_of(tmp_path).parent.unlink()


# ---- file systems -----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; to mount it needs root."""
    with mounted_disk(tmp_path, "1m") as disk:
        yield disk


def test_a_file_system_that_others_have_filled(disk: Path) -> None:
    with opened(disk) as memory, shared_bulk(disk) as bulk:
        own = new_token()
        written(bulk, own)
        rm_all(disk)
        (disk / "theirs").write_bytes(bytes(900 << 10))
        with contextlib.suppress(OSError), open(disk / "more", "wb", buffering=0) as more:
            while True:
                more.write(bytes(PAGE))
        for _ in range(2):
            with pytest.raises(NoRoom):
                memory.begin(new_token(), SIZE)
            other = new_token()
            written(bulk, other)
            for each in (own, other):
                assert read(bulk, each) == value_of(each)
        (disk / "theirs").unlink()
        (disk / "more").unlink()
        assert holds(memory, stored(memory))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_without_permission_to_enter_it_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    for part in tmp_path.parents:
        if part.owner() == "root" and part.name.startswith(("pytest-", "popen-")):
            part.chmod(0o711)

    def body(pipe: Connection) -> None:
        os.setuid(12345)
        with opened(tmp_path) as memory, shared_bulk(tmp_path) as bulk:
            token, own = stored(memory), new_token()
            written(bulk, own)
            folder_of(tmp_path).chmod(0)
            assert memory.find(token, SIZE) is None
            assert_no_room(memory)
            assert read(bulk, own) == value_of(own)
            written(bulk, new_token())
            folder_of(tmp_path).chmod(0o700)
            assert holds(memory, token) and holds(memory, stored(memory))
            pipe.send("well")

    with Child(body) as child:
        assert child.hear() == "well"


def assert_no_room(memory: HostMemory) -> None:
    for _ in range(3):
        with pytest.raises(NoRoom):
            memory.begin(new_token(), SIZE)

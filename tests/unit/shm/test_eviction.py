"""Making room: the limit, the order of eviction, a full file system, dead writers."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.runtime.background import janitor
from dstore.shm import HostMemory, NoRoom, directory, open_memory, room
from dstore.shm import files as shm_files
from dstore.shm.directory import Directory
from dstore.shm.folder import Folder
from tests.unit.shm.children import (
    EPOCH,
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
SMALL_DISK = 1 << 20


@pytest.fixture(params=["by the list", "by the file system"])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: the limit is seen from the file system, or from a list of the files."""
    if request.param == "by the list":
        monkeypatch.setattr(room, "used", lambda path: float("inf"))
    else:
        monkeypatch.setattr(room, "used", copies_and_a_bit)
    monkeypatch.setattr("dstore.shm.room.SPARE_DIVISOR", 1 << 60)


def copies_and_a_bit(here: Directory) -> float:
    with here.listed("copies") as entries:
        return 7 + sum(entry.stat().st_size for entry in entries)


def counted_lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by one entry each time the files are listed."""
    made: list[str] = []
    whole = room._list

    def listed(here: Directory, mine: str) -> tuple[int, list[room.Copy]]:
        made.append(here.path)
        return whole(here, mine)

    monkeypatch.setattr(room, "_list", listed)
    return made


def present(memory: HostMemory, tokens: list[bytes]) -> list[int]:
    """The indexes of the tokens whose values are present."""
    return [number for number, token in enumerate(tokens) if memory.linked(token)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; to mount it needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- the limit --------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
def test_the_least_recently_touched_copy_is_evicted_first(tmp_path: Path) -> None:
    with opened(tmp_path, limit=5 * PAGE + 100) as memory:
        tokens = [stored(memory, PAGE) for _ in range(5)]
        assert present(memory, tokens) == [0, 1, 2, 3, 4]
        memory.touch(tokens[0])
        assert holds(memory, tokens[2], PAGE)  # this touches it
        tokens.append(stored(memory, PAGE))
        assert present(memory, tokens) == [0, 2, 3, 4, 5]
        tokens.append(stored(memory, 3 * PAGE))
        assert present(memory, tokens) == [2, 5, 6]
        tokens.append(stored(memory, 5 * PAGE))
        assert present(memory, tokens) == [7]


@pytest.mark.usefixtures("exact")
def test_a_value_as_large_as_the_limit_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    with opened(tmp_path, limit=3 * PAGE) as memory:
        old = stored(memory, PAGE)
        with pytest.raises(NoRoom):
            memory.begin(new_token(), 3 * PAGE + 1)
        assert memory.linked(old), "nothing is evicted in vain"
        new = stored(memory, 3 * PAGE)
        assert holds(memory, new, 3 * PAGE)
        assert not memory.linked(old)
        assert len(files(folder_of(tmp_path) / "copies")) == 1


@pytest.mark.usefixtures("exact")
def test_a_limit_of_nothing_takes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, limit=0) as memory:
        with pytest.raises(NoRoom):
            memory.begin(new_token(), 1)
        stored(memory, PAGE, for_global=True)


@pytest.mark.usefixtures("exact")
def test_global_s_values_do_not_count_and_are_not_evicted(tmp_path: Path) -> None:
    with opened(tmp_path, limit=2 * PAGE) as memory:
        own = [stored(memory, 10 * PAGE, for_global=True), stored(memory, PAGE)]
        assert memory.adopt(own[1], PAGE)
        copies = [stored(memory, PAGE) for _ in range(3)]
        assert present(memory, own + copies) == [0, 1, 3, 4]


@pytest.mark.usefixtures("exact")
def test_an_evicted_value_stays_mapped(tmp_path: Path) -> None:
    with opened(tmp_path, limit=PAGE) as memory, User(tmp_path) as other:
        token = stored(memory, PAGE)
        view = memory.find(token, PAGE)
        later = new_token()
        assert other.call("find", token, PAGE) == value_of(token, PAGE)
        with begun(memory, later, PAGE):
            assert not memory.linked(token)
            assert other.call("find", token, PAGE) is None
            assert view is not None and bytes(view) == value_of(token, PAGE)


@pytest.mark.usefixtures("exact")
def test_an_unfinished_copy_is_not_evicted_and_counts(tmp_path: Path) -> None:
    with opened(tmp_path, limit=4 * PAGE) as memory, User(tmp_path) as other:
        mine, theirs = new_token(), new_token()
        writer = begun(memory, mine, PAGE)
        assert other.call("begin", theirs, 2 * PAGE)
        old = stored(memory, PAGE)
        with pytest.raises(NoRoom):
            memory.begin(new_token(), 2 * PAGE)
        assert memory.linked(old), "nothing is evicted in vain"
        stored(memory, PAGE)
        assert not memory.linked(old)
        other.call("write", 0, value_of(theirs, 2 * PAGE))
        assert other.call("seal") == value_of(theirs, 2 * PAGE)
        writer.write(0, value_of(mine, PAGE))
        writer.seal()
        assert holds(memory, mine, PAGE) and holds(memory, theirs, 2 * PAGE)


@pytest.mark.usefixtures("exact")
def test_no_room_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path, limit=2 * PAGE) as memory:
        token = new_token()
        with begun(memory, new_token(), PAGE):
            with pytest.raises(NoRoom):
                memory.begin(token, 2 * PAGE)
            assert len(files(folder_of(tmp_path) / "copies")) == 1
        with begun(memory, token, 2 * PAGE) as writer:
            writer.seal()


@pytest.mark.parametrize("sees", ["the list", "the file system"])
def test_two_processes_that_reserve_at_the_same_time_keep_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: str
) -> None:
    """Both have reserved memory before either checks the limit: at most one goes on."""
    used = (lambda path: float("inf")) if sees == "the list" else copies_and_a_bit
    monkeypatch.setattr(room, "used", used)

    def body(pipe: Connection) -> None:
        with opened(tmp_path, limit=3 * PAGE) as memory:
            whole = memory._room._keep_limit

            def later(folder: Folder, name: str, size: int) -> None:
                pipe.send("reserved")
                pipe.recv()
                whole(folder, name, size)

            memory._room._keep_limit = later  # type: ignore[method-assign]
            try:
                writer = memory.begin(new_token(), 2 * PAGE)
            except NoRoom:
                pipe.send("no room")
                pipe.recv()
                return
            pipe.send("begun")
            pipe.recv()
            del writer

    with Child(body) as one, Child(body) as two:
        for child in (one, two):
            assert child.hear() == "reserved"
        said = []
        for child in (one, two):
            child.tell()
            said.append(child.hear())
        assert said == ["no room", "begun"]
        copies = folder_of(tmp_path) / "copies"
        assert sum((copies / name).stat().st_size for name in files(copies)) <= 3 * PAGE
        for child in (one, two):
            child.tell()
            child.end()


def test_of_many_small_copies_a_few_more_are_evicted_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that not every later value needs a list of all files."""
    monkeypatch.setattr(room, "used", copies_and_a_bit)
    lists = counted_lists(monkeypatch)
    with opened(tmp_path, limit=100 * 16 + 16) as memory:
        tokens = [stored(memory, 16) for _ in range(100)]
        assert not lists
        tokens += [stored(memory, 16) for _ in range(200)]
        assert len(lists) <= 60
        there = present(memory, tokens)
        assert 90 <= len(there) <= 101
        assert there == list(range(300 - len(there), 300))


def test_without_statistics_of_the_file_system_a_list_serves_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "used", lambda path: float("inf"))
    lists = counted_lists(monkeypatch)
    with opened(tmp_path, limit=1600) as memory:
        tokens = [stored(memory, 10) for _ in range(140)]
        assert 10 < len(lists) < 100
        tokens += [stored(memory, 10) for _ in range(60)]
        there = present(memory, tokens)
        assert len(there) <= 160
        assert there == list(range(200 - len(there), 200))


def test_the_limit_is_half_of_the_file_system_unless_given(small_disk: Path) -> None:
    opened_there = open_memory(EPOCH, root=str(small_disk))
    assert opened_there is not None
    assert opened_there._room.limit == SMALL_DISK // 2
    opened_there.close()


def test_a_file_system_without_a_size_is_never_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([*whole(path)[:2], *[0] * 9]))
    assert room.free(directory.walk(str(tmp_path))) == float("inf")
    assert room.limit_default(str(tmp_path)) > 1 << 20
    with opened(tmp_path, limit=2 * PAGE) as memory:
        tokens = [stored(memory, PAGE) for _ in range(3)]
        assert present(memory, tokens) == [1, 2]


# ---- a full file system -----------------------------------------------------------------------


def test_a_full_file_system_is_an_error_before_anything_is_written(small_disk: Path) -> None:
    with opened(small_disk) as memory:
        own = stored(memory, SMALL_DISK // 2, for_global=True)
        for _ in range(2):
            for flag in (False, True):
                with pytest.raises(NoRoom):
                    memory.begin(new_token(), SMALL_DISK * 3 // 4, for_global=flag)
        assert len(files(folder_of(small_disk))) == 4, "what was begun is gone"
        token = stored(memory, SMALL_DISK // 4)
        assert holds(memory, token, SMALL_DISK // 4)
        assert holds(memory, own, SMALL_DISK // 2)


@pytest.mark.parametrize("for_global", [False, True])
def test_copies_give_way_when_the_file_system_is_full(small_disk: Path, for_global: bool) -> None:
    quarter = SMALL_DISK // 4 - 2 * PAGE
    with opened(small_disk) as memory:
        tokens = [stored(memory, quarter) for _ in range(4)]
        memory.touch(tokens[0])
        new = stored(memory, quarter, for_global=for_global)
        assert present(memory, tokens) == [0, 2, 3]
        assert holds(memory, new, quarter)
        with pytest.raises(NoRoom):
            memory.begin(new_token(), SMALL_DISK + 1, for_global=for_global)
        assert present(memory, tokens) == [0, 2, 3], "nothing is evicted in vain"


def test_copies_are_evicted_step_by_step_for_global(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are evicted as room is needed, since to remove many at once takes long."""
    eighth = SMALL_DISK // 8 - 2 * PAGE
    monkeypatch.setattr("dstore.shm.writer.RESERVE_BYTES", eighth // 4)
    monkeypatch.setattr(room, "EXTRA_DIVISOR", 1 << 60)
    with opened(small_disk) as memory:
        tokens = [stored(memory, eighth) for _ in range(8)]
        token, size = new_token(), 4 * eighth
        left = []
        with begun(memory, token, size, for_global=True) as writer:
            for start in range(0, size, PAGE):
                writer.write(start, value_of(token, size)[start : start + PAGE])
                left.append(len(present(memory, tokens)))
            writer.seal()
        assert left == sorted(left, reverse=True)
        assert left[0] == 7
        assert set(left) >= {6, 5, 4}
        assert holds(memory, token, size)
        with pytest.raises(NoRoom):
            memory.begin(new_token(), SMALL_DISK, for_global=True)
        assert len(present(memory, tokens)) == left[-1], "nothing is evicted in vain"


@pytest.mark.parametrize("for_global", [False, True])
def test_memory_that_the_janitor_is_releasing_is_waited_for(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, for_global: bool
) -> None:
    monkeypatch.setattr("dstore.shm.files.BACKGROUND_BYTES", PAGE)
    monkeypatch.setattr("dstore.shm.room.RELEASE_TIMEOUT", 30.0)
    half = SMALL_DISK // 2
    with opened(small_disk) as memory:
        copy, dropped = stored(memory, PAGE), stored(memory, half, for_global=True)
        janitor.do(partial(time.sleep, 0.1))
        memory.drop(dropped, for_global=True)
        stored(memory, half, for_global=for_global)
        assert memory.linked(copy), "nothing is evicted"


def test_memory_of_a_mapped_copy_is_not_freed(small_disk: Path) -> None:
    half = SMALL_DISK // 2 - 2 * PAGE
    with opened(small_disk) as memory:
        tokens = [stored(memory, half), stored(memory, half)]
        views = [memory.find(token, half) for token in tokens]
        with pytest.raises(NoRoom):
            memory.begin(new_token(), half, for_global=True)
        for token, view in zip(tokens, views):
            assert view is not None and bytes(view) == value_of(token, half)
        del view
        views.clear()
        assert holds(memory, stored(memory, half, for_global=True), half)


def test_a_file_system_that_fills_while_memory_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was room at the check and then there is none, or a quota is reached."""
    whole = os.posix_fallocate
    for code in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        with opened(tmp_path) as memory:
            tokens = [stored(memory, PAGE) for _ in range(4)]

            def full(descriptor: int, offset: int, count: int, code: int = code) -> None:
                if len(files(folder_of(tmp_path) / "copies")) > 3:
                    raise OSError(code, os.strerror(code))
                whole(descriptor, offset, count)

            monkeypatch.setattr(os, "posix_fallocate", full)
            tokens.append(stored(memory, PAGE))
            assert present(memory, tokens) == [2, 3, 4]
            monkeypatch.undo()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_reserve_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int, offset: int, count: int) -> None:
        raise OSError(code, os.strerror(code))

    with opened(tmp_path) as memory:
        token = stored(memory)
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(NoRoom, match=os.strerror(code)):
            memory.begin(new_token(), PAGE)
        assert memory.linked(token) == (code != errno.ENOSPC)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
            try:
                memory.begin(new_token(), 2 * PAGE)
            except NoRoom:
                pipe.send(holds(memory, stored(memory, PAGE), PAGE))

    with Child(body) as child:
        assert child.hear() is True
        child.end()
    assert files(tmp_path) == []


def test_a_large_value_is_reserved_in_several_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dstore.shm.writer.RESERVE_BYTES", 2 * PAGE)
    with opened(tmp_path) as memory:
        token = new_token()
        with begun(memory, token, 5 * PAGE + 3):
            (unfinished,) = (folder_of(tmp_path) / "copies").iterdir()
            status = unfinished.stat()
            assert status.st_size == 5 * PAGE + 3
            assert status.st_blocks * 512 >= 6 * PAGE


# ---- dead writers -----------------------------------------------------------------------------


@pytest.mark.parametrize("for_global", [False, True])
def test_files_of_dead_writers_are_removed_when_a_process_enters(
    tmp_path: Path, for_global: bool
) -> None:
    with User(tmp_path) as alive, User(tmp_path) as dead:
        unfinished = [new_token(), new_token()]
        alive.call("begin", unfinished[0], PAGE, for_global=for_global)
        dead.call("begin", unfinished[1], PAGE, for_global=for_global)
        dead.kill()
        dead.end()
        place = folder_of(tmp_path) / ("global" if for_global else "copies")
        assert len(files(place)) == 2
        with opened(tmp_path):
            assert files(place) == [f"{unfinished[0].hex()}.part"]


@pytest.mark.usefixtures("exact")
def test_files_of_dead_writers_are_removed_before_copies(tmp_path: Path) -> None:
    with opened(tmp_path, limit=3 * PAGE) as memory, User(tmp_path) as dead:
        token = stored(memory, PAGE)
        dead.call("begin", new_token(), 2 * PAGE)
        dead.kill()
        dead.end()
        stored(memory, PAGE)
        assert memory.linked(token)


def test_files_of_dead_writers_are_removed_when_the_file_system_is_full(small_disk: Path) -> None:
    half = SMALL_DISK // 2
    with opened(small_disk) as memory, User(small_disk) as dead:
        token = stored(memory, PAGE)
        dead.call("begin", new_token(), half, for_global=True)
        dead.kill()
        dead.end()
        stored(memory, half, for_global=True)
        assert memory.linked(token)


def test_a_file_that_is_being_claimed_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is created and then locked; a process that sweeps in between must not remove it."""
    with opened(tmp_path) as memory:
        whole = shm_files.open_writable

        def slow(here: Directory, name: str, *, create: bool) -> object:
            file = whole(here, name, create=create)
            monkeypatch.undo()
            with User(tmp_path) as newcomer:
                newcomer.call("close")
            return file

        monkeypatch.setattr(shm_files, "open_writable", slow)
        with begun(memory, new_token()):
            pass

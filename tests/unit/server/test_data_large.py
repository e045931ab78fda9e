"""Large values on disk: whole or not there, whatever happens, and found again after a restart."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.core.engine import Bulk
from dstore.errors import StoreFull, ValueCorrupt
from dstore.protocol import content
from dstore.protocol.messages import Large, Stored
from dstore.runtime.background import janitor
from dstore.server.data.durable_bulk import DurableBulk
from dstore.server.data.large import LargeFiles, Read
from dstore.shm import SharedBulk, bulk_for
from dstore.shm.bulk import PrivateBulk
from dstore.testing.bulk_contract import BulkContract, got, raises
from tests.disks import mounted_disk
from tests.unit.shm.children import (
    EPOCH,
    TIMEOUT,
    Child,
    begun,
    files,
    holds,
    janitor_held_up,
    new_token,
    opened,
    value_of,
)

SIZE = (2 << 20) + 4099
"""Two chunks and a part of a third."""
PATIENCE = 0.2
"""Seconds in which another thread may do what a lock should keep it from doing."""


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


# ---- keeping and reading ----------------------------------------------------------------------


def test_a_value_is_kept_for_this_user_alone_and_read(large: LargeFiles) -> None:
    stored, body = kept(large)
    assert stored.token in large
    assert content_of(large, stored) == body
    view = large.read(stored.token, SIZE - 3, 1 << 20)
    assert view is not None and view.readonly and view == body[-3:]
    path = path_of(large, stored)
    assert path.read_bytes() == body
    assert [each.stat().st_mode & 0o777 for each in (path, path.parent)] == [0o600, 0o700]
    assert files(path.parent) == [path.name]


def test_a_value_is_found_after_a_restart_if_a_row_names_it(large: LargeFiles) -> None:
    stored, body = kept(large)
    large.close()
    again = LargeFiles(large.path)
    assert content_of(again, stored) is None, "the rows are not known yet"
    assert again.lost(known(stored)) == []
    assert again.remove_orphans(known(stored), keep_all=False) == []
    assert content_of(again, stored) == body
    again.close()


def test_a_value_is_on_disk_before_it_has_its_name_and_the_name_before_it_counts(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, body = new_value()
    steps: list[tuple[str, list[str], bool]] = []

    def noted(step: str, whole: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        whole(*arguments, **keywords)
        target = "" if step == "rename" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        what = f"{step} {os.path.basename(target)}".strip()
        steps.append((what, files(Path(large.path)), stored.token in large))

    monkeypatch.setattr(os, "fsync", partial(noted, "fsync", os.fsync))
    monkeypatch.setattr(os, "rename", partial(noted, "rename", os.rename))
    large.keep(stored, reading(body))
    name = stored.token.hex()
    assert steps == [
        (f"fsync {name}.part", [f"{name}.part"], False),
        ("rename", [name], False),
        ("fsync large", [name], False),
    ]
    assert stored.token in large


def test_the_folder_itself_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, whole = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    for _ in range(2):  # the first may have crashed before it had synced
        LargeFiles(str(tmp_path / "large")).close()
    assert synced == [str(tmp_path)] * 2


def test_keeping_a_value_again_does_nothing(large: LargeFiles) -> None:
    stored, body = kept(large)
    large.keep(stored, lambda *_: None)  # it is not read again
    assert content_of(large, stored) == body
    other = Stored(stored.token, "bytes", Large(5, bytes(32)))
    assert raises(ValueCorrupt, lambda: large.keep(other, reading(b"other")))
    assert content_of(large, stored) == body


@pytest.mark.parametrize("damage", ["flipped", "another codec", "missing", "cut short"])
def test_what_is_damaged_in_memory_is_not_kept(large: LargeFiles, damage: str) -> None:
    stored, body = new_value()
    wrong, read = stored, reading(body)
    if damage == "flipped":
        read = reading(body[:-1] + bytes([body[-1] ^ 1]))
    elif damage == "another codec":
        wrong = stored._replace(codec="bytes")
    elif damage == "cut short":
        read = reading(body[:-1])
    else:
        read = lambda *_: None  # noqa: E731
    assert raises(ValueCorrupt, lambda: large.keep(wrong, read))
    assert content_of(large, stored) is None
    assert files(Path(large.path)) == []
    large.keep(stored, reading(body))
    assert content_of(large, stored) == body


def test_no_descriptors_stay_open(large: LargeFiles) -> None:
    before = len(os.listdir("/proc/self/fd"))
    values = [kept(large, 5000) for _ in range(20)]
    for stored, body in values:
        assert content_of(large, stored) == body
        assert large.verify(stored)
        large.drop(stored.token)
    janitor.wait()
    assert len(os.listdir("/proc/self/fd")) == before
    assert files(Path(large.path)) == []


# ---- crashes ----------------------------------------------------------------------------------


def killed_within_keep(folder: str, stored: Stored, body: bytes, where: str) -> None:
    """Have another process keep a value, and kill it there."""

    def stand_still(pipe: Connection) -> None:
        pipe.send(where)
        pipe.recv()

    def stopping(pipe: Connection, whole: Callable[..., Any], *at: object) -> Callable[..., Any]:
        """``whole``, which stops before its call number ``at[0]``."""
        calls = iter(at)

        def stop(*arguments: Any, **keywords: Any) -> Any:
            if next(calls, None) == where:
                stand_still(pipe)
            return whole(*arguments, **keywords)

        return stop

    def keep(pipe: Connection) -> None:
        values = LargeFiles(folder)
        os.fsync = stopping(pipe, os.fsync, "before its bytes are on disk", "before its name is")
        os.rename = stopping(pipe, os.rename, "before it has its name")
        read = stopping(pipe, reading(body), "at first", "in the middle", "near its end")
        values.keep(stored, read)
        stand_still(pipe)

    with Child(keep) as child:
        assert child.hear() == where
        child.kill()
        assert child.process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("at first", "part"),
        ("in the middle", "part"),
        ("near its end", "part"),
        ("before its bytes are on disk", "part"),
        ("before it has its name", "part"),
        ("before its name is", "whole"),
        ("before its row is committed", "whole"),
    ],
)
def test_a_process_that_is_killed_leaves_no_half_value(
    tmp_path: Path, where: str, left: str
) -> None:
    stored, body = new_value()
    folder = tmp_path / "large"
    killed_within_keep(str(folder), stored, body, where)
    suffix = ".part" if left == "part" else ""
    assert files(folder) == [stored.token.hex() + suffix]
    large = LargeFiles(str(folder))
    assert large.verify(stored) == (left == "whole")
    assert large.remove_orphans({}, keep_all=False) == ([] if suffix else [stored.token])
    assert files(folder) == []
    large.keep(stored, reading(body))  # its upload comes again
    assert large.verify(stored)
    large.close()


def test_a_value_whose_row_was_committed_survives_a_kill(tmp_path: Path) -> None:
    stored, body = new_value()
    folder = str(tmp_path / "large")
    killed_within_keep(folder, stored, body, "before its row is committed")
    large = LargeFiles(folder)
    assert large.lost(known(stored)) == []
    assert large.remove_orphans(known(stored), keep_all=False) == []
    assert content_of(large, stored) == body
    large.close()


# ---- a full or failing disk -------------------------------------------------------------------


@pytest.mark.parametrize("reserving", [True, False])
def test_a_full_disk_refuses_a_value_and_stays_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserving: bool
) -> None:
    if not reserving:

        def refused(descriptor: int, offset: int, count: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", refused)
    with mounted_disk(tmp_path, "3m") as disk:
        large = LargeFiles(str(disk / "large"))
        first, body = kept(large)
        second, other = new_value()
        with pytest.raises(StoreFull, match="free space on this disk"):
            large.keep(second, reading(other))
        assert second.token not in large
        assert files(disk / "large") == [first.token.hex()]
        assert content_of(large, first) == body
        large.drop(first.token)
        janitor.wait()
        large.keep(second, reading(other))
        assert large.verify(second)
        large.close()


def test_a_disk_without_names_refuses_a_value(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, body = new_value()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        assert raises(StoreFull, lambda: large.keep(stored, reading(body)))
    assert files(Path(large.path)) == []
    large.keep(stored, reading(body))


@pytest.mark.parametrize("at", [1, 2])
def test_an_error_of_the_disk_is_raised_and_nothing_counts_as_kept(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    stored, body = new_value()
    calls, whole = iter([1, 2]), os.fsync

    def failing(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(errno.EIO, "input/output error")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="input/output error"):
        large.keep(stored, reading(body))
    assert content_of(large, stored) is None
    assert files(Path(large.path)) == []


# ---- damage on disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, SIZE // 2, SIZE - 1])
def test_a_flipped_bit_is_found(large: LargeFiles, where: int) -> None:
    stored, body = kept(large)
    assert large.verify(stored)
    with open(path_of(large, stored), "r+b") as file:
        file.seek(where)
        file.write(bytes([body[where] ^ 1]))
    assert not large.verify(stored)
    assert large.lost(known(stored)) == [], "only its size is compared"


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_not_read(
    large: LargeFiles, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    stored, _ = kept(large)
    os.truncate(path_of(large, stored), size)
    assert large.read(stored.token, 0, 1) is None
    assert not large.verify(stored)
    assert large.lost(known(stored)) == [stored.token]
    (record,) = caplog.records
    assert stored.token.hex() in record.getMessage()
    assert "restore the file from a backup" in record.getMessage()


def test_a_file_that_is_gone_is_not_read(
    large: LargeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    stored, _ = kept(large)
    path_of(large, stored).unlink()
    assert large.read(stored.token, 0, 1) is None
    assert not large.verify(stored)
    assert large.lost(known(stored)) == [stored.token]
    assert len(caplog.records) == 1
    large.drop(stored.token)
    janitor.wait()
    assert len(caplog.records) == 1


def test_a_file_that_cannot_be_opened_now_is_not_called_damaged(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, body = kept(large)

    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        assert content_of(large, stored) is None
        assert raises(OSError, lambda: large.verify(stored))
    assert content_of(large, stored) == body


def test_orphans_and_partial_files_are_removed_and_other_files_stay(large: LargeFiles) -> None:
    (one, body), (two, _) = kept(large), kept(large, 5000)
    folder = Path(large.path)
    (folder / f"{new_token().hex()}.part").write_bytes(b"half")
    (folder / "notes of a person").write_bytes(b"?")
    large.close()
    again = LargeFiles(large.path)
    assert again.remove_orphans(known(one), keep_all=False) == [two.token]
    assert files(folder) == sorted([one.token.hex(), "notes of a person"])
    assert content_of(again, one) == body
    again.close()


def test_while_something_is_damaged_orphans_stay_and_cannot_be_replaced(
    large: LargeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    (one, body), (two, other) = kept(large), kept(large, 5000)
    folder = Path(large.path)
    (folder / f"{new_token().hex()}.part").write_bytes(b"half")
    large.close()
    again = LargeFiles(large.path)
    assert again.remove_orphans(known(one), keep_all=True) == [two.token]
    assert files(folder) == sorted(each.token.hex() for each in (one, two))
    assert content_of(again, one) == body
    assert two.token in again and content_of(again, two) is None and not caplog.records
    assert raises(ValueCorrupt, lambda: again.keep(two, reading(other)))
    again.drop(two.token)  # its row could be read in part, and was removed
    janitor.wait()
    assert files(folder) == [one.token.hex()]
    again.keep(two, reading(other))
    again.close()


# ---- dropping ---------------------------------------------------------------------------------


def test_a_dropped_value_is_gone_at_once_and_its_file_soon(large: LargeFiles) -> None:
    stored, body = kept(large)
    view = large.read(stored.token, 0, SIZE)
    with janitor_held_up():
        large.drop(stored.token)
        assert stored.token not in large and content_of(large, stored) is None
        assert files(Path(large.path)) == [stored.token.hex()]
    assert files(Path(large.path)) == []
    assert view is not None and bytes(view) == body
    large.drop(stored.token)
    large.drop(new_token())
    assert not janitor.busy


def test_a_value_that_comes_again_before_the_janitor_came_stays(large: LargeFiles) -> None:
    stored, body = kept(large)
    with janitor_held_up():
        large.drop(stored.token)
        large.keep(stored, reading(body))
    assert content_of(large, stored) == body
    large.drop(stored.token)
    janitor.wait()
    assert files(Path(large.path)) == []


def test_a_value_that_comes_again_while_the_janitor_removes_it_stays(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, body = kept(large)
    whole = os.unlink
    committer = threading.Thread(target=lambda: large.keep(stored, reading(body)))

    def published_first(name: str, *, dir_fd: int) -> None:
        if name == stored.token.hex():
            committer.start()
            committer.join(PATIENCE)  # the lock makes it wait for this thread
        whole(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", published_first)
    large.drop(stored.token)
    janitor.wait()
    committer.join()
    assert large.verify(stored)
    assert content_of(large, stored) == body


def test_closing_removes_what_the_janitor_has_not_removed_yet(large: LargeFiles) -> None:
    (one, body), (two, _) = kept(large), kept(large)
    with janitor_held_up():
        large.drop(two.token)
        large.close()
        assert files(Path(large.path)) == [one.token.hex()]
        again = restarted(large, one)
        again.keep(two, reading(value_of(two.token, SIZE)))
    assert content_of(again, one) == body
    assert again.verify(two)
    again.close()


def test_a_closed_folder_has_no_values(large: LargeFiles) -> None:
    stored, body = kept(large)
    large.close()
    large.close()
    assert content_of(large, stored) is None
    assert raises(OSError, lambda: large.keep(new_value()[0], reading(body)))
    assert "closed" in repr(large)


@pytest.mark.parametrize("moment", ["read", "fsync", "rename"])
def test_a_value_that_is_dropped_while_it_is_kept_is_not_kept(
    large: LargeFiles, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    stored, body = new_value()

    def dropping(whole: Callable[..., Any]) -> Callable[..., Any]:
        def drop(*arguments: Any, **keywords: Any) -> Any:
            large.drop(stored.token)
            return whole(*arguments, **keywords)

        return drop

    read = reading(body)
    with monkeypatch.context() as patched:
        if moment == "read":
            read = dropping(read)
        else:
            patched.setattr(os, moment, dropping(getattr(os, moment)))
        assert raises(ValueCorrupt, lambda: large.keep(stored, read))
    janitor.wait()
    assert stored.token not in large
    assert files(Path(large.path)) == []
    large.keep(stored, reading(body))
    assert content_of(large, stored) == body


# ---- backups ----------------------------------------------------------------------------------


def test_files_stay_while_removals_are_deferred(large: LargeFiles) -> None:
    (one, body), (two, _), (three, _) = kept(large), kept(large), kept(large)
    with large.removals_deferred():
        with large.removals_deferred():
            large.drop(one.token)
            janitor.wait()
        large.drop(two.token)
        janitor.wait()
        assert content_of(large, one) is None
        assert all(large.verify(each) for each in (one, two, three))
        large.keep(one, reading(body))
        large.tend()
        janitor.wait()
        assert path_of(large, two).exists()
    assert large.tend_at < float("inf")
    large.tend()
    janitor.wait()
    large.tend()
    assert large.tend_at == float("inf")
    assert files(Path(large.path)) == sorted(each.token.hex() for each in (one, three))
    assert content_of(large, one) == body


def test_a_start_during_a_backup_removes_orphans_after_it(large: LargeFiles) -> None:
    orphan, _ = kept(large)
    large.close()
    again = LargeFiles(large.path)
    with again.removals_deferred():
        assert again.remove_orphans({}, keep_all=False) == [orphan.token]
        assert path_of(again, orphan).exists()
        assert orphan.token not in again
    again.tend()
    janitor.wait()
    assert files(Path(again.path)) == []
    again.close()


def test_removals_go_on_when_a_backup_was_killed(large: LargeFiles) -> None:
    stored, _ = kept(large)

    def hold(pipe: Connection) -> None:
        with large.removals_deferred():
            pipe.send("held")
            pipe.recv()

    with Child(hold) as child:
        assert child.hear() == "held"
        large.drop(stored.token)
        janitor.wait()
        assert path_of(large, stored).exists()
        child.kill()
        large.tend()
        janitor.wait()
        assert not path_of(large, stored).exists()


@pytest.fixture(params=["links", "copies"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LargeFiles]:
    """A folder on the same file system as ``large``, and one on another."""
    if request.param == "links":
        target = LargeFiles(str(tmp_path / "backup"))
        yield target
        target.close()
        return
    with mounted_disk(tmp_path, "16m") as disk:
        target = LargeFiles(str(disk / "backup"))
        yield target
        target.close()


def test_a_backup_has_all_values(large: LargeFiles, backup: LargeFiles) -> None:
    values = [kept(large) for _ in range(3)]
    rows = [stored for stored, _ in values]
    done: list[int] = []
    with large.removals_deferred():
        large.drop(rows[0].token)
        janitor.wait()
        for _ in range(2):
            assert large.copy_to(backup, rows, done=done.append) == []
    assert sum(done) >= 3 * SIZE
    assert all(backup.verify(each) for each in rows)
    same_disk = os.stat(large.path).st_dev == os.stat(backup.path).st_dev
    linked = [path_of(backup, each).samefile(path_of(large, each)) for each in rows[1:]]
    assert linked == [same_disk] * 2
    large.drop(rows[1].token)
    janitor.wait()
    restored = restarted(backup, *rows)
    assert [content_of(restored, each) for each in rows] == [body for _, body in values]
    restored.close()


def test_a_backup_names_what_is_damaged_and_goes_on(large: LargeFiles, backup: LargeFiles) -> None:
    rows = [kept(large)[0] for _ in range(3)]
    os.truncate(path_of(large, rows[0]), SIZE - 1)
    path_of(large, rows[1]).unlink()
    assert large.copy_to(backup, rows) == rows[:2]
    assert files(Path(backup.path)) == [rows[2].token.hex()]


def test_a_damaged_file_in_a_backup_is_replaced(large: LargeFiles, backup: LargeFiles) -> None:
    stored, body = kept(large)
    path_of(backup, stored).write_bytes(b"x" * SIZE)
    os.chmod(path_of(backup, stored), 0o600)
    assert large.copy_to(backup, [stored]) == []
    assert path_of(backup, stored).read_bytes() == body


# ---- with the values in memory ----------------------------------------------------------------


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

"""Large values on disk: whole or not there, whatever happens, and found again after a restart."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.errors import StoreFull, ValueCorrupt
from dstore.protocol.messages import Large, Stored
from dstore.runtime.background import janitor
from dstore.server.data.large import LargeFiles
from dstore.testing.bulk_contract import raises
from tests.disks import mounted_disk
from tests.unit.server.large_files import (
    SIZE,
    content_of,
    kept,
    known,
    large,
    new_value,
    path_of,
    reading,
    restarted,
)
from tests.unit.shm.children import Child, files, janitor_held_up, new_token, value_of

__all__ = ["large"]

PATIENCE = 0.2
"""Seconds in which another thread may do what a lock should keep it from doing."""


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

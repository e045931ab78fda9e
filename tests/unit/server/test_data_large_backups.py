"""Backups of the large values on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.runtime.background import janitor
from dstore.server.data.large import LargeFiles
from tests.disks import mounted_disk
from tests.unit.server.large_files import SIZE, content_of, kept, large, path_of, reading, restarted
from tests.unit.shm.children import Child, files

__all__ = ["large"]


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

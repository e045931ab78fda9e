"""Backups of a running Global, restoring them, and looking for damage: real processes and files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.server.data import backup as backups
from dstore.server.data.backup import back_up, restore
from dstore.server.data.check import Report, check_folder
from tests.disks import mounted_disk
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess

LARGE = bytes(range(256)) * 1000
"""A value that has a file of its own."""
LEASE = 0.5


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


def durable(folder: Path, *options: str, lease: float = LEASE) -> GlobalProcess:
    return GlobalProcess(lease=lease, options=["--data", str(folder), *options])


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dstore", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def running(place: Path) -> Iterator[GlobalProcess]:
    with durable(place) as server:
        yield server


@pytest.fixture
def node(running: GlobalProcess) -> Iterator[dstore.Node]:
    with dstore.Node(running.address) as node:
        node.set("small", {"a": 1})
        node.set("large", LARGE)
        yield node


@pytest.fixture
def stopped(place: Path) -> Path:
    """A folder with three keys whose Global has ended."""
    with durable(place) as server:
        with dstore.Node(server.address) as node:
            node.set_many({"one": b"1", "two": b"2" * 500, b"raw\xff": "three"})
            node.set("large", LARGE)
        server.stop()
    return place


def values(folder: Path, *keys: str) -> list[Any]:
    """What a Global answers that uses the folder."""
    with durable(folder) as server, dstore.Node(server.address, timeout=PATIENCE) as node:
        return [node.get(key, None) for key in keys]


def damage(folder: Path, statement: str, *parameters: object) -> None:
    with contextlib.closing(sqlite3.connect(folder / "dstore.db")) as connection, connection:
        assert connection.execute(statement, parameters).rowcount == 1


def large_files(folder: Path) -> list[Path]:
    return list((folder / "large").iterdir())


# ---- backup and restore -----------------------------------------------------------------------


def test_a_backup_of_a_running_global_is_restored(
    node: dstore.Node, running: GlobalProcess, place: Path, tmp_path: Path
) -> None:
    done = command("backup", place, tmp_path / "backup")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("dstore: backup of 2 keys (")
    node.delete_many(["small", "large"])
    node.set("later", 1)
    running.kill()
    shutil.rmtree(place)
    done = command("restore", tmp_path / "backup", place)
    assert (done.returncode, done.stdout) == (0, "")
    assert "restored 2 keys" in done.stderr and "is silent" in done.stderr
    assert place.stat().st_mode & 0o777 == 0o700
    assert values(place, "small", "large", "later") == [{"a": 1}, LARGE, None]
    assert command("check", tmp_path / "backup").returncode == 0, "it was not changed"


def test_a_value_that_is_deleted_after_the_snapshot_is_in_the_backup(
    node: dstore.Node, place: Path, tmp_path: Path
) -> None:
    (file,) = large_files(place)
    looks: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if not looks:  # the snapshot is taken, and no large value is copied
            node.delete_many(["small", "large"])
            node.set("later", LARGE)
            assert file.exists()
        looks.append(what)

    report = back_up(str(place), str(tmp_path / "backup"), progress)
    assert (report.keys, report.damaged) == (2, [])
    assert {"copying", "checking"} == set(looks)
    assert check_folder(str(tmp_path / "backup"), silent).is_sound
    assert values(tmp_path / "backup", "small", "large", "later") == [{"a": 1}, LARGE, None]
    until = time.monotonic() + PATIENCE
    while file.exists() and time.monotonic() < until:
        node.get("later")
        time.sleep(0.02)
    assert len(large_files(place)) == 1, "what the backup has held up is removed after it"


def test_the_snapshot_stays_while_global_writes(
    node: dstore.Node, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PAGES_PER_STEP", 1)
    node.set_many({f"before {number}": bytes(2000) for number in range(50)})
    written: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "copying" and total > done:
            written.append(f"later {done}")
            with contextlib.suppress(dstore.KeyOccupied):
                node.set(written[-1], bytes(2000))

    report = back_up(str(place), str(tmp_path / "backup"), progress)
    assert len(written) > 20
    assert (report.keys, report.is_sound) == (52, True)
    assert check_folder(str(tmp_path / "backup"), silent).keys == 52


def test_backups_under_writers_are_consistent(running: GlobalProcess, tmp_path: Path) -> None:
    place, ended = tmp_path / "data", threading.Event()

    def write() -> None:
        number = 0
        with dstore.Node(running.address) as node:
            while not ended.is_set():
                node.set(f"first {number}", LARGE + b"%d" % number)
                node.set(f"second {number}", number)
                if number >= 3:
                    node.delete(f"second {number - 3}")
                    node.delete(f"first {number - 3}")
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [
            back_up(str(place), str(tmp_path / f"backup {number}"), silent) for number in range(6)
        ]
    finally:
        ended.set()
        writer.join()
    assert all(report.is_sound for report in reports)
    for number in range(6):
        folder = tmp_path / f"backup {number}"
        assert check_folder(str(folder), silent).is_sound
        with contextlib.closing(sqlite3.connect(folder / "dstore.db")) as connection:
            keys = {bytes(key).decode() for (key,) in connection.execute("SELECT key FROM kept")}
        seconds = [key.split()[1] for key in keys if key.startswith("second")]
        assert all(f"first {each}" in keys for each in seconds)


@pytest.mark.long
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_folder_without_a_global_can_be_backed_up(
    node: dstore.Node, running: GlobalProcess, place: Path, tmp_path: Path, how: str
) -> None:
    node.close()
    if how == "stopped":
        running.stop()
    else:
        running.kill()
        assert (place / "dstore.db-wal").stat().st_size
    report = back_up(str(place), str(tmp_path / "backup"), silent)
    assert (report.keys, report.is_sound) == (2, True)
    assert values(place, "small", "large") == [{"a": 1}, LARGE]
    restore(str(tmp_path / "backup"), str(tmp_path / "restored"), silent)
    assert values(tmp_path / "restored", "small", "large") == [{"a": 1}, LARGE]


@pytest.mark.long
def test_a_restored_folder_is_silent_for_the_longest_recorded_lease(
    tmp_path: Path, place: Path
) -> None:
    longest = 2.0
    with durable(place, lease=longest) as server, dstore.Node(server.address) as node:
        node.set("key", 1)
        back_up(str(place), str(tmp_path / "backup"), silent)
    restore(str(tmp_path / "backup"), str(tmp_path / "restored"), silent)
    begun = time.monotonic()
    with durable(tmp_path / "restored", lease=0.1) as server:
        with dstore.Node(server.address, timeout=PATIENCE) as node:
            assert node.get("key") == 1
        assert time.monotonic() - begun >= longest
        server.stop()
    with durable(tmp_path / "restored") as server, dstore.Node(server.address) as node:
        assert node.get("key") == 1
        server.stop()
    assert (tmp_path / "restored" / "identity").exists(), "from then on it is where it belongs"


def test_large_values_are_links_on_one_file_system_and_copies_when_restored(
    stopped: Path, tmp_path: Path
) -> None:
    back_up(str(stopped), str(tmp_path / "backup"), silent)
    restore(str(tmp_path / "backup"), str(tmp_path / "restored"), silent)
    files = [large_files(tmp_path / name)[0] for name in ("data", "backup", "restored")]
    assert files[0].samefile(files[1])
    assert not files[0].samefile(files[2])
    assert files[0].read_bytes() == files[2].read_bytes()


def test_a_backup_on_another_file_system_has_copies(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted_disk(tmp_path, "4m") as disk:
        with pytest.raises(dstore.DataError, match=r"needs .* bytes.*free some space"):
            back_up(str(stopped), str(disk / "backup"), silent)
        assert list(disk.iterdir()) == []
        monkeypatch.setattr(backups, "SPARE_BYTES", 0)
        assert back_up(str(stopped), str(disk / "backup"), silent).is_sound
        assert check_folder(str(disk / "backup"), silent).is_sound
        (file,) = large_files(disk / "backup")
        assert file.read_bytes() == LARGE


@pytest.mark.parametrize("room", [8_000, 100_000], ids=["no database", "no large value"])
def test_a_disk_that_fills_up_meanwhile(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(backups, "_free_bytes", lambda path: 1 << 40)
    with mounted_disk(tmp_path, "1m") as disk:
        (disk / "fill").write_bytes(bytes((1 << 20) - room))
        with pytest.raises((dstore.DataError, dstore.StoreFull), match=r"free.* space"):
            back_up(str(stopped), str(disk / "backup"), silent)
        assert [each.name for each in disk.iterdir()] == ["fill"]


def test_a_log_that_grows_too_much_ends_the_backup(
    node: dstore.Node, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "LOG_GROWTH_MAX", 0)
    monkeypatch.setattr(backups, "PAGES_PER_STEP", 1)

    def progress(what: str, done: int, total: int) -> None:
        with contextlib.suppress(dstore.KeyOccupied):  # 18 MB, more than the log has room for
            node.set_many({f"key {done} {number}": bytes(60_000) for number in range(300)})

    with pytest.raises(dstore.DataError, match=r"has written .* bytes while"):
        back_up(str(place), str(tmp_path / "backup"), progress)
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_a_backup_that_is_interrupted_leaves_nothing(stopped: Path, tmp_path: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(str(stopped), str(tmp_path / "backup"), progress)
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_nothing_is_overwritten(stopped: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    done = command("backup", stopped, taken)
    assert done.returncode == 1
    assert "taken exists; choose a path that does not" in done.stderr
    assert command("backup", stopped, tmp_path / "backup").returncode == 0
    assert command("restore", tmp_path / "backup", taken).returncode == 0, "it is empty"
    done = command("restore", tmp_path / "backup", taken)
    assert done.returncode == 1
    assert "taken is not empty" in done.stderr and "rename that folder first" in done.stderr


@pytest.mark.parametrize("name", ["check", "backup", "restore"])
def test_other_folders_are_refused(tmp_path: Path, name: str) -> None:
    more = [] if name == "check" else [tmp_path / "target"]
    done = command(name, tmp_path, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is no data folder of dstore" in done.stderr
    done = command(name, tmp_path / "missing", *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_value_does_not_stop_a_backup(stopped: Path, tmp_path: Path) -> None:
    damage(stopped, "UPDATE kept SET body = x'00' WHERE key = ?", b"one")
    large_files(stopped)[0].unlink()
    done = command("backup", stopped, tmp_path / "backup")
    assert done.returncode == 1
    assert "the value of one is damaged: its row" in done.stderr
    assert "the value of large is damaged: its file" in done.stderr
    done = command("restore", tmp_path / "backup", tmp_path / "restored")
    assert done.returncode == 1
    with (
        durable(tmp_path / "restored") as server,
        dstore.Node(server.address, timeout=PATIENCE) as node,
    ):
        assert node.get("two") == b"2" * 500
        for key in ("one", "large"):
            with pytest.raises(dstore.ValueCorrupt):
                node.get(key)
            node.delete(key)


# ---- what a Global tells of its disk -----------------------------------------------------------


def test_the_stats_tell_what_is_on_the_disk(
    node: dstore.Node, running: GlobalProcess, place: Path
) -> None:
    figures = json.loads(command("stats", "--address", running.address, "--json").stdout)
    assert (figures["disk_large_values"], figures["disk_large_bytes"]) == (1, len(LARGE))
    assert figures["disk_changes"] == 2
    assert figures["disk_commits"] >= 2
    assert 0 < figures["disk_commit_ms_mean"] <= figures["disk_commit_ms_max"]
    assert figures["disk_database_bytes"] == (place / "dstore.db").stat().st_size
    assert figures["disk_log_bytes"] > 0
    assert figures["disk_reserve_bytes"] > 0
    assert figures["disk_damaged"] == 0
    lines = command("stats", "--address", running.address).stdout.splitlines()
    assert any(line.split() == ["disk_large_bytes", f"{len(LARGE):,}"] for line in lines)
    node.delete("large")
    assert node.global_stats()["disk_large_bytes"] == 0


def test_the_stats_count_damaged_values(stopped: Path) -> None:
    damage(stopped, "UPDATE kept SET body = x'00' WHERE key = ?", b"one")
    large_files(stopped)[0].unlink()
    with durable(stopped) as server, dstore.Node(server.address, timeout=PATIENCE) as node:
        assert node.global_stats()["disk_damaged"] == 2


# ---- looking for damage -----------------------------------------------------------------------


def test_a_sound_folder(stopped: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    done = command("check", stopped)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("dstore: 4 keys (") and done.stderr.endswith(" are sound\n")
    after = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    assert after == before
    report = json.loads(command("check", "--json", stopped).stdout)
    assert report.pop("bytes") > len(LARGE)
    assert report == {"sound": True, "keys": 4, "damaged": [], "faults": [], "orphans": 0}


def test_progress_never_goes_beyond_its_total(stopped: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    check_folder(str(stopped), progress)
    assert {what for what, _, _ in calls} == {"checking", "hashing"}
    assert calls[-1] == ("hashing", len(LARGE), len(LARGE))
    back_up(str(stopped), str(tmp_path / "backup"), progress)
    restore(str(tmp_path / "backup"), str(tmp_path / "restored"), progress)
    assert calls[-1] == ("copying", len(LARGE), len(LARGE))
    assert all(0 <= done <= total for _, done, total in calls)
    assert len({total for what, _, total in calls if what == "hashing"}) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", ["check", "backup", "restore"])
def test_a_folder_of_another_user_is_refused(stopped: Path, tmp_path: Path, name: str) -> None:
    os.chown(stopped, 12_345, -1)
    done = command(name, stopped, *([] if name == "check" else [tmp_path / "target"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "belongs to another user; run this command as" in done.stderr


@pytest.mark.long
def test_each_damaged_key_is_on_a_line(stopped: Path) -> None:
    damage(stopped, "UPDATE kept SET body = x'00' WHERE key = ?", b"one")
    damage(stopped, "UPDATE kept SET deadline = 5 WHERE key = ?", b"raw\xff")
    (file,) = large_files(stopped)
    content = bytearray(LARGE)
    content[-1] ^= 1
    file.write_bytes(content)
    done = command("check", stopped)
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == ["large", "one", "raw\udcff"]
    assert "3 of 4 keys" in done.stderr
    found = json.loads(command("check", "--json", stopped).stdout)["damaged"]
    keys = [each.get("key", each.get("key_base64")) for each in found]
    assert sorted(keys) == ["cmF3/w==", "large", "one"]
    assert {each["what"] for each in found} == {
        "its row is not what was written",
        "its file is not what was written",
    }


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda file: file.unlink(), "its file is missing"),
        (lambda file: os.truncate(file, 7), "its file has 7 bytes in place of 256,000"),
        (lambda file: file.chmod(0o666), "its file cannot be read: this is not a file of dstore"),
        (lambda file: shutil.rmtree(file.parent), "its file is missing"),
    ],
    ids=["missing", "short", "mode", "no folder"],
)
def test_what_is_wrong_with_a_large_value_is_told(stopped: Path, harm: Any, what: str) -> None:
    harm(large_files(stopped)[0])
    report = check_folder(str(stopped), silent)
    assert [tuple(each) for each in report.damaged] == [("large", what)]


def test_files_without_a_key_are_no_damage(stopped: Path) -> None:
    (stopped / "large" / ("0" * 32)).write_bytes(b"left by a crash")
    (stopped / "large" / f"{'1' * 32}.part").write_bytes(b"left by a crash")
    done = command("check", stopped)
    assert done.returncode == 0
    assert "are sound; 2 files without a key, which the next start of Global removes" in done.stderr


def pages_harmed(folder: Path, start: int, count: int) -> Report:
    with (folder / "dstore.db").open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * count)
    return check_folder(str(folder), silent)


def test_a_damaged_database_is_told_apart(stopped: Path, tmp_path: Path) -> None:
    assert pages_harmed(stopped, 4096 + 8, 40).faults
    done = command("check", stopped)
    assert done.returncode == 1
    assert "the database is damaged: " in done.stderr and "restore a backup" in done.stderr
    done = command("backup", stopped, tmp_path / "backup")
    assert done.returncode == 1
    assert "is damaged (" in done.stderr and "no copy was made" in done.stderr
    assert not (tmp_path / "backup").exists()
    assert pages_harmed(stopped, 0, 100).faults == ["file is not a database"]


def test_damage_of_what_is_recorded_beside_the_keys(stopped: Path) -> None:
    damage(stopped, "UPDATE meta SET value = 7.5 WHERE name = 'lease'")
    assert check_folder(str(stopped), silent).faults == [
        "the record of 'lease' is not what was written"
    ]


def test_a_folder_in_use_is_not_checked(node: dstore.Node, place: Path) -> None:
    done = command("check", place)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is in use by another Global" in done.stderr


def test_what_a_killed_global_has_left_in_its_log_is_checked(
    node: dstore.Node, running: GlobalProcess, place: Path
) -> None:
    running.kill()
    log = (place / "dstore.db-wal").read_bytes()
    report = check_folder(str(place), silent)
    assert (report.keys, report.is_sound) == (2, True)
    assert (place / "dstore.db-wal").read_bytes() == log

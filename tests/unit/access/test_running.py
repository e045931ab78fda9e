"""What running Globals and commands tell each other by files: one process, children, threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from dstore.access import files, running
from dstore.access.keys import KeyFolder
from dstore.access.running import NOTHING, Applied, Running, Seen, Status, statuses, wait_applied
from dstore.core.authority.identity import Role
from dstore.errors import KeyFolderError
from tests.disks import fill, mounted_disk
from tests.unit.access.steps import ended, in_child, killed_at, started

PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.create()
    return made


def reports(folder: KeyFolder) -> list[str]:
    return os.listdir(Path(folder.path) / "running")


@contextlib.contextmanager
def child_with_report(folder: KeyFolder, generation: int) -> Iterator[int]:
    """The process id of a child that has reported a generation, and waits to be killed."""
    said, say = os.pipe()

    def run() -> None:
        Running.open(folder).report(generation, {})
        os.write(say, b"x")
        signal.pause()

    pid = started(run)
    os.close(say)
    try:
        assert os.read(said, 1) == b"x"
        yield pid
    finally:
        os.close(said)
        os.kill(pid, signal.SIGKILL)
        ended(pid)


def test_a_report_is_read(folder: KeyFolder) -> None:
    assert statuses(folder) == []
    one = Running.open(folder)
    assert statuses(folder) == [Status(os.getpid(), NOTHING, {})]
    one.report(7, {"alice": Seen(12.5, 2)})
    one.report(8, {"bob": Seen(None, 0)})
    assert statuses(folder.path) == [Status(os.getpid(), 8, {"bob": Seen(None, 0)})]
    assert len(reports(folder)) == 1
    one.close()
    one.close()
    one.report(9, {})
    assert (statuses(folder), reports(folder)) == ([], [])


def test_reports_are_for_their_user_alone(folder: KeyFolder) -> None:
    with contextlib.closing(Running.open(folder)):
        (name,) = reports(folder)
        assert (Path(folder.path) / "running" / name).stat().st_mode & 0o777 == 0o600


def test_a_global_that_has_applied_nothing_yet_is_waited_for(folder: KeyFolder) -> None:
    with contextlib.closing(Running.open(folder)) as one:
        assert wait_applied(folder, 0, 0.0).missing == statuses(folder)
        one.report(5, {})
        assert wait_applied(folder, 5, 0.0) == Applied(statuses(folder), [])
        assert wait_applied(folder, 4, 0.0).missing == [], "a later change includes earlier ones"
        assert wait_applied(folder, 6, 0.0).confirmed == []


def test_several_globals_in_one_process_are_waited_for_each(folder: KeyFolder) -> None:
    with contextlib.closing(Running.open(folder)) as one:
        with contextlib.closing(Running.open(folder)) as two:
            one.report(5, {})
            assert [each.generation for each in wait_applied(folder, 5, 0.0).missing] == [NOTHING]
            two.report(5, {})
            assert len(wait_applied(folder, 5, 0.0).confirmed) == 2
        assert len(statuses(folder)) == 1


def test_waiting_ends_with_the_last_report(folder: KeyFolder) -> None:
    with contextlib.closing(Running.open(folder)) as one:
        timer = threading.Timer(0.1, one.report, (5, {}))
        timer.start()
        assert wait_applied(folder, 5, PATIENCE).missing == []
        timer.join()


def test_a_killed_global_is_not_waited_for_and_its_file_is_removed(folder: KeyFolder) -> None:
    with child_with_report(folder, 1) as pid:
        assert [each.process for each in wait_applied(folder, 2, 0.0).missing] == [pid]
        timer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
        timer.start()
        assert wait_applied(folder, 2, PATIENCE) == Applied([], [])
        timer.join()
        assert len(reports(folder)) == 1
        with contextlib.closing(Running.open(folder)):
            assert len(reports(folder)) == 1, "that of the killed one is gone"


def test_a_global_that_stands_still_is_waited_for(folder: KeyFolder) -> None:
    with child_with_report(folder, 1) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert [each.process for each in wait_applied(folder, 2, 0.1).missing] == [pid]
        with contextlib.closing(Running.open(folder)):
            assert len(statuses(folder)) == 2


def test_a_forked_child_keeps_no_global_alive(folder: KeyFolder) -> None:
    gate_out, gate = os.pipe()
    said, say = os.pipe()

    def parent() -> None:
        Running.open(folder).report(3, {})

        def child() -> None:
            os.write(say, str(os.getpid()).encode())
            os.close(gate)
            os.read(gate_out, 1)

        started(child)

    assert in_child(parent) == 0
    assert os.read(said, 20)
    until = time.monotonic() + 30
    while statuses(folder):  # until the child, which lives, has got as far as closing its copy
        assert time.monotonic() < until
        time.sleep(0.01)
    for each in (gate_out, gate, said, say):
        os.close(each)


def test_a_forked_child_takes_nothing_from_its_parent(folder: KeyFolder) -> None:
    one = Running.open(folder)

    def child() -> None:
        one.report(9, {})
        one.forked()
        one.close()
        with contextlib.closing(Running.open(folder)) as own:
            own.report(4, {})
            assert sorted(each.generation for each in statuses(folder)) == [3, 4]

    one.report(3, {})
    assert in_child(child) == 0
    assert [each.generation for each in statuses(folder)] == [3]
    one.close()


def test_a_child_that_is_forked_within_a_report_keeps_no_lock(folder: KeyFolder) -> None:
    gate_out, gate = os.pipe()

    def wait() -> None:
        os.close(gate)
        os.read(gate_out, 1)

    def parent() -> None:
        one, rename = Running.open(folder), os.rename
        forking = threading.Thread(target=started, args=(wait,))

        def renaming(old: str, new: str, **how: int) -> None:
            forking.start()
            forking.join(0.3)  # the fork waits for the end of the report
            rename(old, new, **how)

        os.rename = renaming  # type: ignore[assignment]
        one.report(1, {})
        forking.join()

    assert in_child(parent) == 0
    until = time.monotonic() + 30
    while statuses(folder):  # until the child, which lives, has got as far as closing its copy
        assert time.monotonic() < until
        time.sleep(0.01)
    os.close(gate)
    os.close(gate_out)


def test_no_reader_sees_half_of_a_report(folder: KeyFolder) -> None:
    many = {f"client{number}": Seen(1.0, 1) for number in range(500)}
    over = threading.Event()
    with contextlib.closing(Running.open(folder)) as one:
        one.report(0, {})

        def report() -> None:
            number = 0
            while not over.is_set():
                number += 1
                one.report(number, many if number % 2 else {})

        thread = threading.Thread(target=report)
        thread.start()
        try:
            before = 0
            for _ in range(300):
                (found,) = statuses(folder)
                assert found.generation >= before
                assert len(found.clients) == (500 if found.generation % 2 else 0)
                before = found.generation
        finally:
            over.set()
            thread.join()


def test_a_report_can_be_killed_at_any_step(folder: KeyFolder) -> None:
    def run() -> None:
        one = Running.open(folder)
        one.report(1, {"alice": Seen(None, 1)})
        one.report(2, {"alice": Seen(None, 1)})
        one.close()

    steps = 0
    while killed_at(steps, run):
        assert statuses(folder) == []
        Running.open(folder).close()
        assert reports(folder) == []
        steps += 1
    assert steps > 10


def test_reports_and_the_number_of_globals_are_bounded(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "GLOBALS_MAX", 2)
    with contextlib.closing(Running.open(folder)) as one, contextlib.closing(Running.open(folder)):
        with pytest.raises(KeyFolderError, match=r"2 Globals use .* end one"):
            Running.open(folder)
        assert len(statuses(folder)) == 2
        monkeypatch.setattr(running, "REPORT_BYTES_MAX", 100)
        with pytest.raises(ValueError, match="at most 100 bytes"):
            one.report(1, {"x" * 100: Seen(None, 0)})


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"dstore_running": 2}', b"\xff"])
def test_a_global_whose_report_is_not_understood_has_not_confirmed(
    folder: KeyFolder, data: bytes
) -> None:
    with contextlib.closing(Running.open(folder)):
        (name,) = reports(folder)
        (Path(folder.path) / "running" / name).write_bytes(data)
        assert wait_applied(folder, 0, 0.0).missing == [Status(0, NOTHING, {})]


def test_other_files_in_the_folder_are_no_globals(folder: KeyFolder) -> None:
    here = Path(folder.path) / "running"
    (here / "notes").write_text("mine")
    (here / "lost+found").mkdir()
    assert statuses(folder) == []
    Running.open(folder).close()
    assert sorted(reports(folder)) == ["lost+found", "notes"]
    os.mkfifo(here / ("0" * 32))
    with pytest.raises(KeyFolderError, match="not a regular file; remove it"):
        statuses(folder)


def test_a_folder_of_reports_that_is_gone_is_made_again(folder: KeyFolder) -> None:
    (Path(folder.path) / "running").rmdir()
    assert statuses(folder) == []
    Running.open(folder).close()
    (Path(folder.path) / "running").chmod(0o755)
    with pytest.raises(KeyFolderError, match="chmod 700"):
        Running.open(folder)


def test_a_read_only_folder_gives_one_clear_error(
    folder: KeyFolder, read_only: Callable[[Path], None]
) -> None:
    read_only(Path(folder.path))
    with pytest.raises(KeyFolderError, match=r"Read-only file system; mount .* A Global says") as e:
        Running.open(folder)
    assert "\n" not in str(e.value)


def test_a_full_disk_leaves_the_former_report(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "1m") as disk:
        folder = KeyFolder(disk / "keys")
        folder.create()
        with contextlib.closing(Running.open(folder)) as one:
            one.report(1, {})
            fill(disk)
            with pytest.raises(KeyFolderError, match="No space left on device; free some space"):
                one.report(2, {})
            assert [each.generation for each in statuses(folder)] == [1]
            (disk / "ballast").unlink()
            one.report(2, {})
            assert [each.generation for each in statuses(folder)] == [2]


def test_a_global_that_begins_during_a_revocation_is_waited_for(folder: KeyFolder) -> None:
    """It has its file before it reads the folder, so what it has read is either new or awaited."""
    folder.add("bob", Role.READ, [], "tcp://127.0.0.1:1")
    with contextlib.closing(Running.open(folder)) as one:
        ring = KeyFolder(folder.path).load()  # with bob
        generation = folder.revoke("bob")
        one.report(ring.generation, {})
        assert len(wait_applied(folder, generation, 0.0).missing) == 1


def test_no_process_waits_for_a_lock_for_ever(folder: KeyFolder) -> None:
    with files.opened(folder.path) as here, here.locked():
        assert in_child(partial(_cannot_lock, folder)) == 0


def _cannot_lock(folder: KeyFolder) -> None:
    with (
        files.opened(folder.path) as here,
        pytest.raises(KeyFolderError, match="wait until it has ended, or end it"),
        here.locked(wait=0.05),
    ):
        pass

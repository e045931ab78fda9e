"""The life of an epoch's folder: who may create it, and who removes it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.runtime import native
from dstore.runtime.background import janitor
from dstore.shm import clean, folder, locks, open_memory
from dstore.shm.root import log_once
from tests.leaks import open_descriptors
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    Child,
    User,
    begun,
    cleaned,
    files,
    folder_of,
    holds,
    janitor_held_up,
    new_token,
    opened,
    stored,
    value_of,
)


@pytest.fixture(autouse=True)
def _say_again() -> None:
    log_once.cache_clear()


# ---- no shared memory -------------------------------------------------------------------------


def refused(root: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Opening returns None and changes nothing. Returns the message, which is logged once."""
    before = files(root)
    caplog.clear()
    assert open_memory(EPOCH, root=str(root)) is None
    assert open_memory(EPOCH, root=str(root)) is None
    clean(str(root))
    assert files(root) == before
    warnings = {each.getMessage() for each in caplog.records if each.levelno == logging.WARNING}
    opening = [text for text in warnings if text.startswith("no shared memory")]
    assert len(opening) == 1
    assert all(each.name == "dstore.shm" for each in caplog.records)
    return opening[0]


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = folder_of(tmp_path).parent
    theirs.mkdir(0o700)
    if os.geteuid() == 0:
        os.chown(theirs, 12345, 12345)
    else:  # then the process has another user
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        theirs.rename(folder_of(tmp_path).parent)
    assert "belongs to user" in refused(tmp_path, caplog)


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o770, 0o1777])
def test_a_folder_that_is_open_to_others_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    ours = folder_of(tmp_path).parent
    ours.mkdir()
    ours.chmod(mode)
    assert f"open to others (mode {mode:o})" in refused(tmp_path, caplog)


def test_a_symbolic_link_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    aim = tmp_path / "aim"
    aim.mkdir(0o700)
    folder_of(tmp_path).parent.symlink_to(aim)
    assert "is not a folder" in refused(tmp_path, caplog)


def test_a_file_in_its_place_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path).parent.touch()
    assert "is not a folder" in refused(tmp_path, caplog)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.mkdir(0o750)])
def test_an_epoch_folder_of_another_user_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    folder_of(tmp_path).parent.mkdir(0o700)
    make(folder_of(tmp_path))
    refused(tmp_path, caplog)


def test_a_missing_root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "is not a folder" in refused(tmp_path / "missing", caplog)


def test_a_root_without_permission_to_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """/proc is such a folder, even for root."""
    assert open_memory(EPOCH, root="/proc") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize(("variable", "root"), [(None, ""), ("", None)])
def test_an_empty_root_switches_shared_memory_off_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str | None,
    root: str | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    if variable is not None:
        monkeypatch.setenv("DSTORE_SHM", variable)
    assert open_memory(EPOCH, root=root) is None
    clean(root)
    assert not caplog.records


@pytest.mark.parametrize("missing", ["locks", "the root"])
def test_a_system_without_shared_memory_is_no_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("DSTORE_SHM", raising=False)
    monkeypatch.setattr("dstore.shm.root.ROOT_DEFAULT", str(tmp_path / "shm"))
    if missing == "locks":
        monkeypatch.setattr("dstore.shm.root.AVAILABLE", False)
    for _ in range(2):
        assert open_memory(EPOCH) is None
        clean()
    (record,) = caplog.records
    assert record.levelno == logging.INFO


def test_the_root_is_the_argument_else_the_variable_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("argument", "variable", "default"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("dstore.shm.root.ROOT_DEFAULT", str(tmp_path / "default"))
    monkeypatch.delenv("DSTORE_SHM", raising=False)

    def where(root: str | None = None) -> str:
        opened = open_memory(EPOCH, root=root)
        assert opened is not None
        opened.close()
        return Path(opened.path).relative_to(tmp_path).parts[0]

    assert where() == "default"
    monkeypatch.setenv("DSTORE_SHM", str(tmp_path / "variable"))
    assert where() == "variable"
    monkeypatch.chdir(tmp_path)
    assert where("argument") == "argument"


@pytest.mark.parametrize("epoch", [-1, 1 << 64])
def test_an_epoch_has_64_bits(tmp_path: Path, epoch: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        open_memory(epoch, root=str(tmp_path))


# ---- coming and going -------------------------------------------------------------------------


def test_the_last_process_that_leaves_removes_everything(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = stored(memory)
        stored(memory, for_global=True)
        assert other.call("find", token, SIZE) == value_of(token)
        memory.close()
        assert other.call("find", token, SIZE) == value_of(token)
        other.call("close")
        assert files(tmp_path) == []


def test_an_unfinished_value_does_not_keep_the_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        begun(memory, new_token())
        begun(memory, new_token(), for_global=True).write(0, b"x")
    assert files(tmp_path) == []


def test_a_memory_that_is_opened_twice_is_left_twice(tmp_path: Path) -> None:
    before = open_descriptors()
    with opened(tmp_path) as one, opened(tmp_path) as two:
        assert len(open_descriptors() - before) == 3, "the folder, its own, and one lock"
        token = stored(one)
        one.close()
        one.close()
        assert holds(two, token)
        clean(str(tmp_path))
        with User(tmp_path) as other:  # this would clean if the lock were gone
            assert other.call("find", token, SIZE) == value_of(token)
            other.call("close")
        assert holds(two, token)
    assert files(tmp_path) == []


def test_the_same_folder_by_another_path_is_the_same_folder(tmp_path: Path) -> None:
    """Closing the second memory must not drop the lock of the first."""
    (tmp_path / "root").mkdir()
    (tmp_path / "alias").symlink_to("root")
    with opened(tmp_path / "root") as memory:
        token = stored(memory)
        with opened(tmp_path / "alias") as other:
            assert holds(other, token)
        with User(tmp_path / "root") as user:
            user.call("close")
        assert holds(memory, token)


def test_epochs_and_roots_are_kept_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        opened(tmp_path / "a", 1) as one,
        opened(tmp_path / "a", 2) as two,
        opened(tmp_path / "b", 1) as three,
    ):
        token = stored(one)
        assert not two.linked(token) and not three.linked(token)
        for other in (two, three):
            begun(other, token).seal()
            other.drop(token)
        assert holds(one, token)
        two.close()
        assert holds(one, token)
        assert not folder_of(tmp_path / "a", 2).exists()
    assert files(tmp_path) == ["a", "b"]


def test_users_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root can be two users")
    tmp_path.chmod(0o1777)
    for part in tmp_path.parents:
        if part.owner() == "root" and part.name.startswith(("pytest-", "popen-")):
            part.chmod(0o711)

    def somebody_else(pipe: Connection) -> None:
        os.setgid(12345)
        os.setuid(12345)
        with opened(tmp_path) as memory:
            token = pipe.recv()
            before = memory.linked(token)
            with begun(memory, token) as writer:
                writer.write(0, bytes(SIZE))
                writer.seal()
            clean(str(tmp_path))
            pipe.send((before, memory.path))
            pipe.recv()

    with opened(tmp_path) as memory, Child(somebody_else) as child:
        token = stored(memory)
        child.tell(token)
        assert child.hear() == (False, str(tmp_path / "dstore-12345" / f"{EPOCH:016x}"))
        clean(str(tmp_path))
        assert holds(memory, token)
        assert (tmp_path / "dstore-12345").stat().st_uid == 12345
        child.tell()
        child.end()
    assert files(tmp_path) == []


def test_many_come_and_go_at_once(tmp_path: Path) -> None:
    """The folder stays while a process uses it, and nothing is left after the last one."""

    def body(pipe: Connection) -> None:
        pipe.recv()
        for _ in range(60):
            with opened(tmp_path) as memory:
                assert holds(memory, stored(memory))
        pipe.send("done")

    children = [Child(body) for _ in range(4)]
    for child in children:
        child.tell()
    for child in children:
        assert child.hear() == "done"
        child.end()
    assert files(tmp_path) == []


# ---- what killed processes leave behind -------------------------------------------------------


def test_after_all_were_killed_the_next_one_cleans(tmp_path: Path) -> None:
    users = [User(tmp_path), User(tmp_path), User(tmp_path, epoch=77)]
    for user in users:
        user.call("begin", new_token(), SIZE)
    for user in users:
        user.kill()
        user.end()
    assert folder_of(tmp_path).exists() and folder_of(tmp_path, 77).exists()
    with opened(tmp_path, 78):
        janitor.wait()
        assert os.listdir(folder_of(tmp_path).parent) == [f"{78:016x}"]
    assert files(tmp_path) == []


def test_cleaning_leaves_what_is_in_use(tmp_path: Path) -> None:
    with User(tmp_path, 1) as dead, User(tmp_path, 2) as alive, opened(tmp_path, 3) as memory:
        dead.kill()
        mine = stored(memory)
        theirs = new_token()
        assert alive.call("begin", theirs, SIZE)
        alive.call("write", 0, value_of(theirs))
        assert alive.call("seal") == value_of(theirs)
        for _ in range(2):
            clean(str(tmp_path))
            assert not folder_of(tmp_path, 1).exists()
            assert holds(memory, mine), "opening our lock file would have dropped the lock"
            assert alive.call("find", theirs, SIZE) == value_of(theirs)
        alive.call("close")
    assert files(tmp_path) == []


def test_others_cannot_clean_our_folder_while_we_clean(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as memory:
        token = stored(memory)
        clean(str(tmp_path))

        def cleaner(pipe: Connection) -> None:
            clean(str(tmp_path))
            pipe.send("done")

        with Child(cleaner) as child:
            assert child.hear() == "done"
        assert holds(memory, token)


@pytest.mark.parametrize(
    "left", ["nothing", "no lock", "some files", "a stray folder", "all, by another name"]
)
def test_a_folder_that_a_killed_cleaner_left_is_removed(tmp_path: Path, left: str) -> None:
    half = folder_of(tmp_path)
    half.mkdir(0o700, parents=True)
    half.parent.chmod(0o700)
    if left == "some files":
        (half / "lock").touch()
    if left != "nothing":
        (half / "copies").mkdir()
        (half / "copies" / new_token().hex()).touch()
    if left == "a stray folder":
        (half / "else" / "where").mkdir(parents=True)
    if left == "all, by another name":
        half.rename(f"{half}.{'0' * 16}")
    assert cleaned(tmp_path) == []


def test_only_the_last_close_waits_for_the_removal(tmp_path: Path) -> None:
    with User(tmp_path, 77) as dead:
        dead.kill()
    with opened(tmp_path, 78):
        with janitor_held_up():
            with opened(tmp_path) as memory:  # this cleans
                token = stored(memory)
            for epoch in (77, EPOCH):
                assert not folder_of(tmp_path, epoch).exists(), "nobody can enter it"
            assert token.hex() in str(files(tmp_path)), "but it is still there"
            with opened(tmp_path) as memory:  # another folder of the same name
                assert not memory.linked(token)
                assert holds(memory, stored(memory))
        assert os.listdir(folder_of(tmp_path).parent) == [f"{78:016x}"]
    assert files(tmp_path) == []


def test_a_close_without_wait_does_not_wait_for_the_removal(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, janitor_held_up():
        memory.close(wait=False)
        assert files(tmp_path) != []
        assert not folder_of(tmp_path).exists()
    assert files(tmp_path) == []


def test_only_epoch_folders_are_cleaned(tmp_path: Path) -> None:
    user = folder_of(tmp_path).parent
    user.mkdir(0o700)
    aim = tmp_path / "aim"
    aim.mkdir()
    (aim / "precious").touch()
    for name in ("notes", "0" * 15, "0" * 17, "g" * 16, "0" * 16 + ".old"):
        (user / name).mkdir(0o700)
    (user / ("1" * 16)).touch()
    (user / ("2" * 16)).symlink_to(aim)
    (user / ("3" * 16)).mkdir(0o700)
    (user / ("3" * 16) / "link").symlink_to(aim)
    before = files(tmp_path)
    with opened(tmp_path):
        cleaned(tmp_path)
    gone = [f"{user.name}/{'3' * 16}", f"{user.name}/{'3' * 16}/link"]
    assert files(tmp_path) == [name for name in before if name not in gone]


def test_a_process_whose_folder_was_removed_is_alone_and_harmless(tmp_path: Path) -> None:
    """As a system removes the files of a user who logs out."""
    with opened(tmp_path) as memory:
        token, open_token = stored(memory), new_token()
        view = memory.find(token, SIZE)
        with begun(memory, open_token) as writer:
            shutil.rmtree(folder_of(tmp_path).parent)
            assert memory.find(token, SIZE) is None
            writer.write(0, value_of(open_token))
            with User(tmp_path) as other:  # has a folder of the same name
                assert other.call("begin", open_token, SIZE)
                assert bytes(writer.seal()) == value_of(open_token)
                assert other.call("find", open_token, SIZE) is None, "not the other's half"
                assert other.call("begin", open_token, SIZE) is None
                memory.close()
                other.call("write", 0, value_of(open_token))
                assert other.call("seal") == value_of(open_token)
                assert other.call("find", open_token, SIZE) == value_of(open_token)
                other.call("close")
        assert view is not None and bytes(view) == value_of(token)
    assert files(tmp_path) == []


# ---- races, in a fixed order ------------------------------------------------------------------


def paused(pipe: Connection, name: str, *, after: bool, times: int = 1) -> None:
    """Stop this process before or after ``locks.<name>``, until the test lets it go on."""
    whole = getattr(locks, name)
    left = times

    def stop(*arguments: object) -> object:
        nonlocal left
        left -= 1
        result = whole(*arguments) if after else None
        if left >= 0:
            pipe.send("here")
            pipe.recv()
        return result if after else whole(*arguments)

    setattr(locks, name, stop)


def joiner(root: Path, *, after: bool) -> Callable[[Connection], None]:
    """A process that opens the lock file and stops before or after it has the lock."""

    def body(pipe: Connection) -> None:
        paused(pipe, "try_shared", after=after)
        with opened(root) as memory:
            pipe.send(holds(memory, stored(memory)))
            pipe.recv()

    return body


def test_a_process_whose_lock_file_was_removed_starts_over(tmp_path: Path) -> None:
    with Child(joiner(tmp_path, after=False)) as child:
        assert child.hear() == "here"  # it has opened the lock file
        assert cleaned(tmp_path) == []
        child.tell()
        assert child.hear() is True
        with opened(tmp_path) as memory:  # in the same folder, and it stays
            token = stored(memory)
            clean(str(tmp_path))
            assert holds(memory, token)
            child.tell()
            child.end()
            assert holds(memory, token)
    assert files(tmp_path) == []


def test_the_folder_of_a_process_that_has_the_lock_is_not_cleaned(tmp_path: Path) -> None:
    with Child(joiner(tmp_path, after=True)) as child:
        assert child.hear() == "here"  # it has the lock, and nothing else yet
        clean(str(tmp_path))
        assert files(folder_of(tmp_path)) == ["lock"]
        child.tell()
        assert child.hear() is True
        child.tell()
    assert files(tmp_path) == []


def test_a_process_waits_for_a_cleaner_and_then_enters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cleaner(pipe: Connection) -> None:
        paused(pipe, "try_exclusive", after=True)
        clean(str(tmp_path))
        pipe.recv()

    with User(tmp_path) as dead:
        dead.kill()
    with Child(cleaner) as child:
        assert child.hear() == "here"  # it has the lock alone
        naps = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                child.tell()

        monkeypatch.setattr(native, "sleep", nap)
        monkeypatch.setattr(folder, "ENTER_TRIES", 1_000_000)
        with opened(tmp_path) as memory:
            assert holds(memory, stored(memory))
        assert len(naps) >= 3
    assert files(tmp_path) == []


def test_a_cleaner_that_does_not_finish_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cleaner(pipe: Connection) -> None:
        paused(pipe, "try_exclusive", after=True)
        clean(str(tmp_path))

    with User(tmp_path) as dead:
        dead.kill()
    with Child(cleaner) as child:
        assert child.hear() == "here"
        monkeypatch.setattr(folder, "ENTER_PAUSE", 0)
        assert open_memory(EPOCH, root=str(tmp_path)) is None
        assert "does not finish" in caplog.text
        child.tell()
    assert files(tmp_path) == []


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_that_leave_at_the_same_time_one_removes_the_folder(
    tmp_path: Path, first: int
) -> None:
    """Both stop while they hold their shared locks, then after they have given them up."""

    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            stored(memory)
            pipe.send("in")
            pipe.recv()
            paused(pipe, "release", after=False)
            paused(pipe, "try_exclusive", after=False)
        pipe.send("out")

    with Child(body) as one, Child(body) as two:
        children = [one, two]
        for child in children:
            assert child.hear() == "in"
        for step in ("both leave", "both have given up their share"):
            for child in children:
                child.tell(step)
            for child in children:
                assert child.hear() == "here"
        for child in (children[first], children[1 - first]):
            child.tell("try for the lock")
            assert child.hear() == "out"
        assert files(tmp_path) == []


def test_of_two_that_leave_one_after_the_other_the_second_removes_the_folder(
    tmp_path: Path,
) -> None:
    """The first tries for the exclusive lock while the second still holds its shared one."""
    with User(tmp_path) as second:
        with opened(tmp_path):
            pass
        assert folder_of(tmp_path).exists()
        second.call("close")
        assert files(tmp_path) == []

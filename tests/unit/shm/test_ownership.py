"""A Global has one owner on a host, and what an owner leaves is void before the next one begins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from io import FileIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.shm import clean, header, hosts, locks, ownership, writable
from dstore.shm.directory import Directory, Unusable
from dstore.shm.finding import attach, find, find_epoch
from dstore.shm.hosts import Owned
from dstore.shm.ownership import Ownership
from dstore.shm.page import VOID
from tests.leaks import open_descriptors
from tests.unit.shm.children import TIMEOUT, Child, files
from tests.unit.shm.pages import (
    EPOCH,
    IPC,
    TCP,
    TCP6,
    Owner,
    folder,
    identity,
    lease_end,
    owned,
    page_path,
    published,
)
from tests.unit.shm.pages import _root as _root

TABLE = b"the host cache"


def make_table(here: Directory, name: str) -> None:
    with open(os.open(name, os.O_CREAT | os.O_RDWR, 0o600, dir_fd=here.fd), "wb") as file:
        file.write(TABLE)


def suffixes(root: Path) -> list[str]:
    return sorted(path.suffix for path in folder(root).iterdir())


# ---- one owner --------------------------------------------------------------------------------


def test_a_second_owner_in_the_same_process(root: Path) -> None:
    with owned(root, TCP, TCP6):
        with pytest.raises(Owned, match=rf"this process \({os.getpid()}\) has .*{TCP}; stop"):
            Ownership.take(str(root), [TCP])
        refused_elsewhere(root, TCP)  # the attempt has not dropped the lock
        with owned(root, IPC):
            pass
    with owned(root, TCP):
        pass
    assert files(root) == []


def refused_elsewhere(root: Path, *addresses: str) -> None:
    """Another process is refused, and told which process has the name."""

    def body(pipe: Connection) -> None:
        try:
            Ownership.take(str(root), addresses).close()
        except Owned as error:
            pipe.send(str(error))
        else:
            pipe.send("taken")

    with Child(body) as child:
        assert f"process {os.getpid()}, a test has the shared cache of" in child.hear()
        child.end()


def test_an_owner_that_gets_some_names_only_gets_none(root: Path) -> None:
    with Owner(root, TCP6) as other:
        assert other.process.pid is not None
        with pytest.raises(Owned, match=rf"process {other.process.pid}, .*\[::1\]"):
            Ownership.take(str(root), [TCP, TCP6, IPC])
        with owned(root, TCP, IPC):
            pass
        assert find(str(root), TCP6) is not None
        other.tell()
        other.end()
    assert files(root) == []


def test_of_many_processes_one_is_the_owner(root: Path) -> None:
    """They take and close the names as fast as they can, and clean at the same time."""
    marker = root / "marker"

    def body(pipe: Connection) -> None:
        won = 0
        while not pipe.poll():
            clean(str(root))
            try:
                own = Ownership.take(str(root), [TCP, TCP6])
            except Owned:
                continue
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            made = own.publish(identity(), make_table)
            made.lease[0] = lease_end()
            assert find_epoch(str(root), EPOCH) is not None
            marker.unlink()
            own.close()
            won += 1
            pipe.send(won)
        pipe.send("done")

    children = [Child(body) for _ in range(3)]
    for child in children:
        while child.hear() != 20:
            pass
    for child in children:
        child.tell()
    for child in children:
        while child.hear() != "done":
            pass
        child.end()
    assert files(root) == []


def test_a_lock_file_that_its_owner_removes_at_that_moment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a removed file excludes no process that comes later."""
    plain = locks.try_exclusive
    with Owner(root, IPC, TCP) as other:

        def after_the_other(file: FileIO) -> bool:
            monkeypatch.undo()
            other.tell()
            other.end()
            return plain(file)

        monkeypatch.setattr(locks, "try_exclusive", after_the_other)
        with owned(root, TCP):
            refused_elsewhere(root, TCP)


# ---- pages ------------------------------------------------------------------------------------


def test_each_session_has_a_file_of_its_own(root: Path) -> None:
    with owned(root) as own:
        first = own.publish(identity())
        first.lease[0] = lease_end()
        reader = attach(str(root), TCP)
        inode = page_path(root).stat().st_ino
        with pytest.raises(RuntimeError, match="close the page"):
            own.publish(identity(session=2))
        first.close()
        assert find(str(root), TCP) is None
        second = own.publish(identity(session=2))
        second.lease[0] = lease_end()
        second.words[0] = 9
        assert page_path(root).stat().st_ino != inode
        assert (reader.lease[0], reader.words[0], reader.usable()) == (VOID, 0, False)
        assert attach(str(root), TCP).identity.session == 2
        second.close()
        own.publish(identity(session=3))
        assert own.findable()
    assert not own.findable()
    with pytest.raises(Unusable, match="closed"):
        own.publish(identity())
    assert files(root) == []


def test_a_table_comes_and_goes_with_its_page(root: Path) -> None:
    with owned(root) as own:
        for _ in range(2):
            made = own.publish(identity(), make_table)
            found = attach(str(root), TCP)
            assert found.identity.table == made.identity.table != ""
            assert (folder(root) / found.identity.table).read_bytes() == TABLE
            assert suffixes(root) == [".lock", ".lock", ".page", ".page", ".table"]
            made.close()
            assert suffixes(root) == [".lock"]


@pytest.mark.parametrize("error", [OSError(28, "full"), Unusable("too small")])
def test_without_a_table_there_is_a_page(root: Path, error: Exception) -> None:
    def fails(here: Directory, name: str) -> None:
        make_table(here, name)
        raise error

    with published(root, table=fails) as own:
        assert own.identity.table == ""
        assert suffixes(root) == [".lock", ".lock", ".page", ".page"]


def test_what_fails_in_the_middle_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owned(root, TCP, TCP6) as own:
        for step, count in (("link", 1), ("link", 2), ("unlink", 1)):
            calls: list[str] = []
            plain: Callable[..., None] = getattr(os, step)

            def fails(
                name: str, *more: Any, call: Callable[..., None] = plain, **keys: Any
            ) -> None:
                calls.append(name)  # noqa: B023  # it is called in this turn only
                if name.endswith(".new") and len(calls) == count:  # noqa: B023
                    monkeypatch.undo()
                    raise OSError(28, "no space")
                call(name, *more, **keys)

            monkeypatch.setattr(os, step, fails)
            with pytest.raises(Unusable, match="no page can be made"):
                own.publish(identity(), make_table)
            assert suffixes(root) == [".lock", ".lock"], step
        own.publish(identity())
        assert find(str(root), TCP6) is not None
    assert writable._mapped == {}


def test_two_owners_of_one_epoch(root: Path) -> None:
    """Two addresses lead to one Global, and each has an owner. One of them is found by epoch."""
    with published(root, TCP, session=1):
        with published(root, IPC, session=2):
            assert attach(str(root), IPC).identity.session == 2
            by_epoch = find_epoch(str(root), EPOCH)
            assert by_epoch is not None and by_epoch.identity.session == 1
        assert find_epoch(str(root), EPOCH) is not None
    assert files(root) == []


def test_files_that_were_removed(root: Path) -> None:
    with owned(root) as own:
        own.publish(identity())
        assert own.findable()
        page_path(root).unlink()
        assert not own.findable()
    with owned(root) as own:
        made = own.publish(identity())
        made.lease[0] = lease_end()
        reader = attach(str(root), TCP)
        shutil.rmtree(folder(root).parent)
        assert not own.findable()
        made.close()
        assert reader.lease[0] == VOID
        with pytest.raises(Unusable, match="no page can be made"):
            own.publish(identity())
        own.close()
    with owned(root) as own:
        own.publish(identity())
        folder(root).rename(root / "moved")
        assert not own.findable()
        own.close()
    with published(root):
        assert find(str(root), TCP) is not None
    (root / "moved").rmdir()
    assert files(root) == []


# ---- owners that are killed -------------------------------------------------------------------


@pytest.mark.parametrize("same_names", [True, False])
def test_a_new_owner_voids_what_a_killed_one_has_left(root: Path, same_names: bool) -> None:
    with Owner(root, TCP, TCP6, table=make_table, session=1) as old:
        reader = attach(str(root), TCP)
        assert reader.lease[0] > 1
        old.kill()
        old.process.join()
        assert reader.usable(), "until its lease has ended"
        assert suffixes(root) == [".lock"] * 3 + [".page"] * 3 + [".table"]
        with owned(root, TCP, *([TCP6] if same_names else [])) as own:
            assert reader.lease[0] == VOID
            assert not reader.usable()
            assert suffixes(root) == [".lock"] * (1 + same_names)
            own.publish(identity(session=2))
            found = find_epoch(str(root), EPOCH)
            assert found is not None and found.identity.session == 2
    assert files(root) == []


def test_clean_removes_what_killed_owners_have_left(root: Path) -> None:
    with Owner(root, TCP, table=make_table) as old, Owner(root, TCP6, epoch=5) as live:
        reader = attach(str(root), TCP)
        old.kill()
        old.process.join()
        clean(str(root))
        assert reader.lease[0] == VOID
        assert suffixes(root) == [".lock"] * 2 + [".page"] * 2
        found = attach(str(root), TCP6)
        assert found.usable()
        live.kill()
        live.process.join()
        clean(str(root))
        assert found.lease[0] == VOID
    assert files(root) == []


def test_clean_leaves_an_owner_of_this_process_its_locks(root: Path) -> None:
    with published(root, table=make_table) as own:
        own.lease[0] = lease_end()
        before = files(root)
        clean(str(root))
        assert files(root) == before
        refused_elsewhere(root, TCP)

        def body(pipe: Connection) -> None:
            clean(str(root))
            pipe.send(files(root))

        with Child(body) as child:
            assert child.hear() == before
            child.end()
        assert attach(str(root), TCP).usable()


def test_an_owner_killed_before_its_page_was_complete(root: Path) -> None:
    name = hosts.name_of(TCP)
    with owned(root, IPC):
        for left in (f"{name}-{5:016x}.new", f"{name}-{5:016x}.table", f"e{5:016x}.page"):
            (folder(root) / left).write_bytes(b"half")
        clean(str(root))
        assert suffixes(root) == [".lock"]
    assert files(root) == []


@pytest.mark.parametrize("size", [0, 10, header.LEASE_AT + 4, header.WORDS_AT])
def test_what_is_left_may_be_of_any_form(root: Path, size: int) -> None:
    hosts.enter(str(root))
    page_path(root).write_bytes(b"\xff" * size)
    with page_path(root).open("rb") as left, published(root):
        assert left.read()[header.LEASE_AT :][:8] == bytes(8)
        assert find(str(root), TCP) is not None
    assert files(root) == []


def test_other_files_stay(root: Path) -> None:
    with owned(root):
        other = folder(root) / "notes.txt"
        other.touch()
        clean(str(root))
        assert other.exists()
        other.unlink()


# ---- forks ------------------------------------------------------------------------------------


def test_a_child_of_the_owner_does_nothing(root: Path) -> None:
    with owned(root) as own:
        made = own.publish(identity(), make_table)
        made.lease[0] = end = lease_end()
        words, lease = made.words, made.lease

        def body(pipe: Connection) -> None:
            assert made.closed
            assert len(made.words) == len(made.lease) == 0
            made.void()
            made.close()
            assert not own.findable()
            own.close()
            with pytest.raises(Unusable, match="closed"):
                own.publish(identity())
            with pytest.raises(Owned):
                Ownership.take(str(root), [TCP])
            inherited = {path for _, path in open_descriptors() if str(root) in path}
            maps = Path("/proc/self/maps").read_text("utf-8")
            lease[0] = words[3] = 1  # a slip: it finds memory of its own, and no signal
            pipe.send((inherited, str(root) in maps))

        before = files(root)
        with Child(body) as child:
            assert child.hear() == (set(), False)
            child.end()
        assert files(root) == before
        assert (lease[0], words[3]) == (end, 0)
        refused_elsewhere(root, TCP)
        assert own.findable()
    assert files(root) == []


def test_a_child_may_be_an_owner_itself(root: Path) -> None:
    with published(root):

        def body(pipe: Connection) -> None:
            with published(root, IPC, epoch=5) as own:
                own.words[1] = 7
                pipe.send("here")
                pipe.recv()

        with Child(body) as child:
            assert child.hear() == "here"
            assert attach(str(root), IPC).words[1] == 7
            child.tell()
            child.end()
        assert find(str(root), TCP) is not None


HOOK = f"""
import os, sys
page = None
def early():
    page.void()
    page.close()
os.register_at_fork(after_in_child=early)
from dstore.shm.ownership import Ownership
from tests.unit.shm.pages import identity
own = Ownership.take(sys.argv[1], [{TCP!r}])
page = own.publish(identity())
page.lease[0] = 5
words = page.words
pid = os.fork()
if not pid:
    sys.exit()  # with all that Python does at its end
assert os.waitpid(pid, 0)[1] == 0
assert page.lease[0] == 5
own.close()
print(os.listdir(sys.argv[1]))
"""


def test_hooks_that_run_before_ours(root: Path) -> None:
    """A hook that was registered before dstore was imported runs first in the child."""
    done = subprocess.run(
        [sys.executable, "-c", HOOK, str(root)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_child_is_forked_while_a_page_is_being_mapped(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the mapping and its mark another thread forks."""
    forked = threading.Event()
    statuses = []

    def fork() -> None:
        pid = os.fork()
        if not pid:
            maps = Path("/proc/self/maps").read_text("utf-8")
            os._exit(str(root) in maps)
        forked.set()
        statuses.append(os.waitpid(pid, 0)[1])

    thread = threading.Thread(target=fork)
    plain = writable.Mapping.keep_from_children

    def slow(mapping: writable.Mapping) -> None:
        monkeypatch.undo()
        thread.start()
        assert not forked.wait(0.1), "it has to wait"
        plain(mapping)

    monkeypatch.setattr(writable.Mapping, "keep_from_children", slow)
    with published(root):
        thread.join()
    assert statuses == [0]


def test_a_mapping_that_ends_while_another_thread_forks(root: Path) -> None:
    """Something else may be at its address by then, which stays as it is."""
    path = root / "file"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        mapping = writable.Mapping(file.fileno(), 4096)
    assert str(path) in Path("/proc/self/maps").read_text("utf-8")
    mapping.view = memoryview(b"")
    assert str(path) not in Path("/proc/self/maps").read_text("utf-8")
    mapping.let_through()
    mapping.become_empty()
    mapping.keep_from_children()
    path.unlink()


def test_nothing_is_left_open_or_mapped(root: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with owned(root, TCP, TCP6) as own:
            own.publish(identity()).close()
            own.publish(identity())
            assert find(str(root), TCP) is not None
            with pytest.raises(Owned):
                Ownership.take(str(root), [IPC, TCP])
        own.close()
    assert open_descriptors() == before
    assert len(writable._mapped) == len(ownership._owners) == len(hosts._held) == 0
    assert str(root) not in Path("/proc/self/maps").read_text("utf-8")


def test_a_folder_that_others_can_enter(root: Path) -> None:
    hosts.enter(str(root))
    folder(root).chmod(0o755)
    with pytest.raises(Unusable, match="open to others"), owned(root):
        pass
    assert find(str(root), TCP) is None
    clean(str(root))
    folder(root).rmdir()
    folder(root).parent.rmdir()


def test_shared_memory_is_off() -> None:
    with pytest.raises(Unusable, match="switched off"):
        Ownership.take("", [TCP])

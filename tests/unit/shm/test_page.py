"""A page says what its owner has written, and is refused where its words mean something else."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore import compiled
from dstore.protocol.unpacking import packed
from dstore.protocol.wire import VERSION
from dstore.shm import header, namespaces, page, writable
from dstore.shm.directory import Unusable
from dstore.shm.finding import attach, attach_epoch, find, find_epoch
from dstore.shm.namespaces import Surroundings
from dstore.shm.page import OwnedPage
from tests.disks import mounted_disk
from tests.unit.shm.children import TIMEOUT, Child, files
from tests.unit.shm.pages import (
    BUCKETS,
    EPOCH,
    IPC,
    LEASE,
    TCP,
    TCP6,
    identity,
    lease_end,
    owned,
    page_path,
    published,
)
from tests.unit.shm.pages import _root as _root

SIZE = page.size_of(BUCKETS)


def test_a_published_page_is_found_by_all_its_names(root: Path) -> None:
    with published(root, TCP, TCP6) as own:
        own.words[7] = (1 << 64) - 1
        own.lease[0] = end = lease_end()
        for found in (
            find(str(root), TCP),
            find(str(root), TCP6),
            find_epoch(str(root), EPOCH),
        ):
            assert found is not None
            assert found.identity == own.identity == identity()
            assert found.usable()
            assert list(found.words[:8]) == [0] * 7 + [(1 << 64) - 1]
            assert (len(found.words), len(found.lease), found.lease[0]) == (BUCKETS, 1, end)
            own.words[BUCKETS - 1] += 1
            assert found.words[BUCKETS - 1] == own.words[BUCKETS - 1]
            for view in (found.words, found.lease):
                with pytest.raises(TypeError):
                    view[0] = 1
            found.close()
            assert not found.usable()
    assert find(str(root), TCP) is find_epoch(str(root), EPOCH) is None


def test_a_page_is_one_file_reserved_and_private(root: Path) -> None:
    with published(root, TCP, IPC):
        status = page_path(root).stat()
        assert os.path.samestat(status, page_path(root, IPC).stat())
        assert status.st_nlink == 3, "and by epoch"
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (SIZE, 0o600)
        assert status.st_blocks * 512 >= SIZE
        pages = [name for name in files(root) if name.endswith(".page")]
        assert len(pages) == 3


def test_a_page_has_no_lease_at_first_and_none_after_its_end(root: Path) -> None:
    with published(root) as own:
        found = attach(str(root), TCP)
        assert found.lease[0] == page.LAPSED
        assert found.usable()
        own.lease[0] = lease_end()
        assert found.usable()
        own.void()
        assert found.lease[0] == page.VOID
        assert not found.usable()
        own.lease[0] = lease_end()
        assert not found.usable(), "for ever"
        own.void()
        with pytest.raises(Unusable, match="ended its session"):
            attach(str(root), TCP)


def test_a_closed_page_can_be_voided_and_closed_again(root: Path) -> None:
    with published(root) as own:
        own.lease[0] = lease_end()
        found = attach(str(root), TCP)
        own.close()
        assert found.lease[0] == page.VOID
        assert len(own.words) == len(own.lease) == 0
        assert [name for name in files(root) if ".page" in name] == []
        own.void()
        own.close()
    assert writable._mapped == {}


# ---- what a reader refuses --------------------------------------------------------------------

Forge = Callable[[pytest.MonkeyPatch, dict[str, Any]], None]


def forge_header(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Pages that are published from now on have other headers."""
    plain = header.header_for
    monkeypatch.setattr(header, "header_for", lambda *given: plain(*given)._replace(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": VERSION + 1}, "version"),
        ({"user": os.geteuid() + 1}, "user"),
        ({"inode": 1}, "copy"),
        ({"device": 1}, "copy"),
        ({"boot": "other"}, "started"),
        ({"time": "time:[1]"}, "time namespace"),
        ({"hashes": [1, 2, 3, 4]}, "hashes keys"),
        ({"hashes": []}, "hashes keys"),
        ({"hashes": 5}, "damaged"),
        ({"user": "me"}, "damaged"),
    ],
)
def test_another_header_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    forge_header(monkeypatch, **changes)
    with published(root):
        refused(root, reason)


def refused(root: Path, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        attach(str(root), TCP)
    with pytest.raises(Unusable, match=reason):
        attach_epoch(str(root), EPOCH)
    assert find(str(root), TCP) is find_epoch(str(root), EPOCH) is None


@pytest.mark.parametrize("buckets", [0, -1, 3, BUCKETS - 1, 1 << 40])
def test_buckets_are_a_power_of_two(
    root: Path, monkeypatch: pytest.MonkeyPatch, buckets: int
) -> None:
    plain = packed
    monkeypatch.setattr(
        header, "packed", lambda things: plain([*things[:-3], buckets, *things[-2:]])
    )
    with published(root):
        refused(root, "power of two")
    with owned(root) as own, pytest.raises(ValueError, match="power of two"):
        own.publish(identity(buckets=buckets))


@pytest.mark.parametrize("hash_key", [b"", bytes(15), bytes(65)])
def test_a_hash_key_of_another_length(
    root: Path, monkeypatch: pytest.MonkeyPatch, hash_key: bytes
) -> None:
    with owned(root) as own, pytest.raises(ValueError, match="16 bytes"):
        own.publish(identity(hash_key=hash_key))
    plain = packed
    monkeypatch.setattr(
        header, "packed", lambda things: plain([*things[:-4], hash_key, *things[-3:]])
    )
    with published(root):
        refused(root, "hashes keys")


def test_a_copied_page_is_refused(root: Path) -> None:
    with published(root) as own:
        own.lease[0] = lease_end()
        path = page_path(root)
        copy = path.with_suffix(".copy")
        shutil.copyfile(path, copy)
        os.replace(copy, path)
        with pytest.raises(Unusable, match="copy"):
            attach(str(root), TCP)
        assert find_epoch(str(root), EPOCH) is not None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, 0), "cut short"),
        (lambda path: os.truncate(path, header.WORDS_AT - 1), "cut short"),
        (lambda path: os.truncate(path, SIZE - 1), "cut short"),
        (lambda path: os.truncate(path, SIZE + 1), "cut short"),
        (lambda path: with_holes(path), "holes"),
        (lambda path: overwrite(path, 0, b"\0"), "another version"),
        (lambda path: overwrite(path, header.LENGTH_AT, b"\xff" * 8), "another version"),
        (lambda path: overwrite(path, header.LENGTH_AT, bytes([3])), "damaged"),
        (lambda path: overwrite(path, header.HEADER_AT, b"\xc1"), "damaged"),
        (lambda path: overwrite(path, header.HEADER_AT, b"\xc0"), "damaged"),
        (lambda path: overwrite(path, header.LEASE_AT, b"\xff" * 8), "clocks differ"),
        (lambda path: overwrite(path, header.LEASE_AT, bytes(8)), "ended its session"),
        (lambda path: path.chmod(0o666), "cannot be opened"),
    ],
)
def test_a_damaged_page_is_refused(
    root: Path, damage: Callable[[Path], object], reason: str
) -> None:
    with published(root) as own:
        own.lease[0] = lease_end()
        damage(page_path(root))
        refused(root, reason)
        os.truncate(page_path(root), SIZE)  # the owner is to touch it again


def overwrite(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


def with_holes(path: Path) -> None:
    os.truncate(path, header.WORDS_AT)
    os.truncate(path, SIZE)


@pytest.mark.parametrize("owner", ["symbolic link", "folder", "pipe"])
def test_what_is_no_file_is_refused(root: Path, owner: str) -> None:
    with published(root):
        path = page_path(root)
        path.rename(path.with_suffix(".other"))
        if owner == "folder":
            path.mkdir()
        elif owner == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path.with_suffix(".other"))
        with pytest.raises(Unusable):
            attach(str(root), TCP)
        if owner == "folder":
            path.rmdir()
        path.with_suffix(".other").unlink()


def test_a_page_of_another_epoch_under_the_name(root: Path) -> None:
    with published(root):
        by_epoch = page_path(root).with_name(f"e{EPOCH:016x}.page")
        os.link(page_path(root), by_epoch.with_name(f"e{5:016x}.page"))
        with pytest.raises(Unusable, match="another epoch"):
            attach_epoch(str(root), 5)
        by_epoch.with_name(f"e{5:016x}.page").unlink()


def test_a_lease_that_ends_too_late(root: Path) -> None:
    with published(root) as own:
        found = attach(str(root), TCP)
        own.lease[0] = lease_end(LEASE + 60)
        refused(root, "clocks differ")
        assert not found.usable()


def test_no_page_no_root_no_folder(root: Path) -> None:
    for nothing in (str(root), str(root / "missing"), ""):
        assert find(nothing, TCP) is None
        assert find_epoch(nothing, EPOCH) is None
    with pytest.raises(Unusable, match="start Global or dstore host"):
        attach(str(root), TCP)
    with pytest.raises(Unusable, match="switched off"):
        attach("", TCP)
    assert files(root) == []


# ---- namespaces -------------------------------------------------------------------------------

REASONS = f"""
import sys
from dstore.shm.finding import attach, attach_epoch
from dstore.shm.directory import Unusable
for look, what in ((attach, {TCP!r}), (attach, "ipc://@name"), (attach, {IPC!r}),
                   (attach_epoch, {EPOCH})):
    try:
        print(look(sys.argv[1], what).usable())
    except Unusable as reason:
        print(reason)
"""


def reasons(root: Path, *options: str) -> list[str]:
    """What a process in another namespace says about tcp, abstract ipc, ipc, and by epoch."""
    command = ["unshare", *options, sys.executable, "-c", REASONS, str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "unshare" in done.stderr:
        pytest.skip("no namespaces here: that takes root, and a kernel that permits it")
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "works"),
    [
        (["--ipc"], [True, True, True, True]),
        (["--net"], [False, False, True, True]),
        (["--mount"], [True, True, False, True]),
        (["--time", "--boottime", "86400", "--fork"], [False, False, False, False]),
    ],
)
def test_another_namespace(root: Path, options: list[str], works: list[bool]) -> None:
    with published(root, TCP, "ipc://@name", IPC) as own:
        own.lease[0] = lease_end()
        said = reasons(root, *options)
    assert [each == "True" for each in said] == works
    assert all("namespace" in each for each in said if each != "True")


def test_the_surroundings_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = namespaces.surroundings()
    assert own == Surroundings(*map(str, own)) and all(own)
    assert namespaces.file_system(os.stat(os.environ["DSTORE_SHM"]).st_dev) == "tmpfs"
    assert namespaces.file_system(os.stat("/proc").st_dev) == "proc"
    assert namespaces.file_system(os.makedev(4000, 1)) == ""
    monkeypatch.setattr(namespaces, "NAMESPACES", str(tmp_path))
    assert namespaces.time_namespace() == "", "an old kernel has none"
    monkeypatch.setattr(namespaces, "NAMESPACES", str(tmp_path / "missing"))
    with pytest.raises(Unusable, match="mount /proc"):
        namespaces.surroundings()
    monkeypatch.setattr(namespaces, "MOUNTS", str(tmp_path / "missing"))
    assert namespaces.file_system(1) == ""


# ---- where no page can be made ----------------------------------------------------------------


def test_no_page_on_a_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "file_system", lambda device: "ext4")
    with pytest.raises(Unusable, match=r"kind ext4.*takes a tmpfs"), owned(root):
        pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; to mount it needs root."""
    with mounted_disk(tmp_path, "1m") as disk:
        yield disk


def test_on_a_full_file_system_there_is_no_page(disk: Path) -> None:
    with owned(disk) as own:
        with pytest.raises(Unusable, match="shared memory are not to be had"):
            own.publish(identity(buckets=1 << 17))
        assert len(files(disk)) == 3, "two folders and the lock"
        assert find(str(disk), TCP) is None
        (disk / "theirs").write_bytes(bytes(900 << 10))
        with pytest.raises(Unusable, match="shared memory are not to be had"):
            own.publish(identity(buckets=1 << 15))
        (disk / "theirs").unlink()
        found = own.publish(identity(buckets=1 << 14))
        (disk / "theirs").write_bytes(bytes(800 << 10))
        for each in range(1 << 14):  # no page of it is missing
            found.words[each] = 1
        (disk / "theirs").unlink()
    assert files(disk) == []


def test_a_header_that_is_too_long(root: Path) -> None:
    with owned(root) as own:
        with pytest.raises(Unusable, match="shorten the label"):
            own.publish(identity(owner="x" * 5000))
        assert find(str(root), TCP) is None
        own.publish(identity())
        assert find(str(root), TCP) is not None


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le"])
def test_weak_ordering_takes_the_compiled_part(
    root: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    other = os.uname_result(("Linux", "here", "6", "1", machine))
    with published(root):
        monkeypatch.setattr(os, "uname", lambda: other)
        monkeypatch.setattr(compiled, "native", None)
        refused(root, f"on {machine} .* takes the compiled part")
        with pytest.raises(Unusable, match="compiled part"), owned(root, TCP6):
            pass
        monkeypatch.setattr(compiled, "native", page)
        assert find(str(root), TCP) is not None


def test_a_32_bit_python_shares_no_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    with pytest.raises(Unusable, match="32-bit"), owned(root):
        pass


def test_an_owner_needs_ctypes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable, "AVAILABLE", False)
    with pytest.raises(Unusable, match="ctypes"), owned(root):
        pass


# ---- forks, for the reader --------------------------------------------------------------------


def test_a_reader_s_page_stays_usable_in_its_child(root: Path) -> None:
    with published(root) as own:
        own.lease[0] = lease_end()
        own.words[1] = 5
        found = attach(str(root), TCP)

        def body(pipe: Connection) -> None:
            pipe.send((found.usable(), found.words[1]))
            pipe.recv()
            pipe.send((found.usable(), found.words[1], found.lease[0]))
            found.close()

        with Child(body) as child:
            assert child.hear() == (True, 5)
            found.close()
            own.words[1] = 6
            own.void()
            child.tell()
            assert child.hear() == (False, 6, page.VOID)
            child.end()


def test_a_child_of_another_user(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    with published(root) as own:
        own.lease[0] = lease_end()
        found = attach(str(root), TCP)

        def body(pipe: Connection) -> None:
            os.seteuid(65_534)
            first = found.usable()
            os.seteuid(0)
            pipe.send((first, found.usable()))

        with Child(body) as child:
            assert child.hear() == (False, False), "for ever"
            child.end()
        assert found.usable()


@pytest.mark.parametrize("answer", ["time:[1]", None])
def test_a_child_in_another_time_namespace(
    root: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    def other() -> str:
        if answer is None:
            raise FileNotFoundError
        return answer

    with published(root) as own:
        own.lease[0] = lease_end()
        found = attach(str(root), TCP)

        def body(pipe: Connection) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(namespaces, "time_namespace", other)
                first = found.usable()
            pipe.send((first, found.usable()))

        with Child(body) as child:
            assert child.hear() == (False, False), "for ever"
            child.end()
        assert found.usable()


# ---- words ------------------------------------------------------------------------------------

ONES = (1 << 64) - 1


def seen_torn(root: Path, write: Callable[[OwnedPage, int], object], seconds: float) -> bool:
    """Whether a reader sees anything but the two values that the owner writes in turn."""

    def body(pipe: Connection) -> None:
        with published(root) as own:
            write(own, ONES)
            pipe.send("here")
            while not pipe.poll():
                for _ in range(1000):
                    write(own, ONES)
                    write(own, ONES >> 1)

    with Child(body) as child:
        assert child.hear() == "here"
        found = attach(str(root), TCP)
        words, expected = found.words, {ONES, ONES >> 1}
        end = time.monotonic() + seconds
        torn = False
        while not torn and time.monotonic() < end:
            torn = any(words[3] not in expected for _ in range(1000))
        child.tell()
        child.end()
        return torn


def by_view(own: OwnedPage, value: int) -> None:
    own.words[3] = value


def by_struct(own: OwnedPage, value: int) -> None:
    struct.pack_into("Q", own.words.cast("B"), 24, value)


def test_no_word_is_torn(root: Path) -> None:
    assert not seen_torn(root, by_view, seconds=0.5)


def test_struct_would_tear_words(root: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("reader and writer need a processor each")
    assert seen_torn(root, by_struct, seconds=TIMEOUT)

"""Other users cannot redirect shared memory, neither before it is opened nor afterwards."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dstore
from dstore.shm import check_root, directory, open_memory
from dstore.shm.directory import Unsafe
from dstore.shm.root import log_once
from tests.unit.shm.children import (
    EPOCH,
    SIZE,
    begun,
    cleaned,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    stored,
    value_of,
)

SOMEBODY = 12345
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def _say_again() -> None:
    log_once.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder two levels below ``tmp_path``."""
    path = tmp_path / "above" / "root"
    path.mkdir(0o700, parents=True)
    return path


def refused(root: Path, caplog: pytest.LogCaptureFixture) -> str:
    """An unsafe root is an error if it was set, and logs one warning as the default."""
    with pytest.raises(ValueError, match="is not safe") as caught:
        check_root(str(root))
    for _ in range(2):
        assert open_memory(EPOCH, root=str(root)) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "no shared memory" in record.getMessage()
    assert str(caught.value).partition("not safe: ")[2] in record.getMessage()
    assert files(root) == []
    return str(caught.value)


def taken(root: Path) -> None:
    check_root(str(root))
    with opened(root) as here:
        assert holds(here, stored(here))
    assert files(root) == []


# ---- the path to the root ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o722, 0o2777])
@pytest.mark.parametrize("which", ["root", "above"])
def test_a_root_where_others_may_write_is_refused(
    root: Path, caplog: pytest.LogCaptureFixture, mode: int, which: str
) -> None:
    (root if which == "root" else root.parent).chmod(mode)
    said = refused(root, caplog)
    assert f"{root if which == 'root' else root.parent} (mode {mode:o})" in said
    assert "chmod" in said


@pytest.mark.parametrize("mode", [0o1777, 0o1770, 0o755, 0o711, 0o700])
@pytest.mark.parametrize("which", ["root", "above"])
def test_a_root_where_others_cannot_replace_our_folder_is_used(
    root: Path, mode: int, which: str
) -> None:
    (root if which == "root" else root.parent).chmod(mode)
    taken(root)


@only_root
@pytest.mark.parametrize("mode", [0o1777, 0o700])
@pytest.mark.parametrize("which", ["root", "above"])
def test_a_root_of_another_user_is_refused(
    root: Path, caplog: pytest.LogCaptureFixture, mode: int, which: str
) -> None:
    folder = root if which == "root" else root.parent
    folder.chmod(mode)
    os.chown(folder, SOMEBODY, SOMEBODY)
    assert f"{folder} belongs to user {SOMEBODY}" in refused(root, caplog)


def test_links_of_this_user_are_followed(root: Path) -> None:
    (root.parent / "up").symlink_to("../above/./root")
    (root.parent.parent / "absolute").symlink_to(root.parent / "up")
    taken(root.parent.parent / "absolute")


@only_root
def test_links_of_another_user_are_refused(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when another user has planted it in /tmp."""
    link = root.parent / "link"
    link.symlink_to(root)
    os.chown(link, SOMEBODY, SOMEBODY, follow_symlinks=False)
    with pytest.raises(ValueError, match=f"symbolic link of user {SOMEBODY}"):
        check_root(str(link))
    assert open_memory(EPOCH, root=str(link)) is None
    assert f"symbolic link of user {SOMEBODY}" in caplog.text
    assert files(root) == []


def test_a_link_to_an_unsafe_folder_is_refused(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root.chmod(0o777)
    link = root.parent / "link"
    link.symlink_to(root)
    with pytest.raises(ValueError, match="others may write"):
        check_root(str(link))


def test_a_cycle_of_links_is_refused(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        directory.walk(str(root / "a"))
    assert open_memory(EPOCH, root=str(root / "a")) is None


def test_a_folder_that_is_replaced_by_a_link_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.stat

    def swapped(name: str, **how: object) -> os.stat_result:
        status = whole(name, **how)  # type: ignore[arg-type]
        if name == "root":
            monkeypatch.undo()
            root.rename(root.parent / "former")
            root.symlink_to(root.parent / "former")
        return status

    monkeypatch.setattr(os, "stat", swapped)
    with pytest.raises(NotADirectoryError):
        directory.walk(str(root))


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_nodes_and_globals_do_not_start_with_an_unsafe_root(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    root.chmod(0o777)
    shm = str(root) if given == "argument" else None
    if given == "variable":
        monkeypatch.setenv("DSTORE_SHM", str(root))
    name = "shm" if given == "argument" else "[$]DSTORE_SHM"
    with pytest.raises(ValueError, match=f"^{name} is {root}, which is not safe: others may"):
        dstore.Global("tcp://127.0.0.1:0", shm=shm)
    with pytest.raises(ValueError, match=f"^{name} is {root}, which is not safe: others may"):
        dstore.Node("tcp://127.0.0.1:1", shm=shm)


def test_an_unsafe_default_is_a_warning_and_private_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root.chmod(0o777)
    monkeypatch.delenv("DSTORE_SHM")
    monkeypatch.setattr("dstore.shm.root.ROOT_DEFAULT", str(root))
    with dstore.Global("tcp://127.0.0.1:0") as one, dstore.Node(one.address) as node:
        node.set("k", bytes(1 << 20))
        assert node.get("k") == bytes(1 << 20)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "no shared memory" in text] == [said[0]]
    assert len(said) == 2, "and that what others have left there stays"
    assert files(root) == []


# ---- after it is open -------------------------------------------------------------------------


def test_another_folder_in_the_place_of_ours_gets_nothing(root: Path) -> None:
    """A user who has put another folder in place of ours cannot read what we write."""
    with opened(root) as here:
        root.rename(root.parent / "former")
        root.mkdir(0o700)
        assert holds(here, stored(here)) and holds(here, stored(here, for_global=True))
        assert files(root) == []
    assert files(root.parent / "former") == []


@pytest.mark.parametrize("what", ["the user's", "the epoch's"])
def test_a_link_in_the_place_of_ours_gets_nothing(root: Path, what: str) -> None:
    ours = folder_of(root) if what == "the epoch's" else folder_of(root).parent
    aim = root / "aim"
    aim.mkdir(0o700)
    (aim / folder_of(root).name).mkdir(0o700)
    before = files(aim)
    with opened(root) as here:
        token = stored(here)
        ours.rename(root / "former")
        ours.symlink_to(aim)
        assert holds(here, token)
        assert holds(here, stored(here)) and holds(here, stored(here, for_global=True))
        here.drop(token)
        assert files(aim) == before
    cleaned(root)
    assert files(aim) == before
    assert ours.is_symlink()


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def open_to_others(path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    path.chmod(0o666)


def of_somebody_else(path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    os.chown(path, SOMEBODY, SOMEBODY)


KINDS = [link, pipe, folder, open_to_others]
if os.geteuid() == 0:
    KINDS.append(of_somebody_else)


@pytest.mark.parametrize("plant", KINDS)
@pytest.mark.parametrize("where", ["copies", "global"])
def test_a_sealed_name_that_is_not_our_file_is_not_opened(
    tmp_path: Path, plant: Callable[[Path], None], where: str
) -> None:
    with opened(tmp_path) as here:
        token = new_token()
        plant(folder_of(tmp_path) / where / token.hex())
        assert here.find(token, SIZE) is None
        assert not here.adopt(token, SIZE)
        assert here.read(token, SIZE, 0, 10, None) is None


@pytest.mark.parametrize("plant", KINDS)
def test_a_partial_name_that_is_not_our_file_is_not_opened(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    with opened(tmp_path) as here:
        token = new_token()
        path = folder_of(tmp_path) / "copies" / f"{token.hex()}.part"
        plant(path)
        with pytest.raises(dstore.shm.NoRoom):
            here.begin(token, SIZE)
        assert os.path.lexists(path)


@pytest.mark.parametrize("plant", KINDS)
def test_a_lock_that_is_not_our_file_is_not_opened(
    tmp_path: Path, plant: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path).parent.mkdir(0o700)
    folder_of(tmp_path).mkdir(0o700)
    plant(folder_of(tmp_path) / "lock")
    assert open_memory(EPOCH, root=str(tmp_path)) is None
    assert "no shared memory" in caplog.text


# ---- files that are there already -------------------------------------------------------------


def test_a_file_with_another_name_is_neither_evicted_nor_swept(tmp_path: Path) -> None:
    names = ["notes", "notes.part", "a" * 31, "g" * 32, "A" * 32 + ".part", "b" * 32 + ".part.old"]
    with opened(tmp_path, limit=2 * SIZE) as here:
        copies = folder_of(tmp_path) / "copies"
        for name in names:
            (copies / name).write_bytes(b"mine")
            os.utime(copies / name, (1, 1))
        (copies / ("c" * 32)).mkdir()
        for _ in range(4):
            stored(here)
        assert set(names) <= set(files(copies))


def test_an_old_empty_file_of_a_dead_writer_is_swept(tmp_path: Path) -> None:
    """Empty files take no room, but killed processes could leave any number of them."""
    with opened(tmp_path):
        copies = folder_of(tmp_path) / "copies"
        young, old = (copies / f"{new_token().hex()}.part" for _ in range(2))
        young.touch(0o600)
        old.touch(0o600)
        os.utime(old, (time.time() - 100, time.time() - 100))
        with opened(tmp_path):  # this sweeps
            assert files(copies) == [young.name]


def test_an_empty_file_that_is_being_claimed_is_not_swept(tmp_path: Path) -> None:
    with opened(tmp_path) as here:
        token = new_token()
        name = f"copies/{token.hex()}.part"
        with begun(here, token) as writer, opened(tmp_path):
            os.utime(folder_of(tmp_path) / name, (1, 1))
            writer.write(0, value_of(token))
            writer.seal()
        assert holds(here, token)


def test_the_error_of_a_walk_names_the_folder_and_the_reason(root: Path) -> None:
    root.chmod(0o777)
    with pytest.raises(Unsafe, match=f"others may write in {root}"):
        directory.walk(str(root))

"""The data folder: its lock, what is refused, and whether it was moved."""

from __future__ import annotations

import os
import shutil
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.errors import DataError
from dstore.server.data import folder as folders
from dstore.server.data import mounts
from dstore.server.data.folder import DataFolder
from tests.disks import mounted_disk
from tests.unit.server.data_files import run_python
from tests.unit.shm.children import Child

OPEN = """
import sys
from dstore.errors import DataError
from dstore.server.data.folder import DataFolder
try:
    DataFolder(sys.argv[1])
    print("entered")
except DataError as error:
    print(error)
"""

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /mnt rw shared:9 - tmpfs none rw
31 22 0:27 / /mnt/a\040b rw shared:10 master:2 - nfs4 server:/a rw,vers=4.2
32 22 0:28 / /home rw - autofs systemd-1 rw
33 32 0:29 / /home rw - fuse.sshfs me@there: rw
34 22 0:30 / /local rw - fuse.mergerfs a:b rw
a line of another kind
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


def hold(place: Path, pipe: Connection) -> None:
    folder = DataFolder(place)
    pipe.send("locked")
    pipe.recv()
    folder.close()


def test_it_is_created_for_its_owner_alone(place: Path) -> None:
    folder = DataFolder(place)
    assert place.stat().st_mode & 0o777 == 0o700
    assert folder.is_new and not folder.moved
    folder.close()
    folder.close()
    assert repr(folder) == f"<DataFolder {str(place)!r} closed>"


def test_two_processes_do_not_have_it_at_once(place: Path) -> None:
    with Child(lambda pipe: hold(place, pipe)) as child:
        assert child.hear() == "locked"
        with pytest.raises(DataError, match="is in use by another Global, or by a check; end"):
            DataFolder(place)
        child.kill()
        DataFolder(place).close()


def test_a_second_try_in_this_process_is_refused_and_leaves_the_lock(place: Path) -> None:
    folder = DataFolder(place)
    (place.parent / "link").symlink_to(place)
    with pytest.raises(DataError, match="in use by another Global"):
        DataFolder(place.parent / "link")
    assert "in use by another Global" in run_python(OPEN, str(place))
    folder.close()
    assert run_python(OPEN, str(place)) == "entered\n"


def test_a_forked_child_neither_has_it_nor_releases_it(place: Path) -> None:
    folder = DataFolder(place)

    def try_to_enter(pipe: Connection) -> None:
        folder.forked()
        folder.close()
        try:
            DataFolder(place)
        except DataError as error:
            pipe.send(str(error))

    with Child(try_to_enter) as child:
        assert "started, not forked" in child.hear()
    assert "in use by another Global" in run_python(OPEN, str(place))
    folder.close()


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"not a folder; choose|choose the path of a folder"):
        DataFolder(tmp_path / name)


def test_what_belongs_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    DataFolder(tmp_path).close()
    (tmp_path / "lock").rename(tmp_path / "thesis.txt")
    with pytest.raises(DataError, match="is not empty and is no data folder"):
        DataFolder(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_the_folder_above_it_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="create the folder above it first"):
        DataFolder(tmp_path / "missing" / "data")


def test_a_disk_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "1m") as disk:
        DataFolder(disk).close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(DataError, match="choose a folder on a disk that can be written"):
            DataFolder(disk)
        with pytest.raises(DataError, match="choose a folder on a disk that can be written"):
            DataFolder(disk / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    place = tmp_path / "data"
    DataFolder(place).close()

    def enter(pipe: Connection) -> None:
        os.setuid(65534)
        try:
            DataFolder(place)
        except DataError as error:
            pipe.send(str(error))

    with Child(enter) as child:
        assert "cannot be used: Permission denied; run Global as the user" in child.hear()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/data", "ext4"),
        ("/mnt", "tmpfs"),
        ("/mntx", "ext4"),
        ("/mnt/a b/data", "nfs4"),
        ("/home/me", "fuse.sshfs"),
        ("/local/data", "fuse.mergerfs"),
    ],
)
def test_the_file_system_of_a_path_is_found(path: str, kind: str) -> None:
    assert mounts.kind_of(path, MOUNTS) == kind


def test_a_network_file_system_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = place.parent / "mountinfo"
    monkeypatch.setattr(mounts, "MOUNTINFO", str(listed))
    for kind, refused in (("nfs4", True), ("fuse.sshfs", True), ("fuse.mergerfs", False)):
        listed.write_text(f"22 1 254:0 / / rw - {kind} some rw\n")
        if refused:
            with pytest.raises(DataError, match=rf"network file system \({kind}\).*choose"):
                DataFolder(place)
            assert not place.exists()
        else:
            DataFolder(place).close()


def test_here_the_temporary_folder_is_local(tmp_path: Path) -> None:
    assert mounts.kind_of(str(tmp_path), Path(mounts.MOUNTINFO).read_text("utf-8"))
    assert mounts.network_kind(str(tmp_path)) == ""


def recorded(place: Path) -> None:
    folder = DataFolder(place)
    (place / "dstore.db").touch()
    folder.record()
    assert not folder.is_new
    folder.close()


def moved(place: Path) -> bool:
    folder = DataFolder(place)
    folder.close()
    assert not folder.is_new
    return folder.moved


def test_a_copy_has_moved_until_that_is_recorded(place: Path) -> None:
    recorded(place)
    assert not moved(place)
    copy = place.parent / "copy"
    shutil.copytree(place, copy)
    assert moved(copy)
    assert moved(copy)
    assert not moved(place)
    recorded(copy)
    assert not moved(copy)


def test_a_database_that_was_put_back_has_moved(place: Path) -> None:
    recorded(place)
    shutil.copy(place / "dstore.db", place / "backup")
    os.replace(place / "backup", place / "dstore.db")
    assert moved(place)


def test_on_another_machine_it_has_moved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(place)
    machine = place.parent / "machine-id"
    machine.write_text("another machine\n")
    monkeypatch.setattr(folders, "MACHINE_ID", str(machine))
    assert moved(place)


def test_a_damaged_identity_counts_as_moved(place: Path) -> None:
    recorded(place)
    (place / "identity").write_bytes(b"\xff\0")
    assert moved(place)

"""Files that values are written to: never what another user planted in a folder like /tmp.

Giving files to another user takes root; without it these tests are skipped.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import dstore
from dstore import config
from dstore.cli.repl.history import LineHistory
from dstore.cli.values import get_to_file

STRANGER = 65534
NodeMaker = Callable[..., dstore.Node]
Write = Callable[[dstore.Node, str], object]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
both_ways = pytest.mark.parametrize(
    "write",
    [
        lambda node, path: node.get_file("k", path),
        lambda node, path: get_to_file(node, "k", path, None),
    ],
    ids=["get_file", "GETFILE"],
)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp: sticky, and everyone may write to it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def reader(node: NodeMaker) -> dstore.Node:
    node().set("k", b"secret")
    return node()


@as_root
@both_ways
@pytest.mark.parametrize(
    "way", ["out", "folder/out", "mine", "shared/../shared/out", "dangling", "pipe", "file"]
)
def test_what_another_user_planted_is_left_alone(
    reader: dstore.Node, shared: Path, tmp_path: Path, write: Write, way: str
) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, leads_to in (("out", target), ("folder", inside), ("dangling", tmp_path / "new")):
        (shared / name).symlink_to(leads_to)
        os.lchown(shared / name, STRANGER, STRANGER)
    (tmp_path / "mine").symlink_to(shared / "out")  # our link to their file
    os.mkfifo(shared / "pipe")
    (shared / "file").write_bytes(b"theirs")
    for name in ("pipe", "file"):
        os.chown(shared / name, STRANGER, STRANGER)
    before = sorted(path.name for path in shared.iterdir())
    path = tmp_path / way if way.startswith(("mine", "shared")) else shared / way
    with pytest.raises(PermissionError, match=r"another user has put .* choose another place"):
        write(reader, str(path))
    assert target.read_bytes() == b"precious"
    assert list(inside.iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in shared.iterdir()) == before


@as_root
@both_ways
def test_links_of_this_user_and_of_the_folders_owner_are_followed(
    reader: dstore.Node, shared: Path, tmp_path: Path, write: Write
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (shared / "own").symlink_to(tmp_path / "one")
    (shared / "owners").symlink_to(tmp_path / "two")
    (elsewhere / "link").symlink_to("../three")
    os.lchown(elsewhere / "link", STRANGER, STRANGER)
    write(reader, str(shared / "own"))
    os.chown(shared, STRANGER, STRANGER)
    os.lchown(shared / "owners", STRANGER, STRANGER)
    write(reader, str(shared / "owners"))
    write(reader, str(elsewhere / "link"))
    for name in ("one", "two", "three"):
        assert (tmp_path / name).read_bytes() == b"secret"
    assert (shared / "own").is_symlink()


@as_root
@both_ways
@pytest.mark.parametrize(
    ("owner", "before", "after"),
    [(0, 0o4666, 0o666), (0, 0o600, 0o600), (STRANGER, 0o4777, 0o644), (STRANGER, 0o600, 0o600)],
)
def test_a_new_file_takes_no_more_permissions_than_it_should(
    reader: dstore.Node, tmp_path: Path, write: Write, owner: int, before: int, after: int
) -> None:
    file = tmp_path / "file"
    file.touch()
    os.chown(file, owner, owner)
    file.chmod(before)
    mask = os.umask(0o022)
    try:
        write(reader, str(file))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == after


@both_ways
def test_another_name_of_a_file_keeps_the_old_content(
    reader: dstore.Node, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    os.link(tmp_path / "file", tmp_path / "other name")
    write(reader, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"secret"
    assert (tmp_path / "other name").read_bytes() == b"old"


@both_ways
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("loop", OSError),
        ("none/out", FileNotFoundError),
        ("dangling/out", FileNotFoundError),
        ("file/out", NotADirectoryError),
        ("file/../out", NotADirectoryError),
        (".", IsADirectoryError),
        ("folder/..", IsADirectoryError),
        ("link to folder", IsADirectoryError),
    ],
)
def test_paths_where_no_file_can_be_written(
    reader: dstore.Node, tmp_path: Path, write: Write, path: str, error: type[OSError]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to folder").symlink_to("folder")
    with pytest.raises(error) as raised:
        write(reader, f"{tmp_path}/{path}")
    assert raised.value.filename == f"{tmp_path}/{path}"


@both_ways
def test_dots_and_links_to_folders_lead_where_the_system_leads(
    reader: dstore.Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    monkeypatch.chdir(tmp_path)
    write(reader, "link/../one")  # the parent of the link's target, not of the link
    write(reader, "./link//two")
    write(reader, "link/../../three")
    for name in ("deep/one", "deep/er/two", "three"):
        assert (tmp_path / name).read_bytes() == b"secret"


def test_a_descriptor_under_proc_is_written_to(reader: dstore.Node) -> None:
    out, into = os.pipe()
    try:
        assert get_to_file(reader, "k", f"/proc/self/fd/{into}", None) == 6
        assert os.read(out, 100) == b"secret"
    finally:
        os.close(out)
        os.close(into)


def test_a_deleted_file_is_not_written_to(reader: dstore.Node, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        (tmp_path / "file").unlink()
        with pytest.raises(FileNotFoundError):
            get_to_file(reader, "k", f"/proc/self/fd/{file.fileno()}", None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_replaces_a_pipe_gets_nothing(
    reader: dstore.Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    get = reader.get

    def get_late(key: str) -> object:
        pipe.unlink()
        pipe.write_bytes(b"something else")
        return get(key)

    monkeypatch.setattr(reader, "get", get_late)
    with pytest.raises(OSError, match="something else has taken its place"):
        get_to_file(reader, "k", str(pipe), None)
    assert pipe.read_bytes() == b"something else"


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    node: NodeMaker, tmp_path: Path
) -> None:
    file = tmp_path / "sparse"
    file.touch()
    os.truncate(file, config.VALUE_LIMIT_DEFAULT + 1)
    read: list[str] = []
    writer = node()
    for write in (writer.put_file, lambda path, progress: writer.set_file("k", path)):
        with pytest.raises(dstore.ValueTooLarge):
            write(file, progress=lambda what, done, total: read.append(what))
    assert read == []


# ---- the history of the prompt ----------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "dstore" / "history"
    path.parent.mkdir()
    path.write_text("SET secret\n")
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_history_that_others_could_read_is_made_private(history: Path) -> None:
    history.chmod(0o666)
    history.parent.chmod(0o777)
    lines = LineHistory(history)
    assert lines.read() == ["SET secret"]
    assert (mode_of(history), mode_of(history.parent)) == (0o600, 0o700)
    history.chmod(0o644)
    lines.add("GET k")
    assert (mode_of(history), lines.refusal) == (0o600, "")
    assert history.read_text() == "SET secret\nGET k\n"


@as_root
@pytest.mark.parametrize("whose", ["file", "folder", "link", "link to folder", "dangling link"])
def test_a_history_of_another_user_is_not_used(history: Path, tmp_path: Path, whose: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    path = history
    if whose == "file":
        os.chown(history, STRANGER, STRANGER)
    elif whose == "folder":
        os.chown(history.parent, STRANGER, STRANGER)
    elif whose == "link to folder":
        path = tmp_path / "link" / "history"
        path.parent.symlink_to(history.parent)
        os.lchown(path.parent, STRANGER, STRANGER)
    else:
        history.unlink()
        history.symlink_to(precious if whose == "link" else tmp_path / "new")
        os.lchown(history, STRANGER, STRANGER)
    lines = LineHistory(path)
    assert lines.read() == []
    assert "belongs to another user" in lines.refusal
    lines.add("SET more secret")
    assert precious.read_text() == "precious\n"
    assert not (tmp_path / "new").exists()
    assert whose not in ("file", "folder") or history.read_text() == "SET secret\n"


def test_a_history_that_is_a_link_of_this_user_stays_one(history: Path, tmp_path: Path) -> None:
    from dstore.cli.repl.history import HISTORY_LINES_MAX

    link = tmp_path / "state" / "history"
    link.parent.mkdir()
    link.symlink_to(history)
    history.write_text("line\n" * (2 * HISTORY_LINES_MAX + 1))
    assert len(LineHistory(link).read()) == HISTORY_LINES_MAX
    assert link.is_symlink()
    assert history.read_text() == "line\n" * HISTORY_LINES_MAX
    assert [path.name for path in history.parent.iterdir()] == ["history"]


def test_a_pipe_in_place_of_the_history_does_not_block(history: Path) -> None:
    history.unlink()
    os.mkfifo(history)

    def use() -> None:
        lines = LineHistory(history)
        lines.read()
        lines.add("line")

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()

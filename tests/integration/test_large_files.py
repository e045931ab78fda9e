"""Large values that come from files, and go into files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import dstore
from tests.integration.large_values import CHUNK, LARGE, Hosts, content_of, host, running

__all__ = ["host", "running"]


@pytest.mark.parametrize("shm", ["a", ""], ids=["shared", "no memory"])
@pytest.mark.parametrize("size", [0, 10, LARGE, 3 * CHUNK + 1])
def test_a_file_goes_in_and_comes_out(
    running: dstore.Global, host: Hosts, tmp_path: Path, shm: str, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content_of(size))
    target.write_bytes(b"older")
    told: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    with (
        dstore.Node(running.address, shm=shm and host(shm)) as writer,
        dstore.Node(running.address, shm=shm and host("b")) as reader,
    ):
        writer.set_file("k", source, progress=progress)
        uid = writer.put_file(source)
        assert writer.put_file(source) == uid == reader.put(content_of(size))
        assert reader.get("k") == content_of(size)
        for key in ("k", uid):
            fetched = reader.get_file(key, target, progress=progress)
            assert (fetched.codec, fetched.size) == ("bytes", size)
            assert target.read_bytes() == content_of(size)
        with pytest.raises(dstore.KeyOccupied):
            writer.set_file("k", source)
        writer.set_file("k", source, replace=True)
        with pytest.raises(dstore.KeyMissing):
            reader.get_file("missing", tmp_path / "never")
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert all(0 <= done <= total for _, done, total in told)
    if size >= LARGE:
        assert {what for what, _, _ in told} >= {"reading", "sending"}


def test_what_is_wrong_with_a_file_is_said_and_leaves_nothing(
    running: dstore.Global, host: Hosts, tmp_path: Path
) -> None:
    with dstore.Node(running.address, shm=host("a")) as node:
        for wrong in (tmp_path / "missing", tmp_path):
            with pytest.raises(OSError, match=wrong.name):
                node.set_file("k", wrong)
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(TypeError):
            node.put_file(descriptor)  # type: ignore[arg-type]
        os.close(descriptor)  # it was not closed
        node.set("k", content_of(LARGE))
        with pytest.raises(OSError, match="directory"):
            node.get_file("k", tmp_path)
        with pytest.raises(OSError, match="nowhere"):
            node.get_file("k", tmp_path / "nowhere" / "file")
        full = Path("/dev/full")
        if full.exists():
            with pytest.raises(OSError, match=r".*"):
                node.get_file("k", full / "file")
    assert os.listdir(tmp_path) == []


def test_a_file_that_becomes_shorter_on_its_way_is_an_error(
    running: dstore.Global, tmp_path: Path
) -> None:
    path = tmp_path / "file"

    def cut(what: str, done: int, total: int) -> None:
        if what == "sending":
            os.truncate(path, done)

    path.write_bytes(content_of(20 * CHUNK))
    with dstore.Node(running.address, shm="") as node:
        with pytest.raises(ValueError, match="became shorter"):
            node.set_file("k", path, progress=cut)
        assert "k" not in node


@pytest.mark.parametrize("command", ["put_file", "set_file"])
def test_a_file_that_is_changed_while_it_is_stored_is_an_error_that_says_so(
    running: dstore.Global, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "file"

    def change(what: str, done: int, total: int) -> None:
        if (what, done) == ("reading", total):
            path.write_bytes(content_of(2 * CHUNK, 2))

    path.write_bytes(content_of(2 * CHUNK, 1))
    arguments = (path,) if command == "put_file" else ("k", path)
    with dstore.Node(running.address, shm="") as node:
        with pytest.raises(dstore.ValueCorrupt, match="was changed while it was read"):
            getattr(node, command)(*arguments, progress=change)
        assert list(node.keys()) == []


def test_devices_pipes_and_modes_of_files_are_respected(
    running: dstore.Global, host: Hosts, tmp_path: Path
) -> None:
    pipe, private, long = tmp_path / "pipe", tmp_path / "private", tmp_path / ("n" * 255)
    os.mkfifo(pipe)
    private.touch(0o600)
    with dstore.Node(running.address, shm=host("a")) as node:
        node.set("k", content_of(LARGE))
        for odd in (pipe, Path("/dev/null")):
            with pytest.raises(ValueError, match="regular file"):
                node.get_file("k", odd)
            assert not odd.is_file()
        with pytest.raises(ValueError, match="regular file"):
            node.set_file("l", "/dev/zero")
        with pytest.raises(OSError, match="directory"):
            node.get_file("k", f"{tmp_path}/new/")
        for path in (private, long):
            node.get_file("k", path)
            assert path.read_bytes() == content_of(LARGE)
        assert private.stat().st_mode & 0o777 == 0o600
        with pytest.raises(dstore.KeyOccupied):
            node.set_file("k", long)

"""What caches had before a restart of a durable Global is not sent again."""

from __future__ import annotations

from pathlib import Path

import pytest

import dstore
from dstore.config import HOST_VARIABLE
from tests.integration.large_values import Reader, content_of, digest, files_of
from tests.integration.owners import HostProcess, until
from tests.integration.sharing import gets, host_folder, membership, wait_until
from tests.integration.test_durable import Durable

KEYS = 1_000
LEASE = 5.0
"""Seconds: an offer that takes longer is given up, and a busy machine may be slow."""
VALUES = {f"k{number}": f"value {number}" if number % 2 else number for number in range(KEYS)}
LARGE = content_of(1 << 20)
FILES = {f"file {number}": content_of((1 << 18) + number, number) for number in range(20)}


def revalidated(node: dstore.Node) -> int:
    """How many values Global has found unchanged in this life."""
    return int(node.global_stats()["revalidated"])


def chunks(node: dstore.Node) -> int:
    """How many chunks of large values Global has sent in this life."""
    return int(node.global_stats()["chunks_out"])


def epochs(folder: str) -> list[str]:
    """The folders of epochs on a host."""
    return sorted(path.name for path in Path(folder).glob("dstore-*/*") if len(path.name) == 16)


def test_a_node_keeps_its_cache_over_a_restart(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data")
    with (
        served,
        dstore.Node(served.address) as node,
        dstore.Node(served.address) as writer,
    ):
        writer.set_many(VALUES)
        writer.set_many({"changed": 1, "gone": 1, "large": LARGE})
        wanted = [*VALUES, "changed", "gone", "large"]
        assert len(node.get_many(wanted)) == len(wanted)
        fills = node.stats()["fills"]
        served.start_again()
        until(lambda: node.stats()["revalidated"] == KEYS + 3, "all values taken back")
        assert node.stats()["fills"] == fills + KEYS + 3
        before = gets(node)
        assert node.get_many(VALUES) == VALUES
        assert gets(node) == before, "no value has been sent again"
        assert node.get("large") == LARGE
        assert chunks(node) == 0
        writer.set("changed", 2, replace=True)
        assert writer.delete("gone").confirmed >= 1, "a holder again"
        assert node.get("changed") == 2
        assert node.get("gone", None) is None


def test_a_host_keeps_its_cache_over_a_restart(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data")
    with (
        served,
        host_folder() as here,
        dstore.Node(served.address, host="off", shm="") as outside,
        HostProcess(served.address, here),
        dstore.Node(served.address, host="require", shm=here) as node,
    ):
        outside.set_many(VALUES)
        node.join()
        assert node.get_many(VALUES) == VALUES
        first = node.stats()["epoch"]
        served.start_again()
        until(lambda: revalidated(outside) == 2 * KEYS, "those of the writer and of the host")
        until(lambda: membership(node) == "shared" and node.stats()["epoch"] != first, "a new page")
        before = gets(outside)
        assert node.get_many(VALUES) == VALUES
        assert gets(outside) == before, "no value has been sent again"
        assert outside.delete("k0").confirmed >= 1, "the host is a holder again"
        assert node.get("k0", None) is None


# ---- large values -----------------------------------------------------------------------------


@pytest.mark.long
def test_a_node_keeps_the_files_of_large_values_over_a_restart(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data", LEASE)
    with (
        served,
        host_folder() as here,
        dstore.Node(served.address, host="off", shm=here) as node,
        dstore.Node(served.address, host="off", shm="") as writer,
    ):
        writer.set_many(FILES)
        held = node.get_many(FILES)
        names, (first,) = {path.name: path.stat().st_ino for path in files_of(here)}, epochs(here)
        assert len(names) == len(FILES)
        served.start_again(LEASE)
        until(lambda: node.stats()["revalidated"] == len(FILES), "all values taken back")
        before = gets(node)
        assert node.get_many(FILES) == FILES
        assert (gets(node), chunks(node)) == (before, 0), "no value has been sent again"
        assert {path.name: path.stat().st_ino for path in files_of(here)} == names, "no copies"
        until(lambda: len(epochs(here)) == 1, "the former folder is left")
        assert epochs(here) != [first]
        assert held == FILES, "what a program has stays good"
        assert writer.delete("file 0").confirmed >= 1, "a holder again"
        assert node.get("file 0", None) is None
        until(lambda: len(files_of(here)) == len(FILES) - 1, "its file is removed")


def test_large_values_in_private_memory_are_taken_back_too(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data", LEASE)
    with (
        served,
        dstore.Node(served.address, host="off", shm="") as node,
        dstore.Node(served.address, host="off", shm="") as writer,
    ):
        writer.set_many(FILES)
        assert node.get_many(FILES) == FILES
        served.start_again(LEASE)
        until(lambda: node.stats()["revalidated"] == len(FILES), "all values taken back")
        before = gets(node)
        assert node.get_many(FILES) == FILES
        assert (gets(node), chunks(node)) == (before, 0), "no value has been sent again"


def test_the_processes_of_a_host_keep_the_files_of_large_values(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data", LEASE)
    with (
        served,
        host_folder() as here,
        dstore.Node(served.address, host="off", shm="") as outside,
        HostProcess(served.address, here),
        dstore.Node(served.address, host="require", shm=here) as node,
        Reader(served.address, host="require", shm=here) as other,
    ):
        outside.set_many(FILES)
        assert node.get_many(FILES) == FILES
        assert other.call("get", "file 7") == (len(FILES["file 7"]), digest(FILES["file 7"]))
        first = node.stats()["epoch"]
        served.start_again(LEASE)
        until(lambda: membership(node) == "shared" and node.stats()["epoch"] != first, "a new page")
        until(lambda: node.stats()["revalidated"] == len(FILES), "all values taken back")
        until(lambda: other.call("stats")["revalidated"] == 1, "that of the other process")
        before = gets(outside)
        assert node.get_many(FILES) == FILES
        assert other.call("get", "file 7") == (len(FILES["file 7"]), digest(FILES["file 7"]))
        assert gets(outside) == before
        assert other.call("get", "file 8") == (len(FILES["file 8"]), digest(FILES["file 8"]))
        assert chunks(outside) == 0, "it is there for processes that did not have it as well"
        assert outside.delete("file 7").confirmed >= 1, "the host is a holder again"
        assert node.get("file 7", None) is None


@pytest.mark.long
@pytest.mark.parametrize("mode", ["off", "auto"])
def test_on_globals_own_host_the_files_of_its_former_life_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, mode)
    wanted = "shared" if mode == "auto" else "private"
    served = Durable(tmp_path / "data", LEASE)
    with (
        served,
        dstore.Node(served.address) as node,
        dstore.Node(served.address, host="off", shm="") as outside,
    ):
        outside.set_many(FILES)
        wait_until(node, wanted)
        assert node.get_many(FILES) == FILES
        assert chunks(outside) == 0, "they are in Global's own files"
        served.start_again(LEASE)
        until(lambda: node.stats()["revalidated"] == len(FILES), "all values taken back")
        wait_until(node, wanted)
        before = gets(outside)
        assert node.get_many(FILES) == FILES
        assert (gets(outside), chunks(outside)) == (before, 0)
        outside.delete("file 7")
        assert node.get("file 7", None) is None

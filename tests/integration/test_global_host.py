"""Global owns the membership of its own host: when there is a page, and what becomes of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dstore
from dstore.config import HOST_CACHE_MIN, HOST_VARIABLE
from dstore.server import host as server_host
from dstore.shm.share import WrittenPage
from dstore.testing import running_global
from tests.disks import mounted_disk
from tests.integration.owners import (
    HostProcess,
    files,
    is_valid,
    page_of,
    until,
    valid_page,
    word,
)
from tests.integration.processes import GlobalProcess, free_port

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
ANY = "tcp://127.0.0.1:0"


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global shares a membership with the processes of its host."""
    monkeypatch.setenv(HOST_VARIABLE, "auto")


@pytest.fixture
def here() -> Iterator[str]:
    """A folder for the shared memory of one host; nothing may be left there."""
    folder = Path(os.environ["DSTORE_SHM"]) / f"host-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o700)
    yield str(folder)
    assert files(folder) == []
    for place, _, _ in os.walk(folder, topdown=False):
        os.rmdir(place)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global looks often at whether all is well."""
    monkeypatch.setattr(server_host, "CHECK_EVERY", 0.05)
    monkeypatch.setattr(server_host, "RETRY_EVERY", 0.05)


def membership(server: dstore.Global) -> object:
    with dstore.Node(server.address) as node:
        return node.global_stats()["host_membership"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB, which has no room for a page; to mount it needs root."""
    with mounted_disk(tmp_path, "512k") as disk:
        yield disk


# ---- from the beginning to the end --------------------------------------------------------------


def test_a_page_is_there_when_it_is_bound_and_void_and_gone_at_the_end(here: str) -> None:
    server = dstore.Global(ANY, shm=here)
    try:
        server.bind()
        page = page_of(here, server.address)
        assert page is not None
        assert page.identity.lease == 2.0
        server.start()
        page = valid_page(here, server.address)
        assert page.identity.table in files(here)
    finally:
        server.close()
    assert page.lease[0] == 0
    assert page_of(here, server.address) is None


def test_it_is_void_before_the_address_is_free(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = dstore.Global(ANY, shm=here)
    server.start()
    page = valid_page(here, server.address)
    router = server._loop.router  # type: ignore[union-attr]
    lease: list[int] = []
    close = router.close  # type: ignore[union-attr]

    def noted() -> None:
        lease.append(page.lease[0])
        close()

    monkeypatch.setattr(router, "close", noted)
    server.close()
    assert lease == [0]


def test_the_lease_is_renewed(here: str) -> None:
    with running_global(lease=0.3, shm=here) as server:
        page = valid_page(here, server.address)
        end = page.lease[0]
        until(lambda: page.lease[0] > end + 300_000_000, "a renewal")


def test_a_deletion_is_in_the_page_when_it_is_confirmed(here: str) -> None:
    with running_global(shm=here) as server, dstore.Node(server.address, shm="") as node:
        page = valid_page(here, server.address)
        for number in range(1, 50):
            node.set("k", number)
            node.delete("k")
            assert word(page, "k") == number


def test_the_names_of_an_address_for_all_interfaces(here: str) -> None:
    with running_global("tcp://*:0", shm=here, insecure=True) as server:
        port = server.address.rpartition(":")[2]
        page = valid_page(here, f"tcp://localhost:{port}")
        other = valid_page(here, f"tcp://[::1]:{port}")
        assert page.identity == other.identity


def test_an_ipc_address(here: str, tmp_path: Path) -> None:
    with running_global(f"ipc://{tmp_path}/g", shm=here):
        valid_page(here, f"ipc://{tmp_path}/g")


def test_without_a_host_cache_there_is_a_page(here: str) -> None:
    with running_global(shm=here, host_cache=0) as server:
        page = valid_page(here, server.address)
        assert page.identity.table == ""
        assert not [name for name in files(here) if name.endswith(".table")]


def test_the_size_of_the_host_cache(here: str) -> None:
    with running_global(shm=here, host_cache=2 << 20) as server:
        page = valid_page(here, server.address)
        (table,) = Path(here).rglob(page.identity.table)
        assert table.stat().st_size <= 2 << 20
        with dstore.Node(server.address, shm="") as node:
            stats = node.global_stats()
        assert stats["host_cache_limit"] == table.stat().st_size
        assert server.address in stats["host_membership"]


@pytest.mark.parametrize("size", [-1, 1, HOST_CACHE_MIN - 1, 1 << 60])
def test_a_size_that_no_host_cache_has(size: int) -> None:
    with pytest.raises(ValueError, match="host_cache is"):
        dstore.Global(ANY, host_cache=size)


# ---- without a page -----------------------------------------------------------------------------


def test_shared_memory_that_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    with running_global(shm="") as server:
        assert membership(server) == "none"
    assert not caplog.records


def test_a_file_system_without_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_global(shm=str(disk)) as server, dstore.Node(server.address, shm="") as node:
        assert page_of(disk, server.address) is None
        node.set("k", 1)
        node.delete("k")
        assert membership(server) == "none"
    (line,) = [each for each in caplog.records if "do not share" in each.message]
    assert line.levelno == logging.WARNING
    assert files(disk) == []


def test_a_folder_on_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("temporary files are in memory here")
    with running_global(shm=str(tmp_path)) as server:
        assert membership(server) == "none"
    assert [each for each in caplog.records if "tmpfs" in each.message]


@pytest.mark.usefixtures("often")
def test_it_begins_when_another_owner_has_ended(
    here: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with HostProcess(address, here, ready=False) as other:
        until(lambda: any(name.endswith(".lock") for name in files(here)), "the other owner")
        with running_global(address, shm=here, lease=0.5) as server:
            other.wait_ready()
            page = valid_page(here, address)
            assert page.identity.owner.startswith("dstore host")
            assert membership(server) == "none"
            (line,) = [each for each in caplog.records if "do not share" in each.message]
            assert f"process {other.process.pid}" in line.message
            assert other.stop() == (0, "")
            until(lambda: membership(server) != "none", "its own page")
            assert valid_page(here, address).identity.owner.startswith("Global")
            assert page.lease[0] == 0


# ---- another page -------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
def test_a_page_that_another_program_has_removed_is_replaced(here: str) -> None:
    with running_global(shm=here) as server:
        former = valid_page(here, server.address)
        for path in Path(here).rglob("*.page"):
            path.unlink()
        page = valid_page(here, server.address)
        assert page.identity.session != former.identity.session
        assert former.lease[0] == 0


@pytest.mark.usefixtures("often")
def test_a_page_that_cannot_be_written_is_replaced(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(page: WrittenPage, key: str, seq: int) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(server_host, "CHECK_EVERY", 0.05)
        raise OSError("no such page")

    with running_global(shm=here) as server, dstore.Node(server.address, shm="") as node:
        former = valid_page(here, server.address)
        node.set("k", 1)
        monkeypatch.setattr(WrittenPage, "note", note)
        node.delete("k")
        assert former.lease[0] == 0
        page = valid_page(here, server.address)
        assert page.identity.session != former.identity.session
        node.set("k", 2)
        node.delete("k")
        assert word(page, "k") == 2


def test_what_a_killed_global_leaves_is_void_when_the_next_one_answers(here: str) -> None:
    with GlobalProcess(lease=60.0, options=("--shm", here)) as server:
        former = valid_page(here, server.address)
        server.kill()
        assert is_valid(former), "it has a lease of a minute"
        server.start()
        assert former.lease[0] == 0
        page = valid_page(here, server.address)
        assert page.identity.epoch != former.identity.epoch
        assert server.stop() == 0


# ---- forks --------------------------------------------------------------------------------------


def test_a_forked_child_leaves_the_page_to_its_parent(here: str) -> None:
    with running_global(shm=here, lease=0.5) as server:
        page = valid_page(here, server.address)
        child = os.fork()
        if not child:
            code = 1
            try:
                server.close()
                found = page_of(here, server.address)
                code = 0 if found is not None and is_valid(found) and page.lease[0] else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert is_valid(page)
        end = page.lease[0]
        until(lambda: page.lease[0] > end, "a renewal by the parent")
        assert page_of(here, server.address) is not None


def test_a_global_that_a_program_does_not_close_removes_its_page(here: str) -> None:
    program = f"import dstore; dstore.Global({ANY!r}, shm={here!r}).start()"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not [name for name in files(here) if name.endswith((".page", ".table"))]
    with running_global(shm=here):  # removes the rest
        pass

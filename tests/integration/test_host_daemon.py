"""``dstore host`` as a process: the owner of a membership where Global is on another host.

The other host is another folder for shared memory.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import dstore
from dstore.protocol import wire
from dstore.protocol.messages import Get, GetReply
from dstore.runtime import clock
from dstore.shm.hosts import PAGE
from tests.integration.owners import (
    HostProcess,
    files,
    is_valid,
    page_of,
    until,
    valid_page,
    word,
)
from tests.integration.processes import (
    PATIENCE,
    GlobalProcess,
    RawClient,
    free_port,
    other_sessions,
    others_left,
    send_signal,
)
from tests.integration.test_global_host import _shared as _shared
from tests.integration.test_global_host import here as here

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
LEASE = 1.0


@pytest.fixture
def node(free_global: dstore.Global) -> Iterator[dstore.Node]:
    """A Node somewhere else, with a membership of its own."""
    with dstore.Node(free_global.address, shm="") as node:
        yield node


def fetch(address: str, session: int, epoch: int, key: str) -> bool:
    """Ask for a key in the name of a session, as a process of the host does. Is it cacheable?"""
    with RawClient(address) as client:
        reply = client.ask(Get(epoch, session, 1, [key]))
        assert isinstance(reply, GetReply)
        found = reply.items[0]
        return found is not None and found.cacheable


# ---- the beginning and the end ------------------------------------------------------------------


def test_it_has_a_page_until_it_is_stopped(
    free_global: dstore.Global, node: dstore.Node, here: str
) -> None:
    before = other_sessions(node)
    with HostProcess(free_global.address, here) as host:
        page = valid_page(here, free_global.address)
        assert page.identity.owner.startswith("dstore host")
        assert page.identity.table in files(here)
        assert others_left(node, before + 1) == before + 1
        assert host.stop() == (0, "")
        assert page.lease[0] == 0
        assert files(here) == []
    assert others_left(node, before) == before, "it has said goodbye"


def test_ctrl_c_ends_it_as_well(free_global: dstore.Global, here: str) -> None:
    with HostProcess(free_global.address, here) as host:
        page = valid_page(here, free_global.address)
        assert host.stop(signal.SIGINT) == (0, "")
        assert page.lease[0] == 0


def test_the_lease_is_renewed(free_global: dstore.Global, here: str) -> None:
    with HostProcess(free_global.address, here):
        page = valid_page(here, free_global.address)
        end = page.lease[0]
        until(lambda: page.lease[0] > end + int(LEASE * 1e9), "renewals")
        assert page.lease[0] < (clock.now() + LEASE) * 1e9


def test_the_service_manager_hears_when_it_is_ready(
    free_global: dstore.Global, here: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(path)
        with HostProcess(free_global.address, here, NOTIFY_SOCKET=path) as host:
            assert manager.recv(100) == b"READY=1"
            host.stop()
            assert manager.recv(100) == b"STOPPING=1"


def test_global_tells_the_service_manager_too(here: str, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(path)
        command = [sys.executable, "-m", "dstore", "global", "--address", "127.0.0.1:0"]
        env = {**os.environ, "NOTIFY_SOCKET": path}
        with subprocess.Popen(
            [*command, "--shm", here], env=env, stdout=subprocess.DEVNULL
        ) as server:
            assert manager.recv(100) == b"READY=1"
            server.terminate()
            assert manager.recv(100) == b"STOPPING=1"


def test_it_waits_for_a_global_that_is_not_there_yet(here: str) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with HostProcess(address, here, ready=False) as host:
        until(lambda: files(here) != [], "the names")
        assert page_of(here, address) is None
        with GlobalProcess(address, options=("--shm", "")):
            host.wait_ready()
            valid_page(here, address)


def test_it_ends_at_once_without_global(here: str) -> None:
    with HostProcess(f"tcp://127.0.0.1:{free_port()}", here, ready=False) as host:
        until(lambda: files(here) != [], "the names")
        code, _ = host.stop()
        assert code == 0


# ---- who may not own ----------------------------------------------------------------------------


def test_a_second_owner(free_global: dstore.Global, here: str) -> None:
    with HostProcess(free_global.address, here) as host:
        page = valid_page(here, free_global.address)
        code, errors = HostProcess(free_global.address, here, ready=False).end()
        assert code == 2
        assert f"process {host.process.pid}" in errors
        assert errors.count("\n") == 1
        assert is_valid(page)
        assert host.stop() == (0, "")


def test_the_host_of_global_has_an_owner(free_global: dstore.Global) -> None:
    root = os.environ["DSTORE_SHM"]
    page = valid_page(root, free_global.address)
    code, errors = HostProcess(free_global.address, root, ready=False).end()
    assert code == 2
    assert "Global shares the cache of its own host by itself" in errors
    assert is_valid(page)


def test_without_shared_memory(free_global: dstore.Global) -> None:
    code, errors = HostProcess(free_global.address, "", ready=False).end()
    assert code == 2
    assert "no shared memory" in errors
    assert errors.count("\n") == 1


def test_a_folder_that_is_no_tmpfs(free_global: dstore.Global, tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("temporary files are in memory here")
    code, errors = HostProcess(free_global.address, str(tmp_path), ready=False).end()
    assert code == 2
    assert "tmpfs" in errors


def test_a_global_of_another_version(here: str) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with HostProcess(f"tcp://127.0.0.1:{port}", here, ready=False) as host:
            route, hello = router.recv_multipart()
            router.send_multipart([route, hello[:2] + bytes([wire.VERSION + 1]) + hello[3:]])
            code, errors = host.end()
    assert code == 2
    assert f"version {wire.VERSION + 1}" in errors
    assert errors.count("\n") == 1


@pytest.mark.long
def test_a_file_system_without_room(free_global: dstore.Global, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        full = disk / "full"
        with open(full, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (4 << 20) - (64 << 10))
        with HostProcess(free_global.address, str(disk), ready=False) as host:
            assert host.process.stderr is not None
            assert any("no shared cache of Global" in line for line in host.process.stderr)
            assert page_of(disk, free_global.address) is None
            full.unlink()
            host.wait_ready()
            valid_page(disk, free_global.address)
            host.stop()
        assert files(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- invalidations ------------------------------------------------------------------------------


def test_a_deletion_is_in_the_page_when_it_is_confirmed(
    free_global: dstore.Global, node: dstore.Node, here: str
) -> None:
    with HostProcess(free_global.address, here):
        page = valid_page(here, free_global.address)
        identity = page.identity
        for number in range(30):
            node.set("k", number)
            assert fetch(free_global.address, identity.session, identity.epoch, "k")
            before = word(page, "k")
            deletion = node.delete("k")
            assert word(page, "k") > before
            assert deletion.expired == 0


def test_a_stopped_owner_delays_a_deletion_by_its_lease(
    free_global: dstore.Global, node: dstore.Node, here: str
) -> None:
    with HostProcess(free_global.address, here) as host:
        page = valid_page(here, free_global.address)
        identity = page.identity
        node.set("k", 1)
        assert fetch(free_global.address, identity.session, identity.epoch, "k")
        send_signal(host.process.pid, signal.SIGSTOP)
        deletion = node.delete("k")
        assert deletion.expired == 1
        assert not is_valid(page), "no process has answered with it any more"
        before = word(page, "k")
        host.process.send_signal(signal.SIGCONT)
        until(lambda: is_valid(page), "a renewal")
        assert word(page, "k") > before
        assert host.stop() == (0, "")


# ---- other sessions -----------------------------------------------------------------------------


def test_what_a_killed_owner_leaves_is_void_when_the_next_one_begins(here: str) -> None:
    with GlobalProcess(lease=60.0, options=("--shm", "")) as server:
        with HostProcess(server.address, here) as host:
            former = valid_page(here, server.address)
            host.process.kill()
            host.end()
            assert is_valid(former), "it has a lease of a minute"
        with HostProcess(server.address, here):
            assert former.lease[0] == 0
            page = valid_page(here, server.address)
            assert page.identity.session != former.identity.session
            assert sum(name.endswith(".table") for name in files(here)) == 1


@pytest.mark.long
def test_an_owner_that_is_killed_again_and_again(
    free_global: dstore.Global, node: dstore.Node, here: str
) -> None:
    """A reader never has two valid pages, and no deletion is confirmed that it does not see."""
    over, wrong = threading.Event(), []

    def delete() -> None:
        number = 0
        while not over.is_set():
            number += 1
            node.set("k", number)
            page = page_of(here, free_global.address)
            if page is None or not is_valid(page):
                node.delete("k")
                continue
            identity = page.identity
            cached = number if _cacheable(free_global.address, identity, "k") else None
            before = word(page, "k")
            node.delete("k")
            if cached and is_valid(page) and word(page, "k") == before:
                wrong.append(number)

    deleter = threading.Thread(target=delete)
    deleter.start()
    try:
        pages = set()
        for _ in range(5):
            with HostProcess(free_global.address, here) as host:
                pages.add(valid_page(here, free_global.address).identity.session)
                time.sleep(0.3)  # the length of a round; nothing depends on it
                host.process.kill()
                host.end()
    finally:
        over.set()
        deleter.join()
    assert len(pages) == 5
    assert not wrong
    with HostProcess(free_global.address, here) as host:  # removes what the last one has left
        host.stop()


def _cacheable(address: str, identity: object, key: str) -> bool:
    try:
        return fetch(address, identity.session, identity.epoch, key)  # type: ignore[attr-defined]
    except AssertionError:  # the session has ended
        return False


def test_another_epoch_is_another_page(here: str) -> None:
    with GlobalProcess(options=("--shm", "")) as server, HostProcess(server.address, here) as host:
        former = valid_page(here, server.address)
        server.kill()
        server.start()
        until(lambda: former.lease[0] == 0, "the end of the former page")
        page = valid_page(here, server.address)
        assert page.identity.epoch != former.identity.epoch
        assert list(former.words) == [0] * len(former.words), "nothing was written to it"
        assert host.stop() == (0, "")


@pytest.mark.long
def test_a_page_that_another_program_has_removed_is_replaced(
    free_global: dstore.Global, here: str
) -> None:
    with HostProcess(free_global.address, here) as host:
        former = valid_page(here, free_global.address)
        for path in Path(here).rglob(f"*{PAGE}"):
            path.unlink()
        page = valid_page(here, free_global.address)
        assert page.identity.session != former.identity.session
        assert former.lease[0] == 0
        code, errors = host.stop()
        assert code == 0
        assert "was removed" in errors

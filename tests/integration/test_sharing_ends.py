"""What becomes of Nodes that share when the owner of the membership, or its files, come to an end.

No read is stale, none hangs, few are answered without a cache, and they share again when they can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.protocol import wire
from dstore.server import host as server_host
from dstore.shm import header
from dstore.testing import running_global
from tests.disks import mounted_disk
from tests.integration.owners import HostProcess, page_of, until
from tests.integration.processes import (
    PATIENCE,
    GlobalProcess,
    free_port,
    other_sessions,
    others_left,
    send_signal,
)
from tests.integration.sharing import LEASE, host_folder, host_hits, membership, wait_until

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
SMALL = b"x" * 100
MakeNode = Callable[..., dstore.Node]


@pytest.fixture
def here() -> Iterator[str]:
    with host_folder() as folder:
        yield folder


@pytest.fixture
def there() -> Iterator[str]:
    """The shared memory of the host that Global is on."""
    with host_folder() as folder:
        yield folder


@pytest.fixture
def far(there: str) -> Iterator[GlobalProcess]:
    """A Global on another host."""
    with GlobalProcess(lease=LEASE, options=("--shm", there)) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def outside(far: GlobalProcess) -> Iterator[dstore.Node]:
    """A Node that is on none of these hosts."""
    with dstore.Node(far.address, host="off", shm="") as node:
        yield node


@pytest.fixture
def share(far: GlobalProcess, here: str) -> Iterator[MakeNode]:
    """A function that makes Nodes of this host."""
    with ExitStack() as nodes:

        def make(**settings: Any) -> dstore.Node:
            settings = {"shm": here, "host": "auto", **settings}
            return nodes.enter_context(dstore.Node(far.address, **settings))

        yield make


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global looks often at whether all is well."""
    monkeypatch.setattr(server_host, "CHECK_EVERY", 0.05)
    monkeypatch.setattr(server_host, "RETRY_EVERY", 0.05)


def warm(node: dstore.Node) -> None:
    """Have the key "k" in the cache of this Node."""
    assert [node.get("k") for _ in range(3)] == [SMALL] * 3
    assert node.lookup("k").from_local


def reads_right(nodes: list[dstore.Node], outside: dstore.Node) -> None:
    """None of these Nodes reads a value that was deleted, nor waits longer than for a lease."""
    for number in range(3):
        outside.delete("k")
        assert [node.get("k", None) for node in nodes] == [None] * len(nodes)
        outside.set("k", SMALL)
        assert [node.get("k") for node in nodes] == [SMALL] * len(nodes), number


# ---- the owner elsewhere ------------------------------------------------------------------------


def test_nodes_share_the_membership_of_dstore_host(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    with HostProcess(far.address, here):
        nodes = [share(host="require") for _ in range(8)]
        outside.set("k", SMALL)
        before = outside.global_stats()["gets"]
        for node in nodes:
            warm(node)
        assert outside.global_stats()["gets"] == before + 1
        assert outside.delete("k").confirmed == 2
        assert [node.get("k", None) for node in nodes] == [None] * 8
        nodes[0].set("k", 2)
        assert nodes[1].delete("k") == dstore.Deletion(1, 0, 0)
        assert outside.global_stats()["sessions"] == 3, "Global's host, this one, the one outside"


@pytest.mark.long
@pytest.mark.parametrize("ending", ["killed", "stopped", "ended"])
def test_without_their_owner_they_go_on(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str, ending: str
) -> None:
    outside.set("k", SMALL)
    with HostProcess(far.address, here) as owner:
        nodes = [share() for _ in range(3)]
        for node in nodes:
            warm(node)
        if ending == "stopped":
            send_signal(owner.process.pid, signal.SIGSTOP)
        else:
            owner.stop(signal.SIGKILL if ending == "killed" else signal.SIGTERM)
        reads_right(nodes, outside)
        until(lambda: all(membership(each) == "private" for each in nodes), "their own memberships")
        for node in nodes:
            warm(node)
        reads_right(nodes, outside)
        if ending == "stopped":
            owner.process.send_signal(signal.SIGCONT)
            for node in nodes:
                wait_until(node, "shared", "dstore host")
            reads_right(nodes, outside)
    with HostProcess(far.address, here) as again:
        name = f"process {again.process.pid}"
        for node in nodes:
            wait_until(node, "shared", name)
        reads_right(nodes, outside)
        for node in nodes:
            node.close()
    until(lambda: other_sessions(outside) <= 1, "the end of their own memberships")


def test_another_owner_takes_the_place_of_a_killed_one(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    outside.set("k", SMALL)
    nodes = [share() for _ in range(3)]
    joins = 0
    for _ in range(4):
        with HostProcess(far.address, here) as owner:
            for node in nodes:
                wait_until(node, "shared", f"process {owner.process.pid}")
            reads_right(nodes, outside)
            joins = sum(node.stats()["joins"] for node in nodes)
            owner.stop(signal.SIGKILL)
    assert joins <= 3, "only before the first one was there"


def test_a_stop_shorter_than_the_lease_changes_nothing(there: str, here: str) -> None:
    with (
        GlobalProcess(lease=60.0, options=("--shm", there)) as far,
        HostProcess(far.address, here) as owner,
        dstore.Node(far.address, host="require", shm=here) as node,
    ):
        node.set("k", SMALL)
        warm(node)
        session = node.stats()["session"]
        send_signal(owner.process.pid, signal.SIGSTOP)
        assert node.lookup("k").from_local
        owner.process.send_signal(signal.SIGCONT)
        assert node.delete("k").confirmed == 1
        assert node.stats()["session"] == session


def test_an_owner_that_comes_later_is_found(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    node = share()
    outside.set("k", SMALL)
    assert membership(node) == "private"
    assert node.get("k") == SMALL
    with HostProcess(far.address, here):
        wait_until(node, "shared")
        assert others_left(outside, 1) == 1, "that of dstore host; the Node has left"
        outside.delete("k")
        assert node.get("k", None) is None


@pytest.mark.long
def test_the_page_is_removed(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    outside.set("k", SMALL)
    with HostProcess(far.address, here):
        nodes = [share() for _ in range(3)]
        for node in nodes:
            warm(node)
        session = nodes[0].stats()["session"]
        for path in Path(here).rglob("*.page"):
            path.unlink()
        late = share()
        reads_right([*nodes, late], outside)
        until(lambda: membership(nodes[0]) == "shared", "sharing")
        for node in [*nodes, late]:
            wait_until(node, "shared")
        until(
            lambda: bool(membership(nodes[0])) and nodes[0].stats()["session"] != session,
            "another session",
        )
        reads_right([*nodes, late], outside)


# ---- Global is the owner ------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_global_is_started_again(here: str, ending: str) -> None:
    with (
        GlobalProcess(lease=LEASE, options=("--shm", here)) as served,
        ExitStack() as stack,
    ):
        nodes = [
            stack.enter_context(
                dstore.Node(served.address, host="auto", shm=here, timeout=PATIENCE)
            )
            for _ in range(3)
        ]
        for turn in range(3):
            nodes[turn].set("k", SMALL)
            for node in nodes:
                wait_until(node, "shared", f"process {served.process.pid}")
                warm(node)
            served.kill() if ending == "killed" else served.stop()
            served.start()
            assert [node.get("k", None) for node in nodes] == [None] * 3, "it begins empty"
        for node in nodes:
            wait_until(node, "shared", f"process {served.process.pid}")
        assert served.stop() == 0


def test_a_global_that_is_stopped_for_a_while(here: str) -> None:
    with (
        GlobalProcess(lease=LEASE, options=("--shm", here)) as served,
        dstore.Node(served.address, host="require", shm=here, timeout=1.0) as node,
    ):
        node.set("k", SMALL)
        warm(node)
        page = page_of(here, served.address)
        assert page is not None
        served.signal(signal.SIGSTOP)
        until(lambda: page.lease[0] < time.clock_gettime_ns(time.CLOCK_BOOTTIME), "the lapse")
        with pytest.raises(dstore.GlobalUnavailable):
            node.get("k")
        served.signal(signal.SIGCONT)
        wait_until(node, "shared")
        assert node.get("k") == SMALL
        warm(node)


def test_while_global_is_away_the_shared_lease_goes_on(here: str) -> None:
    with (
        GlobalProcess(lease=60.0, options=("--shm", here)) as served,
        dstore.Node(served.address, host="require", shm=here, timeout=0.3) as node,
    ):
        node.set("k", SMALL)
        warm(node)
        served.signal(signal.SIGSTOP)
        assert node.lookup("k").from_local
        with pytest.raises(dstore.GlobalUnavailable, match="in time"):
            node.get("other")
        served.signal(signal.SIGCONT)


@pytest.mark.usefixtures("often")
def test_global_replaces_a_page_that_was_removed(here: str) -> None:
    with (
        running_global(shm=here, lease=LEASE) as server,
        dstore.Node(server.address, host="auto", shm=here) as node,
        dstore.Node(server.address, host="off", shm="") as outside,
    ):
        outside.set("k", SMALL)
        warm(node)
        session = node.stats()["session"]
        for path in Path(here).rglob("*.page"):
            path.unlink()
        reads_right([node], outside)
        until(lambda: membership(node) == "shared" and node.stats()["session"] != session, "more")
        reads_right([node], outside)


@pytest.mark.long
def test_nodes_of_another_version(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is upgraded after the other, they do without the page."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with monkeypatch.context() as other:
        other.setattr(header, "VERSION", wire.VERSION + 1)
        server = dstore.Global(address, shm=here, lease=LEASE)
        server.bind()
    try:
        server.start()
        with (
            dstore.Node(address, host="auto", shm=here) as node,
            dstore.Node(address, host="off", shm="") as outside,
            dstore.Node(address, host="require", shm=here, timeout=0.5) as demanding,
        ):
            outside.set("k", SMALL)
            assert node.get("k") == SMALL
            assert membership(node) == "private"
            reads_right([node], outside)
            with pytest.raises(dstore.GlobalUnavailable, match="version"):
                demanding.get("k")
            monkeypatch.setattr(server_host, "CHECK_EVERY", 0.05)
            for path in Path(here).rglob("*.page"):
                path.unlink()
            for each in (node, demanding):
                wait_until(each, "shared")
            reads_right([node, demanding], outside)
    finally:
        server.close()


# ---- without shared memory ----------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Shared memory without room for a page. To mount it needs root."""
    with mounted_disk(tmp_path, "512k") as disk:
        yield disk


def test_a_full_file_system_until_there_is_room(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_host, "RETRY_EVERY", 0.05)
    with (
        running_global(shm=str(full), lease=LEASE) as server,
        dstore.Node(server.address, host="auto", shm=str(full)) as node,
        dstore.Node(server.address, host="off", shm="") as outside,
        dstore.Node(server.address, host="require", shm=str(full), timeout=0.5) as demanding,
    ):
        outside.set("k", SMALL)
        assert membership(node) == "private"
        warm(node)
        reads_right([node], outside)
        with pytest.raises(dstore.GlobalUnavailable, match="no process of this user shares"):
            demanding.get("k")
        subprocess.run(["mount", "-o", "remount,size=64m", str(full)], check=True)
        for each in (node, demanding):
            wait_until(each, "shared")
        reads_right([node, demanding], outside)


def test_a_host_cache_that_is_full_with_others_values(here: str) -> None:
    with (
        running_global(shm=here, host_cache=1 << 20, lease=60.0) as server,
        dstore.Node(server.address, host="require", shm=here) as one,
        dstore.Node(server.address, host="require", shm=here) as two,
    ):
        names = [f"k{number}" for number in range(2000)]
        one.set_many({name: name * 100 for name in names})
        for node in (one, two):
            assert all(node.get(name) == name * 100 for name in names)
            assert node.get_many(names) == {name: name * 100 for name in names}
        assert host_hits(two)


@pytest.mark.long
@pytest.mark.parametrize("folder", ["switched off", "of another host"])
def test_without_a_page_that_is_found(
    far: GlobalProcess, outside: dstore.Node, here: str, folder: str
) -> None:
    shm = "" if folder == "switched off" else here
    outside.set("k", SMALL)
    with dstore.Node(far.address, host="auto", shm=shm) as node:
        assert node.get("k") == SMALL
        assert node.stats()["membership"] == "private"
    began = time.monotonic()
    with dstore.Node(far.address, host="require", shm=shm, timeout=0.3) as node:
        said = "shared memory is switched off" if not shm else "start Global or dstore host"
        for call in (
            lambda: node.get("k"),
            lambda: node.set("l", 1),
            lambda: node.delete("k"),
            lambda: node.get_many(["k", "l"]),
            node.join,
        ):
            with pytest.raises(dstore.GlobalUnavailable, match=f"host='require' .*{said}"):
                call()
    assert time.monotonic() - began < PATIENCE
    assert outside.get("k") == SMALL


@pytest.mark.long
def test_required_sharing_ends_and_begins_again(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    outside.set("k", SMALL)
    node = share(host="require")
    with HostProcess(far.address, here) as owner:
        warm(node)
        owner.stop()
        node.timeout = 0.3
        for _ in range(2):
            with pytest.raises(dstore.GlobalUnavailable, match="host='require' "):
                node.get("k")
        node.timeout = PATIENCE
    with HostProcess(far.address, here):
        wait_until(node, "shared")
        warm(node)


@pytest.mark.long
def test_many_owners_come_and_go_under_load(
    far: GlobalProcess, share: MakeNode, outside: dstore.Node, here: str
) -> None:
    """No wrong value, whatever the owner is doing when it is killed."""
    nodes = [share() for _ in range(4)]
    value = 0
    for number in range(6):
        with HostProcess(far.address, here) as owner:
            end = time.monotonic() + 0.4 + 0.1 * number
            while time.monotonic() < end:
                value += 1
                outside.set("k", value, replace=True)
                assert [node.get("k") for node in nodes] == [value] * 4
            os.kill(owner.process.pid, signal.SIGKILL)
        for _ in range(20):
            value += 1
            nodes[value % 4].set("k", value, replace=True)
            assert [node.get("k") for node in nodes] == [value] * 4

"""Reads from the host cache, by every way of reading: each answers without a request to Global."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

import dstore
from dstore.client.host_page import HostPage
from dstore.client.node import NOTHING
from dstore.config import HOST_BUCKETS
from dstore.core.local.membership import Membership
from dstore.testing import running_global

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
VALUES: dict[str | bytes, Any] = {"k": b"bytes", "ä": "text", b"\xff": {"a": [1, 2]}, "n": None}


@pytest.fixture
def address(host_mode: str) -> Iterator[str]:
    """A Global whose host cache has the values."""
    folder = Path(os.environ["DSTORE_SHM"]) / f"hits-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o700)
    with (
        running_global("tcp://127.0.0.1:0", shm=str(folder)) as server,
        dstore.Node(server.address, host="require", shm=str(folder)) as writer,
    ):
        writer.set_many(VALUES)
        yield server.address
    for place, _, _ in os.walk(folder, topdown=False):
        os.rmdir(place)


def folder_of(address: str) -> str:
    (folder,) = Path(os.environ["DSTORE_SHM"]).glob("hits-*")
    return str(folder)


@pytest.fixture
def node(address: str) -> Iterator[dstore.Node]:
    with dstore.Node(address, host="require", shm=folder_of(address)) as made:
        yield made
        assert made._local is not None
        assert not made._local._thread.started, "nothing was asked of Global"


def test_each_key_and_value_is_read_from_the_host_cache(node: dstore.Node) -> None:
    for _ in range(3):  # from the second time on they are kept by the process
        for key, value in VALUES.items():
            assert node.get(key) == value


def test_a_key_has_one_text(node: dstore.Node) -> None:
    other = "\udcc3\udca4"  # the bytes of ä, one by one
    for _ in range(3):
        assert node.get(other) == "text"
    assert set(node._local.state.entries) == {"ä"}  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["", "k" * 600, b"", "\ud800"])
def test_what_is_no_key_is_refused(key: Any, node: dstore.Node) -> None:
    with pytest.raises(dstore.InvalidKey):
        node.get(key)


def test_many_keys_are_read_from_the_host_cache(address: str) -> None:
    with dstore.Node(address, host="require", shm=folder_of(address)) as node:
        gets = node.global_stats()["gets"]
        assert node.get_many(VALUES) == VALUES
        assert node.lookup("ä").value == "text"
        with pytest.raises(dstore.KeyOccupied) as caught:
            node.set("k", b"other")
        assert caught.value.local
        assert node.global_stats()["gets"] == gets


def test_the_deletion_of_many_keys_that_were_read_here_is_reported(address: str) -> None:
    reported: Queue[str | bytes] = Queue()
    shm = folder_of(address)
    with (
        dstore.Node(address, host="require", shm=shm, on_deletion=reported.put) as node,
        dstore.Node(address, host="require", shm=shm) as other,
    ):
        assert node._local is not None
        while not node._local.state.joined.session:
            node._local.host.link.control.wake()
        assert node.get_many(["k", "ä"]) == {"k": b"bytes", "ä": "text"}
        other.delete_many(["k", "ä"])
        assert {reported.get(timeout=10), reported.get(timeout=10)} == {"k", "ä"}


def test_a_read_in_the_middle_of_a_switch_does_not_use_the_host_cache(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has changed the membership, and not yet the page."""
    with dstore.Node(address, host="require", shm=folder_of(address)) as node:
        assert node._local is not None
        state = node._local.state
        other = Membership({}, memoryview(bytearray(8 * HOST_BUCKETS)).cast("Q"))
        other.lease_end = 1e18
        with monkeypatch.context() as switching:
            switching.setattr(state, "membership", other)
            assert node._find_on_host(node._local, "k") is NOTHING
        assert node._find_on_host(node._local, "k") == b"bytes"


@pytest.mark.parametrize("used", [False, True], ids=["hits only", "with a thread"])
def test_a_closed_node_gives_the_host_cache_back(used: bool, address: str) -> None:
    node = dstore.Node(address, host="require", shm=folder_of(address))
    assert node.get("k") == b"bytes"
    if used:
        assert node.get("missing", None) is None
    assert node._local is not None
    page = node._local.state.page
    assert isinstance(page, HostPage) and page.table is not None
    node.close()
    assert page.table is None
    with pytest.raises(dstore.NodeClosed):
        node.get("k")


def test_tasks_read_from_the_host_cache(address: str) -> None:
    async def read() -> None:
        async with dstore.AsyncNode(address, host="require", shm=folder_of(address)) as node:
            gets = (await node.global_stats())["gets"]
            for key, value in VALUES.items():
                assert await node.get(key) == value
            assert await node.get_many(VALUES) == VALUES
            assert (await node.global_stats())["gets"] == gets

    asyncio.run(read())

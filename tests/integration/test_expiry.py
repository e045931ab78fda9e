"""Keys with a time to live, seen by Nodes of several threads and processes."""

from __future__ import annotations

import asyncio
import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dstore
from dstore.config import LARGE_FROM_DEFAULT, TTL_MAX
from tests.integration.processes import PATIENCE, GlobalProcess, Worker
from tests.integration.sharing import host_hits, wait_until

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]
SOON = 0.3
LONG = 1000.0
NOTHING = "nothing"


def gone(node: dstore.Node, key: str) -> bool:
    """Return once a key is missing."""
    end = time.monotonic() + PATIENCE
    while node.get(key, None) is not None:
        assert time.monotonic() < end, f"{key} has not expired"
    return True


def test_a_key_expires_for_all_nodes_and_not_before(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", "v", ttl=LONG)
    one.set("l", "v", ttl=LONG)
    assert two.get("k") == "v"
    begun = time.monotonic()
    one.set("m", "v", ttl=SOON)
    assert gone(two, "m")
    assert time.monotonic() - begun >= SOON
    begun = time.monotonic()
    one.expire("k", SOON)
    assert gone(two, "k")
    assert time.monotonic() - begun >= SOON
    assert one.get("l") == "v"
    assert one.get("k", NOTHING) == NOTHING
    with pytest.raises(dstore.KeyMissing):
        two.get("k")
    one.set("k", "w")
    assert two.get("k") == "w"
    assert two.ttl("k") is None


def test_watches_and_on_deletion_report_an_expiry(node: MakeNode) -> None:
    deleted: queue.Queue[str | bytes] = queue.Queue()
    one, two = node(), node(on_deletion=deleted.put)
    with one.watch("k") as watch:
        event = watch.take(PATIENCE)
        assert event is not None
        assert event.key is None
        two.set("k", "v")
        assert two.get("k") == "v"
        one.expire("k", SOON)
        event = watch.take(PATIENCE)
        assert event is not None
        assert event.key == "k"
        assert one.get("k", NOTHING) == NOTHING
    assert deleted.get(timeout=PATIENCE) == "k"


def test_processes_see_it_too() -> None:
    with GlobalProcess() as server, Worker(server.address) as one, Worker(server.address) as two:
        one.call("set", "k", "v", ttl=LONG)
        assert two.call("get", "k") == "v"
        begun = time.monotonic()
        one.call("expire", "k", SOON)
        while two.call("get", "k", NOTHING) == "v":
            assert time.monotonic() < begun + PATIENCE
        assert time.monotonic() - begun >= SOON
        assert one.call("get", "k", NOTHING) == NOTHING


@pytest.mark.shared
def test_the_cache_that_a_host_shares_does_not_answer_after_it() -> None:
    with (
        GlobalProcess() as server,
        Worker(server.address) as other,
        dstore.Node(server.address) as one,
    ):
        wait_until(one, "shared")
        other.call("set", "k", "v", ttl=LONG)
        assert other.call("get", "k") == "v"
        assert [one.get("k") for _ in range(3)] == ["v"] * 3
        assert host_hits(one) > 0
        other.call("expire", "k", SOON)
        assert gone(one, "k")
        assert other.call("get", "k", NOTHING) == NOTHING


@pytest.mark.private
def test_an_expiry_waits_for_a_process_that_stands_still_and_no_longer_than_its_lease() -> None:
    with (
        GlobalProcess(lease=1.0) as server,
        Worker(server.address) as holder,
        dstore.Node(server.address) as one,
    ):
        one.set("k", "v", ttl=LONG)
        assert holder.call("get", "k") == "v"
        holder.signal(signal.SIGSTOP)
        one.expire("k", SOON)
        assert gone(one, "k")
        assert one.global_stats()["expired"] == 1
        holder.signal(signal.SIGCONT)
        assert holder.call("get", "k", NOTHING) == NOTHING


@pytest.mark.private
def test_deadlines_survive_a_crash_and_are_kept_after_it(tmp_path: Path) -> None:
    large = bytes(300_000)
    with GlobalProcess(options=["--data", str(tmp_path / "data")]) as server:
        with dstore.Node(server.address) as one:
            one.set_many({"set": 1, "persisted": 1, "soon": 1, "later": 1}, ttl=LONG)
            one.set("large", large, ttl=LONG)
            one.persist("persisted")
            one.set("later", 2, replace=True, ttl=3 * LONG)
            one.expire("soon", SOON)
            one.expire("large", SOON)
        server.kill()
        server.start()
        with dstore.Node(server.address, timeout=PATIENCE) as one:
            assert one.ttl("persisted") is None
            left, later = one.ttl("set"), one.ttl("later")
            assert left is not None
            assert 0 < left <= LONG
            assert later is not None
            assert LONG < later <= 3 * LONG
            assert gone(one, "soon")
            assert gone(one, "large")
            one.expire("set", SOON)
            assert gone(one, "set")
        server.kill()
        server.start()
        with dstore.Node(server.address, timeout=PATIENCE) as one:
            assert list(one.keys()) == ["later", "persisted"]


def test_expire_persist_and_ttl(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", 1)
    assert two.get("k") == 1
    assert one.ttl("k") is None
    one.expire("k", LONG)
    left = two.ttl("k")
    assert left is not None
    assert 0 < left <= LONG
    two.persist("k")
    assert one.ttl("k") is None
    one.expire(b"k", SOON)
    assert gone(two, "k")
    with pytest.raises(dstore.KeyMissing):
        one.expire("k", 1)
    with pytest.raises(dstore.KeyMissing):
        one.persist("k")
    with pytest.raises(dstore.KeyMissing):
        one.ttl("k")


def test_a_set_of_many_and_a_replacement(node: MakeNode) -> None:
    one, two = node(), node()
    assert one.set_many({"k": 1, "l": 2, "m": 3}, ttl=LONG) == []
    assert two.set_many({"k": 4, "n": 5}) == ["k"]
    two.set("k", 6, replace=True)
    two.set("l", 7, replace=True, ttl=SOON)
    assert [one.ttl(key) is None for key in ("k", "l", "m", "n")] == [True, False, False, True]
    assert gone(one, "l")
    assert (one.get("k"), one.get("m")) == (6, 3)


@pytest.mark.parametrize("size", [10, LARGE_FROM_DEFAULT, 300_000])
def test_a_put_lives_until_the_latest_deadline(node: MakeNode, size: int) -> None:
    one, two = node(), node()
    value = bytes(size)
    key = one.put(value, ttl=LONG)
    chunks = one.global_stats()["chunks_in"]
    assert two.get(key) == value
    assert two.put(value, ttl=3 * LONG) == key
    left = one.ttl(key)
    assert left is not None
    assert left > LONG
    assert two.put(value, ttl=SOON) == key
    left = one.ttl(key)
    assert left is not None
    assert left > LONG
    assert two.put(value) == key
    assert one.ttl(key) is None
    assert one.global_stats()["chunks_in"] == chunks, "its bytes have not been sent again"
    one.expire(key, SOON)
    assert gone(two, key)
    assert two.put(value) == key
    assert one.get(key) == value


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_files_expire_too(node: MakeNode, tmp_path: Path, size: int) -> None:
    one, two = node(), node()
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    one.set_file("k", path, ttl=LONG)
    assert two.ttl("k") is not None
    key = one.put_file(path, ttl=LONG)
    assert two.ttl(key) is not None
    assert two.put_file(path) == key
    assert one.ttl(key) is None
    two.set_file("k", path, replace=True, ttl=SOON)
    assert gone(one, "k")


@pytest.mark.parametrize("wrong", [0, -1, TTL_MAX * 1.001, float("nan"), float("inf")])
def test_a_time_to_live_has_its_range(node: MakeNode, tmp_path: Path, wrong: float) -> None:
    one = node()
    message = "is more than 0 and at most 3,153,600,000 seconds, not"
    path = tmp_path / "file"
    for call in (
        lambda: one.set("k", 1, ttl=wrong),
        lambda: one.set_many({"k": 1}, ttl=wrong),
        lambda: one.put(1, ttl=wrong),
        lambda: one.set_file("k", path, ttl=wrong),
        lambda: one.put_file(path, ttl=wrong),
    ):
        with pytest.raises(ValueError, match=f"^ttl {message}"):
            call()
    with pytest.raises(ValueError, match=f"^seconds {message}"):
        one.expire("k", wrong)


def test_a_time_to_live_is_a_number(node: MakeNode) -> None:
    one = node()
    for wrong in ("1", True, b"1", [1]):
        with pytest.raises(TypeError, match=r"^ttl is a number of seconds, not"):
            one.set("k", 1, ttl=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^seconds is a number of seconds, not None"):
        one.expire("k", None)  # type: ignore[arg-type]
    one.set("k", 1, ttl=TTL_MAX)
    one.set("l", 1, ttl=1)
    assert one.ttl("k") is not None


def test_a_deadline_needs_room() -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", memory_limit=2_000) as server,
        dstore.Node(server.address) as one,
    ):
        one.set("k", 1)
        one.set("l", bytes(1_000))
        with pytest.raises(dstore.StoreFull, match="no room for the deadline of 'k'"):
            one.expire("k", LONG)
        one.persist("k")
        with pytest.raises(dstore.StoreFull):
            one.set("m", 1, ttl=LONG)
        one.delete("l")
        one.expire("k", LONG)


def test_an_async_node(anode: Callable[..., dstore.AsyncNode]) -> None:
    async def play() -> None:
        one = anode()
        await one.set("k", 1, ttl=LONG)
        left = await one.ttl("k")
        assert left is not None
        await one.persist("k")
        assert await one.ttl("k") is None
        async with one.watch() as watch:
            assert (await anext(watch)).key is None
            await one.expire("k", SOON)
            assert (await anext(watch)).key == "k"
        assert await one.get("k", NOTHING) == NOTHING
        key = await one.put(b"v", ttl=LONG)
        assert await one.ttl(key) is not None

    asyncio.run(asyncio.wait_for(play(), PATIENCE))

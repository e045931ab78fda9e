"""AsyncNodes and greenlets of several Globals."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest

import dstore
from dstore.protocol.partitions import partition_of
from tests.integration.async_calls import listed, until
from tests.integration.members import Cluster, cluster_of, key_in
from tests.integration.processes import ROOT

KEYS = [f"key-{n:03}" for n in range(60)]
GREEN = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, sys, dstore
keys = [f"key-{n:03}" for n in range(60)]
with dstore.Node(sys.argv[1]) as node:
    waiting = [gevent.spawn(node.wait, key) for key in keys]
    gevent.sleep(0)
    assert node.set_many({key: key for key in keys}) == []
    assert [each.get() for each in waiting] == keys
    assert node.get_many(keys) == {key: key for key in keys}
    assert list(node.keys()) == keys
    assert len(node.delete_many(keys)) == len(keys)
    assert node.get(keys[0], None) is None
print("fine")
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of(3) as made:
        yield made


@pytest.mark.parametrize("count", [3, 1])
def test_an_async_node(cluster: Cluster, count: int) -> None:
    one, two, _ = cluster.members
    moving = key_in(one.owned())

    async def main() -> None:
        address = ",".join(each.address for each in cluster.members[:count])
        async with dstore.AsyncNode(address) as node:
            await node.join()
            waiting = asyncio.create_task(node.wait(moving))
            assert await node.set_many({key: key for key in KEYS}) == []
            assert await node.get_many(KEYS) == {key: key for key in KEYS}
            assert [await node.get(key) for key in KEYS] == KEYS
            assert await listed(node.keys()) == KEYS
            assert await node.contains(KEYS[0])
            await until(lambda: "Wait" in one.seen)
            await asyncio.to_thread(cluster.move, [partition_of(moving)], one, two)
            await until(lambda: "Wait" in two.seen)
            await node.set(moving, "moved")
            assert await waiting == "moved"
            assert await node.get(await node.put(b"x")) == b"x"
            body = bytes(range(256)) * 1000
            assert await node.get(await node.put(body)) == body
            assert len((await node.global_stats())["globals"]) == 3
            assert len((await node.stats())["globals"]) == 3
            async with node.watch() as watch:
                assert (await anext(watch)).resync
            assert len(await node.delete_many(KEYS)) == len(KEYS)

    asyncio.run(main())


def test_a_task_that_is_cancelled_leaves_nothing(cluster: Cluster) -> None:
    one, _, _ = cluster.members

    async def main() -> None:
        async with dstore.AsyncNode(cluster.address) as node:
            await node.set_many({key: key for key in KEYS})
            one.deaf = True
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(node.delete_many(KEYS), 0.05)
            locals_ = node.node._locals.values()
            await until(lambda: not any(each.loop._pipeline.waiting for each in locals_))
            assert not any(node.node._members._calls.values())  # type: ignore[union-attr]
            one.deaf = False

    asyncio.run(main())


def test_greenlets(cluster: Cluster) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    command = [sys.executable, "-c", GREEN, cluster.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr

"""The life of a Node and an AsyncNode: what a closed one says in each call, and where."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dstore
from tests.integration.async_calls import listed
from tests.integration.processes import PATIENCE, ROOT

MakeNode = Callable[..., dstore.Node]
FILE = Path(__file__)
CALLS: dict[str, Callable[[Any], Any]] = {
    "get": lambda node: node.get("k"),
    "get, with a default": lambda node: node.get("missing", None),
    "get, by bytes": lambda node: node.get(b"k"),
    "lookup": lambda node: node.lookup("k"),
    "get_buffer": lambda node: node.get_buffer("k"),
    "get_many": lambda node: node.get_many(["k"]),
    "get_many, of nothing": lambda node: node.get_many([]),
    "get_file": lambda node: node.get_file("k", "/nowhere/at/all"),
    "keys": lambda node: node.keys(),
    "wait": lambda node: node.wait("k"),
    "wait, for no time": lambda node: node.wait("k", 0),
    "watch": lambda node: node.watch(),
    "watch, with a callback": lambda node: node.watch(callback=print),
    "set": lambda node: node.set("k", "v"),
    "set_many": lambda node: node.set_many({"k": "v"}),
    "set_file": lambda node: node.set_file("k", FILE),
    "put": lambda node: node.put("v"),
    "put_file": lambda node: node.put_file(FILE),
    "delete": lambda node: node.delete("k"),
    "delete_many": lambda node: node.delete_many(["k"]),
    "expire": lambda node: node.expire("k", 60),
    "persist": lambda node: node.persist("k"),
    "ttl": lambda node: node.ttl("k"),
    "stats": lambda node: node.stats(),
    "host_processes": lambda node: node.host_processes(),
    "global_stats": lambda node: node.global_stats(),
    "join": lambda node: node.join(),
    "join, for no time": lambda node: node.join(0),
}
NODE_ONLY = {
    "in": lambda node: "k" in node,
    "with": lambda node: node.__enter__(),
    "an AsyncNode": dstore.AsyncNode.sharing,
}
ASYNC_ONLY = {"contains": lambda node: node.contains("k"), "with": lambda node: node.__aenter__()}


def refuses(node: dstore.Node) -> None:
    """Every call on it raises NodeClosed, and the rest goes on quietly."""
    for name, call in {**CALLS, **NODE_ONLY}.items():
        with pytest.raises(dstore.NodeClosed, match="closed"):
            raise AssertionError(f"{name} gave {call(node)!r}")
    node.close()
    node.__exit__(None, None, None)
    node.timeout = 3.0
    assert "closed" in repr(node)


@pytest.mark.parametrize("kind", [dstore.Node, dstore.AsyncNode])
def test_the_calls_are_all_that_there_are(kind: type) -> None:
    public = {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}
    tried = {name.split(",")[0] for name in {**CALLS, **ASYNC_ONLY}} - {"with"}
    assert public - {"close", "sharing", "from_file"} == tried - (
        {"contains"} if kind is dstore.Node else set()
    )


@pytest.mark.parametrize("stale_ok", [False, True])
def test_a_closed_node_says_so_in_each_call(node: MakeNode, stale_ok: bool) -> None:
    one = node(stale_ok=stale_ok)
    one.set("k", "v")
    one.get("k")
    one.close()
    refuses(one)


def test_a_node_that_was_left_says_so(node: MakeNode) -> None:
    with node() as one, one:
        one.set("k", "v")
    refuses(one)


def test_an_iteration_that_is_under_way_ends(node: MakeNode) -> None:
    one = node()
    one.set_many({f"k{number:05}": number for number in range(1_500)})
    keys = one.keys()
    next(keys)
    one.close()
    with pytest.raises(dstore.NodeClosed):
        list(keys)


@pytest.mark.parametrize("joined", [True, False])
def test_many_threads_close_it_at_once(node: MakeNode, joined: bool) -> None:
    one = node()
    if joined:
        one.join()
    together = threading.Barrier(8)

    def close() -> None:
        together.wait(PATIENCE)
        one.close()
        refuses(one)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(close) for _ in range(8)]:
            assert future.exception(PATIENCE) is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("closed_by", ["parent", "child"])
def test_a_closed_node_in_a_forked_child(node: MakeNode, closed_by: str) -> None:
    one = node()
    one.set("k", "v")
    if closed_by == "parent":
        one.close()
    child = os.fork()
    if not child:
        status = 1
        try:
            one.close()
            refuses(one)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    if closed_by == "child":
        assert one.get("k") == "v"
    else:
        refuses(one)


def test_a_node_with_an_unhashable_callback_can_be_closed_connected_and_pickled(
    free_global: dstore.Global,
) -> None:
    class Callback(list[Any]):
        __call__ = list.append

    heard = Callback()
    with dstore.Node(free_global.address, on_deletion=heard) as one:
        assert dstore.connect(free_global.address, on_deletion=heard) is not one
    kept = dstore.connect(free_global.address, on_deletion=heard)
    assert dstore.connect(free_global.address, on_deletion=heard) is kept
    kept.close()
    again = dstore.connect(free_global.address, on_deletion=heard)
    assert again is not kept
    again.close()


AT_EXIT = """
import atexit
def last():
    for name, use in [
        ("closed", lambda: node.get("k")), ("entered", lambda: node.__enter__()),
        ("async", lambda: dstore.AsyncNode.sharing(node)), ("stats", lambda: node.stats()),
    ]:
        try:
            use()
        except dstore.NodeClosed as error:
            print(name, type(error).__name__)
    try:  # where threads can be started still, it works, and else it says so
        with dstore.Node(timeout=5) as another:
            another.set("l", 1)
    except dstore.GlobalUnavailable as error:
        assert "thread" in str(error)
    node.close()
    print("well")
atexit.register(last)
import dstore
node = dstore.Node()
node.set("k", "v")
"""


def test_at_the_end_of_python_after_dstore_has_closed_its_nodes(
    free_global: dstore.Global,
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DSTORE_GLOBAL": free_global.address},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = "".join(f"{name} NodeClosed\n" for name in ("closed", "entered", "async", "stats"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}well\n", "")


# ---- AsyncNode --------------------------------------------------------------------------------


async def outcome(call: Callable[[Any], Any], node: dstore.AsyncNode) -> Any:
    given = call(node)
    return await given if inspect.isawaitable(given) else given


async def refuses_tasks(node: dstore.AsyncNode) -> None:
    calls: dict[str, Callable[[Any], Any]] = {**CALLS, **ASYNC_ONLY}
    for name, call in calls.items():
        with pytest.raises(dstore.NodeClosed, match="closed"):
            raise AssertionError(f"{name} gave {await outcome(call, node)!r}")
    await node.close()
    await node.__aexit__(None, None, None)
    assert "closed" in repr(node)


def test_a_closed_async_node_says_so_in_each_call(free_global: dstore.Global) -> None:
    async def use() -> None:
        async with dstore.AsyncNode(free_global.address) as node, node:
            await node.set("k", "v")
            await node.get("k")
        await refuses_tasks(node)

    asyncio.run(use())


def test_many_tasks_close_it_at_once(free_global: dstore.Global) -> None:
    async def use() -> None:
        node = dstore.AsyncNode(free_global.address)
        await node.join()
        await asyncio.gather(*(node.close() for _ in range(8)))
        await refuses_tasks(node)

    asyncio.run(use())


def test_a_node_that_is_closed_under_an_async_node(node: MakeNode) -> None:
    one = node()
    shared = dstore.AsyncNode.sharing(one)

    async def use() -> None:
        waits = asyncio.ensure_future(shared.wait("never"))
        await shared.join()
        await asyncio.get_running_loop().run_in_executor(None, one.close)
        with pytest.raises(dstore.NodeClosed):
            await waits
        await refuses_tasks(shared)

    asyncio.run(use())


def test_it_outlives_its_loop_and_what_waited_there(node: MakeNode) -> None:
    shared = dstore.AsyncNode.sharing(node())

    async def leave() -> None:
        await shared.set("k", "v")
        shared_wait.append(asyncio.ensure_future(shared.wait("later")))
        await asyncio.sleep(0)

    async def use() -> None:
        assert await shared.get("k") == "v"
        assert await listed(shared.keys()) == ["k"]
        await shared.set("later", 1)
        assert await shared.wait("later", 5) == 1

    shared_wait: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.call_soon(shared_wait[0].cancel)
    loop.run_until_complete(asyncio.wait(shared_wait))
    loop.close()
    asyncio.run(use())


def test_an_iteration_of_a_closed_loop_is_not_gone_on_with(node: MakeNode) -> None:
    shared = dstore.AsyncNode.sharing(node())

    async def begin() -> Any:
        await shared.set_many({f"k{number:05}": number for number in range(1_500)})
        keys = shared.keys()
        await anext(keys)
        return keys

    async def end(keys: Any) -> list[Any]:
        return await listed(keys)

    keys = asyncio.run(begin())  # asyncio.run has closed it
    assert asyncio.run(end(keys)) == []


@pytest.mark.parametrize("other", [None, "tcp://127.0.0.1:5", 5])
def test_only_a_node_is_shared(other: Any) -> None:
    with pytest.raises(TypeError, match=r"a dstore\.Node"):
        dstore.AsyncNode.sharing(other)

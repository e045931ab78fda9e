"""AsyncNodes in processes that fork and exit, and under trio."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import dstore
from dstore.protocol.messages import Chunk, GetReply
from dstore.runtime import event_loops as loops
from tests.integration.async_calls import (
    LARGE,
    LONG_LEASE,
    Gate,
    MakeNode,
    left_over,
    listed,
)
from tests.integration.processes import PATIENCE, start_script

# ---- processes --------------------------------------------------------------------------------


def script(body: str, address: str) -> subprocess.Popen[str]:
    # A fork of a process with threads is what one of these is about.
    return start_script(body, address, "ignore::DeprecationWarning", stdin=subprocess.PIPE)


FORK = """
import asyncio, os, dstore
from dstore.client import files
node = dstore.AsyncNode()
unfinished = files.writing(PATH, None)
file = unfinished.__enter__()

async def in_the_child():
    assert (await node.stats())["keys"] == 0
    assert not (await node.lookup("k")).from_local
    assert await asyncio.gather(*(node.get(f"k{n}", n) for n in range(100))) == [*range(100)]
    await node.set("large", bytes(1_000_000))
    await node.delete("k")
    await node.close()

async def main():
    await node.set("k", "v")
    waiting = asyncio.create_task(node.wait("not yet"))
    while not node.node._local.loop._pipeline.waiting:
        await asyncio.sleep(0)
    child = os.fork()
    if not child:
        waiting._log_destroy_pending = False
        unfinished.gen.close()  # as when it is collected
        asyncio.run(in_the_child())
        os._exit(0)
    assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
    assert await node.get("k", None) is None
    assert len(await node.get("large")) == 1_000_000
    await node.set("not yet", "now")
    assert await waiting == "now"
    await node.close()
    file.write(0, b"whole")
    unfinished.__exit__(None, None, None)

asyncio.run(main())
"""


def test_a_forked_child_joins_anew_and_the_parents_calls_go_on(
    free_global: dstore.Global, tmp_path: Path
) -> None:
    process = script(f"PATH = {str(tmp_path / 'file')!r}\n{FORK}", free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    assert (tmp_path / "file").read_bytes() == b"whole"


EXIT = """
import asyncio, threading, dstore

node = dstore.AsyncNode(shm="")

async def fetch():
    await node.get("k")

def in_a_daemon():
    try:
        asyncio.run(fetch())
    except dstore.NodeClosed:
        pass

async def left_by_main():
    task = asyncio.create_task(fetch())
    await asyncio.to_thread(input)

if MODE == "cancelled":
    asyncio.run(left_by_main())
else:
    threading.Thread(target=in_a_daemon, daemon=True).start()
    input()
"""


@LONG_LEASE
@pytest.mark.parametrize("mode", ["cancelled", "under way"])
def test_an_exit_does_not_wait_for_a_transfer(
    free_global: dstore.Global, anode: MakeNode, gate: Gate, hold: Callable[..., None], mode: str
) -> None:
    anode(shm="").node.set("k", LARGE)
    hold(Chunk)
    process = script(f"MODE = {mode!r}\n{EXIT}", free_global.address)
    asyncio.run(gate.reached())
    out, err = process.communicate("\n", timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


# ---- trio -------------------------------------------------------------------------------------


def test_the_same_under_trio(
    free_global: dstore.Global, anode: MakeNode, gate: Gate, hold: Callable[..., None]
) -> None:
    trio = pytest.importorskip("trio")

    async def use(node: dstore.AsyncNode) -> None:
        await node.set_many({"k": "v", "large": LARGE})
        assert await node.get("large") == LARGE
        assert await listed(node.keys()) == ["k", "large"]
        got = {}

        async def ask(number: int) -> None:
            got[number] = await node.get(f"k{number}", number)

        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(ask, number)
        assert got == {number: number for number in range(1_000)}
        hold(GetReply)
        with trio.move_on_after(0.05) as scope:
            await node.get("other")
        assert scope.cancelled_caught
        assert left_over(node) == {}
        gate.open()
        assert await node.get("other", None) is None

    async def main() -> None:
        async with dstore.AsyncNode(free_global.address) as node:
            await use(node)
            with trio.move_on_after(0.05):
                async with trio.open_nursery() as nursery:
                    for number in range(100):
                        nursery.start_soon(node.wait, f"never {number}")
            while left_over(node):
                await trio.sleep(0)
        with pytest.raises(dstore.NodeClosed):
            await node.get("k")

    trio.run(main)


def test_a_trio_that_has_ended_is_not_told() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> loops.TaskEvent:
        return loops.task_event()

    signal: loops.TaskEvent = trio.run(main)
    signal.set()

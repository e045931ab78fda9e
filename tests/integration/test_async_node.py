"""``dstore.AsyncNode``: what a Node does, for event loops."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.client import files
from dstore.client.hosts import pipeline as pipeline_module
from dstore.client.hosts.loop import LoopHost
from dstore.client.large import LargeValues
from dstore.core.local.operations import reading
from dstore.core.local.steps import WaitUntil
from dstore.protocol.messages import Chunk, GetReply, ToLocal
from dstore.transport.channel import Requests
from dstore.transport.router import Router
from tests.integration.async_calls import (
    AWAY,
    LARGE,
    LONG_LEASE,
    Gate,
    MakeNode,
    begun,
    listed,
    loop_of,
    settled,
    steps,
    until,
)
from tests.integration.processes import PATIENCE, GlobalProcess, free_port, other_sessions

pytestmark = pytest.mark.usefixtures("host_mode")

# ---- the methods ------------------------------------------------------------------------------


def public(kind: type) -> dict[str, Any]:
    return {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_") and not inspect.ismethod(method)  # of the class
    }


def test_its_methods_are_those_of_a_node() -> None:
    ours, theirs = public(dstore.AsyncNode), public(dstore.Node)
    theirs["contains"] = dstore.Node.__contains__
    assert set(ours) == set(theirs)
    for name, method in ours.items():
        mine, other = inspect.signature(method), inspect.signature(theirs[name])
        assert mine.parameters == other.parameters, name
        assert mine.return_annotation.replace("Async", "") == other.return_annotation, name
        waits = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        assert waits or mine.return_annotation.startswith("Async"), name
        assert method.__doc__, name


def test_in_says_what_to_use_instead(node: Callable[..., dstore.Node]) -> None:
    shared = dstore.AsyncNode.sharing(node())
    with pytest.raises(TypeError, match=r"use `await node\.contains\('k'\)`"):
        assert "k" in shared  # type: ignore[operator]


def test_every_method(anode: MakeNode, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(LARGE)

    async def use(one: dstore.AsyncNode, two: dstore.AsyncNode) -> None:
        await one.join()
        await one.set("k", [1, (2, "x")])
        assert await two.get("k") == [1, (2, "x")]
        assert await two.lookup("k") == dstore.Lookup([1, (2, "x")], True, True)
        await one.set("k", "new", replace=True)
        assert await two.get("k") == "new"
        assert bytes(await two.get_buffer("k")) == b"new"
        assert await two.contains("k")
        assert not await two.contains("nothing")
        assert await two.get("nothing", "default") == "default"
        for missing in (two.get("nothing"), two.lookup("nothing"), two.delete("nothing")):
            with pytest.raises(dstore.KeyMissing):
                await missing
        with pytest.raises(dstore.KeyOccupied):
            await two.set("k", "other")
        with pytest.raises(dstore.InvalidKey):
            await two.get("")
        assert await one.set_many({"k": 0, "l": LARGE, "m": 1}) == ["k"]
        assert await two.get_many(["k", "l", "m", "n"]) == {"k": "new", "l": LARGE, "m": 1}
        assert await two.wait("m") == 1
        with pytest.raises(dstore.WaitTimedOut):
            await two.wait("nothing", 0.01)
        uid = await one.put("content")
        assert await two.get(uid) == "content"
        assert await two.put("content") == uid
        large = await one.put(LARGE)
        assert await two.put_file(source) == large
        await two.set_file("file", source)
        assert await one.get_file("file", copy) == files.Fetched("bytes", len(LARGE))
        assert copy.read_bytes() == LARGE
        keys = await listed(two.keys())
        assert keys == sorted(["k", "l", "m", "file", uid, large])
        assert await listed(two.keys("fi")) == ["file"]
        assert (await one.delete("k")).confirmed == 2
        assert (await one.delete("l", wait=False)).pending
        assert set(await two.delete_many(["m", "n"])) == {"m"}
        assert await one.get_many(["k", "l", "m"]) == {}
        assert (await asyncio.to_thread(other_sessions, two.node)) == 1
        assert (await two.stats())["hits"] > 0
        two.timeout = 7.0
        assert (two.timeout, two.node.timeout) == (7.0, 7.0)
        assert repr(two).startswith("<dstore.AsyncNode of <dstore.Node tcp://")
        for node in (one, two):
            await settled(node)
            await node.close()
            await node.close()
            with pytest.raises(dstore.NodeClosed):
                await node.get("k")

    asyncio.run(use(anode(), anode(shm="")))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.private
def test_a_hit_does_not_touch_the_loop(anode: MakeNode) -> None:
    node = anode()
    node.node.set("k", "v")
    hit = dstore.Lookup("v", from_local=True, cached=True)
    for call, result in ((node.get("k"), "v"), (node.lookup("k"), hit), (node.contains("k"), True)):
        with pytest.raises(StopIteration) as stop:  # there is no loop here
            call.send(None)
        assert stop.value.value == result


@pytest.mark.private
def test_what_is_small_needs_no_helper_thread(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.set_many({f"k{number}": bytes(1000) for number in range(100)})
        await node.put(b"small")
        assert len(await node.get_many([f"k{number}" for number in range(100)])) == 100
        assert not loop_of(node)._helpers._threads
        await node.set("large", LARGE)
        assert loop_of(node)._helpers._threads

    asyncio.run(use(anode()))


def test_a_wait_ends_when_the_key_is_set_and_can_be_cancelled(anode: MakeNode) -> None:
    async def use(one: dstore.AsyncNode, two: dstore.AsyncNode) -> None:
        async def waiting(count: int) -> None:
            while (await two.global_stats())["waiting"] != count:
                pass

        tasks = [begun(one.wait("k")) for _ in range(3)]
        await waiting(3)
        tasks[0].cancel()
        await two.set("k", "v")
        assert await asyncio.gather(*tasks[1:]) == ["v", "v"]
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await one.wait("k", 0) == "v"
        with pytest.raises(dstore.WaitTimedOut):
            await one.wait("missing", 0.01)
        assert not one.node._state.in_flight

    asyncio.run(use(anode(), anode()))


def test_cancelled_waits_do_not_stay_at_global(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        async def waiting() -> int:
            return int((await node.global_stats())["waiting"])

        tasks = [begun(node.wait(f"k{number}")) for number in range(100)]
        while await waiting() < len(tasks):
            pass
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        while await waiting() > 1:
            pass
        await node.set("k0", "v")
        assert await tasks[0] == "v"
        assert await waiting() == 0

    asyncio.run(use(anode()))


def test_events_come_to_tasks(anode: MakeNode) -> None:
    async def use(one: dstore.AsyncNode, two: dstore.AsyncNode) -> None:
        await two.set_many({"a/1": 1, "b/1": 1})
        async with one.watch("a/") as events, one.watch("", limit=1) as few:
            assert (await anext(events)).resync
            assert (await anext(few)).resync
            task = begun(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = begun(anext(events))
            await two.delete("b/1")
            await two.set("a/1", 2, replace=True)
            assert (await task).key == "a/1"
            assert await one.get("a/1") == 2
            await two.delete("a/1")
            assert (await anext(events)).key == "a/1"
            await until(lambda: few.missed == 2)  # it is told after the other one
            first, second = [await anext(few) for _ in range(2)]
            assert (first.resync, first.missed, second.key) == (True, 2, "a/1")
            assert few.missed == 2
            task = begun(anext(events))
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await task
        watch = one.watch()
        await anext(watch)
        task = begun(anext(watch))
        await one.close()
        with pytest.raises(StopAsyncIteration):
            await task

    asyncio.run(use(anode(), anode()))


def test_it_is_pickled_as_its_node(anode: MakeNode) -> None:
    one = anode()
    again = pickle.loads(pickle.dumps(one))
    assert again.node is one.node
    asyncio.run(again.close())
    one.node.set("k", 1)


def test_a_shared_node_stays_open(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        async with dstore.AsyncNode.sharing(node.node) as shared:
            await shared.set("k", "v")
            assert shared.node is node.node
            assert pickle.loads(pickle.dumps(shared)).node is node.node
        assert await shared.get("k") == node.node.get("k") == "v"

    asyncio.run(use(anode()))


def test_leaving_the_block_closes_the_node(free_global: dstore.Global) -> None:
    async def use() -> None:
        async with dstore.AsyncNode(free_global.address) as node:
            await node.set("k", "v")
        with pytest.raises(dstore.NodeClosed):
            await node.set("l", "v")

    asyncio.run(use())


def test_an_error_of_a_callback_reaches_the_caller(anode: MakeNode, tmp_path: Path) -> None:
    """``progress`` is called by a helper thread."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def use(node: dstore.AsyncNode) -> None:
        await node.set("k", LARGE)
        source = tmp_path / "source"
        source.write_bytes(LARGE)
        with pytest.raises(ZeroDivisionError):
            await node.set_file("l", source, progress=fail)
        await settled(node)

    asyncio.run(use(anode()))


# ---- many at once -----------------------------------------------------------------------------


def test_ten_thousand_gets_some_of_them_cancelled(anode: MakeNode) -> None:
    rng = random.Random(7)
    values: dict[str, Any] = {f"k{number}": f"value {number}" for number in range(300)}
    values |= {f"large{number}": bytes([number]) * 200_000 for number in range(4)}
    wanted = [rng.choice([*values, "nothing"]) for _ in range(10_000)]

    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set_many(values)
        tasks = [begun(reader.get(key, None)) for key in wanted]
        victims = rng.sample(tasks, 2_000)
        while victims:
            for _ in range(rng.randrange(200)):
                if victims:
                    victims.pop().cancel()
            await asyncio.sleep(0)
        got = await asyncio.gather(*tasks, return_exceptions=True)
        cut = sum(isinstance(each, asyncio.CancelledError) for each in got)
        assert 0 < cut <= 2_000
        for key, each in zip(wanted, got):
            assert each == values.get(key) or isinstance(each, asyncio.CancelledError)
        del tasks
        await settled(reader)
        assert await reader.get("k1") == "value 1"
        assert await reader.get("nothing", "gone") == "gone"

    asyncio.run(use(anode(), anode(shm="", timeout=PATIENCE)))


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_many_tasks_that_miss_the_same_keys_ask_once_for_each(anode: MakeNode, size: int) -> None:
    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set_many({f"k{number}": bytes(size) for number in range(5)})
        await reader.join()
        before = await writer.global_stats()
        calls = [reader.get(f"k{number % 5}") for number in range(1_000)]
        assert {len(value) for value in await asyncio.gather(*calls)} == {size}
        after = await writer.global_stats()
        assert after["gets"] - before["gets"] == 5
        assert after["bytes_out"] - before["bytes_out"] in (0, 5 * size)

    asyncio.run(use(anode(), anode(shm="")))


@pytest.mark.private
@LONG_LEASE
def test_more_replies_than_a_connection_takes_are_not_lost(
    anode: MakeNode,
    gate: Gate,
    hold: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Global drops what it has to say to a connection that does not keep up."""
    count, value = 2_500, bytes(20_000)
    under_way = min(count, pipeline_module.READS_MAX)
    slow = Gate()
    receive = Requests.receive

    def held(self: Requests) -> Any:
        slow.come_by()
        return receive(self)

    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set_many({f"k{number}": value for number in range(count)})
        await reader.join()
        hold(GetReply)
        tasks = [begun(reader.get(f"k{number}")) for number in range(count)]
        await until(lambda: loop_of(reader)._pipeline.reads == under_way)
        monkeypatch.setattr(Requests, "receive", held)
        gate.open()
        while writer.node.global_stats()["gets"] < under_way:
            pass
        slow.open()
        assert await asyncio.gather(*tasks) == [value] * count
        # On a slow machine some are asked again because they take long, but not all the others.
        assert (await writer.global_stats())["gets"] <= count + under_way

    asyncio.run(use(anode(), anode(timeout=PATIENCE)))


@LONG_LEASE
def test_no_more_bytes_than_global_takes_are_sent_in_flight_bytes(
    anode: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Global cuts a connection on which too many bytes wait to be taken."""
    monkeypatch.setattr(pipeline_module, "IN_FLIGHT_BYTES_MAX", 100_000)
    most = 0
    loops: list[LoopHost] = []
    send = Requests.send

    def watched(self: Requests, frame: bytes) -> bool:
        nonlocal most
        most = max(most, loops[0]._pipeline.bytes_in_flight)
        return send(self, frame)

    monkeypatch.setattr(Requests, "send", watched)

    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        loops.append(loop_of(node))
        await asyncio.gather(*(node.set(f"k{number}", bytes(20_000)) for number in range(200)))
        await settled(node)
        assert loops[0]._pipeline.bytes_in_flight == 0

    asyncio.run(use(anode()))
    assert 80_000 < most < 100_000


def test_replies_that_come_twice(anode: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Router.send

    def twice(*arguments: Any) -> None:
        send(*arguments)
        send(*arguments)

    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        monkeypatch.setattr(Router, "send", twice)
        calls = (node.get(f"k{number}", number) for number in range(1_000))
        assert await asyncio.gather(*calls) == list(range(1_000))
        await settled(node)

    asyncio.run(use(anode()))


@pytest.mark.private
@pytest.mark.parametrize("free_global", [config.LEASE_MAX], indirect=True)
def test_a_task_that_waits_for_the_fill_of_a_thread_is_woken(
    anode: MakeNode, gate: Gate, hold: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: here the background thread has no other reason to wake up for long."""
    monkeypatch.setattr(reading, "JOIN_MAX", config.LEASE_MAX)

    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", "v")
        await reader.join()
        hold(GetReply)
        thread = threading.Thread(target=reader.node.get, args=("k",))
        thread.start()
        await gate.reached()
        task = begun(reader.get("k"))
        await until(lambda: steps(reader) == [WaitUntil])
        gate.open()
        assert await task == "v"
        thread.join()
        assert (await reader.global_stats())["gets"] == 1

    asyncio.run(use(anode(), anode(timeout=config.LEASE_MAX)))


class Judge:
    """Reads some keys in a thread or in event loops, while their values are deleted. (A value is
    the number of its round.)
    """

    def __init__(self, node: dstore.AsyncNode) -> None:
        self.node = node
        self.deleted = {f"k{number}": -1 for number in range(8)}
        self.over = False
        self.failures: list[BaseException] = []

    def in_a_thread(self) -> None:
        while not self.over:
            for key, deleted in list(self.deleted.items()):
                self.judge(deleted, self.node.node.get(key, None))

    def in_a_loop(self) -> None:
        asyncio.run(self._in_a_loop())

    async def _in_a_loop(self) -> None:
        while not self.over:
            await asyncio.gather(*(self._ask(key) for key in self.deleted for _ in range(20)))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def _ask(self, key: str) -> None:
        deleted = self.deleted[key]
        self.judge(deleted, await self.node.get(key, None))

    @staticmethod
    def judge(deleted: int, value: int | None) -> None:
        assert value is None or value > deleted

    def begin(self, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


def test_threads_and_two_loops_on_one_node_never_see_what_was_deleted(anode: MakeNode) -> None:
    judge, other = Judge(anode()), anode().node
    threads = [judge.begin(run) for run in (judge.in_a_thread, judge.in_a_loop, judge.in_a_loop)]
    for number in range(20):
        for key in judge.deleted:
            other.set(key, number)
        for key in judge.deleted:
            other.delete(key)
            judge.deleted[key] = number
    judge.over = True
    for thread in threads:
        thread.join()
    assert judge.failures == []
    asyncio.run(settled(judge.node))


# ---- interruptions ----------------------------------------------------------------------------


def test_a_destructor_in_the_middle_of_a_step_is_told_so(
    anode: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = anode()
    node.node.join()
    host = node.node._here().host
    advance = host.advance
    raised: list[BaseException] = []

    def interrupted(*arguments: Any) -> Any:
        if not raised and threading.current_thread() is threading.main_thread():
            calls: list[Callable[[], Any]] = [
                lambda: node.node.get("k"),
                lambda: node.get("k").send(None),
            ]
            for call in calls:
                with pytest.raises(RuntimeError, match="destructor") as caught:
                    call()
                raised.append(caught.value)
        return advance(*arguments)

    monkeypatch.setattr(host, "advance", interrupted)
    assert asyncio.run(node.get("k", None)) is None
    assert len(raised) == 2


def test_a_callback_of_a_transfer_may_close_the_node(anode: MakeNode, tmp_path: Path) -> None:
    """It is called by a helper thread, which closing would have to wait for."""

    async def use(node: dstore.AsyncNode) -> None:
        source = tmp_path / "source"
        source.write_bytes(LARGE)
        with pytest.raises(dstore.NodeClosed):
            await node.set_file("k", source, progress=lambda *_: node.node.close())

    asyncio.run(use(anode(shm="")))


# ---- Global comes and goes, the Node is closed ------------------------------------------------


def test_global_is_away(anode: MakeNode, tmp_path: Path) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        calls: list[Awaitable[Any]] = [node.get("k"), node.set("k", LARGE), node.delete("k")]
        for each in await asyncio.gather(*calls, node.join(0.1), return_exceptions=True):
            assert isinstance(each, dstore.GlobalUnavailable)
        await settled(node)

    asyncio.run(use(anode(address=AWAY, timeout=0.1)))


def test_global_dies_and_comes_back() -> None:
    async def use(running: GlobalProcess, node: dstore.AsyncNode) -> None:
        await node.set("k", "v")
        running.kill()
        node.timeout = 0.2
        for call in (node.get("other"), node.get("another")):
            with pytest.raises(dstore.GlobalUnavailable):
                await call
        node.timeout = PATIENCE
        tasks = [begun(node.get(f"k{number}", number)) for number in range(100)]
        tasks.append(begun(node.set("l", "w")))
        await until(lambda: len(steps(node)) == 101)
        running.start()
        assert await asyncio.gather(*tasks) == [*range(100), None]
        assert await node.get("k", None) is None
        assert await node.get("l") == "w"
        await settled(node)

    with (
        GlobalProcess(f"tcp://127.0.0.1:{free_port()}") as running,
        dstore.Node(running.address) as node,
    ):
        asyncio.run(use(running, dstore.AsyncNode.sharing(node)))


def test_close_ends_what_waits_for_a_session(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        tasks = [begun(node.get(f"k{number}")) for number in range(100)]
        await until(lambda: len(steps(node)) == 100)
        await node.close()
        for got in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(got, dstore.NodeClosed)

    asyncio.run(use(anode(address=AWAY)))


@LONG_LEASE
@pytest.mark.parametrize("reply", [GetReply, Chunk])
def test_close_ends_what_waits_for_a_reply(
    anode: MakeNode, gate: Gate, hold: Callable[..., None], reply: type[ToLocal]
) -> None:
    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", LARGE)
        await reader.join()
        hold(reply)
        task = begun(reader.get("k"))
        await gate.reached()
        await reader.close()
        with pytest.raises(dstore.NodeClosed):
            await task

    asyncio.run(use(anode(), anode(shm="")))


@LONG_LEASE
def test_a_value_that_comes_when_the_node_is_closed_is_not_taken(
    anode: MakeNode, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    obtain = LargeValues.obtain

    def held(*arguments: Any) -> Any:
        value = obtain(*arguments)
        gate.come_by()
        return value

    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", LARGE)
        monkeypatch.setattr(LargeValues, "obtain", held)
        task = begun(reader.get("k"))
        await gate.reached()
        loop = loop_of(reader)
        closing = begun(reader.close())
        await until(lambda: loop._helpers._closed)
        gate.open()
        with pytest.raises(dstore.NodeClosed):
            await task
        await closing

    asyncio.run(use(anode(), anode(shm="")))


@LONG_LEASE
def test_close_does_not_wait_for_what_cannot_be_interrupted(
    anode: MakeNode, gate: Gate, at_gate: Callable[[type, str], None]
) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        at_gate(LargeValues, "keep")
        task = begun(node.set("k", LARGE))
        await gate.reached()
        await node.close()
        gate.open()
        with pytest.raises(dstore.NodeClosed):
            await task

    asyncio.run(use(anode(shm="")))

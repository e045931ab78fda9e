"""What a cancelled call of an AsyncNode leaves behind, step by step: nothing."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.client.files import Destination, FileToStore
from dstore.client.large import LargeValues
from dstore.core.local.steps import Request, WaitUntil
from dstore.protocol.messages import Chunk, GetReply, SetReply, Staged
from tests.integration.async_calls import (
    AWAY,
    LARGE,
    LONG_LEASE,
    Gate,
    MakeNode,
    begun,
    cancelled,
    left_over,
    listed,
    loop_of,
    names_in,
    settled,
    steps,
    until,
    values_in,
)
from tests.integration.processes import PATIENCE


def test_cancelled_while_it_waits_for_a_session(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        task = begun(node.get("k"))
        await until(lambda: loop_of(node)._untils)
        assert steps(node) == [WaitUntil]
        await cancelled(task)
        assert left_over(node) == {}

    asyncio.run(use(anode(address=AWAY)))


@LONG_LEASE
def test_cancelled_while_another_task_asks_for_the_same(
    anode: MakeNode, gate: Gate, hold: Callable[..., None]
) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.set("other", 1)
        hold(GetReply)
        first, *others = (begun(node.get("k", "none")) for _ in range(3))
        await gate.reached()
        assert sorted(steps(node), key=str) == [Request, WaitUntil, WaitUntil]
        await cancelled(others.pop())
        assert sorted(steps(node), key=str) == [Request, WaitUntil]
        await cancelled(first)  # and the other one asks itself
        await until(lambda: steps(node) == [Request])
        gate.open()
        assert await others.pop() == "none"
        await settled(node)

    asyncio.run(use(anode()))


@LONG_LEASE
def test_the_late_reply_to_a_cancelled_get_is_not_cached(
    anode: MakeNode, gate: Gate, hold: Callable[..., None]
) -> None:
    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", "v")
        await reader.join()
        hold(GetReply)
        task = begun(reader.get("k"))
        await gate.reached()
        await cancelled(task)
        assert left_over(reader) == {}
        gate.open()
        assert await reader.get("other", None) is None  # comes on the same connection
        assert reader.node._hit("k") is None
        assert (await reader.stats())["fills"] == 0
        assert await reader.get("k") == "v"

    asyncio.run(use(anode(), anode()))


@LONG_LEASE
def test_a_request_that_is_cancelled_before_it_left_is_never_sent(anode: MakeNode) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        with loop_of(node)._host.lock:  # the background thread sends nothing meanwhile
            task = begun(node.set("k", "v"))
            await asyncio.sleep(0)
            assert steps(node) == [Request]
            await cancelled(task)
        assert await node.get("k", None) is None
        assert (await node.global_stats())["sets"] == 0

    asyncio.run(use(anode()))


@LONG_LEASE
def test_cancelled_while_a_large_value_comes(
    anode: MakeNode, gate: Gate, hold: Callable[..., None], tmp_path: Path
) -> None:
    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", LARGE)
        hold(Chunk)
        task = begun(reader.get("k"))
        waiting = begun(reader.get("k"))
        await gate.reached()
        await cancelled(task)
        await until(lambda: steps(reader) == [Request])  # the other one asks itself, at once
        gate.open()
        assert await waiting == LARGE
        await settled(reader)
        assert len(values_in(tmp_path)) == 1

    asyncio.run(use(anode(), anode(shm=str(tmp_path))))


@LONG_LEASE
def test_cancelled_while_a_large_value_is_sent(
    anode: MakeNode,
    gate: Gate,
    hold: Callable[..., None],
    tmp_path: Path,
) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        hold(Staged)
        task = begun(node.set("k", LARGE))
        await gate.reached()
        await cancelled(task)
        assert values_in(tmp_path)  # it is still being sent from there
        gate.open()
        await settled(node)
        assert values_in(tmp_path) == []
        while (metrics := await node.global_stats())["uploads"]:
            pass
        assert metrics["upload_bytes"] == 0
        assert await node.get("k", None) is None
        await node.set("k", LARGE)

    asyncio.run(use(anode(shm=str(tmp_path))))


@LONG_LEASE
def test_cancelled_while_a_large_value_is_laid_down(
    anode: MakeNode, gate: Gate, at_gate: Callable[[type, str], None], tmp_path: Path
) -> None:
    """That cannot be interrupted; what it has laid down is dropped."""

    async def use(node: dstore.AsyncNode) -> None:
        at_gate(LargeValues, "keep")
        task = begun(node.set("k", LARGE))
        await gate.reached()
        await cancelled(task)
        gate.open()
        await settled(node)
        assert values_in(tmp_path) == []
        assert await node.get("k", None) is None

    asyncio.run(use(anode(shm=str(tmp_path))))


@LONG_LEASE
def test_cancelled_when_the_reply_to_a_set_is_under_way(
    anode: MakeNode, gate: Gate, hold: Callable[..., None], tmp_path: Path
) -> None:
    """Whether it was executed is not known; nothing of it is left here."""

    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        hold(SetReply)
        task = begun(node.set("k", "v"))
        await gate.reached()
        await cancelled(task)
        assert left_over(node) == {}
        gate.open()
        assert await node.get("k") == "v"
        assert (await node.delete("k")).confirmed == 1

    asyncio.run(use(anode()))


@LONG_LEASE
def test_a_cancelled_get_file_leaves_no_file_and_writes_to_no_other(
    anode: MakeNode,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The descriptor is not closed, and its number not given away, while a thread writes."""
    write = Destination.write
    written = []

    def held(self: Destination, offset: int, data: Any) -> None:
        gate.come_by()
        write(self, offset, data)
        written.append(len(data))

    async def use(writer: dstore.AsyncNode, reader: dstore.AsyncNode) -> None:
        await writer.set("k", LARGE)
        monkeypatch.setattr(Destination, "write", held)
        task = begun(reader.get_file("k", tmp_path / "file"))
        await gate.reached()
        await cancelled(task)
        with (tmp_path / "innocent").open("wb"):
            gate.open()
            await settled(reader)
        assert len(written) == 1  # and no more came
        assert names_in(tmp_path) == ["innocent"]
        assert (tmp_path / "innocent").read_bytes() == b""
        assert (await reader.get_file("k", tmp_path / "file")).size == len(LARGE)

    asyncio.run(use(anode(), anode(shm="")))


@LONG_LEASE
def test_a_get_file_that_is_cancelled_at_its_very_end_leaves_no_file(
    anode: MakeNode, gate: Gate, at_gate: Callable[[type, str], None], tmp_path: Path
) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.set("k", "small")
        at_gate(Destination, "write_all")
        task = begun(node.get_file("k", tmp_path / "file"))
        await gate.reached()
        await cancelled(task)
        gate.open()
        await settled(node)
        assert names_in(tmp_path) == []

    asyncio.run(use(anode()))


@pytest.mark.parametrize("at", [(FileToStore, "__getitem__"), (FileToStore, "digest")])
@LONG_LEASE
def test_a_cancelled_put_file_leaves_no_stage_and_reads_no_other_file(
    anode: MakeNode, gate: Gate, at: tuple[type, str], monkeypatch: Any, tmp_path: Path
) -> None:
    method = getattr(*at)
    read = []

    def held(self: Any, *arguments: Any) -> Any:
        gate.come_by()
        read.append(method(self, *arguments))
        return read[-1]

    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        source = tmp_path / "source"
        source.write_bytes(LARGE)
        monkeypatch.setattr(*at, held)
        task = begun(node.put_file(source))
        await gate.reached()
        await cancelled(task)
        with (tmp_path / "other").open("wb+"):
            gate.open()
            await settled(node)
        assert read  # and it did not fail
        while (await node.global_stats())["uploads"]:
            pass
        uid = await node.put_file(source)
        assert await node.get(uid) == LARGE

    asyncio.run(use(anode(shm="")))


@LONG_LEASE
def test_cancelled_when_all_helper_threads_are_busy(
    anode: MakeNode, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no helper thread has begun is not done any more."""
    keep = LargeValues.keep
    kept = []

    def held(*arguments: Any) -> Any:
        gate.come_by()
        kept.append(keep(*arguments))
        return kept[-1]

    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        monkeypatch.setattr(LargeValues, "keep", held)
        tasks = [begun(node.set(f"k{number}", LARGE)) for number in range(40)]
        helpers = loop_of(node)._helpers
        await until(lambda: len(helpers._jobs) == 40 - len(helpers._threads))
        assert len(helpers._threads) == 16
        for task in tasks[30:]:
            await cancelled(task)
        gate.open()
        await asyncio.gather(*tasks[:30])
        await settled(node)
        assert len(kept) == 30
        assert set(await listed(node.keys())) == {f"k{number}" for number in range(30)}

    asyncio.run(use(anode(shm="", timeout=PATIENCE)))


@LONG_LEASE
def test_a_time_limit_of_asyncio(anode: MakeNode, gate: Gate, hold: Callable[..., None]) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        hold(GetReply)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(node.get("k"), 0.05)
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await node.get("k")
        assert left_over(node) == {}
        gate.open()
        assert await node.get("k", None) is None
        await settled(node)

    asyncio.run(use(anode()))


@LONG_LEASE
def test_a_coroutine_that_is_dropped_is_given_up(
    anode: MakeNode, gate: Gate, hold: Callable[..., None]
) -> None:
    async def use(node: dstore.AsyncNode) -> None:
        await node.join()
        hold(GetReply)
        dropped = node.get("k")
        dropped.send(None)
        await gate.reached()
        with loop_of(node)._host.lock:  # the garbage collector may come while this is held
            dropped.close()
            assert steps(node) == [Request]
        await settled(node)
        gate.open()
        assert await node.get("k", None) is None

    asyncio.run(use(anode()))


@LONG_LEASE
def test_a_loop_that_is_closed_meanwhile_harms_nobody(
    anode: MakeNode, gate: Gate, hold: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    node = anode()
    node.node.join()
    hold(GetReply)
    loop = asyncio.new_event_loop()
    task = loop.create_task(node.get("k"))
    loop.run_until_complete(gate.reached())
    loop.close()
    gate.open()
    assert node.node.get("other", None) is None
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # we know
    del task
    gc.collect()
    asyncio.run(settled(node))
    assert asyncio.run(node.get("k", None)) is None
    assert caplog.records == []

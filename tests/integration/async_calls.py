"""AsyncNodes under test: a gate at which threads are held, and what calls have left behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.client.hosts.loop import LoopHost
from dstore.runtime import clock
from tests.integration.processes import PATIENCE

MakeNode = Callable[..., dstore.AsyncNode]
LARGE = bytes(range(256)) * 8192
LONG_LEASE = pytest.mark.parametrize("free_global", [PATIENCE], indirect=True)
AWAY = "tcp://127.0.0.1:1"


class Gate:
    """Holds a thread that comes by, until it is opened. (After that nobody is held.)"""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def come_by(self) -> None:
        self._reached.set()
        assert self._opened.wait(PATIENCE)

    def open(self) -> None:
        self._opened.set()

    async def reached(self) -> None:
        await until(self._reached.is_set)


async def until(condition: Callable[[], object]) -> None:
    """Let others go on until something is so."""
    end = clock.now() + PATIENCE
    while not condition():
        assert clock.now() < end, "it never came to that"
        await asyncio.sleep(0.001)


async def listed(keys: AsyncIterator[Any]) -> list[Any]:
    return [key async for key in keys]


def loop_of(node: dstore.AsyncNode) -> LoopHost:
    return node.node._here().loop


def left_over(node: dstore.AsyncNode) -> dict[str, object]:
    """Whatever calls have left behind."""
    loop = loop_of(node)
    pipeline, state = loop._pipeline, loop._host.state
    with loop._host.lock:
        found: dict[str, object] = {
            "in flight": dict(state.in_flight),
            "writes": set(state.writer.writing),
            "waiters": list(loop._host.waiters),
            "waiting": dict(pipeline.waiting),
            "reads": pipeline.reads,
            "bytes in flight": pipeline.bytes_in_flight,
            "unsent": list(pipeline.unsent),
            "untils": list(loop._untils),
            "timers": len(loop._timers),
            "ended": list(loop._ended),
            "to cancel": list(loop._to_cancel),
            "jobs": list(loop._helpers._jobs),
            "helpers at work": len(loop._helpers._threads) - len(loop._helpers._idle),
        }
    return {name: what for name, what in found.items() if what}


async def settled(node: dstore.AsyncNode) -> None:
    """Nothing is left of any call but that helper threads may have to come to their end."""
    with contextlib.suppress(AssertionError):
        await until(lambda: not left_over(node))
    assert left_over(node) == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task. It ends at once, whatever is under way."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def values_in(folder: Path) -> list[Path]:
    """The values that lie in this folder of shared memory."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def steps(node: dstore.AsyncNode) -> list[type]:
    """What the calls under way wait for, but for helper threads."""
    loop = loop_of(node)
    with loop._host.lock:
        requests = [type(sender.request) for sender in loop._pipeline.waiting.values()]
        return [*requests, *(type(call.step) for call in loop._untils)]

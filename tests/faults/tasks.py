"""An AsyncNode for threads: each of their calls is a task of one event loop, all at the same time.

So a client that makes its calls in threads (:mod:`tests.faults.client`) tests an AsyncNode, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import dstore
from dstore.client.async_node import AsyncWatch

T = TypeVar("T")


class TaskNode:
    """What ``make`` returns, with the methods of a Node that blocks. Closing it ends its loop."""

    def __init__(self, make: Callable[[], dstore.AsyncNode]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tasks")
        self._thread.start()
        self._lock = threading.Lock()
        self._closed = False
        self._node = make()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the AsyncNode, as one that waits for its task."""
        method = getattr(self._node, name)
        return lambda *given, **named: self._do(method(*given, **named))

    def __contains__(self, key: str) -> bool:
        return self._do(self._node.contains(key))

    def keys(self, prefix: str) -> list[Any]:
        async def listed() -> list[Any]:
            return [key async for key in self._node.keys(prefix)]

        return self._do(listed())

    def watch(self, prefix: str = "") -> TaskWatch:
        return TaskWatch(self._node.watch(prefix), self._do)

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise dstore.NodeClosed("the Node is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

    def close(self) -> None:
        """Close the AsyncNode, which ends all calls, and the loop. Idempotent."""
        with contextlib.suppress(dstore.NodeClosed):
            self._do(self._node.close())
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(_others_have_ended(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> TaskNode:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TaskWatch:
    """An AsyncWatch for threads: an iterator whose steps are tasks."""

    def __init__(
        self, watch: AsyncWatch, do: Callable[[Coroutine[Any, Any, Any]], dstore.Event]
    ) -> None:
        self._watch = watch
        self._do = do

    def __iter__(self) -> TaskWatch:
        return self

    def __next__(self) -> dstore.Event:
        try:
            return self._do(self._watch.__anext__())
        except (StopAsyncIteration, dstore.NodeClosed):
            raise StopIteration from None

    def close(self) -> None:
        self._watch.close()


async def _others_have_ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)

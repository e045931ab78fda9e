"""``dstore.AsyncNode``: a Node for asyncio and trio.

Its commands are those of :mod:`dstore.client.commands`. A command runs in the thread of the event
loop; what it has to wait for is done by the Local's :class:`dstore.client.hosts.loop.LoopHost`.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from dstore import checks, config
from dstore.client import translate
from dstore.client.cluster.listing import Listing
from dstore.client.cluster.members import LoopWay
from dstore.client.commands import Command, Lookup
from dstore.client.files import Path
from dstore.client.hits import RAISE
from dstore.client.node import Node
from dstore.client.settings import Settings, initializer_with
from dstore.client.watch import Event, Watch
from dstore.protocol.keys import public
from dstore.protocol.messages import Key
from dstore.runtime import event_loops as loops
from dstore.runtime.native import Empty

P = ParamSpec("P")
T = TypeVar("T")
TASK = LoopWay(loops.task_event)


class AsyncWatch:
    """A :class:`dstore.Watch` for tasks: an asynchronous iterator and context manager.

    Made by :meth:`AsyncNode.watch`. A task that is cancelled while it waits takes no event. Safe
    from any thread and any event loop.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __repr__(self) -> str:
        return repr(self._watch)

    @property
    def missed(self) -> int:
        """Number of events that were dropped because they were not taken quickly enough."""
        return self._watch.missed

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        while True:
            ready = loops.task_event()
            wake = ready.set
            try:
                event = self._watch.poll(wake)
            except Empty:
                try:
                    await ready
                finally:
                    self._watch.forget(wake)
                continue
            if event is None:
                raise StopAsyncIteration
            return event

    def close(self) -> None:
        """See :meth:`Watch.close`."""
        self._watch.close()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()


def _coroutine(
    method: Callable[Concatenate[Node, P], T],
) -> Callable[Concatenate[AsyncNode, P], Coroutine[Any, Any, T]]:
    """Return a method of AsyncNode that carries out the command which a method of Node makes."""
    name = method.__name__

    async def call(self: AsyncNode, /, *given: P.args, **named: P.kwargs) -> T:
        result: T = await self._do(getattr(self._commands, name)(*given, **named))
        return result

    functools.update_wrapper(call, method, ("__name__", "__doc__", "__annotations__"))
    call.__qualname__ = f"AsyncNode.{name}"
    return call


class AsyncNode:
    """A :class:`dstore.Node` whose methods are coroutines, for asyncio and trio.

    It takes the settings of a Node, documented at ``__init__``, and has the methods of a Node. A
    cached value is returned at once, without a switch to another task.

    Safe from any thread and any event loop, also from several at a time. After a fork the child
    can use it in an event loop of its own; it joins there on first use. ``on_deletion`` is called
    in the background thread and ``progress`` of large values in a helper thread, never in the loop.

    A task that is cancelled, or times out (``asyncio.timeout``), leaves nothing behind: its
    request is abandoned, a transfer ends, no partial file stays. What it was writing may still
    have been written, as after an OutcomeUnknown. Values are encoded and decoded in the loop.
    """

    @initializer_with(Settings)
    def __init__(self, settings: Settings) -> None:
        self._take(Node._made_with(settings), own=True)

    @classmethod
    def from_file(cls, path: Path, **settings: Any) -> AsyncNode:
        """See :meth:`Node.from_file`."""
        return cls(connect=path, **settings)

    @classmethod
    def sharing(cls, node: Node) -> AsyncNode:
        """Return an AsyncNode on top of a Node that threads use; closing it leaves that open.

        Raises NodeClosed if the Node is closed, and TypeError if ``node`` is not a Node.
        """
        if not isinstance(node, Node):
            raise TypeError(f"node is a dstore.Node, not {checks.shown(node)}")
        node._check_open()
        shared = cls.__new__(cls)
        shared._take(node, own=False)
        return shared

    def _take(self, node: Node, own: bool) -> None:
        self._node = node
        self._commands = node._commands
        self._own = own

    @property
    def node(self) -> Node:
        """The Node itself, for threads. It has the same cache."""
        return self._node

    @property
    def timeout(self) -> float:
        """See :attr:`Node.timeout`."""
        return self._node.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._node.timeout = seconds

    def __reduce__(self) -> tuple[Callable[[Node], AsyncNode], tuple[Node]]:
        # In another process it shares the Node that is unpickled there.
        return AsyncNode.sharing, (self._node,)

    def __repr__(self) -> str:
        return f"<dstore.AsyncNode of {self._node!r}>"

    async def get(self, key: str | bytes, default: Any = RAISE) -> Any:
        """See :meth:`Node.get`."""
        entry = self._node._cached(key)
        if entry is not None:
            return self._commands.opened(entry)
        return await self._do(self._commands.get(key, default))

    async def lookup(self, key: str | bytes) -> Lookup:
        """See :meth:`Node.lookup`."""
        entry = self._node._cached(key)
        if entry is not None:
            return Lookup(self._commands.opened(entry), from_local=True, cached=True)
        return await self._do(self._commands.lookup(key))

    get_buffer = _coroutine(Node.get_buffer)

    async def contains(self, key: str | bytes) -> bool:
        """Return whether the key has a value, as ``key in node`` does for a Node."""
        return self._node._cached(key) is not None or await self._do(self._commands.contains(key))

    if not TYPE_CHECKING:  # a type checker reports it by itself

        def __contains__(self, key):
            """Raise TypeError: ``in`` cannot wait. See :meth:`contains`."""
            raise TypeError(
                f"`in` cannot wait for Global; use `await node.contains({checks.shown(key)})`"
            )

    get_many = _coroutine(Node.get_many)
    get_file = _coroutine(Node.get_file)

    def keys(self, prefix: str | bytes = "") -> AsyncIterator[Any]:
        """See :meth:`Node.keys`: ``async for key in node.keys()``."""
        self._node._check_open()
        return self._pages(translate.key_text(prefix))

    async def _pages(self, start: Key) -> AsyncIterator[Any]:
        listing = Listing()
        while not listing.over:
            await self._node._read_pages(listing, start, TASK)
            for key in listing.take():
                yield public(key)

    wait = _coroutine(Node.wait)

    def watch(
        self,
        prefix: str | bytes = "",
        *,
        callback: Callable[[Event], None] | None = None,
        limit: int = config.WATCH_LIMIT_DEFAULT,
    ) -> AsyncWatch:
        """See :meth:`Node.watch`: ``async for event in node.watch()``."""
        return AsyncWatch(self._node.watch(prefix, callback=callback, limit=limit))

    set = _coroutine(Node.set)
    set_many = _coroutine(Node.set_many)
    set_file = _coroutine(Node.set_file)
    put = _coroutine(Node.put)
    put_file = _coroutine(Node.put_file)
    delete = _coroutine(Node.delete)
    delete_many = _coroutine(Node.delete_many)
    expire = _coroutine(Node.expire)
    persist = _coroutine(Node.persist)
    ttl = _coroutine(Node.ttl)

    async def stats(self) -> dict[str, Any]:
        """See :meth:`Node.stats`."""
        return self._node.stats()

    async def host_processes(self) -> int:
        """See :meth:`Node.host_processes`."""
        return self._node.host_processes()

    async def global_stats(self) -> dict[str, Any]:
        """See :meth:`Node.global_stats`."""
        return await self._node._global_stats(TASK)

    async def join(self, timeout: float | None = None) -> None:
        """See :meth:`Node.join`."""
        await self._node._join(timeout, TASK)

    async def close(self) -> None:
        """Close the Node; do nothing if it is shared (:meth:`sharing`).

        Tasks that wait get NodeClosed. If this is cancelled, the Node is closed all the same.
        """
        if self._own:
            await loops.in_thread(self._node.close)

    async def __aenter__(self) -> AsyncNode:
        self._node._check_open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _do(self, command: Command[T]) -> T:
        return await self._node._conduct(command, TASK)

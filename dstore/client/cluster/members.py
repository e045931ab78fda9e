"""The Locals of one Node, one for each member of a cluster that it needs, and the way of its calls.

A Local is made when the first call goes to its member. Each has a session, a lease and a cache of
its own, as if it were the only one. :mod:`.routing` says where a call goes, and this carries that
out: for threads, greenlets and tasks alike, which differ in how they wait (:class:`Way`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from dstore import config
from dstore.client.cluster import routing
from dstore.client.cluster.listing import Listing
from dstore.client.cluster.routing import (
    Ask,
    Call,
    Elsewhere,
    Map,
    Move,
    Reply,
    Routes,
    Tried,
    Try,
)
from dstore.client.commands import Command, Commands
from dstore.client.hosts.calls import LoopCall
from dstore.client.hosts.local import Local
from dstore.client.hosts.loop import Started
from dstore.client.large import LargeValues
from dstore.client.watch import Watch
from dstore.client.writing import Start
from dstore.core.local.operations.exchange import Misdirected
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, WaitUntil, Work
from dstore.errors import AccessDenied, DstoreError, GlobalUnavailable, NodeClosed, WrongServer
from dstore.protocol.messages import Key
from dstore.protocol.partitions import PARTITIONS, partition_of
from dstore.runtime import clock, native, reentrancy
from dstore.runtime import greenlets as green
from dstore.runtime.event_loops import TaskEvent, ThreadTaskEvent
from dstore.runtime.logs import Log
from dstore.transport.limits import no_threads

log = Log("dstore.local")

UPKEEP_EVERY = 1.0
"""Seconds between two looks at the map while the Node watches."""
CACHE_MIN = 3 << 20
"""Bytes of cache that each Local has at least, however few partitions its member owns."""

T = TypeVar("T")


class Way(Protocol):
    """How a caller waits: a thread, a greenlet, or a task of an event loop."""

    def run(self, local: Local, command: Command[T], /) -> Awaitable[T]:
        """Carry out a command at one Global."""

    def new_event(self) -> TaskEvent:
        """Make an event that the caller can await."""


class ThreadWay:
    """A thread blocks. A single command goes on the direct path."""

    new_event = ThreadTaskEvent

    @staticmethod
    async def run(local: Local, command: Command[T]) -> T:
        result: T = local.run(command)
        return result


class LoopWay:
    """A task or a greenlet awaits an event of ``new_event``."""

    def __init__(self, new_event: Callable[[], TaskEvent]) -> None:
        self.new_event = new_event

    def run(self, local: Local, command: Command[T]) -> Awaitable[T]:
        return local.loop.conduct(command, self.new_event)


THREAD = ThreadWay()


class Members:
    """Routes the calls of a Node. Safe from any thread.

    ``seeds`` are the addresses that the user has given; ``locals`` has the Locals by address, and
    ``open_local`` makes one and puts it there. ``show`` is called when one was taken out.
    """

    def __init__(
        self,
        seeds: Iterable[str],
        commands: Commands,
        locals: dict[str, Local],
        open_local: weakref.WeakMethod[Callable[[str], Local]],
        show: weakref.WeakMethod[Callable[[], None]],
        cache_bytes: int | None,
    ) -> None:
        self.routes = Routes(seeds)
        self._commands = commands
        self._locals = locals
        self._open_local = open_local
        self._show = show
        self._cache_bytes = cache_bytes
        self.watching = Watching(self)
        self._calls: Counter[str] = Counter()  # under way, by address
        self._lock = native.Lock()

    def local(self, address: str) -> Local:
        """Return the Local of a member. Raises NodeClosed, and what the start of a Local does.

        It joins no Global of another cluster than the one whose map is known.
        """
        local = self._locals.get(address)
        if local is None:
            open_local = self._open_local()
            if open_local is None:
                raise NodeClosed("the Node is closed")
            local = open_local(address)
            self._divide()
        if local.state.others is None:
            local.state.others = Elsewhere(address, self.routes, self.watching.ask)
        if local.state.cluster != self.routes.cluster:  # it was opened before the map was known
            self._belong(local)
        return local

    def _belong(self, local: Local) -> None:
        """Let a Local use members of the cluster alone, once that is known."""
        if self.routes.cluster:
            local.belong(self.routes.cluster)

    @property
    def present(self) -> list[Local]:
        """The Locals that have been made."""
        return list(self._locals.values())

    def owner_of(self, key: Key) -> Local | None:
        """Return the Local of the member that owns a key, if that is known."""
        address = self.routes.owner_of(key)
        return None if address is None else self.local(address)

    def by_owner(self, keys: Iterable[Key]) -> list[tuple[Local, list[Key]]]:
        """Return which keys are those of which member; others are left out."""
        parts, _ = self.routes.split(keys, partition_of)
        return [(self.local(address), items) for address, items in parts.items()]

    def fresh(self, address: str) -> bool:
        """Whether a member has answered within the last lease."""
        local = self._locals.get(address)
        if local is None:
            return False
        return bool(local.state.session) and clock.now() < local.state.lease_end

    def _divide(self) -> None:
        """Divide the bytes for caches among the Locals: each has a part as its member has keys."""
        given = self._cache_bytes
        total = config.CACHE_BYTES_DEFAULT if given is None else given
        for address, local in list(self._locals.items()):
            part = total * self.routes.owned(address) // PARTITIONS
            part = min(total, max(part, CACHE_MIN))
            local.bound(part, None if given is None else part)

    def changed(self) -> None:
        """The map is another one: give the Locals their parts, and let those go that have none."""
        for local in self.present:
            self._belong(local)
        self._divide()
        members = {*self.routes.map.members, *self.routes.seeds}
        left = [address for address in list(self._locals) if address not in members]
        if left:
            self.watching.wake()

    def take_idle(self) -> list[Local]:
        """Take out the Locals whose Globals are no members any more, unless they are in use."""
        members = {*self.routes.map.members, *self.routes.seeds}
        with self._lock:
            idle = [
                address
                for address in list(self._locals)
                if address not in members and not self._calls[address]
            ]
            taken = [self._locals.pop(address) for address in idle]
        show = self._show()
        if taken and show is not None:
            show()
        return taken

    @contextlib.contextmanager
    def _using(self, address: str) -> Iterator[Local]:
        """Keep the Local of a member while a call uses it."""
        with self._lock:
            self._calls[address] += 1
        try:
            yield self.local(address)
        finally:
            with self._lock:
                self._calls[address] -= 1

    # ---- calls ------------------------------------------------------------------------------

    async def carry_out(
        self,
        command: Command[T],
        way: Way,
        moved: Misdirected | None = None,
        since: float | None = None,
        silent: Mapping[str, DstoreError] | None = None,
    ) -> T:
        """Carry out a command at the members that own its keys.

        ``moved`` is what the first attempt has raised, at a Global that turned out to be a member.
        ``since`` is when the call has begun, by default now. ``silent`` are the members that have
        not answered since then, with the reasons.
        """
        since, keys = clock.now() if since is None else since, command.keys
        address = None if moved is not None else self._owner_to_write_to(command)
        refusing: list[str] = []
        silent = dict(silent or {})
        if address is not None:
            try:
                with self._using(address) as local:
                    return await way.run(local, command)
            except Misdirected:
                refusing.append(address)
                since = clock.now() if command.lasting else since  # it is a sign of the member
            except (GlobalUnavailable, WrongServer) as error:
                silent[address] = error.with_traceback(None)
        if command.locate is not None:
            keys = [await self._anywhere(Command(_located(command.locate)), way)]
        if not keys:
            return await self._anywhere(command, way)
        call = self._call(command, keys)
        call.refusing.update(refusing)
        call.silent.update(silent)
        if moved is not None and moved.done and not call.reads:  # a read begins again
            left = set(moved.keys)
            call.done.append(Tried([key for key in keys if key not in left], moved.done))
            call.items = moved.keys

        def attempt(items: Any, timeout: float) -> tuple[Any, Command[Any]]:
            if command.part is None:
                made = command
            else:
                items = items if command.chunk is None else command.chunk(items)
                made = command.part(items)
            return items, made if made.within is None else made.within(timeout)

        done = await self._follow(call, attempt, way, since)
        if command.part is None:
            result: T = done[-1].result
            return result
        assert command.merge is not None
        return command.finish(command.merge([each.result for each in done]))

    def _owner_to_write_to(self, command: Command[Any]) -> str | None:
        """Return the address for a write of one key, if its owner has answered lately.

        That is where :class:`Call` would begin, too, with much that such a write seldom needs.
        """
        if command.within is not None or command.part is not None or len(command.keys) != 1:
            return None
        address = self.routes.owner_of(next(iter(command.keys)))
        return address if address is not None and self.fresh(address) else None

    def _call(self, command: Command[Any], keys: Iterable[Key]) -> Call[Key]:
        return routing.call(
            self.routes,
            keys,
            self._commands.timeout,
            reads=command.within is not None,
            fresh=self.fresh,
            lasting=command.lasting,
        )

    async def _follow(
        self,
        call: Call[Any],
        attempt: Callable[[Any, float], tuple[Any, Command[Any]]],
        way: Way,
        since: float | None = None,
    ) -> list[Tried]:
        """Carry out the moves of a call, which has begun at ``since``, by default now."""
        moves = call.begin(clock.now(), since)
        reply: Reply | None = None
        while True:
            known = self.routes.map
            try:
                move: Move = moves.send(reply)  # type: ignore[arg-type]
            except StopIteration as stop:
                done: list[Tried] = stop.value
                return done
            if self.routes.map is not known:
                self.changed()
            value: Any = None
            if isinstance(move, Try):
                parts = {
                    address: attempt(items, move.timeout) for address, items in move.parts.items()
                }
                value = await self._try(parts, way)
            elif isinstance(move, Ask):
                value = await self._ask(move, way)
            else:
                await self._anywhere(Command(_pause(move.seconds)), way)
            reply = Reply(clock.now(), value)

    async def _try(self, parts: dict[str, tuple[Any, Command[Any]]], way: Way) -> dict[str, Tried]:
        """Carry out commands at members, all at the same time. Returns results and errors."""
        if len(parts) == 1:
            ((address, (items, command)),) = parts.items()
            with self._using(address) as local:
                return {address: Tried(items, await _result(way.run(local, command)))}
        tried: dict[str, Tried] = {}
        with contextlib.ExitStack() as using:
            begun: list[tuple[str, Any, Local, Started[Any]]] = []
            try:
                for address, (items, command) in parts.items():
                    local = using.enter_context(self._using(address))
                    begun.append((address, items, local, local.loop.start(command, way.new_event)))
                while begun:
                    address, items, local, started = begun.pop()
                    tried[address] = Tried(items, await _result(local.loop.finish(started)))
            except BaseException as error:
                for _, _, local, started in begun:
                    local.loop.give_up(started, error)
                raise
        return tried

    async def _ask(self, ask: Ask, way: Way) -> Map | Exception:
        """Ask a member for the map. Returns that, or the error."""
        with self._using(ask.address) as local:
            found: Any = await _result(way.run(local, self._commands.map(ask.timeout)))
        if isinstance(found, Exception):
            return found
        assert isinstance(found, Map)
        if self.routes.learn(found):
            self.changed()
        return found

    async def learn(self, way: Way, timeout: float) -> None:
        """Wait until a map is known, at most ``timeout`` seconds. Raises GlobalUnavailable."""
        await self._follow(routing.call(self.routes, (), timeout, reads=True), _no, way)

    async def refresh(self, way: Way) -> None:
        """Ask some member for the present map; the next one if it does not answer.

        If it has another one than is known, and no newer one, all are asked, and the highest of
        these maps is taken.
        """
        silent = [address for address in list(self._locals) if not self.fresh(address)]
        known, lower = self.routes.map, list[Map]()
        for count, address in enumerate(self.routes.to_ask(silent)):
            if count >= routing.ASKED_MAX and not lower:
                return
            found = await self._ask(Ask(address, routing.ASK_TIMEOUT), way)
            if isinstance(found, Map) and self.routes.fits(found):
                if found == known or self.routes.map is not known:
                    return
                lower.append(found)
        if (
            lower
            and self.routes.map is known
            and self.routes.learn(routing.highest(lower), lower=True)
        ):
            self.changed()

    async def everywhere(self, command: Command[T], way: Way) -> dict[str, T | Exception]:
        """Carry out a command that reads at all members. Returns results and errors by address."""
        await self.learn(way, self._commands.timeout)
        await self.refresh(way)
        assert command.within is not None
        made = command.within
        parts = {address: ((), made(self._commands.timeout)) for address in self.routes.map.members}
        tried = await self._try(parts, way)
        return {address: tried[address].result for address in parts}

    async def read(self, listing: Listing, prefix: Key, way: Way) -> None:
        """Read the pages that a listing of keys needs to go on."""
        for cursor in listing.empty:
            call = Call(self.routes, cursor.numbers, int, self._commands.timeout, reads=True)
            done = await self._follow(call, partial(self._page, prefix, cursor.after), way)
            listing.read(
                cursor, [(each.items, each.result.keys, each.result.after) for each in done]
            )

    def _page(
        self, prefix: Key, after: Key, numbers: Sequence[int], timeout: float
    ) -> tuple[Sequence[int], Command[Any]]:
        page = self._commands.page(prefix, after, numbers)
        assert page.within is not None
        return numbers, page.within(timeout)

    async def _anywhere(self, command: Command[T], way: Way) -> T:
        """Carry out a command at a member that has answered lately, if there is one."""
        fresh = filter(self.fresh, list(self._locals))
        with self._using(next(fresh, self.routes.seeds[0])) as local:
            return await way.run(local, command)


def _no(items: Any, timeout: float) -> tuple[Any, Command[Any]]:
    raise AssertionError("a call without items tries nothing")


async def _result(done: Awaitable[T]) -> T | Exception:
    """Return the result of a command, or the error that it has ended with at its member."""
    try:
        return await done
    except (DstoreError, Misdirected) as error:
        return error.with_traceback(None)  # which refers to frames that refer to the error


def _located(locate: Callable[[], Key]) -> Start[Key]:
    def start(state: LocalState, _: LargeValues, now: float) -> Operation[Key]:
        key: Key = (yield Work(locate)).value
        return key

    return start


def _pause(seconds: float) -> Start[None]:
    def start(state: LocalState, _: LargeValues, now: float) -> Operation[None]:
        yield WaitUntil(lambda _: False, now + seconds)

    return start


def _nothing() -> None:
    """Do nothing."""


def ask_in_background(
    local: Local, command: Command[Map], become: weakref.WeakMethod[Callable[[], Members]]
) -> None:
    """Ask a Global for its map, whenever it can be reached; call ``become`` if it is a member.

    ``become`` is called in the background thread of the Local, if its object is still there.
    """

    def done() -> None:
        call.done = _nothing  # this refers to the call
        do = become()
        with contextlib.suppress(DstoreError, Misdirected):
            if call.result().members and do is not None:
                do()

    call = LoopCall(command, done)
    local.loop.begin(call)


class Watching:
    """Lets watches have the events of all members. It has a thread while there are any.

    That thread learns of new members from the map, which it looks at every ``UPKEEP_EVERY``
    seconds: a member that has been added owns nothing before another one has begun a new epoch, and
    a resync comes when a watch begins at a member. It closes the Locals that are not needed, too,
    and asks for the map where writes wait for a member that is silent.
    """

    def __init__(self, members: Members) -> None:
        self._members = members
        self._watches: list[weakref.ref[Watch]] = []
        self._bell: native.SimpleQueue[None] = native.SimpleQueue()
        self._lock = native.RLock()
        self._thread: native.Thread | None = None
        self._stopping = False
        self._asked = False
        self._denied: dict[str, str] = {}

    def begin(self, prefix: Key, limit: int) -> Watch:
        """Return a new watch of the keys that begin with ``prefix``.

        Raises NodeClosed, and GlobalUnavailable if the system has no more threads.
        """
        bell = self._bell
        watch = Watch(prefix, limit, lambda: bell.put(None))
        self.adopt([watch])
        return watch

    def adopt(self, watches: Iterable[Watch]) -> None:
        """Let these watches have the events of all members. Raises as :meth:`begin`."""
        with self._lock:
            self._watches += map(weakref.ref, watches)
        if self._watches:
            self.wake()

    def wake(self) -> None:
        """Have the thread look again; it is started if there is none. Raises as :meth:`begin`."""
        with self._lock:
            if self._stopping:
                raise NodeClosed("the Node is closed")
            if self._thread is None:
                self._thread = native.Thread(self._serve, "dstore-members")
                try:
                    self._thread.start()
                except RuntimeError as error:
                    self._thread.forget()
                    self._thread = None
                    raise GlobalUnavailable(no_threads(error)) from None
        self._bell.put(None)

    def ask(self) -> None:
        """Have some member asked for the present map. Returns at once; takes no Local's lock."""
        self._asked = True
        with contextlib.suppress(DstoreError):
            self.wake()

    def stop(self) -> None:
        """End the thread and the watches. Takes no lock, for the garbage collector."""
        self._stopping = True
        self._bell.put(None)
        for watch in self._alive():
            watch.close()

    def join(self) -> None:
        """Wait until the thread has ended, after :meth:`stop`; not in the middle of a call."""
        thread = self._thread
        if thread is not None and not thread.is_this() and reentrancy.here() is None:
            green.blocking(thread.join)

    def end(self) -> None:
        """In a forked child: end the watches."""
        for watch in self._alive():
            watch.close()

    def _alive(self) -> list[Watch]:
        found = [reference() for reference in list(self._watches)]
        return [watch for watch in found if watch is not None and not watch.over]

    def _serve(self) -> None:
        while not self._stopping:
            while not self._bell.empty():
                self._bell.get()
            try:
                self._turn()
            except NodeClosed:
                pass  # it is about to be stopped
            except Exception:  # a defect of dstore; without this thread watches would miss events
                log.exception("the thread that follows the members of a cluster goes on")
            with self._lock:
                self._watches = list(map(weakref.ref, self._alive()))
                if not self._watches and self._bell.empty():
                    self._thread = None
                    return
            with contextlib.suppress(native.Empty):
                self._bell.get(True, UPKEEP_EVERY)

    def _turn(self) -> None:
        members = self._members
        for local in members.take_idle():
            local.watches.leave()
            local.close()
        watches = self._alive()
        for local in members.present:
            local.wake()  # it ends the watches that were closed
        asked, self._asked = self._asked, False
        if watches or asked:
            green.finish(members.refresh(THREAD))
        if not watches:
            return
        for address in members.routes.map.members:
            if self._stopping:
                return
            self._watch_at(address, watches)

    def _watch_at(self, address: str, watches: list[Watch]) -> None:
        """Add the watches that a member does not have yet."""
        present = self._members.local(address).watches
        try:
            for watch in watches:
                if watch not in present.present:
                    present.add(watch)
            self._denied.pop(address, None)
        except (AccessDenied, WrongServer) as error:
            if self._denied.get(address) != str(error):
                self._denied[address] = str(error)
                for watch in watches:
                    watch.deny(error)

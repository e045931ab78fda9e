"""A thread of a simulated client: it runs operations by the routing rules, and records them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from dstore.client.cluster.listing import Listing
from dstore.client.cluster.routing import (
    Ask,
    Call,
    Move,
    Moves,
    Pause,
    Reply,
    Tried,
    Try,
    call,
    map_of,
)
from dstore.core.local import operations
from dstore.core.local.membership import Entry
from dstore.core.local.operations import SetOutcome
from dstore.core.local.steps import Operation
from dstore.errors import DstoreError, OutcomeUnknown, RequestRefused
from dstore.protocol.messages import (
    DelResult,
    ExpireStatus,
    Key,
    Large,
    SetItem,
    Stored,
)
from dstore.protocol.partitions import to_bitmap
from tests.history.operations import Kind, Result
from tests.history.operations import Operation as Recorded
from tests.simulation.client import (
    DEL_RESULTS,
    EXPIRE_RESULTS,
    NOT_DONE,
    SET_RESULTS,
    TTL_LEASES,
    Seen,
)
from tests.simulation.cluster.attempt import Attempt
from tests.simulation.cluster.node import SimNode
from tests.simulation.cluster.scans import Scan
from tests.simulation.cluster.scenario import KINDS

READS = ("get", "get_many")
SETS = ("set", "set_many", "replace")
EXPIRY = ("expire", "persist")
PAGE = 2
"""Keys of one page of a listing, so that it takes several."""


class Caller:
    """A thread, which runs one operation after the other."""

    def __init__(self, node: SimNode, number: int, names: list[Key]) -> None:
        self.node = node
        self.loop = node.loop
        self.name = f"{node.name}.t{number}"
        self.line = f"thread {number}"
        self.left = node.scenario.operations
        self.done: list[Recorded] = []
        self.scans: list[Scan] = []
        self._names = names
        self._moves: Moves[Any] | None = None
        self._attempts: list[Attempt] = []
        self._tried: dict[str, Tried] = {}
        self._listing: Listing | None = None
        self._probing: Key | None = None
        self._rest()

    @property
    def idle(self) -> bool:
        """Whether it has nothing more to do."""
        return self._moves is None and not self.left

    def probe(self, key: Key) -> None:
        """Read a key now."""
        self._probing = key
        self.left = 1
        self._begin()

    def _rest(self) -> None:
        think = self.node.scenario.think
        self.loop.later(self.loop.dice.expovariate(1 / think), self._begin)

    # ---- beginning ------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self.left or self._moves is not None:
            return
        if self.node.held_up(self.line, self._begin):
            return
        self.left -= 1
        dice, scenario = self.loop.dice, self.node.scenario
        self.kind = dice.choices(KINDS, scenario.weights)[0]
        many = dice.randint(1, scenario.many) if self.kind.endswith("many") else 1
        self.keys = dice.sample(self._names, min(many, len(self._names)))
        if self._probing is not None:
            self.kind, self.keys = "get", [self._probing]
        self.values = dict.fromkeys(self.keys, f"{self.loop.number():08}"[-8:])
        limited = self.kind == "expire" or (self.kind in SETS and dice.random() < scenario.ttl)
        self.ttl = (1 - dice.random()) * TTL_LEASES * scenario.ownership if limited else None
        self.start = self.loop.stamp()
        self.loop.log(self.name, f"{self.kind} {' '.join(self.keys)}")
        if self.kind == "keys":
            self._listing = Listing()
            self._found: list[Key] = []
            self._list()
            return
        if self.kind in READS and self._hit():
            return
        self._items = {key: SetItem(key, self._stored(self.values[key])) for key in self.keys}
        timeout = scenario.timeout
        calling = call(
            self.node.routes,
            self.keys,
            timeout,
            reads=self.kind in READS,
            fresh=self._fresh,
        )
        self._go(calling)

    def _stored(self, value: str) -> Stored:
        return Stored(self.loop.random16(), "bytes", value.encode())

    def _fresh(self, address: str) -> bool:
        local = self.node.locals.get(address)
        return local is not None and local.clock() < local.state.lease_end

    def _hit(self) -> bool:
        """Look in the caches. Returns whether that was all."""
        for key in list(self.keys):
            entry = self.node.hit(key)
            if entry is not None:
                self.loop.counts["hits"] += 1
                self._record(key, self.loop.stamp(), Result.VALUE, _text(entry))
                self.keys.remove(key)
        if not self.keys:
            self._rest()
        return not self.keys

    # ---- the moves of a call --------------------------------------------------------------

    def _go(self, calling: Call[Any]) -> None:
        self._moves = calling.begin(self.node.clock())
        self._advance(None)

    def _advance(self, reply: Reply | None) -> None:
        assert self._moves is not None
        try:
            move = next(self._moves) if reply is None else self._moves.send(reply)
        except StopIteration as stop:
            self._moves = None
            self._ended(stop.value)
        except DstoreError as error:
            self._moves = None
            self._failed(error)
        else:
            self._perform(move)

    def _perform(self, move: Move) -> None:
        if isinstance(move, Pause):
            self.loop.later(move.seconds / self.node.host.rate, self._paused)
        elif isinstance(move, Ask):
            local = self.node.local(move.address)
            now = local.clock()
            asking = operations.ask_map(local.state, now, now + move.timeout)
            self._start(move.address, asking, self._mapped)
        else:
            self._try(move)

    def _paused(self) -> None:
        if not self.node.held_up(self.line, self._paused):
            self._advance(Reply(self.node.clock()))

    def _mapped(self, result: Any) -> None:
        if self.node.held_up(self.line, self._mapped, result):
            return
        if not isinstance(result, BaseException):
            result = map_of(result)
        self._advance(Reply(self.node.clock(), result))

    def _try(self, move: Try) -> None:
        self._tried = {}
        waiting = set(move.parts)

        def tried(address: str, result: Any) -> None:
            if self.node.held_up(self.line, tried, address, result):
                return
            self._tried[address] = Tried(move.parts[address], result)
            waiting.discard(address)
            if not waiting:
                self._advance(Reply(self.node.clock(), self._tried))

        self.loop.log(self.name, f"tries {dict(move.parts)}")
        for address, items in move.parts.items():
            operation = self._operation(address, list(items), move.timeout)
            self._start(address, operation, partial(tried, address))

    def _start(self, address: str, operation: Operation[Any], done: Any) -> None:
        Attempt(self.node.local(address), self.line, operation, done)

    def _operation(self, address: str, items: list[Any], timeout: float) -> Operation[Any]:
        state, now = self.node.local(address).state, self.node.clock()
        deadline = now + self.node.scenario.timeout
        if self.kind in READS:
            return operations.get(state, items, now, now + timeout)
        if self.kind == "keys":
            return operations.scan(
                state, "", self._cursor.after, PAGE, now, now + timeout, to_bitmap(items)
            )
        if self.kind.startswith("delete"):
            return operations.delete(state, items, self.kind != "delete_soon", now, deadline)
        if self.kind in EXPIRY:
            return operations.expire(state, items[0], self.ttl, now, deadline)
        replace = self.kind == "replace"
        values = [self._items[key] for key in items]
        return operations.store(state, values, replace, now, deadline, self.ttl)

    # ---- listing --------------------------------------------------------------------------

    def _list(self) -> None:
        """Read the next page, if one is needed."""
        listing = self._listing
        assert listing is not None
        self._found += listing.take()
        if listing.over:
            self._listing = None
            self.scans.append(Scan(self.name, self.start, self.loop.stamp(), tuple(self._found)))
            self.loop.log(self.name, f"keys = {self._found}")
            self._rest()
            return
        self._cursor = listing.empty[0]
        numbers = [each for each in self._cursor.numbers if each < self.node.scenario.partitions]
        scenario = self.node.scenario
        self._go(Call(self.node.routes, numbers, int, scenario.timeout, True))

    def _listed(self, tried: list[Tried]) -> None:
        assert self._listing is not None
        pages = [(each.items, each.result.keys, each.result.after) for each in tried]
        self._listing.read(self._cursor, pages)
        self._list()

    # ---- ending ---------------------------------------------------------------------------

    def _ended(self, tried: list[Tried]) -> None:
        if self._listing is not None:
            self._listed(tried)
            return
        end = self.loop.stamp()
        for items, result in tried:
            results = self._results(items, result)
            for key in items:
                self._note(key, results.get(key), end)
        self._rest()

    def _results(self, items: Iterable[Key], result: Any) -> Mapping[Key, Any]:
        if self.kind in EXPIRY:
            return dict.fromkeys(items, result)
        if self.kind in READS and not isinstance(result, Mapping):
            return {key: result.answer(key) for key in items}
        assert isinstance(result, Mapping)
        return result

    def _note(self, key: Key, result: Any, end: float) -> None:
        status = getattr(result, "status", result)
        if any(status is each for each in NOT_DONE):
            self.loop.log(self.name, f"{self.kind} {key} was refused")
            return
        seen = self._seen(result)
        self.loop.log(self.name, f"{self.kind} {key} = {seen[0].value} {seen[1] or ''}")
        self._record(key, end, *seen)

    def _seen(self, result: Any) -> Seen:
        if isinstance(result, SetOutcome):
            if result.found and self.kind == "replace":
                return Result.WRITTEN, None
            return SET_RESULTS[result.status], None
        if isinstance(result, DelResult):
            return DEL_RESULTS[result.status], None
        if isinstance(result, ExpireStatus):
            return EXPIRE_RESULTS[result], None
        return (Result.MISSING, None) if result is None else (Result.VALUE, _text(result))

    def _failed(self, error: DstoreError) -> None:
        self.loop.log(self.name, f"{type(error).__name__}: {error}"[:200])
        self.loop.counts[type(error).__name__] += 1
        if isinstance(error, RequestRefused):
            self.loop.violation(f"{self.name} was refused: {error}")
        if isinstance(error, OutcomeUnknown) and self.node.scenario.calm:
            self.loop.violation(f"{self.name}: {error}, and nothing has gone wrong")
        self._listing = None
        if self.kind not in (*READS, "keys"):  # some keys may have outcomes; these are not said
            for key in self.keys:
                self._record(key, None, Result.UNKNOWN, None)
        self._rest()

    def _record(self, key: Key, end: float | None, result: Result, seen: str | None) -> None:
        kind = Kind.GET if self.kind in READS else Kind.SET if self.kind in SETS else Kind.DELETE
        kind = Kind.REPLACE if self.kind == "replace" else kind
        kind = Kind.EXPIRE if self.kind in EXPIRY else kind
        value = self.values[key] if self.kind in SETS else None
        ttl = self.ttl if self.kind in (*SETS, *EXPIRY) else None
        self.done.append(
            Recorded(self.name, key, kind, self.start, end, result, value, seen, ttl=ttl)
        )


def _text(answer: Entry | Stored) -> str:
    value = answer.value if isinstance(answer, Entry) else answer
    assert isinstance(value, Stored)
    assert not isinstance(value.body, Large)
    return bytes(value.body).decode()

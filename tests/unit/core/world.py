"""A Global and some Locals, real cores, whose messages move only when a test says so.

Time stands still unless it is moved. What somebody sends lies in a queue until it is delivered,
so that a test spells out an interleaving step by step. ``settle`` delivers everything.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from dstore.core.authority.effects import Commit, GlobalEffect, Load, Publish, Send
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.core.engine import Change, Loaded, Outcome
from dstore.core.local import operations
from dstore.core.local.effects import Dropped, LocalEffect, Look, Subscribe, TakeBack, Tell
from dstore.core.local.membership import Entry
from dstore.core.local.operations import ReadOptions, SetOutcome
from dstore.core.local.state import LocalState
from dstore.core.local.steps import (
    Operation,
    Request,
    Step,
    StepResult,
    WaitUntil,
    drive,
    take_step,
)
from dstore.protocol.messages import (
    Broadcast,
    Committed,
    DelResult,
    ExpireStatus,
    Message,
    SetItem,
    Stored,
    ToGlobal,
)
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.bulk import PrivateBulk
from tests.engines import AwayEngine

LEASE = 2.0
WALL = 1.8e9
"""The time of the wall clock when that of the leases is 0."""


class World:
    """One Global and its Locals on one clock.

    With ``away`` the engine has to load the bytes of each value that is read. The loads stay under
    way until a test ends them, or end at once where ``prompt`` is set.
    """

    all_away = False
    """Whether the engine of every World has its values away, and loads them promptly."""

    def __init__(
        self,
        *,
        lease: float = LEASE,
        log_length: int = 100,
        limit: int = 1 << 20,
        durable: bool = False,
        quiet: float = 0.0,
        away: bool = False,
        partitions: Partitions | None = None,
    ):
        self.now = 1000.0
        self.set_back = 0.0  # seconds by which the wall clock has been set back
        self.durable = durable
        self.quiet_until = self.now + quiet if quiet else 0.0
        self.partitions = partitions
        self.batches: deque[Commit] = deque()  # on their way to the disk
        self.lease = lease
        self.log_length = log_length
        self.engine = MemoryEngine(limit, journal=durable)
        self.away = away or self.all_away
        self.loading = AwayEngine(self.engine)
        self.loads: deque[Load] = deque()  # under way
        self.prompt = not away
        self.bulk = PrivateBulk()
        self.members: list[Member] = []
        self.inboxes: dict[bytes, deque[Message]] = {}
        self._draws = itertools.count(1)
        self._dice = random.Random("sessions")
        self.epoch = 0
        self.page: Any = None  # what a Local of this host finds
        self.start_global()

    def start_global(self) -> None:
        """A new life of Global, with whatever the engine holds."""
        self.epoch += 1
        self.loads.clear()
        self.state = GlobalState(
            self.loading if self.away else self.engine,
            self.bulk,
            epoch=self.epoch,
            publisher="tcp://*:2",
            lease=self.lease,
            log_length=self.log_length,
            value_limit=1000,
            large_from=1 << 10,
            random63=self.random63,
            wall=lambda: self.wall,
            durable=self.durable,
            quiet_until=self.quiet_until,
            partitions=self.partitions,
        )

    @property
    def wall(self) -> float:
        """The time of the wall clock."""
        return WALL + self.now - self.set_back

    def random63(self) -> int:
        """63 random bits, the same in each run."""
        return self._dice.getrandbits(63)

    def engine_holds(self, *keys: str) -> None:
        """These have a value that nobody holds."""
        for key in keys:
            self.engine.bind(key, Stored(self.random16(), "bytes", b"v"))

    def random16(self) -> bytes:
        return next(self._draws).to_bytes(16, "big")

    def member(self, name: str, cache_bytes: int = 1 << 20, **settings: Any) -> Member:
        """A Local that has said nothing yet."""
        member = Member(self, name, cache_bytes, **settings)
        self.members.append(member)
        return member

    def joined(self, *names: str, identity: Identity = ANYONE) -> list[Member]:
        """Locals that have a session and a lease from this moment."""
        members = [self.member(name, identity=identity) for name in names]
        self.settle()
        return members

    def renew(self, *members: Member) -> None:
        """These renew their leases. One that has never done so does not outlive its first."""
        for member in members:
            member.state.renew(self.now)
        self.settle()

    def joined_without(self, name: str, *asleep: Member) -> list[Member]:
        """A further Local joins while others neither hear nor say anything."""
        for member in asleep:
            self.members.remove(member)
        members = self.joined(name)
        self.members += asleep
        return members

    def deliver(self, route: bytes, message: ToGlobal, identity: Identity = ANYONE) -> None:
        """Global receives a message."""
        self._perform(self.state.receive(route, message, self.now, identity))

    def revoke(self, identity: Identity) -> None:
        """Global takes nothing from an identity any more."""
        self._perform(self.state.revoke(identity, self.now))

    def tick(self) -> None:
        """Global does what is due."""
        if self.now >= self.state.wake_at:
            self._perform(self.state.tick(self.now))

    def commit(self, *outcomes: Outcome) -> list[Change]:
        """The disk has the oldest batch; its changes are done, or end as given. Returns them."""
        number, changes = self.batches.popleft()
        ended = outcomes or [Outcome.DONE] * len(changes)
        assert len(ended) == len(changes)
        self._perform(self.state.committed(number, ended, self.now))
        return changes

    def load(self, *results: Loaded) -> Load:
        """The oldest load ends, by default with what the engine has. Returns it."""
        load = self.loads.popleft()
        ended = results or [self.loading.result(*each) for each in load.wanted]
        assert len(ended) == len(load.wanted)
        self._perform(self.state.loaded(load.number, ended, self.now))
        return load

    def advance(self, seconds: float) -> None:
        """Time passes; nobody does anything."""
        self.now += seconds

    def publish(self) -> None:
        """Time passes until the invalidations that are kept for a pause are broadcast."""
        due = self.state._invalidations.broadcasts.wake_at
        assert due < float("inf"), "nothing has been kept"
        self.advance(max(0.0, due - self.now))
        self.tick()

    def settle(self) -> None:
        """Deliver all there is and let everybody act, until all is quiet."""
        moved = True
        while moved:
            self.tick()
            moved = sum(member.turn() for member in self.members) > 0

    def live(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass while everybody acts."""
        end = self.now + seconds
        while self.now < end:
            self.advance(min(step, end - self.now))
            self.settle()

    def _perform(self, effects: Iterable[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                self.loads.append(effect)
            elif isinstance(effect, Publish):
                for member in self.members:
                    if member.subscribed:
                        member.published.append(effect.message)
            elif isinstance(effect, Send):
                self.inboxes.setdefault(effect.route, deque()).append(effect.message)
            else:
                self.batches.append(effect)
        if self.prompt and self.loads:
            self.load()


class Member:
    """One Local and its channels."""

    def __init__(
        self,
        world: World,
        name: str,
        cache_bytes: int,
        identity: Identity = ANYONE,
        **settings: Any,
    ) -> None:
        self.world = world
        self.identity = identity
        self.name = name
        self.state = LocalState(
            random16=world.random16, label=name, cache_bytes=cache_bytes, **settings
        )
        self.route = name.encode()
        self.outgoing: deque[ToGlobal] = deque()  # on the control channel
        self.published: deque[Broadcast | Committed] = deque()
        self.control: deque[Message] = world.inboxes.setdefault(self.route, deque())
        self.subscribed = False
        self.dropped: list[str] = []
        self.given_up: list[bytes] = []
        self.to_take: deque[TakeBack] = deque()  # large values to be found in shared memory
        self.told: list[tuple[int, str | None]] = []  # watchers, and what was announced to them
        self._calls = itertools.count(1)

    # ---- messages -------------------------------------------------------------------------

    def tick(self) -> list[ToGlobal]:
        """Do what is due. What it put into ``outgoing``."""
        before = len(self.outgoing)
        self._perform(self.state.tick(self.world.now))
        return list(self.outgoing)[before:]

    def send(self) -> None:
        """Deliver the oldest message of the control channel to Global."""
        self.world.deliver(self.route, self.outgoing.popleft(), self.identity)

    def hear(self) -> Broadcast | Committed:
        """Receive the oldest broadcast."""
        message = self.published.popleft()
        self.receive(message)
        return message

    def receive(self, message: Any) -> None:
        """Receive a message from any sender."""
        self._perform(self.state.receive(message, self.world.now))

    def listen(self) -> Any:
        """Receive the oldest message on the control channel."""
        message = self.control.popleft()
        self.receive(message)
        return message

    def turn(self) -> bool:
        """Receive everything, act, send everything. Whether there was anything."""
        moved = bool(self.published or self.control)
        while self.published:
            self.hear()
        while self.control:
            self.listen()
        self.tick()
        if self.state.wake_at <= self.world.now:  # it has looked for a page first
            self.tick()
        moved = moved or bool(self.outgoing)
        while self.outgoing:
            self.send()
        return moved

    def _perform(self, effects: Iterable[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.outgoing.append(effect.message)
            elif isinstance(effect, Subscribe):
                self.subscribed = True
            elif isinstance(effect, Look):
                page = self.world.page
                if page is not None and effect.epoch in (0, page.epoch):
                    self.state.attach(page, self.world.now)
            elif isinstance(effect, Dropped):
                self.dropped += effect.keys
                self.given_up += effect.tokens
            elif isinstance(effect, TakeBack):
                self.to_take.append(effect)
            else:
                self.told += [(each.watcher, each.key) for each in effect.removals]

    # ---- operations -----------------------------------------------------------------------

    def begin(self, operation: Operation[Any]) -> Call:
        return Call(self, f"{self.name}/{next(self._calls)}".encode(), operation)

    def begin_get(self, *keys: str, timeout: float = 5.0, stale_ok: bool = False) -> Call:
        now = self.world.now
        options = ReadOptions(stale_ok)
        if len(keys) == 1:
            one = operations.get_one(self.state, keys[0], now, now + timeout, options)
            return self.begin(_answer_of_one(keys[0], one))
        return self.begin(_answers(operations.get(self.state, keys, now, now + timeout, options)))

    def begin_wait(self, key: str, until: float, stall_timeout: float = 5.0) -> Call:
        """Wait for a key; the result is an Answer, or None."""
        now = self.world.now
        return self.begin(_only_answer(operations.wait(self.state, key, now, until, stall_timeout)))

    def begin_set(
        self,
        *pairs: Any,
        replace: bool = False,
        ttl: float | None = None,
        timeout: float = 5.0,
    ) -> Call:
        now = self.world.now
        items = [item(self.world, key, value) for key, value in pairs]
        return self.begin(operations.store(self.state, items, replace, now, now + timeout, ttl))

    def begin_delete(self, *keys: str, wait: bool = True, timeout: float = 5.0) -> Call:
        now = self.world.now
        return self.begin(operations.delete(self.state, keys, wait, now, now + timeout))

    def begin_expire(self, key: str, ttl: float | None, timeout: float = 5.0) -> Call:
        now = self.world.now
        return self.begin(operations.expire(self.state, key, ttl, now, now + timeout))

    def expire(self, key: str, ttl: float | None) -> ExpireStatus:
        status: ExpireStatus = self.begin_expire(key, ttl).finish()
        return status

    def ttl(self, key: str) -> tuple[bool, float | None]:
        """Whether the key has a value, and the seconds that it has left."""
        now = self.world.now
        reply = self.begin(operations.ttl(self.state, key, now, now + 5.0)).finish()
        return reply.bound, reply.left

    def get(self, key: str) -> bytes | None:
        """The value, with everything delivered at once."""
        answer: Answer | None = self.begin_get(key).finish().get(key)
        return body(answer)

    def set(
        self, key: str, value: bytes, *, replace: bool = False, ttl: float | None = None
    ) -> SetOutcome:
        call = self.begin_set((key, value), replace=replace, ttl=ttl)
        outcome: SetOutcome = call.finish()[key]
        return outcome

    def delete(self, key: str) -> DelResult:
        result: DelResult = self.begin_delete(key).finish()[key]
        return result

    def hit(self, key: str) -> bytes | None:
        """What the cache answers now, by itself."""
        entry = self.state.hit(key, self.world.now)
        return raw(entry.value) if entry and isinstance(entry.value, Stored) else None


class Answer(NamedTuple):
    """The answer to one key: its entry, if it is cached, and the value as it came."""

    entry: Entry | None
    stored: Stored
    from_local: bool


def _answer(answer: operations.Answer, from_local: bool) -> Answer:
    if isinstance(answer, Stored):
        return Answer(None, answer, from_local)
    assert isinstance(answer.value, Stored)
    return Answer(answer, answer.value, from_local)


def _only_answer(operation: Operation[operations.One]) -> Operation[Answer | None]:
    answer, from_local = yield from operation
    return None if answer is None else _answer(answer, from_local)


def _answer_of_one(key: str, operation: Operation[operations.One]) -> Operation[dict[str, Answer]]:
    answer = yield from _only_answer(operation)
    return {} if answer is None else {key: answer}


def _answers(operation: Operation[operations.Reading]) -> Operation[dict[str, Answer]]:
    reading = yield from operation
    local = {key: _answer(each, True) for key, each in reading.local.items()}
    return local | {key: _answer(each, False) for key, each in reading.fetched.items()}


class Call:
    """An operation under way, on a request channel of its own."""

    def __init__(self, member: Member, route: bytes, operation: Operation[Any]) -> None:
        self.member = member
        self.world = member.world
        self.route = route
        self.operation = operation
        self.replies: deque[Any] = self.world.inboxes.setdefault(route, deque())
        self.step: Step | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False
        self.resume(None)

    @property
    def message(self) -> Any:
        """The request it wants to send."""
        assert isinstance(self.step, Request), f"not asking but {self.step}"
        return self.step.message

    @property
    def waits(self) -> bool:
        """Whether it waits for something other than a reply."""
        return isinstance(self.step, WaitUntil)

    def resume(self, resumed: StepResult | None) -> None:
        self.step = None
        try:
            step = take_step(self.operation, resumed)
            finished = drive(self.operation, step, self.perform)
        except Exception as error:
            self.done, self.error = True, error
        else:
            if finished is not None:
                self.done, self.result = True, finished.value

    def perform(self, step: Step) -> None:
        """Stop at each step: the test says what comes of it."""
        self.step = step

    def send(self) -> Any:
        """Deliver the request to Global; the reply that now lies in the channel, if any."""
        self.world.deliver(self.route, self.message, self.member.identity)
        return self.replies[-1] if self.replies else None

    def answer(self, reply: Message | None = None) -> None:
        """The caller receives the reply, or the given one."""
        message: Any = self.replies.popleft() if reply is None else reply
        assert message.request == self.message.request
        self.resume(StepResult(self.world.now, message, True))

    def time_out(self, *, sent: bool = True) -> None:
        """Time passes to the end of the step, and no reply has come."""
        assert isinstance(self.step, (Request, WaitUntil))
        self.world.now = max(self.world.now, self.step.until)
        self.resume(StepResult(self.world.now, None, sent and isinstance(self.step, Request)))

    def look(self) -> None:
        """Look whether what it waits for has come."""
        step = self.step
        assert isinstance(step, WaitUntil)
        if step.predicate(self.world.now):
            self.resume(StepResult(self.world.now))

    def give_up(self) -> None:
        self.operation.close()
        self.done = True

    def finish(self) -> Any:
        """Deliver everything at once until it is done."""
        while not self.done:
            if isinstance(self.step, Request):
                self.send()
                self.world.settle()
                self.answer()
            else:
                self.world.settle()
                self.look()
                if self.waits:
                    raise AssertionError(f"{self.step} never comes")
        if self.error is not None:
            raise self.error
        return self.result


def item(world: World, key: str, value: bytes) -> SetItem:
    return SetItem(key, Stored(world.random16(), "bytes", value))


def body(answer: Answer | None) -> bytes | None:
    """The bytes of an answer."""
    return None if answer is None else raw(answer.stored)


def raw(stored: Stored) -> bytes:
    """The bytes of a small value."""
    assert isinstance(stored.body, bytes)
    return stored.body


__all__ = ["LEASE", "Call", "Member", "World", "body", "item"]

"""The direct path: an operation with the single request that is usually all it takes.

It has two halves. The first looks at the state and returns the message to be sent, the second takes
the reply. A host that blocks calls the two itself, under its lock; :meth:`Direct.run` is the same
step by step. A half that finds anything unusual says so, and :meth:`Direct.rest` goes on from
there: without a session, with a lapsed lease, for a key that another thread asks for, a large
value, a reply that is late or a refusal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeAlias, TypeVar

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.membership import Entry, Membership
from dstore.core.local.operations.exchange import RESEND_FIRST, RESEND_MOVING, Misdirected
from dstore.core.local.operations.fetching import PLAIN, Answer, Begun, Reading, ReadOptions
from dstore.core.local.operations.reading import rest
from dstore.core.local.operations.writing import (
    BegunWrite,
    SetOutcome,
    delete_keys,
    fill,
    free,
    one_message,
    set_,
    set_message,
)
from dstore.core.local.state import NEVER, LocalState
from dstore.core.local.steps import Operation, Request, StepResult
from dstore.protocol.messages import (
    Del,
    DelReply,
    DelResult,
    Get,
    GetReply,
    Key,
    Large,
    Set,
    SetItem,
    SetReply,
)

T = TypeVar("T")
UNUSUAL: Any = object()
"""What :meth:`Direct.take` returns when the operation has to go on."""
One: TypeAlias = tuple[Answer | None, bool]
"""The value of one key, None if it has none, and whether it was cached here."""


class Direct(ABC, Generic[T]):
    """One operation. ``deadline`` is that of its first request.

    ``message`` is the request, and ``membership`` the one under which it is sent.
    """

    __slots__ = ("begun_at", "deadline", "membership", "message", "state")

    message: Get | Set | Del | None

    def __init__(self, state: LocalState, deadline: float) -> None:
        self.state = state
        self.deadline = deadline
        self.message = None
        self.membership = state.membership
        self.begun_at = 0.0

    @abstractmethod
    def begin(self, now: float) -> Any:
        """Return the message to be sent, or else what :meth:`take` returns.

        The host calls :meth:`end` when the operation is over, or was given up.
        """

    @abstractmethod
    def take(self, reply: object) -> T:
        """Take the reply, or None if there was none in time. Returns the result, or UNUSUAL."""

    @abstractmethod
    def rest(self, now: float, result: StepResult | None) -> Operation[T]:
        """Go on after UNUSUAL; ``result`` is that of sending the message, if it was sent."""

    @abstractmethod
    def end(self) -> None:
        """Note that nothing waits for the reply any more. Idempotent."""

    def until(self) -> float:
        """Return when the message is sent again."""
        return self.begun_at + min(RESEND_FIRST, (self.deadline - self.begun_at) / 4)

    def run(self, now: float) -> Operation[T]:
        """Do all of it as one operation."""
        result: StepResult | None = None
        try:
            done = self.begin(now)
            if self.message is not None:
                result = yield Request(self.message, self.until())
                done = self.take(result.reply)
            if done is UNUSUAL:
                return (yield from self.rest(now, result))
            return done  # type: ignore[no-any-return]
        finally:
            self.end()


class GetOne(Direct[One]):
    """Read the value of one key.

    A value comes from the cache if the lease is valid, after one shared SYNC if it has lapsed,
    and from Global otherwise. If another thread is already asking for the key, this waits for it
    once and then looks the key up like any other, because that reply may be older than this call.
    """

    __slots__ = ("former", "key", "options")

    def __init__(self, state: LocalState, key: Key, deadline: float, options: ReadOptions) -> None:
        super().__init__(state, deadline)
        self.key = key
        self.options = options
        self.former = NEVER  # a lower number while it is not sure whether a GET has begun

    def begun(self, membership: Membership, request: int, now: float) -> None:
        """Note that the GET with this number has begun, as :meth:`begin` does."""
        self.membership, self.begun_at = membership, now
        self.message = Get(membership.epoch, membership.session, request, [self.key])

    def begin(self, now: float) -> Any:
        state, key = self.state, self.key
        if state.page is not None:  # the host cache may have what the cache has not
            entry = state.hit(key, now, self.options.stale_ok)
            if entry is not None:
                return entry, True
        self.begun_at, self.former = now, state.request
        request = state.ask_one(key) if now < self.deadline else 0
        self.former = NEVER
        if not request:
            return UNUSUAL
        self.begun(state.membership, request, now)
        return self.message

    def take(self, reply: object) -> One:
        if type(reply) is not GetReply or len(reply.bodies) != 1:
            return UNUSUAL  # type: ignore[no-any-return]
        (found,) = reply.items
        if found is None:
            return None, False
        if type(found.stored.body) is Large:
            return UNUSUAL  # type: ignore[no-any-return]
        return self.state.fill(self.membership, self.key, found) or found.stored, False

    def rest(self, now: float, result: StepResult | None) -> Operation[One]:
        reading = Reading([self.key], self.options, self.deadline - self.begun_at)
        yield from _rest_of_get(self, reading, now, result)
        return reading.answer(self.key), self.key in reading.local

    def end(self) -> None:
        if self.message is not None:
            self.state.end_asking([self.key], self.message.request)
        self.state.end_asking_after(self.key, self.former)


class GetMany(Direct[Reading]):
    """Read the values of many keys, as :class:`GetOne` does, in few messages.

    The result is the ``reading``, with the answers. Keys without a value have none.
    """

    __slots__ = ("reading",)

    def __init__(self, state: LocalState, reading: Reading, deadline: float) -> None:
        super().__init__(state, deadline)
        self.reading = reading

    def begin(self, now: float) -> Any:
        state, reading = self.state, self.reading
        membership = self.membership = state.membership
        self.begun_at = now
        stale_ok = reading.options.stale_ok
        shared = state.page is not None
        valid = shared or now < membership.lease_end or stale_ok
        entries = membership.entries
        local: dict[Key, Entry] = {}
        asked: list[Key] = []
        if not shared and entries.keys().isdisjoint(reading.wanted):
            asked = list(reading.wanted)
        for key in () if asked else reading.wanted:
            if not shared and key not in entries:
                asked.append(key)
            elif not valid:  # the lease has to be renewed first
                return UNUSUAL
            elif (entry := state.hit(key, now, stale_ok)) is None:
                asked.append(key)
            else:
                local[key] = entry
        if asked and (not membership.session or now >= self.deadline or not state.may_ask(asked)):
            return UNUSUAL
        reading.local = local
        reading.wanted = dict.fromkeys(asked)
        if not asked:
            return reading
        request = state.next_request()
        self.message = Get(membership.epoch, membership.session, request, asked)
        state.begin_asking(asked, request)
        return self.message

    def take(self, reply: object) -> Reading:
        reading, message = self.reading, self.message
        assert isinstance(message, Get)
        if (
            type(reply) is not GetReply
            or len(reply.bodies) != len(message.keys)
            or Large in map(type, reply.bodies)
        ):
            return UNUSUAL  # type: ignore[no-any-return]
        self.state.fill_many(self.membership, message.keys, reply, reading.fetched)
        reading.wanted.clear()
        return reading

    def rest(self, now: float, result: StepResult | None) -> Operation[Reading]:
        yield from _rest_of_get(self, self.reading, now, result)
        return self.reading

    def end(self) -> None:
        if isinstance(self.message, Get):
            self.state.end_asking(self.message.keys, self.message.request)


def _rest_of_get(
    direct: GetOne | GetMany, reading: Reading, now: float, result: StepResult | None
) -> Operation[None]:
    begun = None
    if isinstance(direct.message, Get) and result is not None:
        now = direct.begun_at
        begun = Begun(direct.message, direct.membership, result)
    return rest(direct.state, reading, now, direct.deadline, begun)


class DirectWrite(Direct[T]):
    """A write, by ``writer``; it is under way from :meth:`begin` to :meth:`end`."""

    __slots__ = ("writer",)

    def __init__(self, state: LocalState, deadline: float) -> None:
        super().__init__(state, deadline)
        self.writer = state.writer

    def until(self) -> float:
        """Return when the message is sent again: soon, if what it is about may be moving."""
        until = super().until()
        return until if self.state.others is None else min(until, self.begun_at + RESEND_MOVING)

    def ready(self, now: float) -> bool:
        """Note by whom, when, and under which membership this writes. Whether it can at once."""
        self.membership, self.writer, self.begun_at = self.state.membership, self.state.writer, now
        return bool(self.writer.session) and now < self.deadline

    def begin_write(self, message: Set | Del) -> Set | Del:
        """The message is about to be sent, with the number that ``reserve`` has returned."""
        self.message = message
        self.writer.writing.add(message.write)
        return message

    def begun(self, result: StepResult | None) -> BegunWrite | None:
        """Return the write if it was sent, which then goes on."""
        if result is None or not isinstance(self.message, (Set, Del)):
            return None
        return BegunWrite(self.message, self.writer, self.membership, result)

    def end(self) -> None:
        if isinstance(self.message, (Set, Del)):
            self.writer.writing.discard(self.message.write)


class Store(DirectWrite[dict[Key, SetOutcome]]):
    """Bind small values to different keys; see :func:`~.writing.set_`."""

    __slots__ = ("asked", "outcomes", "replace", "ttl")

    def __init__(
        self,
        state: LocalState,
        items: list[SetItem],
        replace: bool,
        deadline: float,
        ttl: float | None = None,
    ) -> None:
        super().__init__(state, deadline)
        self.asked = items
        self.replace = replace
        self.ttl = ttl
        self.outcomes: dict[Key, SetOutcome] = {}

    def begin(self, now: float) -> Any:
        state, ready = self.state, self.ready(now)
        asked = self.asked = free(state, self.asked, self.replace, now, self.outcomes)
        if not asked:
            return self.outcomes
        if not ready or not one_message(asked):
            return UNUSUAL
        writer = self.writer
        seen, write = writer.seen, writer.reserve()
        return self.begin_write(
            set_message(state, writer, write, seen, self.replace, asked, self.ttl)
        )

    def take(self, reply: object) -> dict[Key, SetOutcome]:
        if type(reply) is not SetReply or len(reply.items) != len(self.asked):
            return UNUSUAL  # type: ignore[no-any-return]
        for item, result in zip(self.asked, reply.items):
            self.outcomes[item.key] = fill(self.state, self.membership, item, result)
        return self.outcomes

    def rest(self, now: float, result: StepResult | None) -> Operation[dict[Key, SetOutcome]]:
        begun = self.begun(result)
        start = self.begun_at if begun else now
        asked, ttl = self.asked, self.ttl
        try:
            written = yield from set_(
                self.state, asked, self.replace, start, self.deadline, begun=begun, ttl=ttl
            )
        except Misdirected as ended:
            raise Misdirected(ended.keys, {**self.outcomes, **ended.done}) from None
        return {**self.outcomes, **written}


class Delete(DirectWrite[dict[Key, DelResult]]):
    """Delete keys. With ``wait`` it ends when no Local can answer with their values any more."""

    __slots__ = ("keys", "wait")

    def __init__(self, state: LocalState, keys: Iterable[Key], wait: bool, deadline: float) -> None:
        super().__init__(state, deadline)
        self.keys = list(dict.fromkeys(keys))
        self.wait = wait

    def begin(self, now: float) -> Any:
        keys = self.keys
        if not self.ready(now) or len(keys) > KEYS_PER_MESSAGE_MAX:
            return UNUSUAL
        if not keys:
            return {}
        writer, request = self.writer, self.state.next_request()
        seen, write = writer.seen, writer.reserve()
        return self.begin_write(
            Del(writer.epoch, writer.session, request, write, seen, self.wait, keys)
        )

    def take(self, reply: object) -> dict[Key, DelResult]:
        if type(reply) is not DelReply or len(reply.items) != len(self.keys):
            return UNUSUAL  # type: ignore[no-any-return]
        return dict(zip(self.keys, reply.items))

    def rest(self, now: float, result: StepResult | None) -> Operation[dict[Key, DelResult]]:
        begun = self.begun(result)
        start = self.begun_at if begun else now
        return delete_keys(self.state, self.keys, self.wait, start, self.deadline, begun)


def get_one(
    state: LocalState, key: Key, now: float, deadline: float, options: ReadOptions = PLAIN
) -> Operation[One]:
    """Read the value of one key; see :class:`GetOne`."""
    return GetOne(state, key, deadline, options).run(now)


def get(
    state: LocalState,
    keys: Iterable[Key],
    now: float,
    deadline: float,
    options: ReadOptions = PLAIN,
) -> Operation[Reading]:
    """Read the values of many keys; see :class:`GetMany`."""
    return GetMany(state, Reading(keys, options, deadline - now), deadline).run(now)


def store(
    state: LocalState,
    items: list[SetItem],
    replace: bool,
    now: float,
    deadline: float,
    ttl: float | None = None,
) -> Operation[dict[Key, SetOutcome]]:
    """Bind small values to different keys; see :class:`Store`."""
    return Store(state, items, replace, deadline, ttl).run(now)


def delete(
    state: LocalState, keys: Iterable[Key], wait: bool, now: float, deadline: float
) -> Operation[dict[Key, DelResult]]:
    """Delete keys; see :class:`Delete`."""
    return Delete(state, keys, wait, deadline).run(now)

"""GET of one key, GET of many keys, and WAIT."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.entries import Fill
from dstore.core.local.operations.exchange import RESEND_FIRST, check_time, end_fills
from dstore.core.local.operations.fetching import Answer, Begun, Reading, ReadOptions, fetch
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, Request, StepResult, WaitUntil
from dstore.protocol.messages import Get, GetReply, Key, Large

JOIN_MAX = 1.0
"""Seconds for which a GET waits for another GET of its key that is in flight."""
WAIT_ROUND = 10.0
"""Seconds for which Global keeps a request that waits for a key; then the Local asks again."""
WAIT_MIN = 0.001
PLAIN = ReadOptions()


def get(
    state: LocalState,
    keys: Iterable[Key],
    now: float,
    deadline: float,
    options: ReadOptions = PLAIN,
) -> Operation[dict[Key, Answer]]:
    """Read the values of keys; keys without a value are absent from the result.

    A value comes from the cache if the lease is valid, after one shared SYNC if it has lapsed,
    and from Global otherwise. If another thread is already asking for a key, this waits for it
    once and then looks the key up like any other, because that reply may be older than this call.
    """
    wanted = dict.fromkeys(keys)
    if len(wanted) == 1:
        single = SingleGet(state, next(iter(wanted)), deadline, options.stale_ok)
        return single.run(now, options)
    return _get_many(state, Reading(wanted, options, deadline - now), now, deadline)


class SingleGet:
    """A GET of one key with the single request that is usually all it takes, in two halves.

    A host that blocks calls :meth:`begin` and :meth:`finish` itself, under its lock, which saves
    the generators. If either returns None (no session, a lapsed lease, another thread that asks for
    the key, a large value), :meth:`rest` is the operation that goes on from there.
    """

    __slots__ = ("_begun_at", "_deadline", "_fills", "_key", "_message", "_stale_ok", "_state")

    def __init__(self, state: LocalState, key: Key, deadline: float, stale_ok: bool) -> None:
        self._state = state
        self._key = key
        self._deadline = deadline
        self._stale_ok = stale_ok
        self._fills: list[Fill] = []
        self._begun_at = 0.0
        self._message: Get | None = None

    def begin(self, now: float) -> dict[Key, Answer] | Request | None:
        """Return the answer of the cache, or the request to be sent; a fill has begun then."""
        state, key = self._state, self._key
        self._begun_at = now
        if not state.session or now >= self._deadline or state.reading(key) is not None:
            return None
        if key in state.entries:
            entry = state.hit(key, now, self._stale_ok)
            return None if entry is None else {key: Answer(entry, None, True)}
        state.begin_fill(key, self._fills, True)
        self._message = Get(state.epoch, state.session, state.next_request(), [key])
        return Request(self._message, now + min(RESEND_FIRST, (self._deadline - now) / 4))

    def finish(self, result: StepResult) -> dict[Key, Answer] | None:
        """Take the reply if it is a small value, or says that there is none."""
        reply = result.reply
        if type(reply) is not GetReply or len(reply.items) != 1:
            return None
        found, answers = reply.items[0], {}
        if found is not None:
            if type(found.stored.body) is Large:
                return None
            entry = self._state.finish_fill(self._fills[0], found)
            answers[self._key] = Answer(entry, found.stored, False)
        self._state.end_fill(self._fills[0])
        return answers

    def run(self, now: float, options: ReadOptions) -> Operation[dict[Key, Answer]]:
        """Do all of it as one operation."""
        result: StepResult | None = None
        try:
            begun = self.begin(now)
            if isinstance(begun, dict):
                return begun
            if begun is not None:
                result = yield begun
                answers = self.finish(result)
                if answers is not None:
                    return answers
            return (yield from self.rest(now, result, options))
        finally:
            self.end()

    def end(self) -> None:
        """End the fill, if it has not ended: a late reply is not stored."""
        end_fills(self._state, self._fills)

    def rest(
        self, now: float, result: StepResult | None, options: ReadOptions
    ) -> Operation[dict[Key, Answer]]:
        """Go on after :meth:`begin` or :meth:`finish` has returned None, with the result so far."""
        begun = None
        if self._message is not None:
            now = self._begun_at
            begun = Begun(self._message, self._fills, result)
        reading = Reading([self._key], options, self._deadline - self._begun_at)
        return _get_many(self._state, reading, now, self._deadline, begun)


def _get_many(
    state: LocalState,
    reading: Reading,
    now: float,
    deadline: float,
    begun: Begun | None = None,
) -> Operation[dict[Key, Answer]]:
    """Read the values of keys. If the GET of the only one has ``begun``, it is finished first."""
    wanted, answers = reading.wanted, reading.answers
    stale_ok = reading.options.stale_ok
    if begun is not None:
        now, deadline = yield from fetch(state, reading, list(wanted), now, deadline, begun)
    waited: set[Key] = set()
    while wanted:
        if now >= state.lease_end and not stale_ok and any(key in state.entries for key in wanted):
            now = yield from _renewed(state, now, deadline)
        asked: list[Key] = []
        joined: list[Fill] = []
        for key in list(wanted):
            entry = state.hit(key, now, stale_ok)
            if entry is not None:
                answers[key] = Answer(entry, None, True)
                del wanted[key]
            elif (fill := state.reading(key)) is None or key in waited:
                asked.append(key)
            else:
                joined.append(fill)
        if asked:
            del asked[KEYS_PER_MESSAGE_MAX:]
            now, deadline = yield from fetch(state, reading, asked, now, deadline)
        elif joined:
            waited.update(fill.key for fill in joined)
            until = now + min((deadline - now) / 2, JOIN_MAX)
            now = (yield WaitUntil(_all_ended(joined), until)).now
            check_time(state, now, deadline)
    return answers


def _renewed(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a valid lease, or for a change of session, which empties the cache."""
    session = state.session
    state.renew(now)
    result = yield WaitUntil(
        lambda now: now < state.lease_end or state.session != session, deadline
    )
    check_time(state, result.now, deadline)
    return result.now


def _all_ended(fills: list[Fill]) -> Callable[[float], bool]:
    return lambda _: all(fill.done for fill in fills)


def wait(
    state: LocalState, key: Key, now: float, deadline: float, stall_timeout: float
) -> Operation[Answer | None]:
    """Wait until a key has a value, and return it; None if it has none until ``deadline``."""
    reading = Reading([], ReadOptions(), stall_timeout)
    while True:
        entry = state.hit(key, now)
        if entry is not None:
            return Answer(entry, None, True)
        span = max(WAIT_MIN, min(WAIT_ROUND, deadline - now))
        reading.wanted, reading.options = {key: None}, ReadOptions(wait=span)
        now, _ = yield from fetch(state, reading, [key], now, now + stall_timeout)
        if key in reading.answers:
            return reading.answers[key]
        if now >= deadline and not reading.wanted:
            return None

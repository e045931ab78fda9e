"""GET, scans and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.cache import Entry, Held
from dstore.core.local.operations.exchange import (
    RESEND_FIRST,
    RESEND_MAX,
    ROUNDS_MAX,
    FetchBody,
    Operation,
    R,
    SessionLost,
    StepResult,
    Unanswered,
    WaitUntil,
    check_time,
    end_fills,
    ensure_joined,
    envelope,
    exchange,
    failure,
    note_refusal,
    unavailable,
)
from dstore.core.local.state import Fill, LocalState
from dstore.core.local.transfer import Write
from dstore.errors import RequestRefused
from dstore.protocol.messages import (
    Found,
    Get,
    GetReply,
    Key,
    Large,
    Refusal,
    RequestMessage,
    Scan,
    ScanReply,
    Stats,
    StatsReply,
    Stored,
    Wait,
)

MOVED = (
    "the value is gone whenever it is fetched: it is replaced too often, or its bytes are lost, "
    "which Global's log tells; then delete or replace it"
)
JOIN_MAX = 1.0
"""Seconds for which a GET waits for another one of its key that is in flight."""
WAIT_ROUND = 10.0
"""Seconds that Global keeps a request that waits for a key; then it is asked again."""
WAIT_MIN = 0.001


class Answer(NamedTuple):
    """The value of one key: in an ``entry`` of the cache, or as it came (``stored``)."""

    entry: Entry | None
    stored: Stored | None
    from_local: bool


class _How(NamedTuple):
    """How keys are asked for: with the bytes of large values, ``into`` what, and for how many
    seconds Global is to ``wait`` if there is no value.
    """

    bodies: bool = True
    into: Write | None = None
    wait: float = 0.0


def get(
    state: LocalState,
    keys: Iterable[Key],
    now: float,
    deadline: float,
    stale_ok: bool = False,
    bodies: bool = True,
    into: Write | None = None,
) -> Operation[dict[Key, Answer]]:
    """The values of keys; those that nobody holds are absent.

    From the cache if the lease is valid, or after one shared SYNC if it has lapsed; else from
    Global. A key that another thread is already asking for is waited for once, and then looked up
    like any other: that reply may be older than this call.

    Without ``bodies`` nobody obtains the bytes of large values. ``into`` takes the bytes of one
    that would else fill the private memory of this process.
    """
    wanted = dict.fromkeys(keys)
    how = _How(bodies, into)
    if len(wanted) == 1:
        return _get_one(state, next(iter(wanted)), now, deadline, stale_ok, how)
    return _get_many(state, wanted, {}, now, deadline, stale_ok, how)


def _get_one(
    state: LocalState, key: Key, now: float, deadline: float, stale_ok: bool, how: _How
) -> Operation[dict[Key, Answer]]:
    """The value of one key, with the one request that is usually all it takes.

    Whatever stands in its way (no session, a lapsed lease, another thread that asks for the key, a
    large value that has gone), :func:`_get_many` knows what to do.
    """
    gone: dict[Key, int] = {}
    span = deadline - now
    trusted = now < state.lease_end or stale_ok or key not in state.entries
    if state.session and trusted and span > 0 and state.reading(key) is None:
        entry = state.hit(key, now, stale_ok)
        if entry is not None:
            return {key: Answer(entry, None, True)}
        fills: list[Fill] = []
        try:
            state.begin_fill(key, fills, True)
            message = Get(state.epoch, state.session, state.next_request(), [key])
            now, reply = yield from exchange(state, message, GetReply, now, deadline)
            found = _only(reply)
            if found is None:
                return {}
            if type(found.stored.body) is not Large:
                return {key: Answer(state.finish_fill(fills[0], found), found.stored, False)}
            if not how.bodies:
                return {key: Answer(None, found.stored, False)}
            resumed = yield FetchBody(envelope(state), found.stored, span, how.into)
            now, deadline = resumed.now, resumed.now + span
            if resumed.failed is None:
                return {key: _taken(state, fills[0], found, resumed.held)}
            _not_obtained(state, resumed, key, gone)
        except SessionLost as lost:
            now = lost.now
        except Unanswered as ended:
            raise failure(state, ended) from None
        finally:
            end_fills(state, fills)
    return (yield from _get_many(state, {key: None}, gone, now, deadline, stale_ok, how))


def _only(reply: GetReply) -> Found | None:
    """What was found of the one key that was asked for."""
    if len(reply.items) != 1:
        raise RequestRefused(f"Global answered a GET of one key with {len(reply.items)} values")
    return reply.items[0]


def _get_many(
    state: LocalState,
    wanted: dict[Key, None],
    gone: dict[Key, int],
    now: float,
    deadline: float,
    stale_ok: bool,
    how: _How,
) -> Operation[dict[Key, Answer]]:
    """The values of keys. ``gone`` counts how often a large one was gone before it had come."""
    answers: dict[Key, Answer] = {}
    span = deadline - now
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
            answered, now = yield from _fetch(
                state, asked, wanted, answers, gone, how, now, deadline
            )
            if answered:
                deadline = now + span  # what is left is another message, with its own time
        elif joined:
            waited.update(fill.key for fill in joined)
            stall_timeout = now + min((deadline - now) / 2, JOIN_MAX)
            now = (yield WaitUntil(_ended(joined), stall_timeout)).now
            check_time(state, now, deadline)
    return answers


def wait(
    state: LocalState, key: Key, now: float, deadline: float, stall_timeout: float
) -> Operation[Answer | None]:
    """The value of a key as soon as it has one; None if it has none until ``deadline``.

    ``stall_timeout`` is how many seconds Global may take to answer beyond what it is to wait.
    """
    gone: dict[Key, int] = {}
    while True:
        entry = state.hit(key, now)
        if entry is not None:
            return Answer(entry, None, True)
        wanted: dict[Key, None] = {key: None}
        answers: dict[Key, Answer] = {}
        how = _How(wait=max(WAIT_MIN, min(WAIT_ROUND, deadline - now)))
        _, now = yield from _fetch(
            state, [key], wanted, answers, gone, how, now, now + stall_timeout
        )
        if key in answers:
            return answers[key]
        if now >= deadline and not wanted:
            return None


def scan(
    state: LocalState, prefix: str, after: Key, limit: int, now: float, deadline: float
) -> Operation[ScanReply]:
    """One page of the keys that begin with ``prefix``."""
    _, reply = yield from _read(
        state, lambda: Scan(*envelope(state), prefix, after, limit), ScanReply, now, deadline
    )
    return reply


def stats(state: LocalState, now: float, deadline: float) -> Operation[dict[str, object]]:
    """Global's metrics."""
    _, reply = yield from _read(state, lambda: Stats(*envelope(state)), StatsReply, now, deadline)
    return reply.metrics


def join(state: LocalState, now: float, deadline: float) -> Operation[None]:
    """Wait until Global has answered. If it has, no time is needed."""
    if not state.session:
        yield from ensure_joined(state, now, deadline)


def _fetch(
    state: LocalState,
    keys: list[Key],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    gone: dict[Key, int],
    how: _How,
    now: float,
    deadline: float,
) -> Operation[tuple[bool, float]]:
    """Request Global for keys; strike off ``wanted`` those that it answered.

    Whether it answered at all, and the time after that.
    """
    span = deadline - now
    now = yield from ensure_joined(state, now, deadline)
    message: Get | Wait
    if how.wait:
        message = Wait(*envelope(state), keys[0], how.wait)
        deadline, pause = deadline + how.wait, RESEND_MAX
    else:
        message = Get(*envelope(state), keys)
        pause = RESEND_FIRST
    answered = False
    fills: list[Fill] = []
    try:
        for key in keys:
            state.begin_fill(key, fills, not how.wait)  # nobody else is to wait for it
        now, reply = yield from exchange(state, message, GetReply, now, deadline, pause)
        answered = True
        if not reply.items:
            raise RequestRefused("Global answered a GET with nothing at all")
        for fill, found in _large(state, zip(fills, reply.items), wanted, answers, how.bodies):
            if fill.done:
                break  # the session ended; what is left is asked for anew
            resumed = yield FetchBody(envelope(state), found.stored, span, how.into)
            now = resumed.now
            if resumed.failed is not None:
                _not_obtained(state, resumed, fill.key, gone)
                continue
            del wanted[fill.key]
            answers[fill.key] = _taken(state, fill, found, resumed.held)
            state.end_fill(fill)
    except SessionLost as lost:
        now = lost.now
    except Unanswered as ended:
        raise failure(state, ended) from None
    finally:
        if type(message) is Wait and not answered:
            state.unwait(message)
        end_fills(state, fills)
    return answered, now


def _large(
    state: LocalState,
    items: Iterable[tuple[Fill, Found | None]],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    bodies: bool,
) -> list[tuple[Fill, Found]]:
    """Take what has come, and strike it off. Those whose ``bodies`` are yet to come."""
    large = []
    for fill, found in items:
        if found is not None:
            entry = None
            if type(found.stored.body) is not Large:
                entry = state.finish_fill(fill, found)
            elif bodies:
                large.append((fill, found))
                continue
            answers[fill.key] = Answer(entry, found.stored, False)
        del wanted[fill.key]
        state.end_fill(fill)
    return large


def _taken(state: LocalState, fill: Fill, found: Found, held: Held | None) -> Answer:
    """A large value has come, and may be held, unless it went elsewhere."""
    if held is None:
        return Answer(None, found.stored, False)
    entry = state.finish_fill(fill, found, held)
    return Answer(entry, found.stored._replace(body=held.view), False)


def _not_obtained(state: LocalState, resumed: StepResult, key: Key, gone: dict[Key, int]) -> None:
    """A large value did not come. Returns if it may be asked for again."""
    gone[key] = gone.get(key, 0) + 1
    refused = resumed.failed.refusal if resumed.failed else None
    if refused is None:
        raise unavailable(state)
    if refused.refusal is not Refusal.GONE:
        note_refusal(state, refused, resumed.now)
    if gone[key] >= ROUNDS_MAX:
        raise RequestRefused(MOVED)


def _renewed(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a valid lease, or for a change of session, which has emptied the cache."""
    session = state.session
    state.renew(now)
    resumed = yield WaitUntil(
        lambda now: now < state.lease_end or state.session != session, deadline
    )
    check_time(state, resumed.now, deadline)
    return resumed.now


def _read(
    state: LocalState,
    message: Callable[[], RequestMessage],
    kind: type[R],
    now: float,
    deadline: float,
) -> Operation[tuple[float, R]]:
    """Ask for something that may be asked any number of times."""
    while True:
        now = yield from ensure_joined(state, now, deadline)
        try:
            return (yield from exchange(state, message(), kind, now, deadline))
        except SessionLost as lost:
            now = lost.now
        except Unanswered as ended:
            raise failure(state, ended) from None


def _ended(fills: Iterable[Fill]) -> Callable[[float], bool]:
    fills = list(fills)
    return lambda _: all(fill.done for fill in fills)

"""GET, scans and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.cache import Entry, Held
from dstore.core.local_state import Fill, LocalState
from dstore.core.operations.exchange import (
    RESEND_FIRST,
    RESEND_MAX,
    ROUNDS_MAX,
    Obtain,
    Operation,
    R,
    Resumed,
    SessionLost,
    Unanswered,
    Until,
    check_time,
    end_fills,
    ensure_joined,
    envelope,
    exchange,
    failure,
    note_refusal,
    unavailable,
)
from dstore.core.transfer import Write
from dstore.errors import RequestRefused
from dstore.messages import (
    Found,
    Get,
    GetReply,
    Key,
    Large,
    Refusal,
    Request,
    Scan,
    ScanReply,
    Stats,
    StatsReply,
    Stored,
    Wait,
)

MOVED = "the value is replaced more quickly than it can be fetched"
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
    answers: dict[Key, Answer] = {}
    span = deadline - now
    wanted = dict.fromkeys(keys)
    waited: set[Key] = set()
    gone: Counter[Key] = Counter()
    while wanted:
        if now >= state.lease_end and not stale_ok and any(key in state.entries for key in wanted):
            now = yield from _renewed(state, now, deadline)
        for key in list(wanted):
            entry = state.hit(key, now, stale_ok=stale_ok)
            if entry is not None:
                answers[key] = Answer(entry, None, True)
                del wanted[key]
        under_way = {key: fill for key in wanted if (fill := state.reading(key))}
        joined = {key: fill for key, fill in under_way.items() if key not in waited}
        asked = [key for key in wanted if key not in joined][:KEYS_PER_MESSAGE_MAX]
        if asked:
            left = len(wanted), gone.total()
            how = _How(bodies, into)
            now = yield from _fetch(state, asked, wanted, answers, gone, how, now, deadline)
            if (len(wanted), gone.total()) != left:
                deadline = now + span  # what is left is another message, with its own time
        elif joined:
            waited.update(joined)
            patience = now + min((deadline - now) / 2, JOIN_MAX)
            now = (yield Until(_ended(joined.values()), patience)).now
            check_time(state, now, deadline)
    return answers


def wait(
    state: LocalState, key: Key, now: float, deadline: float, patience: float
) -> Operation[Answer | None]:
    """The value of a key as soon as it has one; None if it has none until ``deadline``.

    ``patience`` is how many seconds Global may take to answer beyond what it is to wait.
    """
    gone: Counter[Key] = Counter()
    while True:
        entry = state.hit(key, now)
        if entry is not None:
            return Answer(entry, None, True)
        wanted: dict[Key, None] = {key: None}
        answers: dict[Key, Answer] = {}
        how = _How(wait=max(WAIT_MIN, min(WAIT_ROUND, deadline - now)))
        now = yield from _fetch(state, [key], wanted, answers, gone, how, now, now + patience)
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
    """Global's figures."""
    _, reply = yield from _read(state, lambda: Stats(*envelope(state)), StatsReply, now, deadline)
    return reply.figures


def join(state: LocalState, now: float, deadline: float) -> Operation[None]:
    """Wait until Global has answered."""
    yield from ensure_joined(state, now, deadline)


def _fetch(
    state: LocalState,
    keys: list[Key],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    gone: Counter[Key],
    how: _How,
    now: float,
    deadline: float,
) -> Operation[float]:
    """Ask Global for keys; strike off ``wanted`` those that it answered. The time after that.

    ``gone`` counts how often a large value was deleted or replaced before it had arrived.
    """
    span = deadline - now
    now = yield from ensure_joined(state, now, deadline)
    fills: list[Fill] = []
    try:
        for key in keys:
            state.begin_fill(key, fills, reading=not how.wait)  # nobody else is to wait for it
        message: Request = Get(*envelope(state), keys)
        pause = RESEND_FIRST
        if how.wait:
            message = Wait(*envelope(state), keys[0], how.wait)
            deadline, pause = deadline + how.wait, RESEND_MAX
        now, reply = yield from exchange(state, message, GetReply, now, deadline, pause)
        if not reply.items:
            raise RequestRefused("Global answered a GET with nothing at all")
        large: list[tuple[Fill, Found]] = []
        for fill, found in zip(fills, reply.items):
            if how.bodies and found is not None and type(found.stored.body) is Large:
                large.append((fill, found))
                continue
            del wanted[fill.key]
            if found is not None:
                small = type(found.stored.body) is not Large
                entry = state.finish_fill(fill, found) if small else None
                answers[fill.key] = Answer(entry, found.stored, False)
            state.end_fill(fill)
        for fill, found in large:
            if fill.done:
                break  # the session ended; what is left is asked for anew
            resumed = yield Obtain(envelope(state), found.stored, span, how.into)
            now = resumed.now
            if resumed.failed is not None:
                gone[fill.key] += 1
                _not_obtained(state, resumed, gone[fill.key])
                continue
            del wanted[fill.key]
            answers[fill.key] = _taken(state, fill, found, resumed.held)
            state.end_fill(fill)
    except SessionLost as lost:
        now = lost.now
    except Unanswered as ended:
        raise failure(state, ended) from None
    finally:
        end_fills(state, fills)
    return now


def _taken(state: LocalState, fill: Fill, found: Found, held: Held | None) -> Answer:
    """A large value has come, and may be held, unless it went elsewhere."""
    if held is None:
        return Answer(None, found.stored, False)
    entry = state.finish_fill(fill, found, held)
    return Answer(entry, found.stored._replace(body=held.view), False)


def _not_obtained(state: LocalState, resumed: Resumed, times: int) -> None:
    """A large value did not come. Returns if it may be asked for again."""
    refused = resumed.failed.refusal if resumed.failed else None
    if refused is None:
        raise unavailable(state)
    if refused.refusal is not Refusal.GONE:
        note_refusal(state, refused, resumed.now)
    if times >= ROUNDS_MAX:
        raise RequestRefused(MOVED)


def _renewed(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a valid lease, or for a change of session, which has emptied the cache."""
    session = state.session
    state.renew(now)
    resumed = yield Until(lambda now: now < state.lease_end or state.session != session, deadline)
    check_time(state, resumed.now, deadline)
    return resumed.now


def _read(
    state: LocalState, message: Callable[[], Request], kind: type[R], now: float, deadline: float
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

"""GET, SET, DEL and scans, step by step, as a Local carries them out.

An operation is a generator. It works on the LocalState, yields a step whenever it has to wait,
and is resumed with what came of it; its return value is the result. The host keeps the state's
lock while the generator runs and gives it up while a step is under way, so that what happens
between two yields is one step with respect to deletions. Closing the generator (Ctrl-C, a
cancelled task) gives the request up: nothing that comes later is stored.

One set of operations serves every host: threads, event loops, and the simulation.

Repeats: a request is sent again, the same one, until its answer comes or its deadline passes.
A write is executed at most once: Global knows a repeat by its number, and a copy that it refuses
was not executed. If the session ends while some copy of a write is unanswered, nobody can tell
any more, and the operation raises OutcomeUnknown; a write whose every copy was refused is simply
done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, TypeAlias, TypeVar

from dstore.config import BATCH_BYTES_MAX, KEYS_PER_MESSAGE_MAX
from dstore.core.cache import Entry
from dstore.core.local_state import Fill, LocalState
from dstore.errors import GlobalUnavailable, OutcomeUnknown, RequestRefused
from dstore.messages import (
    Del,
    DelReply,
    DelResult,
    Found,
    Get,
    GetReply,
    Key,
    Refusal,
    Refused,
    Reply,
    Request,
    Scan,
    ScanReply,
    Set,
    SetItem,
    SetReply,
    SetResult,
    SetStatus,
    Stats,
    StatsReply,
    Stored,
)

RESEND_FIRST, RESEND_MAX = 1.0, 4.0
"""Seconds before a request that is not answered is sent again, with doubling pauses. The first
is a quarter of its time at most.
"""
JOIN_MAX = 1.0
"""Seconds for which a GET waits for another one of its key that is in flight."""


class Ask(NamedTuple):
    """Send a request and wait for the reply that bears its number, or until ``until``."""

    message: Request
    until: float


class Until(NamedTuple):
    """Wait until the predicate holds at some moment (its argument), or until ``until``."""

    predicate: Callable[[float], bool]
    until: float


class Resumed(NamedTuple):
    """What came of a step. ``now`` was read under the lock. ``sent``: the request left us."""

    now: float
    reply: Reply | None = None
    sent: bool = False


Step: TypeAlias = Ask | Until
T = TypeVar("T")
R = TypeVar("R", bound=Reply)
W = TypeVar("W", SetReply, DelReply)
Operation: TypeAlias = Generator[Step, Resumed, T]


class Answer(NamedTuple):
    """The value of one key: in an ``entry`` of the cache, or as it came (``stored``)."""

    entry: Entry | None
    stored: Stored | None
    from_local: bool


class SetOutcome(NamedTuple):
    """What became of one item. ``local``: this Local knew the key to be occupied.

    ``updated``: this Local holds the value that was in the way, since now.
    """

    status: SetStatus
    local: bool = False
    updated: bool = False


class _Unanswered(Exception):
    """The exchange ended without an answer. ``unknown`` copies of it may yet be executed."""

    why = ""

    def __init__(self, now: float, unknown: int) -> None:
        self.now = now
        self.unknown = unknown


class _SessionLost(_Unanswered):
    """Global does not know the session any more."""

    why = "Global, or what it knew of this Local, was lost before it answered"


class _TimedOut(_Unanswered):
    """The deadline has passed."""

    why = "Global did not answer in time"


class _Declined(_Unanswered):
    """Global refuses to do this at all, and ``why``."""

    def __init__(self, now: float, unknown: int, why: str) -> None:
        super().__init__(now, unknown)
        self.why = why


# ---- operations -------------------------------------------------------------------------------


def get(
    state: LocalState, keys: Iterable[Key], now: float, deadline: float, stale_ok: bool = False
) -> Operation[dict[Key, Answer]]:
    """The values of keys; those that nobody holds are absent.

    From the cache if the lease is valid, or after one shared SYNC if it has lapsed; else from
    Global. A key that another thread is already asking for is waited for once, and then looked up
    like any other: that reply may be older than this call.
    """
    answers: dict[Key, Answer] = {}
    span = deadline - now
    wanted = dict.fromkeys(keys)
    waited: set[Key] = set()
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
            left = len(wanted)
            now = yield from _fetch(state, asked, wanted, answers, now, deadline)
            if len(wanted) < left:
                deadline = now + span  # what is left is another message, with its own time
        elif joined:
            waited.update(joined)
            patience = min(deadline, now + JOIN_MAX)
            now = (yield Until(_ended(joined.values()), patience)).now
            _in_time(state, now, deadline)
    return answers


def set_(
    state: LocalState, items: Iterable[SetItem], replace: bool, now: float, deadline: float
) -> Operation[dict[Key, SetOutcome]]:
    """Bind values to keys that are free, or in place of what they have."""
    outcomes: dict[Key, SetOutcome] = {}
    span = deadline - now
    asked: list[SetItem] = []
    for item in items:
        if not replace and state.hit(item.key, now) is not None:
            outcomes[item.key] = SetOutcome(SetStatus.OCCUPIED, local=True)
        else:
            asked.append(item)
    for batch in _batches(asked):
        keys = [item.key for item in batch]

        def message(write: int, items: list[SetItem] = batch) -> Set:
            return Set(*_envelope(state), write, state.seen, replace, items)

        now, reply, fills = yield from _write(state, keys, message, SetReply, now, deadline)
        for item, fill, result in zip(batch, fills, reply.items):
            outcomes[item.key] = _filled(state, fill, item, result)
        _end(state, fills)
        deadline = now + span
    return outcomes


def delete(
    state: LocalState, keys: Iterable[Key], wait: bool, now: float, deadline: float
) -> Operation[dict[Key, DelResult]]:
    """Delete keys, and with ``wait`` return once no Local can answer with their values."""
    results: dict[Key, DelResult] = {}
    span = deadline - now
    left = list(dict.fromkeys(keys))
    while left:
        batch, left = left[:KEYS_PER_MESSAGE_MAX], left[KEYS_PER_MESSAGE_MAX:]

        def message(write: int, keys: list[Key] = batch) -> Del:
            return Del(*_envelope(state), write, state.seen, wait, keys)

        now, reply, fills = yield from _write(state, batch, message, DelReply, now, deadline)
        results.update(zip(batch, reply.items))
        _end(state, fills)
        deadline = now + span
    return results


def scan(
    state: LocalState, prefix: str, after: Key, limit: int, now: float, deadline: float
) -> Operation[ScanReply]:
    """One page of the keys that begin with ``prefix``."""
    _, reply = yield from _read(
        state, lambda: Scan(*_envelope(state), prefix, after, limit), ScanReply, now, deadline
    )
    return reply


def stats(state: LocalState, now: float, deadline: float) -> Operation[dict[str, object]]:
    """Global's figures."""
    _, reply = yield from _read(state, lambda: Stats(*_envelope(state)), StatsReply, now, deadline)
    return reply.figures


def join(state: LocalState, now: float, deadline: float) -> Operation[None]:
    """Wait until Global has answered."""
    yield from _joined(state, now, deadline)


# ---- reading ----------------------------------------------------------------------------------


def _fetch(
    state: LocalState,
    keys: list[Key],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    now: float,
    deadline: float,
) -> Operation[float]:
    """Ask Global for keys; strike off ``wanted`` those that it answered. The time after that."""
    now = yield from _joined(state, now, deadline)
    fills: list[Fill] = []
    try:
        for key in keys:
            state.begin_fill(key, fills, reading=True)
        message = Get(*_envelope(state), keys)
        now, reply = yield from _exchange(state, message, GetReply, now, deadline)
        if not reply.items:
            raise RequestRefused("Global answered a GET with nothing at all")
        for fill, found in zip(fills, reply.items):
            del wanted[fill.key]
            if found is not None:
                entry = state.finish_fill(fill, found)
                answers[fill.key] = Answer(entry, found.stored, False)
    except _SessionLost as lost:
        now = lost.now
    except _Unanswered as ended:
        raise _failure(state, ended) from None
    finally:
        _end(state, fills)
    return now


def _renewed(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a valid lease, or for a change of session, which has emptied the cache."""
    session = state.session
    state.renew(now)
    resumed = yield Until(lambda now: now < state.lease_end or state.session != session, deadline)
    _in_time(state, resumed.now, deadline)
    return resumed.now


def _read(
    state: LocalState, message: Callable[[], Request], kind: type[R], now: float, deadline: float
) -> Operation[tuple[float, R]]:
    """Ask for something that may be asked any number of times."""
    while True:
        now = yield from _joined(state, now, deadline)
        try:
            return (yield from _exchange(state, message(), kind, now, deadline))
        except _SessionLost as lost:
            now = lost.now
        except _Unanswered as ended:
            raise _failure(state, ended) from None


# ---- writing ----------------------------------------------------------------------------------


def _write(
    state: LocalState,
    keys: list[Key],
    message: Callable[[int], Request],
    kind: type[W],
    now: float,
    deadline: float,
) -> Operation[tuple[float, W, list[Fill]]]:
    """Have a write executed once. The time, the reply, and fills that the caller has to end."""
    while True:
        now = yield from _joined(state, now, deadline)
        write = state.next_write
        fills: list[Fill] = []
        try:  # from here on whatever is begun is ended, also when Ctrl-C comes in between
            state.begin_write(write)
            if kind is SetReply:
                for key in keys:
                    state.begin_fill(key, fills)
            # It may have to wait for the lease of a Local that died.
            patience = deadline + state.lease
            now, reply = yield from _exchange(state, message(write), kind, now, patience)
            if len(reply.items) != len(keys):
                raise OutcomeUnknown(keys, "Global answered with a wrong number of outcomes")
            return now, reply, fills
        except _Unanswered as ended:
            _end(state, fills)
            now = ended.now
            if ended.unknown:
                raise OutcomeUnknown(keys, ended.why) from None
            if not isinstance(ended, _SessionLost):
                raise _failure(state, ended) from None
        except BaseException:
            _end(state, fills)
            raise
        finally:
            state.end_write(write)


def _filled(state: LocalState, fill: Fill, item: SetItem, result: SetResult) -> SetOutcome:
    """Hold what was written, or what was in the way, if it may be held."""
    if result.status is SetStatus.OCCUPIED:
        found = result.found
        updated = found is not None and state.finish_fill(fill, found) is not None
        return SetOutcome(result.status, updated=updated)
    if result.cacheable:
        state.finish_fill(fill, Found(result.seq, True, item.stored))
    return SetOutcome(result.status)


def _batches(items: list[SetItem]) -> Iterable[list[SetItem]]:
    """Items in batches that fit into one message each. A key that comes again starts a new one."""
    batch: dict[Key, SetItem] = {}
    size = 0
    for item in items:
        size += len(item.stored.body)
        if batch and (
            item.key in batch or size > BATCH_BYTES_MAX or len(batch) == KEYS_PER_MESSAGE_MAX
        ):
            yield list(batch.values())
            batch, size = {}, len(item.stored.body)
        batch[item.key] = item
    if batch:
        yield list(batch.values())


def _ended(fills: Iterable[Fill]) -> Callable[[float], bool]:
    fills = list(fills)
    return lambda _: all(fill.done for fill in fills)


def _end(state: LocalState, fills: list[Fill]) -> None:
    for fill in fills:
        state.end_fill(fill)


# ---- exchanging -------------------------------------------------------------------------------


def _envelope(state: LocalState) -> tuple[int, int, int]:
    return state.epoch, state.session, state.next_request()


def _joined(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a session."""
    _in_time(state, now, deadline)
    if not state.session:
        now = (yield Until(lambda _: bool(state.session), deadline)).now
    if not state.session:
        raise _unavailable(state)
    return now


def _exchange(
    state: LocalState, message: Request, kind: type[R], now: float, deadline: float
) -> Operation[tuple[float, R]]:
    """Send one request until it is answered, in the session that it bears."""
    unknown = 0
    pause = min(RESEND_FIRST, (deadline - now) / 4)
    while True:
        resumed = yield Ask(message, min(deadline, now + pause))
        now, reply = resumed.now, resumed.reply
        unknown += resumed.sent
        if isinstance(reply, kind):
            return now, reply
        if isinstance(reply, Refused):
            unknown -= 1
            if reply.refusal is Refusal.BUSY:
                state.obstacle = f"it says: {reply.text}"
            if reply.refusal in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
                state.refused(reply, now)
                raise _SessionLost(now, unknown)
            if reply.refusal not in (Refusal.CLOSING, Refusal.BUSY):
                raise _Declined(now, unknown, reply.text)
            now = (yield Until(lambda _: False, min(deadline, now + pause))).now
        elif reply is not None:
            raise _Declined(now, unknown, f"it answered with {type(reply).__name__}")
        if now >= deadline:
            raise _TimedOut(now, unknown)
        pause = min(2 * pause, RESEND_MAX)


def _failure(state: LocalState, ended: _Unanswered) -> Exception:
    if isinstance(ended, _Declined):
        return RequestRefused(f"Global refused the request: {ended.why}")
    return _unavailable(state)


def _in_time(state: LocalState, now: float, deadline: float) -> None:
    if now >= deadline:
        raise _unavailable(state)


def _unavailable(state: LocalState) -> GlobalUnavailable:
    obstacle = state.obstacle or "is it running, and reachable?"
    return GlobalUnavailable(f"Global did not answer in time; {obstacle}")

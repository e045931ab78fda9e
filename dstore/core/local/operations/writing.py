"""SET and DEL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dstore.config import BATCH_BYTES_MAX, ITEM_BYTES_MAX, KEYS_PER_MESSAGE_MAX
from dstore.core.local.cache import Held
from dstore.core.local.operations.exchange import (
    ROUNDS_MAX,
    Operation,
    SendBody,
    SessionLost,
    Unanswered,
    W,
    end_fills,
    ensure_joined,
    envelope,
    exchange,
    failure,
    note_refusal,
    unavailable,
)
from dstore.core.local.state import Fill, LocalState
from dstore.errors import GlobalUnavailable, OutcomeUnknown
from dstore.protocol.keys import public
from dstore.protocol.messages import (
    Del,
    DelReply,
    DelResult,
    Found,
    Key,
    Large,
    Refusal,
    RequestMessage,
    Set,
    SetItem,
    SetReply,
    SetResult,
    SetStatus,
)

NOTHING_HELD: Mapping[bytes, Held] = {}
_STATUS_OF = {
    Refusal.FULL: SetStatus.FULL,
    Refusal.TOO_LARGE: SetStatus.TOO_LARGE,
    Refusal.DAMAGED: SetStatus.MISMATCH,
}


class SetOutcome(NamedTuple):
    """What became of one item. ``local``: this Local knew the key to be occupied.

    ``updated``: this Local holds the value that was in the way, since now.
    """

    status: SetStatus
    local: bool = False
    updated: bool = False


def set_(
    state: LocalState,
    items: Iterable[SetItem],
    replace: bool,
    now: float,
    deadline: float,
    held: Mapping[bytes, Held] = NOTHING_HELD,
) -> Operation[dict[Key, SetOutcome]]:
    """Bind values to keys that are free, or in place of what they have.

    ``held`` has the bytes of large values by token, for the cache.
    """
    outcomes: dict[Key, SetOutcome] = {}
    span = deadline - now
    asked: list[SetItem] = []
    for item in items:
        if not replace and state.hit(item.key, now) is not None:
            outcomes[item.key] = SetOutcome(SetStatus.OCCUPIED, local=True)
        else:
            asked.append(item)
    for batch in _batches(asked):
        now = yield from _bind(state, batch, replace, outcomes, held, now, deadline)
        deadline = now + span
        for item in batch:  # each is bound as soon as it is there: uploads do not wait for long
            rounds = 0
            while outcomes[item.key].status is SetStatus.ABSENT:
                if rounds == ROUNDS_MAX:
                    raise GlobalUnavailable("Global has lost an upload again and again; try later")
                rounds += 1
                now = yield from _supplied(state, item, outcomes, now, deadline)
                if outcomes[item.key].status is SetStatus.ABSENT:
                    now = yield from _bind(state, [item], replace, outcomes, held, now, now + span)
                deadline = now + span
    return outcomes


def _bind(
    state: LocalState,
    batch: list[SetItem],
    replace: bool,
    outcomes: dict[Key, SetOutcome],
    held: Mapping[bytes, Held],
    now: float,
    deadline: float,
) -> Operation[float]:
    """One SET. The time after it."""

    def message(write: int) -> Set:
        return Set(*envelope(state), write, state.seen, replace, batch)

    keys = [item.key for item in batch]
    now, reply, fills = yield from _write(state, keys, message, SetReply, now, deadline)
    for item, fill, result in zip(batch, fills, reply.items):
        if result.found is not None and type(result.found.stored.body) is Large:
            result = result._replace(found=None)  # that one is fetched when it is asked for
        outcomes[item.key] = _filled(state, fill, item, result, held.get(item.stored.token))
    end_fills(state, fills)
    return now


def _supplied(
    state: LocalState,
    item: SetItem,
    outcomes: dict[Key, SetOutcome],
    now: float,
    deadline: float,
) -> Operation[float]:
    """Let Global have the bytes of one item. The time after that."""
    now = yield from ensure_joined(state, now, deadline)
    supplied = False
    try:
        resumed = yield SendBody(envelope(state), item.stored, deadline - now)
        supplied = resumed.failed is None
    finally:
        if not supplied:
            state.unstage(item.stored.token)
    if resumed.failed is not None:
        refused = resumed.failed.refusal
        if refused is None:
            raise unavailable(state)
        if refused.refusal in _STATUS_OF:
            outcomes[item.key] = SetOutcome(_STATUS_OF[refused.refusal])
        else:
            note_refusal(state, refused, resumed.now)
    return resumed.now


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
            return Del(*envelope(state), write, state.seen, wait, keys)

        now, reply, fills = yield from _write(state, batch, message, DelReply, now, deadline)
        results.update(zip(batch, reply.items))
        end_fills(state, fills)
        deadline = now + span
    return results


def _write(
    state: LocalState,
    keys: list[Key],
    message: Callable[[int], RequestMessage],
    kind: type[W],
    now: float,
    deadline: float,
) -> Operation[tuple[float, W, list[Fill]]]:
    """Have a write executed once. The time, the reply, and fills that the caller has to end."""
    while True:
        now = yield from ensure_joined(state, now, deadline)
        write = state.next_write
        fills: list[Fill] = []
        try:  # from here on whatever is begun is ended, also when Ctrl-C comes in between
            state.begin_write(write)
            if kind is SetReply:
                for key in keys:
                    state.begin_fill(key, fills)
            # It may have to wait for the lease of a Local that died.
            stall_timeout = deadline + state.lease
            now, reply = yield from exchange(state, message(write), kind, now, stall_timeout)
            if len(reply.items) != len(keys):
                raise OutcomeUnknown(
                    _named(keys), "Global answered with a wrong number of outcomes"
                )
            return now, reply, fills
        except Unanswered as ended:
            end_fills(state, fills)
            now = ended.now
            if ended.unknown:
                raise OutcomeUnknown(_named(keys), ended.why) from None
            if not isinstance(ended, SessionLost):
                raise failure(state, ended) from None
        except BaseException:
            end_fills(state, fills)
            raise
        finally:
            state.end_write(write)


def _named(keys: Iterable[Key]) -> list[str | bytes]:
    return [public(key) for key in keys]


def _filled(
    state: LocalState, fill: Fill, item: SetItem, result: SetResult, held: Held | None
) -> SetOutcome:
    """Hold what was written, or what was in the way, if it may be held."""
    if result.status is SetStatus.OCCUPIED:
        found = result.found
        updated = found is not None and state.finish_fill(fill, found) is not None
        return SetOutcome(result.status, updated=updated)
    if result.cacheable and (held is not None or type(item.stored.body) is not Large):
        state.finish_fill(fill, Found(result.seq, True, item.stored), held)
    return SetOutcome(result.status)


def _batches(items: list[SetItem]) -> Iterable[list[SetItem]]:
    """Items in batches that fit into one message each. A key that comes again starts a new one."""
    batch: dict[Key, SetItem] = {}
    size = 0
    for item in items:
        own = item.stored.inline + ITEM_BYTES_MAX
        size += own
        if batch and (
            item.key in batch or size > BATCH_BYTES_MAX or len(batch) == KEYS_PER_MESSAGE_MAX
        ):
            yield list(batch.values())
            batch, size = {}, own
        batch[item.key] = item
    if batch:
        yield list(batch.values())

"""Fetching keys from Global: one message, the small values in its reply, then the large ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dstore.core.local.cache import Entry, MappedBody
from dstore.core.local.entries import Fill
from dstore.core.local.operations.exchange import (
    RESEND_FIRST,
    RESEND_MAX,
    ROUNDS_MAX,
    SessionLost,
    Unanswered,
    end_fills,
    ensure_joined,
    envelope,
    exchange,
    failure,
    note_refusal,
    unavailable,
)
from dstore.core.local.state import LocalState
from dstore.core.local.steps import FetchBody, Operation, Report, StepResult, Write
from dstore.errors import RequestRefused
from dstore.protocol.messages import Found, Get, GetReply, Key, Large, Refusal, Stored, Wait

MOVED = (
    "the value is gone whenever it is fetched: it is replaced too often, or its bytes are lost, "
    "which Global's log tells; then delete or replace it"
)


class Answer(NamedTuple):
    """The value of one key: in an ``entry`` of the cache, or as it came (``stored``)."""

    entry: Entry | None
    stored: Stored | None
    from_local: bool


class ReadOptions(NamedTuple):
    """How keys are read.

    ``bodies``: fetch the bytes of large values; ``into``: a function that takes them;
    ``wait``: seconds for which Global waits for a value to be set; ``report``: called with the
    progress of a transfer.
    """

    stale_ok: bool = False
    bodies: bool = True
    into: Write | None = None
    report: Report | None = None
    wait: float = 0.0


def fetch(
    state: LocalState,
    keys: list[Key],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    gone: dict[Key, int],
    options: ReadOptions,
    now: float,
    deadline: float,
) -> Operation[tuple[bool, float]]:
    """Ask Global for keys; remove the keys that it has answered from ``wanted``.

    ``gone`` counts how often a large value was gone before it had arrived. Returns whether Global
    answered, and the time after that.
    """
    span = deadline - now
    now = yield from ensure_joined(state, now, deadline)
    message: Get | Wait
    if options.wait:
        message = Wait(*envelope(state), keys[0], options.wait)
        deadline, pause = deadline + options.wait, RESEND_MAX
    else:
        message = Get(*envelope(state), keys)
        pause = RESEND_FIRST
    answered = False
    fills: list[Fill] = []
    try:
        for key in keys:
            # Other threads do not wait for the answer to a WAIT, which may take long.
            state.begin_fill(key, fills, not options.wait)
        now, reply = yield from exchange(state, message, GetReply, now, deadline, pause)
        answered = True
        if not reply.items:
            raise RequestRefused("Global answered a GET with nothing at all")
        items = zip(fills, reply.items)
        for fill, found in _take_small(state, items, wanted, answers, options.bodies):
            if fill.done:
                break  # the session has ended; the rest is asked for again
            result = yield FetchBody(
                envelope(state), found.stored, span, options.into, options.report
            )
            now = result.now
            if result.failed is not None:
                note_failed_body(state, result, fill.key, gone)
                continue
            del wanted[fill.key]
            answers[fill.key] = take_body(state, fill, found, result.body)
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


def _take_small(
    state: LocalState,
    items: Iterable[tuple[Fill, Found | None]],
    wanted: dict[Key, None],
    answers: dict[Key, Answer],
    bodies: bool,
) -> list[tuple[Fill, Found]]:
    """Take the small values of a reply. Returns the large ones whose bytes are to be fetched."""
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


def take_body(state: LocalState, fill: Fill, found: Found, body: MappedBody | None) -> Answer:
    """Take a large value whose bytes have arrived; ``body`` is None if they went elsewhere."""
    if body is None:
        return Answer(None, found.stored, False)
    entry = state.finish_fill(fill, found, body)
    return Answer(entry, found.stored._replace(body=body.view), False)


def note_failed_body(state: LocalState, result: StepResult, key: Key, gone: dict[Key, int]) -> None:
    """Note that a large value did not arrive. Raises unless it may be asked for again."""
    gone[key] = gone.get(key, 0) + 1
    refused = result.failed.refusal if result.failed else None
    if refused is None:
        raise unavailable(state)
    if refused.refusal is not Refusal.GONE:
        note_refusal(state, refused, result.now)
    if gone[key] >= ROUNDS_MAX:
        raise RequestRefused(MOVED)

"""Fetching keys from Global: one message, the small values in its reply, then the large ones."""

from __future__ import annotations

from collections import Counter
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
    note_failed,
)
from dstore.core.local.state import LocalState
from dstore.core.local.steps import FetchBody, Operation, Report, StepResult, TransferFailed, Write
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


class Reading:
    """A read under way: the keys that are still ``wanted``, and the ``answers`` so far.

    Each message has ``span`` seconds. ``gone`` counts how often a large value was gone when it was
    to be fetched.
    """

    def __init__(self, keys: Iterable[Key], options: ReadOptions, span: float) -> None:
        self.wanted = dict.fromkeys(keys)
        self.answers: dict[Key, Answer] = {}
        self.options = options
        self.span = span
        self.gone: Counter[Key] = Counter()


class Begun(NamedTuple):
    """A request that was sent already: its message, its fills, and the result of sending it."""

    message: Get
    fills: list[Fill]
    result: StepResult | None


def fetch(
    state: LocalState,
    reading: Reading,
    keys: list[Key],
    now: float,
    deadline: float,
    begun: Begun | None = None,
) -> Operation[tuple[float, float]]:
    """Ask Global for keys that are wanted, and take its answers; ``begun`` was sent at ``now``.

    Returns the time after that, and the deadline for what is still wanted: the rest is another
    message, with its own time.
    """
    options = reading.options
    message: Get | Wait
    until, pause = deadline, RESEND_FIRST
    if begun is not None:
        message, fills, first = begun
    else:
        now = yield from ensure_joined(state, now, deadline)
        fills, first = [], None
        if options.wait:
            message = Wait(*envelope(state), keys[0], options.wait)
            until, pause = deadline + options.wait, RESEND_MAX
        else:
            message = Get(*envelope(state), keys)
    answered = False
    try:
        if begun is None:
            for key in keys:
                # Other threads do not wait for the answer to a WAIT, which may take long.
                state.begin_fill(key, fills, not options.wait)
        now, reply = yield from exchange(state, message, GetReply, now, until, pause, first)
        answered = True
        if not 0 < len(reply.items) <= len(keys):
            raise RequestRefused(
                f"Global answered a request for {len(keys)} keys with {len(reply.items)} values"
            )
        for fill, found in _take_small(state, reading, zip(fills, reply.items)):
            if fill.done:
                break  # the session has ended; the rest is asked for again
            result = yield FetchBody(
                envelope(state), found.stored, reading.span, options.into, options.report
            )
            now = result.now
            if result.failed is not None:
                _note_failed_body(state, reading, fill.key, result.failed, now)
                continue
            _take_large(state, reading, fill, found, result.body)
    except SessionLost as lost:
        now = lost.now
    except Unanswered as ended:
        raise failure(state, ended) from None
    finally:
        if type(message) is Wait and not answered:
            state.unwait(message)
        end_fills(state, fills)
    return now, now + reading.span if answered else deadline


def _take_small(
    state: LocalState, reading: Reading, items: Iterable[tuple[Fill, Found | None]]
) -> list[tuple[Fill, Found]]:
    """Take the small values of a reply. Returns the large ones whose bytes are to be fetched."""
    large = []
    for fill, found in items:
        if found is None:
            _take(state, reading, fill, None)
        elif type(found.stored.body) is Large and reading.options.bodies:
            large.append((fill, found))
        else:
            entry = None
            if type(found.stored.body) is not Large:
                entry = state.finish_fill(fill, found)
            _take(state, reading, fill, Answer(entry, found.stored, False))
    return large


def _take_large(
    state: LocalState, reading: Reading, fill: Fill, found: Found, body: MappedBody | None
) -> None:
    entry, stored = None, found.stored
    if body is not None:  # else it went to ``into``
        entry = state.finish_fill(fill, found, body)
        stored = stored._replace(body=body.view)
    _take(state, reading, fill, Answer(entry, stored, False))


def _take(state: LocalState, reading: Reading, fill: Fill, answer: Answer | None) -> None:
    if answer is not None:
        reading.answers[fill.key] = answer
    del reading.wanted[fill.key]
    state.end_fill(fill)


def _note_failed_body(
    state: LocalState, reading: Reading, key: Key, failed: TransferFailed, now: float
) -> None:
    """Note that a large value did not arrive. Raises unless it may be asked for again."""
    reading.gone[key] += 1
    if failed.refusal is None or failed.refusal.refusal is not Refusal.GONE:
        note_failed(state, failed.refusal, now)
    if reading.gone[key] >= ROUNDS_MAX:
        raise RequestRefused(MOVED)

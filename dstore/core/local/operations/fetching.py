"""Fetching keys from Global: one message, the small values in its reply, then the large ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from dstore.core.local.cache import MappedBody
from dstore.core.local.membership import Entry, Membership
from dstore.core.local.operations.exchange import (
    RESEND_FIRST,
    RESEND_MAX,
    ROUNDS_MAX,
    Misdirected,
    NotMine,
    SessionLost,
    Unanswered,
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

Answer: TypeAlias = Entry | Stored
"""The value of a key: the entry that has it, or the value as it came if it is not cached."""


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


PLAIN = ReadOptions()


class Reading:
    """A read under way: the keys that are still ``wanted``, and the answers so far.

    ``local`` has the answers of the cache, ``fetched`` those of Global. Each message has ``span``
    seconds. ``gone`` counts how often a large value was gone when it was to be fetched.
    """

    __slots__ = ("fetched", "gone", "local", "options", "span", "wanted")

    def __init__(self, keys: Iterable[Key], options: ReadOptions, span: float) -> None:
        self.wanted = dict.fromkeys(keys)
        self.local: dict[Key, Entry] = {}
        self.fetched: dict[Key, Answer] = {}
        self.options = options
        self.span = span
        self.gone: Counter[Key] | None = None

    def answer(self, key: Key) -> Answer | None:
        """Return the value of a key, or None if it has none."""
        return self.local.get(key) or self.fetched.get(key)

    def misdirected(self) -> Misdirected:
        """Return the error for keys of which Global does not own one."""
        return Misdirected(self.wanted, {**self.fetched, **self.local})

    def take(self, key: Key, answer: Answer | None) -> None:
        """Note Global's answer to a key; None if it has no value."""
        if answer is not None:
            self.fetched[key] = answer
        del self.wanted[key]


class Begun(NamedTuple):
    """A GET that was sent already: its message, its membership, and the result of sending it."""

    message: Get
    membership: Membership
    result: StepResult


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
    first: StepResult | None = None
    if begun is not None:
        message, membership, first = begun
    else:
        now = yield from ensure_joined(state, now, deadline)
        membership = state.membership
        if options.wait:
            message = Wait(*envelope(state), keys[0], options.wait)
            until, pause = deadline + options.wait, RESEND_MAX
        else:
            message = Get(*envelope(state), keys)
    request = message.request
    answered = False
    try:
        if begun is None and not options.wait:  # other threads do not wait for a WAIT: it is long
            state.begin_asking(keys, request)
        now, reply = yield from exchange(state, message, GetReply, now, until, pause, first)
        answered = True
        items = reply.items
        if not 0 < len(items) <= len(keys):
            raise RequestRefused(
                f"Global answered a request for {len(keys)} keys with {len(items)} values"
            )
        large = take_small(state, reading, membership, zip(keys, items))
        state.end_asking(set(keys).difference(key for key, _ in large), request)
        for key, found in large:
            if state.membership is not membership:
                break  # the session has ended; the rest is asked for again
            result = yield FetchBody(
                envelope(state), key, found.stored, reading.span, options.into, options.report
            )
            now = result.now
            if result.failed is not None:
                _note_failed_body(state, reading, key, result.failed, now)
            else:
                reading.take(key, _filled_large(state, membership, key, found, result.body))
                state.end_asking([key], request)
    except SessionLost as lost:
        now = lost.now
    except NotMine:
        raise reading.misdirected() from None
    except Unanswered as ended:
        raise failure(state, ended) from None
    finally:
        if type(message) is Wait and not answered:
            state.unwait(message)
        state.end_asking(keys, request)
    return now, now + reading.span if answered else deadline


def take_small(
    state: LocalState,
    reading: Reading,
    membership: Membership,
    items: Iterable[tuple[Key, Found | None]],
) -> list[tuple[Key, Found]]:
    """Take the small values of a reply. Returns the large ones whose bytes are to be fetched."""
    large = []
    for key, found in items:
        if found is None:
            reading.take(key, None)
        elif type(found.stored.body) is not Large:
            reading.take(key, state.fill(membership, key, found) or found.stored)
        elif reading.options.bodies:
            large.append((key, found))
        else:
            reading.take(key, found.stored)
    return large


def _filled_large(
    state: LocalState, membership: Membership, key: Key, found: Found, body: MappedBody | None
) -> Answer:
    if body is None:  # it went to ``into``
        return found.stored
    return state.fill(membership, key, found, body) or found.stored._replace(body=body.view)


def _note_failed_body(
    state: LocalState, reading: Reading, key: Key, failed: TransferFailed, now: float
) -> None:
    """Note that a large value did not arrive. Raises unless it may be asked for again."""
    if failed.refusal is not None and failed.refusal.refusal is Refusal.NOT_MINE:
        raise reading.misdirected()
    if reading.gone is None:
        reading.gone = Counter()
    reading.gone[key] += 1
    if failed.refusal is None or failed.refusal.refusal is not Refusal.GONE:
        note_failed(state, failed.refusal, now)
    if reading.gone[key] >= ROUNDS_MAX:
        raise RequestRefused(MOVED)

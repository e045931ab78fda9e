"""SET, DEL and EXPIRE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dstore.config import BATCH_BYTES_MAX, ITEM_BYTES_MAX, KEYS_PER_MESSAGE_MAX
from dstore.core.local.cache import MappedBody
from dstore.core.local.membership import Membership
from dstore.core.local.operations.exchange import (
    RESEND_FIRST,
    ROUNDS_MAX,
    Misdirected,
    SessionLost,
    Unanswered,
    W,
    ensure_writer,
    exchange,
    failure,
    note_failed,
)
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Body, Operation, Report, SendBody, StepResult
from dstore.core.local.writer import Writer
from dstore.errors import GlobalUnavailable, OutcomeUnknown
from dstore.protocol.clusters import mark
from dstore.protocol.keys import public
from dstore.protocol.messages import (
    NO_SESSION,
    Del,
    DelReply,
    DelResult,
    Expire,
    ExpireReply,
    ExpireStatus,
    Found,
    Get,
    GetReply,
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

_STATUS_OF = {
    Refusal.FULL: SetStatus.FULL,
    Refusal.TOO_LARGE: SetStatus.TOO_LARGE,
    Refusal.DAMAGED: SetStatus.MISMATCH,
}


class SetOutcome(NamedTuple):
    """The outcome of one item. ``local``: this Local's cache showed that the key is occupied.

    ``updated``: this Local now caches the value that occupies the key. ``found``: the answer was
    lost, and the value is bound by its token; it may have taken the place of another.
    """

    status: SetStatus
    local: bool = False
    updated: bool = False
    found: bool = False


class BegunWrite(NamedTuple):
    """A write that was sent already: its message, by which writer, and the result of sending it."""

    message: Del | Set
    writer: Writer
    membership: Membership
    result: StepResult


class LargeBody(NamedTuple):
    """The bytes of a large value to be written: ``body`` to send, ``mapped`` for the cache."""

    body: Body
    mapped: MappedBody | None = None


NO_BODIES: Mapping[bytes, LargeBody] = {}


def set_(
    state: LocalState,
    items: Iterable[SetItem],
    replace: bool,
    now: float,
    deadline: float,
    bodies: Mapping[bytes, LargeBody] = NO_BODIES,
    report: Report | None = None,
    begun: BegunWrite | None = None,
    ttl: float | None = None,
) -> Operation[dict[Key, SetOutcome]]:
    """Bind values to keys that are free, or with ``replace`` in place of their present values.

    They expire ``ttl`` seconds after that; None: never.
    ``bodies`` has the bytes of large values by token; ``report`` is called with the progress of
    their transfers. The one message that all items fit into may have ``begun``, at ``now``.
    """
    setting = _Setting(state, replace, ttl, bodies, report)
    outcomes = setting.outcomes
    span = deadline - now
    asked = list(items) if begun else free(state, items, replace, now, outcomes)
    setting.left = {item.stored.token: item.key for item in asked}
    try:
        for batch in _batches(asked):
            now = yield from setting.bind(batch, now, deadline, begun=begun)
            begun = None
            deadline = now + span
            for item in batch:  # each is bound right after its upload, which is dropped if it waits
                rounds = 0
                while item.stored.token in setting.left:
                    if rounds == ROUNDS_MAX:
                        text = "Global has lost an upload again and again; try later"
                        raise GlobalUnavailable(text)
                    rounds += 1
                    now = yield from setting.upload(item, now, deadline)
                    deadline = now + span
    except Misdirected:
        left = list(setting.left.values())
        done = {key: outcome for key, outcome in outcomes.items() if key not in left}
        raise Misdirected(left, done) from None
    return outcomes


@dataclass
class _Setting:
    """The parts of :func:`set_`. Its methods note the outcomes, and return the time after that.

    ``left`` has the keys of the values, by token, that have no outcome yet, or are to be uploaded.
    """

    state: LocalState
    replace: bool
    ttl: float | None
    bodies: Mapping[bytes, LargeBody]
    report: Report | None
    outcomes: dict[Key, SetOutcome] = field(default_factory=dict)
    left: dict[bytes, Key] = field(default_factory=dict)

    def _note(self, item: SetItem, outcome: SetOutcome) -> None:
        """Note the outcome of an item, which is left if its bytes are to be uploaded."""
        self.outcomes[item.key] = outcome
        if outcome.status is not SetStatus.ABSENT or item.stored.token not in self.bodies:
            self.left.pop(item.stored.token, None)

    def bind(
        self,
        batch: list[SetItem],
        now: float,
        deadline: float,
        uploader: Writer | None = None,
        begun: BegunWrite | None = None,
    ) -> Operation[float]:
        """Send one SET message, in the session that has uploaded its value, if there is one."""
        state = self.state

        def message(writer: Writer, write: int) -> Set:
            return set_message(state, writer, write, writer.seen, self.replace, batch, self.ttl)

        keys = [item.key for item in batch]
        try:
            now, reply, membership = yield from _attempt(
                state, keys, message, SetReply, now, deadline, begun, uploader
            )
        except SessionLost as lost:
            return (yield from self._find(batch, lost, deadline))
        for item, result in zip(batch, reply.items):
            large = self.bodies.get(item.stored.token)
            outcome = fill(state, membership, item, result, large and large.mapped)
            self._note(item, outcome)
        return now

    def _find(self, batch: list[SetItem], lost: SessionLost, deadline: float) -> Operation[float]:
        """Find out by their tokens whether a SET has bound its values whose session was lost.

        What is not bound now may have been, for a while: then the outcome stays unknown.
        """
        state, now, wanted = self.state, lost.now, {item.key: item for item in batch}
        until = max(deadline, now + RESEND_FIRST)
        while wanted:
            keys = list(wanted)
            request = Get(mark(state.cluster), NO_SESSION, state.next_request(), keys)
            try:
                now, reply = yield from exchange(state, request, GetReply, now, until)
            except Unanswered:
                break
            for key, found in zip(keys, reply.items):
                if found is not None and found.stored.token == wanted[key].stored.token:
                    self._note(wanted.pop(key), SetOutcome(SetStatus.STORED, found=True))
            if not reply.items or len(wanted) > len(keys) - len(reply.items):  # one is not bound
                break
        if wanted:
            raise _unknown([item.key for item in batch], lost)
        return now

    def upload(self, item: SetItem, now: float, deadline: float) -> Operation[float]:
        """Send Global the bytes of one item, and bind it in the session that has sent them."""
        state, stored, span = self.state, item.stored, deadline - now
        now = yield from ensure_writer(state, now, deadline)
        body, writer = self.bodies[stored.token].body, state.writer
        envelope = writer.epoch, writer.session, state.next_request()
        arrived = False
        try:
            writer.uploads += 1  # the session does not end meanwhile, and its uploads with it
            result = yield SendBody(envelope, stored, deadline - now, body, self.report)
            arrived, now = result.failed is None, result.now
            if arrived:
                return (yield from self.bind([item], now, now + span, writer))
        except Misdirected:  # the bytes are needed elsewhere
            state.unstage(writer, stored.token)
            raise
        finally:
            writer.uploads -= 1
            if not arrived:
                state.unstage(writer, stored.token)
        assert result.failed is not None
        refused = result.failed.refusal
        if refused is not None and refused.refusal in _STATUS_OF:
            self._note(item, SetOutcome(_STATUS_OF[refused.refusal]))
        else:
            note_failed(state, refused, now)
        return now


def free(
    state: LocalState,
    items: Iterable[SetItem],
    replace: bool,
    now: float,
    outcomes: dict[Key, SetOutcome],
) -> list[SetItem]:
    """Return the items whose keys are not known here as occupied; note the outcomes of others.

    Global is asked about a content address in any case: it may have to live longer, and no cache
    knows for how long it does.
    """
    if replace:
        return list(items)
    asked: list[SetItem] = []
    for item in items:
        if item.key not in state.addresses and state.is_known(item.key, now):
            outcomes[item.key] = SetOutcome(SetStatus.OCCUPIED, local=True)
        else:
            asked.append(item)
    return asked


def set_message(
    state: LocalState,
    writer: Writer,
    write: int,
    seen: int,
    replace: bool,
    items: list[SetItem],
    ttl: float | None,
) -> Set:
    """Return the message that binds ``items``; this process may then cache them."""
    holder = state.session if state.epoch == writer.epoch else NO_SESSION
    request = state.next_request()
    return Set(writer.epoch, writer.session, request, write, seen, replace, items, holder, ttl)


def delete_keys(
    state: LocalState,
    keys: list[Key],
    wait: bool,
    now: float,
    deadline: float,
    begun: BegunWrite | None = None,
) -> Operation[dict[Key, DelResult]]:
    """Delete keys, in as many messages as it takes; the first may have ``begun``, at ``now``."""
    results: dict[Key, DelResult] = {}
    span = deadline - now
    left = keys
    while left:
        batch, left = left[:KEYS_PER_MESSAGE_MAX], left[KEYS_PER_MESSAGE_MAX:]

        def message(writer: Writer, write: int, keys: list[Key] = batch) -> Del:
            envelope = writer.epoch, writer.session, state.next_request()
            return Del(*envelope, write, writer.seen, wait, keys)

        try:
            now, reply, _ = yield from _write(state, batch, message, DelReply, now, deadline, begun)
        except Misdirected:
            raise Misdirected([*batch, *left], results) from None
        begun = None
        results.update(zip(batch, reply.items))
        deadline = now + span
    return results


def expire(
    state: LocalState, key: Key, ttl: float | None, now: float, deadline: float
) -> Operation[ExpireStatus]:
    """Let a key expire in ``ttl`` seconds, or never."""

    def message(writer: Writer, write: int) -> Expire:
        envelope = writer.epoch, writer.session, state.next_request()
        return Expire(*envelope, write, writer.seen, ttl, [key])

    _, reply, _ = yield from _write(state, [key], message, ExpireReply, now, deadline)
    return reply.items[0]


def _write(
    state: LocalState,
    keys: list[Key],
    message: Callable[[Writer, int], RequestMessage],
    kind: type[W],
    now: float,
    deadline: float,
    begun: BegunWrite | None = None,
) -> Operation[tuple[float, W, Membership]]:
    """Do what :func:`_attempt` does. Raises OutcomeUnknown if the session was lost."""
    try:
        return (yield from _attempt(state, keys, message, kind, now, deadline, begun))
    except SessionLost as lost:
        raise _unknown(keys, lost) from None


def _unknown(keys: list[Key], ended: Unanswered) -> OutcomeUnknown:
    return OutcomeUnknown([public(key) for key in keys], ended.why)


def _attempt(
    state: LocalState,
    keys: list[Key],
    message: Callable[[Writer, int], RequestMessage],
    kind: type[W],
    now: float,
    deadline: float,
    begun: BegunWrite | None = None,
    uploader: Writer | None = None,
) -> Operation[tuple[float, W, Membership]]:
    """Send a write until it is answered; Global executes it at most once. It may have ``begun``.

    It is sent in the session of ``uploader``, if that is there, as long as Global knows it.

    Returns the time, the reply, and the membership under which the request was sent. Raises
    SessionLost if that was lost and the write may have been executed.
    """
    while True:
        first: StepResult | None = None
        if begun is None:
            if uploader is None and (not state.writer.session or now >= deadline):
                now = yield from ensure_writer(state, now, deadline)
            writer, membership = uploader or state.writer, state.membership
            uploader = None  # if it is lost, another one is needed
            write = writer.next
        else:
            write, membership, first = begun.message.write, begun.membership, begun.result
            writer = begun.writer
        try:  # the write is ended, also when Ctrl-C comes in between
            if begun is None:
                writer.begin(write)
                request = message(writer, write)
            else:
                request, begun = begun.message, None
            # A write may have to wait for the lease of a Local that died.
            until = deadline + state.lease
            now, reply = yield from exchange(
                state, request, kind, now, until, first=first, patient=True
            )
            if len(reply.items) != len(keys):
                why = "Global answered with a wrong number of outcomes"
                raise OutcomeUnknown([public(key) for key in keys], why)
            return now, reply, membership
        except Unanswered as ended:
            now = ended.now
            lost = isinstance(ended, SessionLost)
            if ended.unknown and lost:
                raise
            if ended.unknown:
                raise _unknown(keys, ended) from None
            if not lost:
                raise failure(state, ended, keys) from None
        finally:
            # Not in a function of its own: Ctrl-C may come when that is called, and a write that
            # does not end keeps all later ones from being seen.
            writer.writing.discard(write)


def fill(
    state: LocalState,
    membership: Membership,
    item: SetItem,
    result: SetResult,
    mapped: MappedBody | None = None,
) -> SetOutcome:
    """Cache the value that was written, or the value that occupies the key, if that is allowed."""
    if result.status is SetStatus.OCCUPIED:
        found = result.found
        if found is not None and type(found.stored.body) is Large:
            found = None  # it is fetched when it is asked for
        updated = found is not None and state.fill(membership, item.key, found) is not None
        return SetOutcome(result.status, updated=updated)
    if result.cacheable and (mapped is not None or type(item.stored.body) is not Large):
        state.fill(membership, item.key, Found(result.seq, True, item.stored), mapped)
    return SetOutcome(result.status)


def one_message(items: list[SetItem]) -> bool:
    """Whether items, of different keys, fit into one message."""
    if len(items) == 1:
        return True
    size = sum(item.stored.inline for item in items) + ITEM_BYTES_MAX * len(items)
    return len(items) <= KEYS_PER_MESSAGE_MAX and size <= BATCH_BYTES_MAX


def _batches(items: list[SetItem]) -> Iterable[list[SetItem]]:
    """Split items into batches of one message each. A key that comes again starts a new batch."""
    if len(items) == 1:
        yield items
        return
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

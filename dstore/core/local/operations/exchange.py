"""Requests: how an operation sends one until it is answered, or gives up.

The simplest operations are here too: scans, times to live, Global's metrics, the map of a cluster,
and waiting for a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dstore.core.local.clusters import wrong_cluster
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, Request, StepResult, WaitUntil
from dstore.errors import AccessDenied, DstoreError, GlobalUnavailable, RequestRefused, copy_of
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.messages import (
    NO_SESSION,
    AskMap,
    DelReply,
    ExpireReply,
    Key,
    MapReply,
    Refusal,
    Refused,
    Reply,
    RequestMessage,
    Scan,
    ScanReply,
    SetReply,
    Stats,
    StatsReply,
    Ttl,
    TtlReply,
)

RESEND_FIRST, RESEND_MAX = 1.0, 4.0
"""Seconds after which an unanswered request is sent again; the pause doubles. The first pause is at
most a quarter of the time that the request has.
"""
ROUNDS_MAX = 5
"""Attempts to get a large value that is gone when it is fetched, or whose upload is lost."""
NO_REASON = "is it running, and reachable?"
"""What is asked about a Global that does not answer, if nothing is known."""

R = TypeVar("R", bound=Reply)
W = TypeVar("W", SetReply, DelReply, ExpireReply)


class Unanswered(Exception):
    """A request has no answer, for the reason ``why``; by itself, since the deadline has passed.

    ``unknown`` copies of the request may still be executed.
    """

    def __init__(
        self, now: float, unknown: int, why: str = "Global did not answer in time"
    ) -> None:
        self.now = now
        self.unknown = unknown
        self.why = why


class SessionLost(Unanswered):
    """Global does not know the session any more."""


class Declined(Unanswered):
    """Global refuses the request for good."""


class NotMine(Unanswered):
    """Global does not own one of the keys. No copy of the request changes anything any more.

    A write that was refused so is not executed by any copy of it: Global keeps that as its outcome.
    """

    def __init__(self, now: float, why: str) -> None:
        super().__init__(now, 0, why)


class Misdirected(RequestRefused):
    """Global does not own the partition of a key: ask another Global of its cluster.

    Internal: the router of a client asks the owners. Nothing was done for ``keys``, which are those
    that have no answer yet. ``done`` has what an operation with many keys had come to for others:
    values (:data:`~.fetching.Answer`), or outcomes of a write. (A key that was read and is in
    neither has no value.) A read may begin again with all of its keys, a write must not.
    """

    def __init__(self, keys: Iterable[Key], done: Mapping[Key, Any] | None = None) -> None:
        super().__init__("Global does not own the keys; another Global of its cluster does")
        self.keys = list(keys)
        self.done = dict(done or {})


class Denied(Unanswered):
    """Global does not let this client in, or does not let it do this; ``error`` says why."""

    def __init__(self, now: float, unknown: int, error: DstoreError) -> None:
        super().__init__(now, unknown, str(error))
        self.error = error


def envelope(state: LocalState) -> tuple[int, int, int]:
    """Return epoch, session, and the number of the next request."""
    return (*state.addressee, state.next_request())


def ensure_joined(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a session, or for leave to ask without one. Returns the time after that."""
    check_admitted(state)
    check_time(state, now, deadline)

    def ready(_: float) -> bool:
        return bool(state.session) or state.bridging or state.denied is not None

    if not ready(now):
        now = (yield WaitUntil(ready, deadline)).now
    check_admitted(state)
    if not ready(now):
        raise unavailable(state)
    return now


def ensure_writer(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a session for writes. Returns the time after that."""
    check_admitted(state)
    check_time(state, now, deadline)
    if not state.writer.session:
        state.want_writer(now)

        def ready(now: float) -> bool:
            if state.denied is not None or state.writer_denied is not None:
                return True
            state.want_writer(now)  # the membership may have ended, and with it the need for none
            return bool(state.writer.session)

        now = (yield WaitUntil(ready, deadline)).now
        check_admitted(state)
        if state.writer_denied is not None:
            raise copy_of(state.writer_denied)
    if not state.writer.session:
        raise unavailable(state)
    return now


def exchange(
    state: LocalState,
    message: RequestMessage,
    kind: type[R],
    now: float,
    deadline: float,
    pause: float = RESEND_FIRST,
    first: StepResult | None = None,
    patient: bool = False,
) -> Operation[tuple[float, R]]:
    """Send a request, in the session that it names, until it is answered.

    It is repeated after ``pause`` seconds. ``first`` is the result of sending it, if that was done
    already, at ``now``. With ``patient`` it waits for as long as Global is there and has not ended
    its quiet period, in which it removes nothing.
    """
    unknown = 0
    pause = min(pause, (deadline - now) / 4)
    while True:
        if first is None:
            if state.denied is not None:
                raise Denied(now, unknown, state.denied)
            result = yield Request(message, min(deadline, now + pause))
        else:
            result, first = first, None
        now, reply = result.now, result.reply
        unknown += result.sent
        if isinstance(reply, kind):
            return now, reply
        if isinstance(reply, Refused):
            unknown -= 1
            _check_refusal(state, reply, now, unknown)
            until = min(deadline, now + pause)
            now = (yield WaitUntil(lambda _: state.denied is not None, until)).now
        elif reply is not None:
            raise Declined(now, unknown, f"it answered with {type(reply).__name__}")
        elif state.denied is not None:
            raise Denied(now, unknown, state.denied)
        elif not unknown and state.one_of_several:  # there is no connection
            raise Unanswered(now, unknown)
        if now >= deadline:
            if not (patient and state.is_quiet(now)):
                raise Unanswered(now, unknown)
            deadline, pause = min(now, state.quiet_until) + state.lease, RESEND_FIRST
        pause = min(2 * pause, RESEND_MAX)


def _check_refusal(state: LocalState, reply: Refused, now: float, unknown: int) -> None:
    """Note a refusal, and raise an Unanswered, unless the request is to be sent again."""
    if reply.refusal is Refusal.BUSY:
        state.last_error = f"it says: {reply.text}"
    if reply.refusal in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
        state.refused(reply, now)
        why = "Global, or what it knew of this Local, was lost before it answered"
        raise SessionLost(now, unknown, why)
    # A Global that closes may be gone when the next copy comes, and then the outcome is unknown.
    closing = reply.refusal is Refusal.CLOSING and state.one_of_several and not unknown
    if closing or reply.refusal is Refusal.NOT_MINE:
        raise NotMine(now, reply.text)
    if reply.refusal is Refusal.DENIED:
        raise Denied(now, unknown, AccessDenied(reply.text))
    if reply.refusal not in (Refusal.CLOSING, Refusal.BUSY):
        raise Declined(now, unknown, reply.text)


def failure(state: LocalState, ended: Unanswered, keys: Iterable[Key] = ()) -> Exception:
    """Return the error that a program gets for an exchange about ``keys`` without an answer."""
    if isinstance(ended, NotMine):
        return Misdirected(keys)
    if isinstance(ended, Denied):
        return copy_of(ended.error)
    if isinstance(ended, Declined):
        return RequestRefused(f"Global refused the request: {ended.why}")
    return unavailable(state)


def check_time(state: LocalState, now: float, deadline: float) -> None:
    """Raise GlobalUnavailable if the deadline has passed."""
    if now >= deadline:
        raise unavailable(state)


def check_admitted(state: LocalState) -> None:
    """Raise AccessDenied or WrongServer if Global does not let this client in."""
    if state.denied is not None:
        raise copy_of(state.denied)


def unavailable(state: LocalState) -> GlobalUnavailable:
    """Return the error for a Global that does not answer, with the reason if it is known."""
    if state.page is None and not state.joining:
        why = state.no_page or "none has a valid lease"
        return GlobalUnavailable(f"host='require' asks for a cache that this host shares; {why}")
    return GlobalUnavailable(f"Global did not answer in time; {state.last_error or NO_REASON}")


def note_failed(state: LocalState, refused: Refused | None, now: float) -> None:
    """Handle the failure of a transfer: join again if the session is unknown, else raise."""
    if refused is None:
        check_admitted(state)
        raise unavailable(state)
    if refused.refusal is Refusal.DENIED:
        raise AccessDenied(refused.text)
    if refused.refusal not in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
        raise RequestRefused(f"Global refused the transfer: {refused.text}")
    state.refused(refused, now)


def scan(
    state: LocalState,
    prefix: str,
    after: Key,
    limit: int,
    now: float,
    deadline: float,
    partitions: bytes = b"",
) -> Operation[ScanReply]:
    """Read one page of the keys that begin with ``prefix``.

    ``partitions`` has a bit for each partition whose keys are wanted; none at all: those of Global.
    """

    def message() -> Scan:
        return Scan(*envelope(state), prefix, after, limit, partitions)

    return _read(state, message, ScanReply, now, deadline)


def ask_map(state: LocalState, now: float, deadline: float) -> Operation[MapReply]:
    """Ask Global which Global of its cluster owns which partition. No session is needed.

    Raises WrongServer if it is not of the cluster that this Local belongs to.
    """
    check_admitted(state)
    check_time(state, now, deadline)
    message = AskMap(0, NO_SESSION, state.next_request())
    try:
        _, reply = yield from exchange(state, message, MapReply, now, deadline)
    except Unanswered as ended:
        raise failure(state, ended) from None
    if state.cluster not in (NO_CLUSTER, reply.cluster):
        raise wrong_cluster(state.cluster, reply.cluster)
    return reply


def stats(state: LocalState, now: float, deadline: float) -> Operation[dict[str, object]]:
    """Read Global's metrics."""
    reply = yield from _read(state, lambda: Stats(*envelope(state)), StatsReply, now, deadline)
    return reply.metrics


def ttl(state: LocalState, key: Key, now: float, deadline: float) -> Operation[TtlReply]:
    """Ask Global in how many seconds a key expires."""
    return _read(state, lambda: Ttl(*envelope(state), key), TtlReply, now, deadline, [key])


def join(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a session. If there is one, no time is needed. Returns the time after that."""
    if state.session:
        return now
    return (yield from ensure_joined(state, now, deadline))


def _read(
    state: LocalState,
    message: Callable[[], RequestMessage],
    kind: type[R],
    now: float,
    deadline: float,
    keys: Iterable[Key] = (),
) -> Operation[R]:
    """Send a request about ``keys`` that may be executed any number of times. Returns the reply."""
    while True:
        now = yield from ensure_joined(state, now, deadline)
        try:
            _, reply = yield from exchange(state, message(), kind, now, deadline)
            return reply
        except SessionLost as lost:
            now = lost.now
        except Unanswered as ended:
            raise failure(state, ended, keys) from None

"""The steps of an operation, and how a request gets its answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from dstore.core.local.cache import Held
from dstore.core.local.state import Fill, LocalState
from dstore.core.local.transfer import TransferFailed, Write
from dstore.errors import GlobalUnavailable, RequestRefused
from dstore.protocol.messages import (
    DelReply,
    Refusal,
    Refused,
    Reply,
    RequestMessage,
    SetReply,
    Stored,
)

RESEND_FIRST, RESEND_MAX = 1.0, 4.0
"""Seconds before a request that is not answered is sent again, with doubling pauses. The first
is a quarter of its time at most.
"""
ROUNDS_MAX = 5
"""How often a large value is tried that is gone, or whose upload is lost, when it is needed."""


class Request(NamedTuple):
    """Send a request and wait for the reply that bears its number, or until ``until``."""

    message: RequestMessage
    until: float


class WaitUntil(NamedTuple):
    """Wait until the predicate holds at some moment (its argument), or until ``until``."""

    predicate: Callable[[float], bool]
    until: float


class FetchBody(NamedTuple):
    """Get hold of the bytes of a large value: in the memory of the host, or from Global.

    ``envelope`` is epoch, session and request number of the transfer; ``stall_timeout`` is for how many
    seconds it may stand still. ``into`` takes the parts of what would else fill private memory.
    """

    envelope: tuple[int, int, int]
    stored: Stored
    stall_timeout: float
    into: Write | None


class SendBody(NamedTuple):
    """Send Global the bytes of a large value that is to be written."""

    envelope: tuple[int, int, int]
    stored: Stored
    stall_timeout: float


@dataclass(slots=True)
class StepResult:
    """What came of a step. ``now`` was read under the lock. ``sent``: the request left us.

    ``held`` came of FetchBody, unless all has gone ``into`` somewhere; ``failed`` is why it, or
    SendBody, came to nothing.
    """

    now: float
    reply: Reply | None = None
    sent: bool = False
    held: Held | None = None
    failed: TransferFailed | None = None


Step: TypeAlias = Request | WaitUntil | FetchBody | SendBody
T = TypeVar("T")
R = TypeVar("R", bound=Reply)
W = TypeVar("W", SetReply, DelReply)
Operation: TypeAlias = Generator[Step, StepResult, T]


class Unanswered(Exception):
    """The exchange ended without an answer. ``unknown`` copies of it may yet be executed."""

    why = ""

    def __init__(self, now: float, unknown: int) -> None:
        self.now = now
        self.unknown = unknown


class SessionLost(Unanswered):
    """Global does not know the session any more."""

    why = "Global, or what it knew of this Local, was lost before it answered"


class TimedOut(Unanswered):
    """The deadline has passed."""

    why = "Global did not answer in time"


class Declined(Unanswered):
    """Global refuses to do this at all, and ``why``."""

    def __init__(self, now: float, unknown: int, why: str) -> None:
        super().__init__(now, unknown)
        self.why = why


def envelope(state: LocalState) -> tuple[int, int, int]:
    """Epoch, session, and a number for the next request."""
    return state.epoch, state.session, state.next_request()


def ensure_joined(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a session."""
    check_time(state, now, deadline)
    if not state.session:
        now = (yield WaitUntil(lambda _: bool(state.session), deadline)).now
    if not state.session:
        raise unavailable(state)
    return now


def exchange(
    state: LocalState,
    message: RequestMessage,
    kind: type[R],
    now: float,
    deadline: float,
    pause: float = RESEND_FIRST,
) -> Operation[tuple[float, R]]:
    """Send one request until it is answered, in the session that it bears.

    After ``pause`` seconds it is sent again.
    """
    unknown = 0
    pause = min(pause, (deadline - now) / 4)
    while True:
        resumed = yield Request(message, min(deadline, now + pause))
        now, reply = resumed.now, resumed.reply
        unknown += resumed.sent
        if isinstance(reply, kind):
            return now, reply
        if isinstance(reply, Refused):
            unknown -= 1
            if reply.refusal is Refusal.BUSY:
                state.last_error = f"it says: {reply.text}"
            if reply.refusal in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
                state.refused(reply, now)
                raise SessionLost(now, unknown)
            if reply.refusal not in (Refusal.CLOSING, Refusal.BUSY):
                raise Declined(now, unknown, reply.text)
            now = (yield WaitUntil(lambda _: False, min(deadline, now + pause))).now
        elif reply is not None:
            raise Declined(now, unknown, f"it answered with {type(reply).__name__}")
        if now >= deadline:
            raise TimedOut(now, unknown)
        pause = min(2 * pause, RESEND_MAX)


def failure(state: LocalState, ended: Unanswered) -> Exception:
    if isinstance(ended, Declined):
        return RequestRefused(f"Global refused the request: {ended.why}")
    return unavailable(state)


def check_time(state: LocalState, now: float, deadline: float) -> None:
    if now >= deadline:
        raise unavailable(state)


def unavailable(state: LocalState) -> GlobalUnavailable:
    last_error = state.last_error or "is it running, and reachable?"
    return GlobalUnavailable(f"Global did not answer in time; {last_error}")


def note_refusal(state: LocalState, refused: Refused, now: float) -> None:
    """A transfer was refused: join anew, if it is for that reason."""
    if refused.refusal not in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
        raise RequestRefused(f"Global refused the transfer: {refused.text}")
    state.refused(refused, now)


def end_fills(state: LocalState, fills: list[Fill]) -> None:
    for fill in fills:
        if not fill.done:
            state.end_fill(fill)

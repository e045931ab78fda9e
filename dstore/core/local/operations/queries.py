"""Reads that store nothing: scans, Global's metrics, and waiting for a session."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.local.operations.exchange import (
    R,
    SessionLost,
    Unanswered,
    ensure_joined,
    envelope,
    exchange,
    failure,
)
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation
from dstore.protocol.messages import Key, RequestMessage, Scan, ScanReply, Stats, StatsReply


def scan(
    state: LocalState, prefix: str, after: Key, limit: int, now: float, deadline: float
) -> Operation[ScanReply]:
    """Read one page of the keys that begin with ``prefix``."""
    return _read(
        state, lambda: Scan(*envelope(state), prefix, after, limit), ScanReply, now, deadline
    )


def stats(state: LocalState, now: float, deadline: float) -> Operation[dict[str, object]]:
    """Read Global's metrics."""
    reply = yield from _read(state, lambda: Stats(*envelope(state)), StatsReply, now, deadline)
    return reply.metrics


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
) -> Operation[R]:
    """Send a request that may be executed any number of times. Returns the reply."""
    while True:
        now = yield from ensure_joined(state, now, deadline)
        try:
            _, reply = yield from exchange(state, message(), kind, now, deadline)
            return reply
        except SessionLost as lost:
            now = lost.now
        except Unanswered as ended:
            raise failure(state, ended) from None

"""GET, step by step, after what the direct path has done; and WAIT."""

from __future__ import annotations

from collections.abc import Callable

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.operations.exchange import check_admitted, check_time
from dstore.core.local.operations.fetching import Answer, Begun, Reading, ReadOptions, fetch
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, WaitUntil
from dstore.protocol.messages import Key

JOIN_MAX = 1.0
"""Seconds for which a GET waits for another GET of its key that is in flight."""
WAIT_ROUND = 10.0
"""Seconds for which Global keeps a request that waits for a key; then the Local asks again."""
WAIT_MIN = 0.001


def rest(
    state: LocalState, reading: Reading, now: float, deadline: float, begun: Begun | None = None
) -> Operation[None]:
    """Read the keys that are still wanted. A GET of all of them that has ``begun`` is ended first.

    It was sent at ``now``.
    """
    wanted, stale_ok = reading.wanted, reading.options.stale_ok
    if begun is not None:
        now, deadline = yield from fetch(state, reading, list(wanted), now, deadline, begun)
    waited: set[Key] = set()
    while wanted:
        lapsed = (
            state.page is None and now >= state.lease_end
        )  # a shared lease is not ours to renew
        if lapsed and not stale_ok and any(key in state.entries for key in wanted):
            now = yield from _renewed(state, now, deadline)
        asked: list[Key] = []
        joined: dict[Key, int] = {}
        for key in list(wanted):
            entry = state.hit(key, now, stale_ok)
            if entry is not None:
                reading.local[key] = entry
                del wanted[key]
            elif (request := state.asking(key)) is None or key in waited:
                asked.append(key)
            else:
                joined[key] = request
        if asked:
            del asked[KEYS_PER_MESSAGE_MAX:]
            now, deadline = yield from fetch(state, reading, asked, now, deadline)
        elif joined:
            waited.update(joined)
            until = now + min((deadline - now) / 2, JOIN_MAX)
            now = (yield WaitUntil(_all_ended(state, joined), until)).now
            check_time(state, now, deadline)


def _renewed(state: LocalState, now: float, deadline: float) -> Operation[float]:
    """Wait for a valid lease, or for a change of session, which empties the cache."""
    session = state.session
    check_admitted(state)
    state.renew(now)

    def changed(now: float) -> bool:
        return now < state.lease_end or state.session != session or state.denied is not None

    result = yield WaitUntil(changed, deadline)
    check_admitted(state)
    check_time(state, result.now, deadline)
    return result.now


def _all_ended(state: LocalState, requests: dict[Key, int]) -> Callable[[float], bool]:
    return lambda _: all(state.asking(key) != request for key, request in requests.items())


def wait(
    state: LocalState, key: Key, now: float, deadline: float, stall_timeout: float
) -> Operation[tuple[Answer | None, bool]]:
    """Wait until a key has a value: None if it has none until ``deadline``.

    Returns also whether it was cached here.
    """
    reading = Reading([], ReadOptions(), stall_timeout)
    while True:
        entry = state.hit(key, now)
        if entry is not None:
            return entry, True
        span = max(WAIT_MIN, min(WAIT_ROUND, deadline - now))
        reading.wanted, reading.options = {key: None}, ReadOptions(wait=span)
        now, _ = yield from fetch(state, reading, [key], now, now + stall_timeout)
        if key in reading.fetched:
            return reading.fetched[key], False
        if now >= deadline and not reading.wanted:
            return None, False

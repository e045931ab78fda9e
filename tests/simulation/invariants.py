"""What must hold after every step of a simulated run, whatever the history says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dstore.core.local.cache import Entry
from dstore.core.local.state import SYNCS_MAX
from dstore.protocol.messages import Large, Stored

if TYPE_CHECKING:
    from tests.simulation.actors import SimGlobal, SimLocal

TOLERANCE = 1e-6


def broken(place: SimGlobal, locals_: list[SimLocal]) -> Iterator[str]:
    """What does not hold now, one line each."""
    yield from _alarm_is_in_time(place)
    for local in locals_:
        if local.alive and local.state.session and local.state.epoch == place.epoch:
            yield from _cache_is_current(place, local)
            yield from _applied_is_applied(place, local)
            yield from _lease_is_covered(place, local)
            yield from _buffers_are_bounded(local)


def _alarm_is_in_time(place: SimGlobal) -> Iterator[str]:
    """Each part of Global that schedules something has brought the next tick forward."""
    state = place.state
    if state.wake_at > state._next_moment(place.loop.now):
        yield f"Global wakes at {state.wake_at}, which is too late for {state!r}"


def _tokens(local: SimLocal) -> Iterator[tuple[Entry, bytes]]:
    for entry in local.state.cache:
        assert isinstance(entry.value, Stored) and not isinstance(entry.value.body, Large)
        yield entry, entry.value.token


def _cache_is_current(place: SimGlobal, local: SimLocal) -> Iterator[str]:
    """While the lease lives, what is cached is what is bound."""
    if local.clock() >= local.state.lease_end:
        return
    for entry, token in _tokens(local):
        bound = place.engine.read(entry.key)
        if bound is None or bound.token != token:
            yield f"{local.name} may answer {entry.key} with a value that is gone"


def _applied_is_applied(place: SimGlobal, local: SimLocal) -> Iterator[str]:
    """What a Local acknowledges it has applied."""
    applied = place.deletions[: local.state.applied]
    if local.state.applied > len(place.deletions):
        yield f"{local.name} has applied {local.state.applied}, which has not happened"
    gone = set(applied)
    for entry, token in _tokens(local):
        if (entry.key, token) in gone:
            yield f"{local.name} holds {entry.key} although it applied its deletion"


def _lease_is_covered(place: SimGlobal, local: SimLocal) -> Iterator[str]:
    """Global's view of a lease never ends before the Local's."""
    end = local.true_time(local.state.lease_end)
    if end <= place.loop.now:
        return
    session = place.state._sessions.get(local.state.session)
    if session is None:
        if not local.state.closing:
            yield f"{local.name} has a lease, and Global does not know its session"
    elif session.lease_end < end - TOLERANCE:
        yield f"{local.name} has a lease until {end:.4f}, Global counts {session.lease_end:.4f}"


def _buffers_are_bounded(local: SimLocal) -> Iterator[str]:
    state = local.state
    if state._reorder_keys > local.scenario.held_keys or len(state._sent_at) > SYNCS_MAX:
        yield f"{local.name} buffers without bound"
    if state.cache.size > state.cache.limit:
        yield f"{local.name} caches more than its limit"


def left_over(place: SimGlobal, locals_: list[SimLocal]) -> Iterator[str]:
    """What has not been given back although all is quiet."""
    alive = [local for local in locals_ if local.alive and not local.state.closing]
    yield from _left_at_global(place, len(alive))
    if any(host.writers for host in {id(local.host): local.host for local in locals_}.values()):
        yield "a host has a file that nobody goes on writing"
    for local in alive:
        if local.state._fills or local.state._writing or local.state._reorder_buffer:
            yield f"{local.state!r} keeps fills, writes or broadcasts"
        if local.state.applied != place.state._log.seq:
            yield f"{local.name} has applied {local.state.applied} of {place.state._log.seq}"
        if local.state.watching.watchers and local.announced != local.state.applied:
            yield f"{local.name} has announced {local.announced} of {local.state.applied}"
        for client in local.clients:
            if not client.idle:
                yield f"{client.name} still waits"


def _left_at_global(place: SimGlobal, alive: int) -> Iterator[str]:
    state = place.state
    if not state.idle:
        yield f"pending keys stay: {state._invalidations!r}"
    if len(state._stages):
        yield f"uploads stay: {state._stages!r}"
    if place.bulk.tokens() != place.bound():
        yield f"{len(place.bulk.tokens())} large values are kept for {len(place.bound())} keys"
    if state._space.replacing or len(state._waits):
        yield "writes or waits stay"
    if state._sessions.writes.taken or state._sessions.waits.taken:
        yield f"budgets are not given back: {state._sessions.writes!r} {state._sessions.waits!r}"
    if not len(state._holders) and state._holders.bytes:
        yield f"no key is held, and that takes memory: {state._holders!r}"
    if len(state._sessions) != alive:
        yield f"{len(state._sessions)} sessions for {alive} Locals"
    for session in state._sessions:
        recipient = state._invalidations.recipient(session)
        if recipient.awaited or session.outcomes:
            yield f"{session!r} {recipient!r} keeps waiters or outcomes"

"""Conditions that must hold after every step of a simulated run, and at its end."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core.local.state import SYNCS_MAX
from dstore.protocol.messages import Key, Large, Stored
from tests.simulation.actors import SimGlobal, SimLocal
from tests.simulation.client import Client

TOLERANCE = 1e-6
"""Seconds by which two computations of the same time may differ."""


def broken(authority: SimGlobal, locals_: list[SimLocal]) -> Iterator[str]:
    """The conditions that do not hold now, one line each."""
    yield from _alarm_is_in_time(authority)
    for local in locals_:
        if local.alive and local.state.session and local.state.epoch == authority.epoch:
            yield from _cache_is_current(authority, local)
            yield from _applied_is_applied(authority, local)
            yield from _lease_is_covered(authority, local)
            yield from _buffers_are_bounded(local)


def _alarm_is_in_time(place: SimGlobal) -> Iterator[str]:
    """Each part of Global that schedules something has brought the next tick forward."""
    state = place.state
    if state.wake_at > state._next_moment(place.loop.now):
        yield f"Global wakes at {state.wake_at}, which is too late for {state!r}"


def _answers(local: SimLocal, stale_ok: bool = False) -> Iterator[tuple[Key, bytes]]:
    """What hits could answer with now: each key, and the token of its value."""
    for entry in local.state.cache:
        visited = entry.visited
        if local.state.hit(entry.key, local.clock(), stale_ok) is not None:
            entry.visited = visited
            assert isinstance(entry.value, Stored) and not isinstance(entry.value.body, Large)
            yield entry.key, entry.value.token


def _cache_is_current(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """While the lease lasts, each value that a hit could answer with is the bound one."""
    for key, token in _answers(local):
        bound = authority.engine.read(key)
        if bound is None or bound.token != token:
            yield f"{local.name} may answer {key} with a value that is gone"


def _applied_is_applied(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """A Local has applied all invalidations that it acknowledges."""
    applied = authority.deletions[: local.state.applied]
    if local.state.applied > len(authority.deletions):
        yield f"{local.name} has applied {local.state.applied}, which has not happened"
    gone = set(applied)
    for key, token in _answers(local, stale_ok=True):
        if (key, token) in gone:
            yield f"{local.name} answers {key} although it applied its deletion"


def _lease_is_covered(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """A lease never ends at Global before it ends at the Local."""
    end = local.true_time(local.state.lease_end)
    if end <= authority.loop.now:
        return
    session = authority.state._sessions.get(local.state.session)
    if session is None:
        if not local.state.closing:
            yield f"{local.name} has a lease, and Global does not know its session"
    elif session.lease_end < end - TOLERANCE:
        yield f"{local.name} has a lease until {end:.4f}, Global counts {session.lease_end:.4f}"


def _buffers_are_bounded(local: SimLocal) -> Iterator[str]:
    state = local.state
    if state._reorder_keys > local.scenario.reorder_keys or len(state._sent_at) > SYNCS_MAX:
        yield f"{local.name} buffers without bound"
    if state.cache.size > state.cache.limit:
        yield f"{local.name} caches more than its limit"


def left_over(
    authority: SimGlobal, locals_: list[SimLocal], clients: list[Client]
) -> Iterator[str]:
    """What has not been released at the end of a run, one line each."""
    alive = [local for local in locals_ if local.alive and not local.state.closing]
    yield from _left_at_global(authority, len(alive))
    if any(host.writers for host in {id(local.host): local.host for local in locals_}.values()):
        yield "a host has a file that no thread goes on writing"
    for client in clients:
        if client.local in alive and not client.idle:
            yield f"{client.name} still waits"
    for local in alive:
        if local.state.in_flight or local.state.writer.writing or local.state._reorder_buffer:
            yield f"{local.state!r} keeps requests, writes or broadcasts"
        if local.state.applied != authority.state._log.seq:
            yield f"{local.name} has applied {local.state.applied} of {authority.state._log.seq}"
        if local.state.watching.watchers and local.announced != local.state.applied:
            yield f"{local.name} has announced {local.announced} of {local.state.applied}"


def _left_at_global(authority: SimGlobal, alive: int) -> Iterator[str]:
    state = authority.state
    if not state.idle:
        yield f"pending keys stay: {state._invalidations!r}"
    if len(state._stages):
        yield f"uploads stay: {state._stages!r}"
    if authority.bulk.tokens() != authority.bound():
        large, bound = len(authority.bulk.tokens()), len(authority.bound())
        yield f"{large} large values are kept for {bound} keys"
    if state._stages.replacing or len(state._waits):
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

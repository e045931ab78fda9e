"""Conditions that must hold after every step of a simulated run, and at its end."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core.engine import NO_DEADLINE
from dstore.core.local.state import SYNCS_MAX
from dstore.protocol.messages import Key, Large, Stored
from tests.simulation.actors import SimLocal
from tests.simulation.authority import SimGlobal
from tests.simulation.client import Client
from tests.simulation.owners import SimOwner
from tests.simulation.pages import VOID, ReadPage, SimPage, WrittenPage

STEADY = 10
"""A lease that lasts as many latencies does not lapse."""
LATE = 5.0
"""Seconds within which a key has expired at the end of a run, however often that fails at first."""
TOLERANCE = 1e-6
"""Seconds by which two computations of the same time may differ."""


def broken(authority: SimGlobal, locals_: list[SimLocal], owners: list[SimOwner]) -> Iterator[str]:
    """The conditions that do not hold now, one line each."""
    if not authority.frozen:
        yield from _alarm_is_in_time(authority)
        yield from _deadlines_are_on_the_disk(authority)
    for local in locals_:
        if not local.alive:
            continue
        state = local.state
        if isinstance(state.page, ReadPage):
            if state.epoch == authority.epoch:
                yield from _shared_cache_is_current(authority, local, state.page.page)
                yield from _observer_has_reported(authority, local)
        elif not state.session:
            if len(state.cache):
                yield f"{local.name} has no session and caches {list(state.cache)}"
        elif state.epoch == authority.epoch:
            yield from _cache_is_current(authority, local)
            yield from _applied_is_applied(authority, local)
            yield from _lease_is_covered(authority, local)
            yield from _buffers_are_bounded(local)
    for owner in owners:
        yield from _pages_are_covered(authority, owner)


def _alarm_is_in_time(place: SimGlobal) -> Iterator[str]:
    """Each part of Global that schedules something has brought the next tick forward."""
    state = place.state
    if state.wake_at > state._next_moment(place.loop.now):
        yield f"Global wakes at {state.wake_at}, which is too late for {state!r}"


def _deadlines_are_on_the_disk(place: SimGlobal) -> Iterator[str]:
    """Memory and disk have the same deadlines, except of keys that are being changed."""
    state, rows = place.state, place.journal.rows
    for key, row in rows.items():
        if key not in state._changes.busy and key not in state._invalidations.pending:
            deadline = state._deadlines.of(key)
            if deadline != row.deadline:
                yield f"the deadline of {key} is {row.deadline} on the disk, {deadline} in memory"


# ---- caches -----------------------------------------------------------------------------------


def _answers(local: SimLocal, stale_ok: bool = False) -> Iterator[tuple[Key, Stored]]:
    """What hits could answer with now: each key and its value."""
    for entry in local.state.cache:
        visited = entry.visited
        if local.state.hit(entry.key, local.clock(), stale_ok) is not None:
            entry.visited = visited
            assert isinstance(entry.value, Stored) and not isinstance(entry.value.body, Large)
            yield entry.key, entry.value


def _cache_is_current(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """While the lease lasts, each value that a hit could answer with is the bound one."""
    for key, stored in _answers(local):
        yield from _is_bound(authority, local, key, stored)


def _is_bound(authority: SimGlobal, local: SimLocal, key: Key, stored: Stored) -> Iterator[str]:
    bound = authority.engine.read(key)
    if bound is not None and type(bound.body) is Large:  # the cache has its bytes
        bound = bound._replace(body=stored.body)
    if bound != stored:
        yield f"{local.name} may answer {key} with a value that is gone"


def _shared_cache_is_current(authority: SimGlobal, local: SimLocal, page: SimPage) -> Iterator[str]:
    """The same of the entries and the host cache, by the words and the lease of the page."""
    if local.clock() >= page.lease_end:
        return
    words, bucket_of = page.vector.words, page.vector.bucket
    for entry in local.state.membership.entries.values():
        if words[bucket_of(entry.key)] <= entry.seq:
            assert isinstance(entry.value, Stored)
            yield from _is_bound(authority, local, entry.key, entry.value)
    if page.table is None:
        return
    for number in range(local.scenario.keys):
        key = f"k{number}"
        record = page.table.find(key, page.vector.hashed(key))
        if record is not None and words[bucket_of(key)] <= record.seq:
            yield from _is_bound(authority, local, key, Stored(*record[1:]))


def _observer_has_reported(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """What an observer caches has not been invalidated by what it has applied."""
    joined = local.state.joined
    if not local.state.observing or not joined.session or joined.epoch != authority.epoch:
        return
    gone = set(authority.deletions[: joined.applied])
    for entry in local.state.membership.entries.values():
        assert isinstance(entry.value, Stored)
        if (entry.key, entry.value.token) in gone:
            yield f"{local.name} will never report the deletion of {entry.key}"


def _applied_is_applied(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    """A Local has applied all invalidations that it acknowledges."""
    applied = authority.deletions[: local.state.applied]
    if local.state.applied > len(authority.deletions):
        yield f"{local.name} has applied {local.state.applied}, which has not happened"
    gone = set(applied)
    for key, stored in _answers(local, stale_ok=True):
        if (key, stored.token) in gone:
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


# ---- pages ------------------------------------------------------------------------------------


def _pages_are_covered(authority: SimGlobal, owner: SimOwner) -> Iterator[str]:
    """Global knows the leases of pages, and the present page has what its owner has applied."""
    for page in owner.pages:
        end = owner.true_time(page.lease_end)
        if page.epoch != authority.epoch or end <= authority.loop.now:
            continue
        session = authority.state._sessions.get(page.session)
        if session is None:
            yield f"{page!r} has a lease, and Global does not know its session"
        elif session.lease_end < end - TOLERANCE:
            yield f"{page!r} has a lease until {end:.4f}, Global counts {session.lease_end:.4f}"
    published, state = owner.state.published, owner.state
    if not owner.alive or not isinstance(published, WrittenPage):
        return
    page = published.page
    if page.epoch != authority.epoch or (page.epoch, page.session) != (state.epoch, state.session):
        return
    for seq, (key, _) in enumerate(authority.deletions[: state.applied], 1):
        if not owner.identity.sees(key):
            continue  # its session holds no such key
        if page.began < seq and page.vector.words[page.vector.bucket(key)] < seq:
            yield f"{owner.name} has applied {seq} of {key}, and the page does not have it"


# ---- the end ----------------------------------------------------------------------------------


def left_over(
    authority: SimGlobal, locals_: list[SimLocal], clients: list[Client], owners: list[SimOwner]
) -> Iterator[str]:
    """What has not been released at the end of a run, one line each."""
    alive = [local for local in locals_ if local.alive and not local.state.closing]
    yield from _left_at_global(authority)
    yield from _left_sessions(authority, alive, owners)
    if any(host.writers for host in {id(local.host): local.host for local in locals_}.values()):
        yield "a host has a file that no thread goes on writing"
    for client in clients:
        if client.local in alive and not client.idle:
            yield f"{client.name} still waits"
    for local in alive:
        yield from _left_at_local(authority, local)
    for owner in owners:
        if owner.alive and not isinstance(owner.state.published, WrittenPage):
            yield f"{owner.name} has no page"


def _left_at_local(authority: SimGlobal, local: SimLocal) -> Iterator[str]:
    state, newest = local.state, authority.state._log.seq
    if state.in_flight or state.writer.writing or state._reorder_buffer or state._leaving:
        yield f"{state!r} keeps requests, writes, sessions or broadcasts"
    if state.joined.session and state.applied != newest:
        yield f"{local.name} has applied {state.applied} of {newest}"
    unseen = authority.deletions[local.announced : state.applied]
    if state.watching.watchers and any(local.identity.sees(key) for key, _ in unseen):
        yield f"{local.name} has announced {local.announced} of {state.applied}"
    page = state.page
    if local.scenario.latency * STEADY > local.scenario.lease:
        return  # leases lapse again and again
    if state.looking and local.host.page is not None:
        if not isinstance(page, ReadPage) or page.page is not local.host.page:
            yield f"{local.name} does not use the page of its host, but {page}"
    elif page is not None:
        yield f"{local.name} uses a page of which the owner has ended"
    elif state.joining and not state.session:
        yield f"{local.name} has not joined by itself"


def _left_at_global(authority: SimGlobal) -> Iterator[str]:
    state = authority.state
    if not state.idle:
        yield f"pending keys stay: {state._invalidations!r}"
    if len(state._stages):
        yield f"uploads stay: {state._stages!r}"
    if authority.bulk.tokens() != authority.bound():
        large, bound = len(authority.bulk.tokens()), len(authority.bound())
        yield f"{large} large values are kept for {bound} keys"
    yield from _left_deadlines(authority)
    if state._stages.replacing or len(state._waits):
        yield "writes or waits stay"
    if len(state._loads) or state._loads._waiting or state._loads._asked:
        yield f"loads stay: {state._loads!r}"
    for budget in (state._sessions.writes, state._sessions.waits, state._sessions.loads):
        if budget.taken:
            yield f"a budget is not given back: {budget!r}"
    if not len(state._holders) and state._holders.bytes:
        yield f"no key is held, and that takes memory: {state._holders!r}"
    if authority.scenario.global_page:
        if authority.own.page is None or authority.own.page is not authority.host.page:
            yield "Global's host has no page"
        elif authority.own.page.lease_word[0] == VOID:
            yield "the page of Global's host is void"


def _left_deadlines(authority: SimGlobal) -> Iterator[str]:
    """No key is there long after its deadline, and no deadline without its key."""
    deadlines = authority.state._deadlines
    for number in range(authority.scenario.keys):
        key = f"k{number}"
        deadline = deadlines.of(key)
        if authority.engine.read(key) is None and deadline != NO_DEADLINE:
            yield f"{key} has no value and a deadline"
        if deadline < deadlines.clock() - LATE:
            yield f"{key} has not expired"


def _left_sessions(
    authority: SimGlobal, alive: list[SimLocal], owners: list[SimOwner]
) -> Iterator[str]:
    """Each session belongs to a process, and each process has the one by which it keeps up."""
    open_ = {session.id for session in authority.state._sessions}
    needed = {local.state.joined.session for local in alive}
    needed |= {owner.state.session for owner in owners if owner.alive}
    if authority.own.page is not None:
        needed.add(authority.own.page.session)
    needed.discard(0)
    writers = {local.state.writer.session for local in alive}
    if needed - open_:
        yield f"Global does not know {len(needed - open_)} of {len(needed)} sessions"
    for session in authority.state._sessions:
        if session.id not in needed | writers:
            yield f"{session!r} of the kind {session.kind.name} is left over"
        if session.id in needed and session is not authority.state._host:
            recipient = authority.state._invalidations.recipient(session)
            if recipient.awaited:
                yield f"{session!r} {recipient!r} keeps waiters"
        if session.outcomes and session.id not in writers:
            yield f"{session!r} keeps outcomes"

"""A Local that shares the membership of its host: the sessions in which it observes."""

from __future__ import annotations

import math

import pytest

from dstore.core.local.membership import LAPSED
from dstore.core.local.operations import SetOutcome
from dstore.core.local.state import LOOK_LATER, PRIVATE_AFTER
from dstore.protocol.messages import Broadcast, Found, Refusal, Refused, SetStatus, Stored
from tests.unit.core.sharing import (
    VALUE,
    HostPage,
    host,
    kinds,
    large,
    open_page,
    process,
    sent,
    stored,
)
from tests.unit.core.world import LEASE, Member, World

OLD = Stored(*VALUE)


# ---- observers --------------------------------------------------------------------------------


def test_a_watch_has_a_session_that_observes_while_it_lasts() -> None:
    world = World()
    _page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    assert kinds(world) == {"member": 1, "observer": 1}
    assert a.told.pop() == (0, None)
    world.live(3 * LEASE)
    assert kinds(world) == {"member": 1, "observer": 1}, "it is kept up"
    a.state.watching.end(1)
    assert a.state.wake_at == LAPSED
    world.settle()
    assert kinds(world) == {"member": 1}
    assert a.state.wake_at == math.inf


def test_an_observer_announces_and_repairs_and_acknowledges_nothing() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    b.set("k", b"v")
    b.set("l", b"v")
    b.begin_delete("k").send()
    world.publish()
    a.published.clear()  # lost
    b.begin_delete("l").send()
    world.publish()
    a.hear()
    messages = sent(a)
    assert {type(each).__name__ for each in messages} == {"Sync"}
    for each in messages:
        world.deliver(a.route, each)
    world.live(LEASE)
    assert [key for _, key in a.told] == ["k", "l"]
    assert a.state._acked <= a.state.applied


def test_an_observer_acknowledges_nothing_at_once() -> None:
    world = World()
    _page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    a.receive(Broadcast(world.epoch, 1, ["k"], True))
    assert a.state.applied == 1
    assert sent(a) == []
    assert a.state.wake_at > world.now


def test_a_deletion_does_not_wait_for_an_observer() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    b.set("k", b"v")
    deletion = b.begin_delete("k")
    assert deletion.send() is not None


def test_watchers_look_again_after_each_change_of_membership() -> None:
    world = World()
    page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    page.void()
    world.page = None
    a.told.clear()
    a.begin_get("k")
    world.live(PRIVATE_AFTER + 1)
    assert a.state.session and a.told == [(0, None)]
    a.told.clear()
    page = open_page(world)
    world.live(2 * LOOK_LATER)
    assert a.state.page is page and a.told == [(0, None)]


def test_what_was_committed_is_forgotten_with_the_session_that_observed() -> None:
    """The next one may count from lower numbers, of which none is committed."""
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    b.set("k", b"v")
    b.delete("k")
    world.live(LEASE)
    watching, joined = a.state.watching, a.state.joined
    assert watching._committed == 1
    a.receive(Refused(joined.epoch, joined.session, 0, Refusal.UNKNOWN_SESSION, ""))
    assert watching._committed == 0
    assert a.state.page is not None
    a.told.clear()
    world.settle()
    assert a.told == [(0, None)]


# ---- reporting --------------------------------------------------------------------------------


def reporting(world: World) -> tuple[HostPage, Member, Member]:
    page, (a,) = host(world, "a", observing=True)
    b = process(world, "b")
    world.settle()
    assert kinds(world) == {"member": 1, "observer": 1}
    return page, a, b


def test_what_was_cached_and_is_deleted_is_reported() -> None:
    world = World()
    page, a, b = reporting(world)
    world.engine_holds("k", "l", "m", "n")
    a.get("k")
    a.begin_get("l", "m").finish()
    stored(page, "n")
    assert a.hit("n") == b"old", "from the first read on it is cached here"
    b.begin_delete("k", "m", "n", "o").finish()
    world.publish()
    world.settle()
    assert sorted(a.dropped) == ["k", "m", "n"]
    assert set(a.state.entries) == {"l"}


def test_what_cannot_be_reported_is_not_kept() -> None:
    """There is no observer yet; or it has heard of the deletion, before the page."""
    world = World()
    page, (a,) = host(world, "a", observing=True)
    stored(page, "k")
    assert a.hit("k") == b"old"
    assert not a.state.entries
    world.settle()
    a.state._apply(1, ["k"])
    assert a.hit("k") == b"old"
    found, mapped = large(world)
    assert a.state.fill(a.state.membership, "k", found._replace(seq=0), mapped) is None
    world.engine_holds("k")
    assert not a.state.entries
    a.state.fill(a.state.membership, "k", Found(1, True, OLD))
    assert "k" in a.state.entries


@pytest.mark.at_once
def test_who_is_refused_a_key_here_hears_of_its_deletion() -> None:
    """Before there is an observer, Global is asked, and says that nothing is cached here."""
    world = World()
    page, (a,) = host(world, "a", observing=True)
    world.engine_holds("k")
    stored(page, "k")
    writing = a.begin_set(("k", b"v"))
    world.settle()
    assert a.state.joined.session, "it has joined meanwhile"
    writing.look()
    assert writing.finish() == {"k": SetOutcome(SetStatus.OCCUPIED, updated=True)}
    assert "k" in a.state.entries
    assert a.begin_set(("k", b"v")).result == {"k": SetOutcome(SetStatus.OCCUPIED, local=True)}


def test_an_observer_reports_the_deletion_that_was_pending_when_it_joined() -> None:
    world = World()
    page, (a,) = host(world, "a", observing=True)
    world.members.remove(a)
    (reader,), writer = world.joined("reader"), process(world, "writer")
    world.engine_holds("k")
    reader.get("k")  # a holder elsewhere, which does not acknowledge
    stored(page, "k")
    world.members.remove(reader)
    deleting = writer.begin_delete("k")
    world.settle()
    deleting.look()
    deleting.send()
    assert not page.vector.words[page.vector.bucket("k")]
    a.tick()
    a.send()
    a.listen()
    assert a.state.joined.session
    assert a.hit("k") == b"old", "a deletion that is not confirmed"
    assert "k" in a.state.entries
    world.members += [a, reader]
    world.settle()
    assert a.dropped == ["k"]


def test_an_observer_that_begins_again_keeps_nothing() -> None:
    world = World()
    _page, a, _b = reporting(world)
    world.engine_holds("k")
    a.get("k")
    assert "k" in a.state.entries
    joined = a.state.joined
    a.receive(Refused(joined.epoch, joined.session, 0, Refusal.UNKNOWN_SESSION, ""))
    assert not a.state.entries
    world.settle()
    a.state._flush(1)
    a.state.fill(a.state.membership, "k", Found(0, True, OLD))
    assert not a.state.entries

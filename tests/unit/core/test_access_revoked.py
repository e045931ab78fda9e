"""What happens with the sessions, waits and writes of an identity that is revoked."""

from __future__ import annotations

import pytest

from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Del,
    DelStatus,
    Expire,
    Get,
    Goodbye,
    Hello,
    Kind,
    Set,
    SetStatus,
    Stage,
    Sync,
    ToGlobal,
    Wait,
)
from tests.unit.core.identities import ask, hello, item, large, lively, writer
from tests.unit.core.test_strangers import BODY, everything, owner, picture
from tests.unit.core.world import World


def test_a_revoked_identity_gets_no_answer_to_anything() -> None:
    world, a, token, mine = lively()
    world.revoke(mine)
    world.inboxes.clear()
    before = picture(world.state)
    epoch, secret, seq = world.epoch, a.state._secret, world.state._log.seq
    for message in (
        *everything(epoch, a.state.session, secret, seq, token),
        Hello(world.random16(), 0, 0, "again"),
    ):
        assert world.state.receive(b"x", message, world.now, mine) == []
        assert picture(world.state) == before
    assert world.state.read(Get(epoch, a.state.session, 1, ["held"]), world.now, mine) is None


def test_a_deletion_waits_for_the_lease_of_a_revoked_holder() -> None:
    """Its cache may answer until then, and it is neither told nor believed any more."""
    world, mine, other = World(), writer("mine"), writer("other")
    a, b = world.joined("a", identity=mine)[0], world.joined("b", identity=other)[0]
    b.set("k", b"v")
    assert a.get("k") == b"v"
    end = world.state._sessions.get(a.state.session).lease_end  # type: ignore[union-attr]
    world.revoke(mine)
    call = b.begin_delete("k")
    call.send()
    b.turn()
    assert not a.control
    world.deliver(a.route, Ack(*owner(a), 1), mine)
    world.deliver(a.route, Sync(*owner(a), 9, 1, 0), mine)
    world.deliver(a.route, Goodbye(*owner(a)), mine)
    world.advance(end - world.now - 0.01)
    world.tick()
    assert not call.replies
    assert not a.control  # it was not reminded either
    world.advance(0.02)
    world.tick()
    (reply,) = call.replies
    assert (reply.items[0].status, reply.items[0].expired) == (DelStatus.DELETED, 1)
    assert (reply.items[0].confirmed, a.hit("k")) == (1, None)


def test_a_session_of_a_revoked_identity_ends_with_its_lease() -> None:
    world, mine = World(), writer("mine")
    (a,) = world.joined("a", identity=mine)
    world.renew(a)
    (b,) = world.joined("b")  # whose end makes Global look later
    hello(world, mine, Kind.OBSERVER)
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    end = session.lease_end
    world.members.clear()
    world.revoke(mine)
    assert world.state.sessions_by_identity()[mine] == 1  # what has no lease has ended
    assert world.state.wake_at <= end
    while world.now < end - 0.2:
        world.advance(0.1)
        world.tick()
        assert session.open
    world.advance(end - world.now)
    world.tick()
    assert not session.open
    assert b.state.session


def test_waits_loads_and_uploads_of_a_revoked_identity_are_dropped() -> None:
    world, mine, other = World(away=True), writer("mine"), writer("other")
    session = hello(world, mine).session
    others = hello(world, other).session
    world.engine_holds("away")
    for number, ident in enumerate((session, others, NO_SESSION)):
        asked = world.epoch, ident, number
        world.deliver(b"m", Wait(*asked, "k", 50.0), mine)
        world.deliver(b"m", Get(*asked, ["away"]), mine)
    world.deliver(b"o", Wait(world.epoch, others, 9, "k", 50.0), other)
    world.deliver(b"m", Stage(world.epoch, session, 1, large(world), 0, BODY[:2]), mine)
    world.inboxes.clear()
    world.revoke(mine)
    assert (len(world.state._waits), len(world.state._stages)) == (1, 0)
    world.load()
    world.tick()
    assert b"m" not in world.inboxes
    assert world.state._sessions.loads.taken == 0
    world.deliver(b"o", Set(world.epoch, others, 1, 1, 0, False, [item(world, "k")]), other)
    if world.loads:
        world.load()
    world.tick()
    assert b"m" not in world.inboxes
    assert b"o" in world.inboxes


def test_a_load_of_a_revoked_identity_that_takes_too_long_is_not_refused_but_forgotten() -> None:
    world, mine = World(away=True), writer("mine")
    world.engine_holds("away")
    world.deliver(b"m", Get(world.epoch, NO_SESSION, 1, ["away"]), mine)
    world.revoke(mine)
    world.advance(100.0)
    world.tick()
    assert not world.inboxes.get(b"m")
    assert len(world.state._loads) == 0


@pytest.mark.parametrize("behind", ["deletion", "busy key"])
def test_queued_writes_of_a_revoked_identity_are_not_executed(behind: str) -> None:
    durable = behind == "busy key"
    world, mine, other = World(durable=durable), writer("mine"), writer("other")
    a = world.joined("a", identity=other)[0]
    session = hello(world, mine).session
    if durable:
        asked = Set(world.epoch, a.state.session, 1, 9, 0, False, [item(world, "k", b"first")])
        world.deliver(b"o", asked, other)
    else:
        a.set("k", b"first")
        a.get("k")
        a.begin_delete("k").send()
    queued: tuple[ToGlobal, ...] = (
        Set(world.epoch, session, 1, 1, 0, True, [item(world, "k", b"second")]),
        Expire(world.epoch, session, 1, 2, 0, 5.0, ["k"]),
        Del(world.epoch, session, 1, 3, 0, True, ["k"]),
    )
    for message in queued:
        world.deliver(b"m", message, mine)
    world.inboxes.pop(b"m", None)
    world.revoke(mine)
    if durable:
        world.commit()
    else:
        world.settle()
    bound = world.engine.read("k")
    assert (bound and bound.body) == (b"first" if durable else None)
    assert not world.state._invalidations.pending
    assert not world.inboxes.get(b"m")


def test_a_deletion_of_a_revoked_identity_that_has_begun_goes_on_and_is_not_answered() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    (a,) = world.joined("a", identity=other)
    session = hello(world, mine).session
    a.set("k", b"v")
    world.deliver(b"m", Del(world.epoch, session, 1, 1, 0, True, ["k"]), mine)
    assert world.state._invalidations.pending
    world.revoke(mine)
    world.settle()
    assert world.engine.read("k") is None
    assert not world.inboxes.get(b"m")


def test_to_revoke_twice_is_to_revoke_once() -> None:
    world, mine = World(), writer("mine")
    hello(world, mine)
    world.revoke(mine)
    before = picture(world.state)
    world.revoke(mine)
    assert picture(world.state) == before


def test_the_same_name_with_another_key_begins_anew() -> None:
    world, mine = World(), writer("mine")
    hello(world, mine)
    world.revoke(mine)
    again = writer("mine")
    session = hello(world, again).session
    reply = ask(world, again, Set(world.epoch, session, 1, 1, 0, False, [item(world, "k")]))
    assert reply.items[0].status is SetStatus.STORED
    counted = world.state.sessions_by_identity()
    assert (counted[mine], counted[again]) == (1, 1)

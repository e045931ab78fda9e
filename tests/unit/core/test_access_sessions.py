"""Sessions belong to the identity that opened them: no other one can change them."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.identity import ANYONE, Identity, Role
from dstore.protocol import offers
from dstore.protocol.keys import from_bytes
from dstore.protocol.messages import (
    Ack,
    AskMap,
    Del,
    Expire,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Offer,
    Refusal,
    Scan,
    Set,
    Stage,
    Stats,
    Sync,
    ToGlobal,
    Ttl,
    Unstage,
    Unwait,
    Wait,
    Welcome,
)
from tests.unit.core.identities import READER, ask, hello, item, large, lively, writer
from tests.unit.core.test_strangers import BODY, everything, owner, picture
from tests.unit.core.world import LEASE, World

# ---- identities -------------------------------------------------------------------------------


def test_an_identity_sees_the_keys_below_its_prefixes_by_their_bytes() -> None:
    some = writer("some", "a/", "é", from_bytes(b"\xe4\xb8"), "a/b/")
    for key in ("a/", "a/x", "éa", "中", from_bytes(b"\xe4\xb8\xff")):
        assert some.sees(key)
    for key in ("a", "b/a/", "e", from_bytes(b"\xc3"), from_bytes(b"\xe4")):
        assert not some.sees(key)
    assert all(each.sees("x") for each in (ANYONE, writer("all"), writer("any", "")))
    assert some.within("") == ["a/", "é", from_bytes(b"\xe4\xb8")]
    assert some.within("a/b") == ["a/b"]
    assert some.within("a") == ["a/"]
    assert some.within("b") == []
    assert writer("all").within("b") == ["b"]


def test_nothing_of_an_identity_is_a_secret_or_equal_to_another() -> None:
    assert writer("a") != writer("a")
    assert repr(Identity("a", Role.READ, ("x/",))) == "<Identity 'a' READ prefixes=('x/',)>"


# ---- sessions belong to the identity that opened them -----------------------------------------


def test_another_identity_that_knows_id_and_secret_changes_nothing() -> None:
    world, a, token, _ = lively()
    before = picture(world.state)
    other = writer("other")
    epoch, secret, seq = world.epoch, a.state._secret, world.state._log.seq
    for message in everything(epoch, a.state.session, secret, seq, token):
        if isinstance(message, (Get, Wait, Scan, Stats, AskMap, Fetch)):
            continue  # who knows the id of a session may read in its name
        answer = ask(world, other, message)
        if isinstance(message, (Unwait, Unstage)):
            assert answer is None
        elif not isinstance(message, Goodbye):
            assert answer.refusal is Refusal.UNKNOWN_SESSION, message
        assert picture(world.state) == before, message


def test_the_secret_of_another_identity_neither_renews_nor_acknowledges_nor_ends() -> None:
    world, a, _token, _ = lively()
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    world.advance(LEASE / 4)
    end, seq = session.lease_end, world.state._log.seq
    for message in (Ack(*owner(a), seq), Sync(*owner(a), 1, seq, 9), Goodbye(*owner(a))):
        ask(world, writer("other"), message)
        assert (session.open, session.lease_end, session.seen) == (True, end, 0)
        assert world.state._invalidations.pending


def test_a_hello_of_another_identity_replaces_no_session() -> None:
    world, a, _token, mine = lively()
    message = Hello(world.random16(), world.epoch, a.state._secret, "thief")
    assert isinstance(ask(world, writer("other"), message), Welcome)
    assert world.state._sessions.get(a.state.session) is not None
    again = message._replace(nonce=world.random16())
    assert isinstance(ask(world, mine, again), Welcome)
    assert world.state._sessions.get(a.state.session) is None


def test_a_nonce_of_another_identity_opens_another_session() -> None:
    world = World()
    message = Hello(world.random16(), 0, 0, "a")
    mine, other = writer("mine"), writer("other")
    first = ask(world, mine, message)
    second = ask(world, other, message)
    assert {first.session, first.secret}.isdisjoint({second.session, second.secret})
    assert ask(world, mine, message) == first
    assert ask(world, other, message) == second


def test_writes_and_uploads_need_a_session_of_the_same_identity() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    session, stored = hello(world, mine).session, large(world)
    asked = world.epoch, session, 1
    for message in (
        Set(*asked, 1, 0, False, [item(world, "k")]),
        Del(*asked, 1, 0, True, ["k"]),
        Expire(*asked, 1, 0, 1.0, ["k"]),
        Stage(*asked, stored, 0, BODY),
    ):
        assert ask(world, other, message).refusal is Refusal.UNKNOWN_SESSION
    assert len(world.engine) == len(world.state._stages) == 0
    ask(world, mine, Stage(*asked, stored, 0, BODY))
    ask(world, other, Unstage(world.epoch, session, stored.token))
    assert len(world.state._stages) == 1
    ask(world, mine, Unstage(world.epoch, session, stored.token))
    assert len(world.state._stages) == 0


def test_a_wait_belongs_to_the_identity_that_asked_and_not_to_the_session_it_names() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    session = hello(world, mine).session
    asked = world.epoch, session, 5
    for identity, route in ((mine, b"m"), (other, b"o")):
        assert ask(world, identity, Wait(*asked, "k", 9.0), route) is None
    ask(world, other, Unwait(*asked, "k"), b"o")
    assert len(world.state._waits) == 1
    world.engine_holds("k")
    world.state._waits.bound("k")
    world.inboxes.clear()
    world.tick()
    assert list(world.inboxes) == [b"m"]


def test_a_parked_load_belongs_to_the_identity_that_asked() -> None:
    world, mine, other = World(away=True), writer("mine"), writer("other")
    session = hello(world, mine).session
    world.engine_holds("k")
    asked = world.epoch, session, 5
    for identity, route in ((mine, b"m"), (other, b"o")):
        world.deliver(route, Wait(*asked, "k", 9.0), identity)
    world.deliver(b"o", Unwait(*asked, "k"), other)
    world.inboxes.clear()
    world.load()
    world.tick()
    assert list(world.inboxes) == [b"m"]


# ---- reads in the name of another identity's session ------------------------------------------


def test_who_knows_the_id_of_a_session_reads_in_its_name_and_makes_it_a_holder() -> None:
    """As a process does that uses the page of `dstore host`, with a connect file of its own."""
    world, host, process = World(), writer("host"), Identity("process", READER)
    (a,) = world.joined("a", identity=host)
    a.set("k", b"v")
    world.engine_holds("held")
    asked = world.epoch, a.state.session, 9
    assert ask(world, process, Get(*asked, ["held"])).items[0].cacheable
    session = world.state._sessions.get(a.state.session)
    assert session in world.state._sessions.holding("held")
    assert ask(world, process, Wait(*asked, "held", 1.0)).items[0].cacheable
    assert ask(world, process, Ttl(*asked, "held")).bound
    assert ask(world, process, Scan(*asked, "", "", 9)).keys == ["held", "k"]


HOLDING = ("get", "read", "wait", "offer", "set", "replace", "occupied")


@pytest.mark.parametrize("way", HOLDING)
@pytest.mark.parametrize("why", ["prefix", "revoked"])
def test_a_session_holds_only_what_its_own_identity_is_told_of(way: str, why: str) -> None:
    """Else its Local would not hear the name of the key that is deleted, and keep the value."""
    world, process = World(), writer("process")
    world.state.conceal()
    host = writer("host", "own/") if why == "prefix" else writer("host")
    (a,) = world.joined("a", identity=host)
    holder = a.state.session
    own = hello(world, process).session
    world.engine_holds("k")
    if why == "revoked":
        world.revoke(host)
    asked = world.epoch, holder, 9
    cacheable: Any
    if way in ("get", "read"):
        get = Get(*asked, ["k"])
        reply = (
            world.state.read(get, world.now, process) if way == "read" else ask(world, process, get)
        )
        assert isinstance(reply, GetReply) or world.away
        cacheable = isinstance(reply, GetReply) and reply.items[0].cacheable  # type: ignore[union-attr]
    elif way == "wait":
        cacheable = ask(world, process, Wait(*asked, "k", 1.0)).items[0].cacheable
    elif way == "offer":
        digest = offers.digest(world.epoch, holder, "bytes", b"v")
        cacheable = ask(world, process, Offer(*asked, ["k"], digest)).same
    else:
        key, replace = ("fresh", False) if way == "set" else ("k", way == "replace")
        message = Set(world.epoch, own, 9, 1, 0, replace, [item(world, key)], holder)
        (result,) = ask(world, process, message).items
        cacheable = result.cacheable or result.found
    assert not cacheable
    for key in ("k", "fresh"):
        assert world.state._sessions.holding(key) == []


@pytest.mark.parametrize("way", ["get", "wait", "set"])
def test_a_session_holds_what_its_own_identity_sees(way: str) -> None:
    """So that the test above can fail."""
    world, host = World(), writer("host", "own/")
    world.state.conceal()
    (a,) = world.joined("a", identity=host)
    asked = world.epoch, a.state.session, 9
    process, key = writer("process"), "own/k"
    if way == "set":
        session = hello(world, process).session
        message: ToGlobal = Set(
            world.epoch, session, 9, 1, 0, False, [item(world, key)], a.state.session
        )
        assert ask(world, process, message).items[0].cacheable
    else:
        world.engine_holds(key)
        message = Get(*asked, [key]) if way == "get" else Wait(*asked, key, 1.0)
        assert ask(world, process, message).items[0].cacheable
    assert len(world.state._sessions.holding(key)) == 1


def test_the_session_of_globals_own_host_holds_every_key() -> None:
    world = World()
    world.state.conceal()
    session = world.state.open_host(world.now, "host")
    world.engine_holds("k")
    message = Get(world.epoch, session, 1, ["k"])
    assert ask(world, Identity("process", READER), message).items[0].cacheable

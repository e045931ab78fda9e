"""Peers that follow no rules: what they say without knowing a session changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.effects import Send
from dstore.core.authority.state import GlobalState
from dstore.protocol import content
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    AskMap,
    Del,
    Fetch,
    Get,
    Goodbye,
    Hello,
    Large,
    Refusal,
    Refused,
    Scan,
    Set,
    SetItem,
    SetStatus,
    Stage,
    Staged,
    Stats,
    Stored,
    Sync,
    ToGlobal,
    Unstage,
    Unwait,
    Wait,
)
from tests.unit.core.world import LEASE, Member, World

BODY = b"0123456789"
UNTOLD = {"counters", "hasher", "shown"}
"""What changes when nothing does."""


def lively() -> tuple[World, Member, Member, bytes]:
    """A Global with something of everything: a deletion that waits for ``a``, an upload, a wait."""
    world = World()
    a, b = world.joined("a", "b")
    a.state.watch(1, world.now)
    world.settle()
    for key in ("k", "held"):
        b.set(key, b"v")
        a.get(key)
    b.begin_set(("record", b"v")).send()
    token = world.random16()
    stored = Stored(token, "bytes", Large(len(BODY), content.digest("bytes", BODY)))
    world.deliver(b"x", Stage(*of(a), 1, stored, 0, BODY[:4]))
    world.deliver(b"x", Wait(*of(a), 2, "waited for", 50.0))
    b.begin_delete("k").send()
    world.inboxes[b"x"].clear()
    return world, a, b, token


def of(member: Member) -> tuple[int, int]:
    return member.state.epoch, member.state.session


def owner(member: Member) -> tuple[int, int]:
    """What only the owner of the session knows."""
    return member.state.epoch, member.state._secret


def answers(world: World, message: ToGlobal, route: bytes = b"stranger") -> list[Any]:
    """What is sent because of a message; all of it must go to its sender."""
    effects = world.state.receive(route, message, world.now)
    sends = [effect for effect in effects if isinstance(effect, Send)]
    assert len(sends) == len(effects)
    assert {send.route for send in sends} <= {route}
    return [send.message for send in sends]


def picture(state: GlobalState) -> str:
    """All that Global knows, but for its counters."""
    seen: set[int] = set()

    def told(thing: Any) -> Any:
        if isinstance(thing, dict):
            return [(told(key), told(value)) for key, value in thing.items()]
        if isinstance(thing, (list, tuple, set)) or type(thing).__name__ in ("deque", "SortedList"):
            return [told(each) for each in thing]
        names = [
            *getattr(thing, "__dict__", ()),
            *(name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())),
        ]
        if not type(thing).__module__.startswith("dstore") or id(thing) in seen or not names:
            return repr(thing) if not callable(thing) else "a function"
        seen.add(id(thing))
        kept = ((name, getattr(thing, name, None)) for name in names)
        return [(name, told(value)) for name, value in kept if name not in UNTOLD]

    return repr(told(state))


def everything(epoch: int, session: int, secret: int, seq: int, token: bytes) -> list[ToGlobal]:
    """One message of each kind that has a session, made to do harm."""
    return [*of_owners(epoch, secret, seq), *of_others(epoch, session, token)]


def of_owners(epoch: int, secret: int, seq: int) -> list[ToGlobal]:
    """One message of each kind that needs the secret, but for HELLO."""
    return [
        Ack(epoch, secret, seq),
        Sync(epoch, secret, 1, seq, 99, False),
        Goodbye(epoch, secret),
    ]


def of_others(epoch: int, session: int, token: bytes) -> list[ToGlobal]:
    """One message of each kind that needs the id."""
    asked = (epoch, session, 77)
    stored = Stored(token, "bytes", Large(len(BODY), content.digest("bytes", BODY)))
    small = Stored(token, "bytes", b"other")
    return [
        Get(*asked, ["k", "held"]),
        Wait(*asked, "waited for", 1.0),
        Unwait(epoch, session, 2, "waited for"),
        Set(*asked, 1, 99, True, [SetItem("held", small)]),
        Set(*asked, 50, 0, False, [SetItem("free", stored)]),
        Del(*asked, 2, 99, True, ["held"]),
        Scan(*asked, "", "", 10),
        Stats(*asked),
        AskMap(*asked),
        Fetch(*asked, "k", token, 0, 10),
        Stage(*asked, stored, 4, BODY[4:]),
        Unstage(epoch, session, token),
    ]


def test_what_does_not_match_changes_nothing() -> None:
    world, a, b, token = lively()
    former = world.epoch - 1
    wrong = [(world.epoch, session, session) for session in (1, 2, 3, (1 << 64) - 1)]
    for member in (a, b):
        session, secret = member.state.session, member.state._secret
        wrong += [(world.epoch, session ^ 1, secret ^ 1), (world.epoch, secret, session)]
    ours = a.state.session, a.state._secret
    wrong += [(epoch, *ours) for epoch in (former, 0, world.epoch + 1)]
    before = picture(world.state)
    for epoch, session, secret in wrong:
        for message in everything(epoch, session, secret, world.state._log.seq, token):
            said = answers(world, message)
            if isinstance(message, Goodbye):
                continue  # it is always answered: there is nothing left to end
            if isinstance(message, (Unwait, Unstage)):
                assert said == []
                continue
            (refused,) = said
            assert isinstance(refused, Refused)
            assert refused.refusal in (Refusal.UNKNOWN_SESSION, Refusal.OTHER_EPOCH)
            assert "locals" not in refused.text
            assert str(a.state.session) not in refused.text
            assert str(a.state._secret) not in refused.text
        assert picture(world.state) == before


@pytest.mark.at_once
def test_the_same_messages_in_ones_own_name_do_change_something() -> None:
    """So that the test above can fail."""
    for number in range(15):
        world, a, _b, token = lively()
        before = picture(world.state)
        message = everything(*of(a), a.state._secret, world.state._log.seq, token)[number]
        world.state.receive(b"stranger", message, world.now)
        idle = isinstance(message, (Get, Scan, Stats, AskMap, Fetch))
        assert (picture(world.state) == before) is idle, message


def test_a_hello_replaces_only_a_session_whose_secret_it_knows() -> None:
    world, a, _b, _token = lively()
    for epoch, secret in (
        (world.epoch, 1),
        (world.epoch, NO_SESSION),
        (world.epoch, a.state.session),
        (world.epoch, a.state._secret ^ 1),
        (world.epoch + 1, a.state._secret),
    ):
        world.deliver(b"s", Hello(world.random16(), epoch, secret, ""))
        assert world.state._sessions.get(a.state.session) is not None


@pytest.mark.at_once
def test_who_knows_only_the_id_asks_and_writes_but_neither_renews_nor_acknowledges_nor_ends() -> (
    None
):
    """The id of a shared session is known to all processes of its host."""
    world, a, b, _token = lively()
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    recipient = world.state._invalidations.recipient(session)
    world.advance(LEASE / 4)

    def noted() -> tuple[Any, ...]:
        seen = recipient.acknowledged, recipient.watching, session.seen, list(session.outcomes)
        return *seen, session.lease_end, session.renewed, session.route, session.open

    before = noted()
    for message in of_owners(*of(a), world.state._log.seq):
        (said,) = answers(world, message)
        if not isinstance(message, Goodbye):
            assert said.refusal is Refusal.UNKNOWN_SESSION
        assert noted() == before
    (_welcome,) = answers(world, Hello(world.random16(), *of(a), "stranger"))
    assert noted() == before
    (reply,) = answers(world, Get(*of(a), 78, ["held"]))
    assert reply.items[0].cacheable
    small = Stored(world.random16(), "bytes", b"other")
    (reply,) = answers(
        world, Set(*of(a), 79, 9, 0, False, [SetItem("fresh", small)], a.state.session)
    )
    assert (reply.items[0].status, reply.items[0].cacheable) == (SetStatus.STORED, True)
    assert b.hit("held") == b"v"


def test_the_id_of_one_session_is_not_the_secret_of_another() -> None:
    world, a, b, _token = lively()
    assert len({a.state.session, a.state._secret, b.state.session, b.state._secret}) == 4
    assert world.state._sessions.get(a.state._secret) is None
    assert world.state._sessions.by_secret(a.state.session) is None


def test_a_session_does_nothing_in_the_name_of_others() -> None:
    """What it says with its own names touches its own writes, waits and uploads alone."""
    world, a, b, token = lively()
    a_session = world.state._sessions.get(a.state.session)
    assert a_session is not None
    recipient = world.state._invalidations.recipient(a_session)
    noted = (
        recipient.acknowledged,
        a_session.lease_end,
        a_session.route,
        list(a_session.outcomes),
    )
    for message in everything(*of(b), b.state._secret, world.state._log.seq, token):
        if not isinstance(message, (Goodbye, Stage, Set)):
            world.state.receive(b"b", message, world.now)
    assert noted == (
        recipient.acknowledged,
        a_session.lease_end,
        a_session.route,
        list(a_session.outcomes),
    )
    assert len(world.state._waits) == 2
    assert len(world.state._stages) == 1


def test_an_upload_belongs_to_the_session_that_began_it() -> None:
    world, a, b, token = lively()
    stored = Stored(token, "bytes", Large(len(BODY), content.digest("bytes", BODY)))
    (refused,) = answers(world, Stage(*of(b), 1, stored, 4, BODY[4:]))
    assert (refused.refusal, refused.text) == (
        Refusal.BAD_MESSAGE,
        "another session uploads under this token",
    )
    (staged,) = answers(world, Stage(*of(a), 1, stored, 4, BODY[4:]))
    assert isinstance(staged, Staged)
    assert staged.received == len(BODY)
    items = [SetItem("free", stored)]
    (reply,) = answers(world, Set(*of(b), 1, 50, 0, False, items))
    assert reply.items[0].status is SetStatus.ABSENT
    assert world.engine.read("free") is None
    answers(world, Unstage(*of(b), token))
    (reply,) = answers(world, Set(*of(a), 1, 50, 0, False, items))
    assert reply.items[0].status is SetStatus.STORED
    assert bytes(world.bulk.read(token, 0, 100) or b"") == BODY


def test_a_large_value_that_has_a_key_is_not_bound_to_another() -> None:
    world, a, b, token = lively()
    stored = Stored(token, "bytes", Large(len(BODY), content.digest("bytes", BODY)))
    answers(world, Stage(*of(a), 1, stored, 4, BODY[4:]))
    answers(world, Set(*of(a), 1, 50, 0, False, [SetItem("free", stored)]))
    items = [SetItem(key, stored) for key in ("other", "free")]
    for replace in (False, True):
        (reply,) = answers(world, Set(*of(b), 1, 60 + replace, 0, replace, items))
        assert reply.items[0].status is SetStatus.ABSENT
    (staged,) = answers(world, Stage(*of(b), 1, stored, 0, BODY))
    assert staged.received == len(BODY)
    assert len(world.state._stages) == 0
    assert bytes(world.bulk.read(token, 0, 100) or b"") == BODY


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    world = World()
    a, b, c, d = world.joined("a", "b", "c", "d")
    world.renew(a, b, c, d)
    world.engine_holds("k", "l")
    a.get("l")
    b.begin_delete("k").send()  # no Local holds it: the invalidation is kept for a pause
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    before = picture(world.state)
    for message in (Ack(*owner(a), 1), Sync(*owner(a), 9, 1, 0), Ack(*owner(a), 1 << 63)):
        (refused,) = answers(world, message)
        assert refused.refusal is Refusal.BAD_MESSAGE
        assert picture(world.state) == before
    world.publish()
    world.deliver(b"x", Ack(*owner(a), 1))
    assert world.state._invalidations.recipient(session).acknowledged == 1
    deletion = b.begin_delete("l")
    deletion.send()  # ``a`` gets a targeted invalidation
    world.deliver(b"x", Ack(*owner(a), 2))
    assert deletion.replies


def test_no_id_or_secret_is_among_the_metrics_or_what_may_reach_a_log() -> None:
    world, a, b, _token = lively()
    ids = [member.state.session for member in (a, b)]
    world.advance(LEASE / 4)
    (reply,) = answers(world, Stats(*of(b), 5))
    told = repr(reply.metrics)
    state = world.state
    sessions = [state._sessions.get(ident) for ident in ids]
    calls = [call for session in sessions if session for call in session.outcomes.values()]
    shown = [told, repr(state), repr(state._sessions), repr(state._waits)]
    shown += [
        *map(repr, sessions),
        *[repr(state._invalidations.recipient(session)) for session in sessions if session],
        *map(repr, calls),
        repr(state._stages),
        repr(state._invalidations),
    ]
    shown += [repr(member.state) for member in (a, b)]
    for ident in (*ids, a.state._secret, b.state._secret):
        assert not any(str(ident) in text or f"{ident:x}" in text for text in shown)
    assert set(reply.metrics["locals"]) == {"1", "2"}


@pytest.mark.parametrize("answered", [False, True])
def test_one_connection_does_not_open_sessions_without_end(answered: bool) -> None:
    world = World()

    def hello(nonce: bytes) -> Any:
        (answer,) = answers(world, Hello(nonce, 0, 0, ""), b"greedy")
        return answer

    nonces = [world.random16() for _ in range(6)]
    welcomes = [hello(nonce) for nonce in nonces]
    refused = hello(world.random16())
    assert (refused.refusal, len(world.state._sessions)) == (Refusal.BUSY, 6)
    assert hello(nonces[0]) == welcomes[0]
    (c,) = world.joined("c")
    assert c.state.session
    answers(world, Goodbye(world.epoch, welcomes[1].secret), b"greedy")
    assert hello(world.random16()).epoch == world.epoch
    if answered:
        answers(world, Hello(world.random16(), world.epoch, welcomes[2].secret, ""), b"greedy")
        assert len(world.state._sessions) == 7, "one in place of another"
    for _ in range(60):
        world.live(0.1)
    assert len(world.state._sessions) == 1, "none of them was ever renewed"
    assert world.state._sessions._by_route == {c.route: 1}


def test_a_hello_finds_a_place_when_it_replaces_a_session() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.state._memberships.max_clients = 2
    world.deliver(b"new", Hello(world.random16(), 0, 0, ""))
    assert isinstance(world.inboxes[b"new"].pop(), Refused)
    world.deliver(b"new", Hello(world.random16(), *owner(a), ""))
    assert not isinstance(world.inboxes[b"new"].pop(), Refused)
    assert world.state._sessions.get(b.state.session) is not None

"""Revalidation: what a Local had in a session that has ended, offered to Global in the next one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dstore.codecs import KEPT, encode_kept
from dstore.core.local.cache import Cache, FormerLarge, MappedBody
from dstore.core.local.former import LARGE_MAX, PAUSE, Former
from dstore.core.local.membership import Entry
from dstore.core.local.state import LOOK_SOON
from dstore.core.local.steps import Request
from dstore.errors import OutcomeUnknown
from dstore.protocol import content
from dstore.protocol.messages import (
    DelStatus,
    Found,
    Hello,
    Kind,
    Large,
    Offer,
    Offered,
    Refusal,
    Refused,
    Stored,
    Welcome,
)
from dstore.protocol.offers import OFFER_BYTES_MAX, OFFER_KEYS_MAX, digest
from tests.unit.core.sharing import host, open_page
from tests.unit.core.test_owner import OwnerMember
from tests.unit.core.world import LEASE, Member, World

pytestmark = pytest.mark.at_once
"""What is offered is compared with values that are here."""


def restart(world: World, *members: Member) -> None:
    """A new life of Global; these find out by a renewal that it has another epoch."""
    world.start_global()
    for member in members:
        member.state.renew(world.now)
    world.settle()


def lost(member: Member) -> None:
    """Global has forgotten the session, and says so."""
    state = member.state
    member.receive(Refused(state.epoch, state.session, 0, Refusal.UNKNOWN_SESSION, ""))


def offered(member: Member) -> Offer:
    """The offer that a Local makes when its next session has begun. It is not delivered."""
    lost(member)
    member.tick()
    member.send()
    member.listen()
    (offer,) = (each for each in member.tick() if isinstance(each, Offer))
    member.outgoing.remove(offer)
    return offer


def answer(world: World, member: Member, offer: Offer) -> Offered:
    world.deliver(member.route, offer)
    reply = member.control.pop()
    assert isinstance(reply, Offered)
    return reply


def gets(world: World) -> int:
    return world.state.counters["gets"]


# ---- what is kept -----------------------------------------------------------------------------


def test_a_restart_of_a_durable_global_moves_no_data() -> None:
    world = World(durable=True)
    a, b = world.joined("a", "b")
    world.engine_holds(*"klm")
    a.begin_get("k", "l", "m").finish()
    b.get("k")
    restart(world, a, b)
    assert a.state.epoch == world.epoch
    before = gets(world)
    assert [a.hit(key) for key in "klm"] == [b"v"] * 3
    assert b.hit("k") == b"v"
    assert gets(world) == before == 0
    assert a.state.counters["revalidated"] == 3
    assert world.state.counters["revalidated"] == 4


def test_after_a_lost_session_too() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    before = gets(world)
    lost(a)
    assert not a.state.entries
    world.settle()
    assert a.hit("k") == b"v"
    assert gets(world) == before


def test_a_volatile_global_has_nothing_after_a_restart_and_is_not_asked() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    restart(world, a)
    assert a.state.session
    assert world.state.counters["offers"] == 0
    assert not a.state.entries


def test_what_was_changed_or_deleted_meanwhile_is_not_taken_back() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k", "l", "m")
    a.begin_get("k", "l", "m").finish()
    lost(a)
    for key, new in (("k", b"other"), ("l", None)):
        old = world.engine.read(key)
        assert old is not None
        world.engine.remove(key, old.token)
        if new is not None:
            world.engine.bind(key, Stored(old.token, "bytes", new))  # a token that is used twice
    world.settle()
    assert set(a.state.entries) == {"m"}
    assert a.get("k") == b"other"
    assert a.get("l") is None


def test_an_equal_value_of_another_write_is_as_good_and_has_its_token() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    lost(a)
    old = world.engine.read("k")
    assert old is not None
    world.engine.remove("k", old.token)
    world.engine_holds("k")
    world.settle()
    value = a.state.entries["k"].value
    assert isinstance(value, Stored)
    assert value == world.engine.read("k")
    assert value.token != old.token


def test_the_codec_counts_as_well() -> None:
    body = b"v"
    assert digest(1, 2, "bytes", body) != digest(1, 2, "text", body)
    assert digest(1, 2, "bytes", body) != digest(1, 2, "byte", b"s" + body)
    assert digest(1, 2, "bytes", body) != digest(1, 3, "bytes", body)


# ---- an offer is an ordinary read -------------------------------------------------------------


def test_who_has_taken_back_a_value_is_notified_of_its_deletion() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.engine_holds("k")
    a.get("k")
    lost(a)
    world.settle()
    assert a.hit("k") == b"v"
    world.members.remove(a)
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert not deleting.replies, "the deletion waits for a holder"
    world.members.append(a)
    world.settle()
    deleting.answer()
    assert deleting.result["k"].status is DelStatus.DELETED
    assert a.hit("k") is None


def test_a_value_that_is_being_deleted_is_not_taken_back() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    world.engine_holds("k")
    a.get("k")
    c.get("k")
    world.members.remove(c)  # it does not acknowledge
    deleting = b.begin_delete("k")
    deleting.send()
    offer = offered(a)
    assert offer.keys == ["k"]
    assert answer(world, a, offer).same == []


def test_the_answer_that_comes_after_an_invalidation_is_not_stored() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    assert reply.same == [0]
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert a.state.applied == 1
    a.receive(reply)
    assert not a.state.entries


def test_the_answer_to_an_offer_of_a_former_session_is_not_stored() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    lost(a)
    world.members.remove(a)
    a.receive(reply)
    assert not a.state.entries


def test_an_answer_that_names_what_was_not_offered_changes_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    offer = offered(a)
    envelope = offer[:3]
    a.receive(Offered(*envelope[:2], offer.request + 1, 0, [0], bytes(16)))
    assert not a.state.entries
    a.receive(Offered(*envelope, 0, [1, 999], bytes(32)))
    assert not a.state.entries


@pytest.mark.parametrize("kind", [Kind.OBSERVER, Kind.WRITER])
def test_what_holds_nothing_takes_nothing_back(kind: Kind) -> None:
    world = World()
    world.engine_holds("k")
    world.deliver(b"it", Hello(bytes(16), 0, 0, "it", kind))
    welcome = world.inboxes[b"it"].pop()
    assert isinstance(welcome, Welcome)
    found = digest(world.epoch, welcome.session, "bytes", b"v")
    world.deliver(b"it", Offer(world.epoch, welcome.session, 1, ["k"], found))
    reply = world.inboxes[b"it"].pop()
    assert isinstance(reply, Offered)
    assert reply.same == []


# ---- bounds -----------------------------------------------------------------------------------


def test_offers_are_bounded_and_come_one_by_one_with_pauses() -> None:
    world = World()
    (a,) = world.joined("a")
    keys = [f"k{number}" for number in range(2 * OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    a.begin_get(*keys).finish()
    first = offered(a)
    assert first.keys == keys[: -OFFER_KEYS_MAX - 1 : -1], "the newest first"
    assert not any(isinstance(each, Offer) for each in a.tick()), "one at a time"
    reply = answer(world, a, first)
    world.advance(0.01)
    a.receive(reply)
    assert len(a.state.entries) == OFFER_KEYS_MAX
    assert a.state.former.due == pytest.approx(world.now + PAUSE * 0.01)
    assert not any(isinstance(each, Offer) for each in a.tick())
    world.live(1.0)
    assert set(a.state.entries) == set(keys)
    assert world.state.counters["offers"] == 3
    assert a.state.former.due == math.inf


def test_global_looks_at_no_more_than_the_bounds() -> None:
    world = World()
    (a,) = world.joined("a")
    session = a.state.session
    keys = [f"k{number}" for number in range(OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    one = digest(world.epoch, session, "bytes", b"v")
    reply = answer(world, a, Offer(world.epoch, session, 1, keys, one * len(keys)))
    assert reply.same == list(range(OFFER_KEYS_MAX))
    body = bytes(OFFER_BYTES_MAX // 2)
    two = [f"large {number}" for number in range(3)]
    for key in two:
        world.engine.bind(key, Stored(world.random16(), "bytes", body))
    many = digest(world.epoch, session, "bytes", body)
    reply = answer(world, a, Offer(world.epoch, session, 2, two, many * 3))
    assert reply.same == [0, 1]


def test_a_local_offers_no_more_bytes_than_global_looks_at() -> None:
    former = Former()
    former.keep(
        [(f"k{number}", "bytes", bytes(OFFER_BYTES_MAX // 2)) for number in range(4)], (), 1
    )
    former.begin(1.0)
    offer = former.offer((1, 2, 3), LEASE, 1.0)
    assert offer is not None
    assert offer.keys == ["k0", "k1", "k2"]


def test_an_offer_that_is_not_answered_is_the_last_one() -> None:
    world = World()
    (a,) = world.joined("a")
    keys = [f"k{number}" for number in range(OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    a.begin_get(*keys).finish()
    reply = answer(world, a, offered(a))
    a.outgoing.clear()
    world.members.remove(a)
    world.advance(1.1 * LEASE)
    assert not any(isinstance(each, Offer) for each in a.tick())
    assert a.state.former.due == math.inf
    a.receive(reply)
    assert not a.state.entries


def test_an_offer_is_made_once_more_on_a_new_connection() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    a.state.reconnected(world.now)
    world.settle()
    assert world.state.counters["offers"] == 2
    entry = a.state.entries["k"]
    a.receive(reply)
    assert a.state.entries["k"] is entry, "the answer to the first is not needed any more"


def test_nothing_is_kept_for_a_page_or_after_a_goodbye() -> None:
    world = World()
    world.engine_holds("k")
    page_user = world.member("a", looking=True)
    world.settle()
    page_user.get("k")
    lost(page_user)
    page = open_page(world)
    world.advance(LOOK_SOON)
    world.settle()
    assert page_user.state.page is page
    (b,) = world.joined("b")
    b.get("k")
    lost(b)
    b.state.goodbye(world.now)
    world.settle()
    for member in (page_user, b):
        member.state.former.begin(world.now)
        assert member.state.former.offer((1, 1, 1), LEASE, world.now) is None
    assert world.state.counters["offers"] == 0


# ---- values -----------------------------------------------------------------------------------


def test_values_that_are_kept_decoded_are_offered_as_they_were_stored() -> None:
    cache = Cache(1 << 20, KEPT, encode_kept)
    values: list[Any] = [b"bytes", "text \u00e9", 1, -2.5, None, True, {"a": [1]}]
    for number, value in enumerate(values):
        cache.insert(f"k{number}", 0, bytes(16), *encode_kept(value))
    view = memoryview(b"large")
    cache.insert_mapped("large", 0, Stored(bytes(16), "bytes", view), shared=True)
    cache.insert_mapped("own", 0, Stored(bytes(16), "bytes", view), shared=False)
    expected = [(f"k{number}", *encode_kept(value)) for number, value in enumerate(values)]
    values_now = cache.values()
    cache.clear()
    assert list(values_now) == expected[::-1]


def test_the_digests_of_large_values_are_kept_as_long_as_these() -> None:
    cache = Cache(1 << 20, KEPT, encode_kept)
    stored = [Stored(bytes([number]) * 16, "bytes", memoryview(b"large")) for number in range(4)]
    for number, each in enumerate(stored):
        found = bytes([number]) * 32
        cache.insert_mapped(f"k{number}", 0, each, number < 2, digest=found)
    cache.insert("small", 0, bytes(16), "bytes", b"v")
    cache.discard("k3")
    expected = [
        (
            f"k{number}",
            "bytes",
            FormerLarge(
                stored[number].token,
                Large(5, bytes([number]) * 32),
                None if number < 2 else memoryview(b"large"),
            ),
        )
        for number in (2, 1, 0)
    ]
    assert cache.large_values() == expected
    assert list(cache.values()) == [("small", "bytes", b"v")]
    cache.clear()
    assert not cache.digests


# ---- large values -----------------------------------------------------------------------------


BODY = bytes(2000)
LARGE = Large(len(BODY), content.digest("bytes", BODY))


def bind_large(world: World, key: str = "k", large: Large = LARGE) -> Stored:
    """Let Global have a large value that nobody holds."""
    stored = Stored(world.random16(), "bytes", large)
    world.engine.bind(key, stored)
    return stored


def fill_large(member: Member, stored: Stored, key: str = "k", shared: bool = True) -> Entry:
    """Have a member cache it, as after a read."""
    mapped = MappedBody(memoryview(BODY), shared)
    found = Found(member.state.membership.applied, True, stored)
    entry = member.state.fill(member.state.membership, key, found, mapped)
    assert entry is not None
    return entry


def find(member: Member, body: bytes = BODY) -> None:
    """The oldest of its large values to be taken back are in shared memory."""
    membership, values = member.to_take.popleft()
    for key, found, _ in values:
        member.state.taken_back(membership, key, found, MappedBody(memoryview(body), shared=True))


def test_a_large_value_is_taken_back_once_its_file_is_found() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    stored = bind_large(world)
    fill_large(a, stored)
    restart(world, a)
    assert not a.state.entries
    ((key, found, former),) = a.to_take[0].values
    assert (key, found) == ("k", Found(0, True, stored))
    assert former == FormerLarge(stored.token, LARGE, None)
    assert a.state.counters["revalidated"] == 0
    find(a)
    entry = a.state.entries["k"]
    assert entry.shared == stored.token
    assert not entry.sound, "it is looked at again when it is decoded"
    assert a.state.counters["revalidated"] == world.state.counters["revalidated"] == 1
    assert a.state.cache.large_values() == [("k", "bytes", former)], "for the next time"


def test_a_large_value_has_the_token_of_the_write_that_has_bound_it() -> None:
    world = World()
    (a,) = world.joined("a")
    fill_large(a, bind_large(world))
    old = world.engine.read("k")
    assert old is not None
    lost(a)
    world.engine.remove("k", old.token)
    new = bind_large(world)
    world.settle()
    assert a.to_take[0].values[0].former.token == old.token
    find(a)
    assert a.state.entries["k"].shared == new.token


@pytest.mark.parametrize(
    "other",
    [Large(len(BODY), bytes(32)), Large(len(BODY) + 1, LARGE.digest)],
    ids=["digest", "size"],
)
def test_another_large_value_is_not_taken_back(other: Large) -> None:
    world = World()
    (a,) = world.joined("a")
    stored = bind_large(world)
    fill_large(a, stored)
    lost(a)
    world.engine.remove("k", stored.token)
    bind_large(world, large=other)
    world.settle()
    assert world.state.counters["offers"] == 1
    assert not a.to_take


def test_a_small_value_is_never_taken_for_a_large_one() -> None:
    for body in (LARGE.digest, LARGE.size.to_bytes(8, "big") + LARGE.digest):
        assert digest(1, 2, "bytes", body) != digest(1, 2, "bytes", LARGE)
    assert digest(1, 2, "text", LARGE) != digest(1, 2, "bytes", LARGE)
    assert digest(1, 3, "bytes", LARGE) != digest(1, 2, "bytes", LARGE)


def test_a_large_value_that_is_deleted_while_its_file_is_found_is_not_stored() -> None:
    world = World()
    a, b = world.joined("a", "b")
    stored = bind_large(world)
    fill_large(a, stored)
    lost(a)
    world.settle()
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    deleting.answer()
    assert deleting.result["k"].status is DelStatus.DELETED
    assert a.state.applied == 1
    find(a)
    assert not a.state.entries
    a.tick()
    assert a.given_up == [stored.token], "its file is not kept"


def test_a_large_value_that_is_found_when_its_session_has_ended_is_not_stored() -> None:
    world = World()
    (a,) = world.joined("a")
    fill_large(a, bind_large(world))
    lost(a)
    world.settle()
    lost(a)
    find(a)
    assert not a.state.entries


def test_a_large_value_counts_with_its_digest_in_an_offer() -> None:
    world = World(limit=1 << 60)
    (a,) = world.joined("a")
    huge = Large(1 << 40, LARGE.digest)
    keys = [f"k{number}" for number in range(OFFER_KEYS_MAX)]
    for key in keys:
        bind_large(world, key, huge)
    former = Former()
    former.keep((), [(key, "bytes", FormerLarge(bytes(16), huge, None)) for key in keys], 1)
    former.begin(1.0)
    offer = former.offer((world.epoch, a.state.session, 1), LEASE, 1.0)
    assert offer is not None and offer.keys == keys
    assert answer(world, a, offer).same == list(range(OFFER_KEYS_MAX))


def test_the_processes_of_a_host_offer_their_large_values_in_the_next_page() -> None:
    world = World(durable=True)
    world.engine_holds("small")
    page, (a,) = host(world, "a")
    stored = bind_large(world)
    page.full = True  # so that the process itself keeps the small one
    a.get("small")
    assert "small" in a.state.entries
    fill_large(a, stored)
    page.void()
    world.start_global()
    after = open_page(world)
    world.live(1.0)
    assert a.state.see_page()
    world.live(LOOK_SOON)
    assert a.state.page is after
    assert not a.state.see_page()
    world.live(LEASE / 4)
    assert world.state.counters["offers"] == 1
    assert world.state.counters["revalidated"] == 1, "the owner offers the small ones"
    find(a)
    entry = a.state.entries["k"]
    assert entry.bucket == after.vector.bucket("k")
    assert a.state.hit("k", world.now) is not None
    (b,) = world.joined("b")
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert after.vector.words[entry.bucket] == 1, "the host is a holder"
    assert a.state.hit("k", world.now) is None


def test_what_was_not_offered_when_a_session_ended_is_offered_in_the_next_one() -> None:
    world = World()
    (a,) = world.joined("a")
    for key in ("k", "own"):
        fill_large(a, bind_large(world, key), key, shared=key != "own")
    offer = offered(a)
    assert sorted(offer.keys) == ["k", "own"]
    lost(a)
    world.settle()
    assert [value.key for value in a.to_take[0].values] == ["k"], "the other would take memory"
    find(a)
    assert set(a.state.entries) == {"k"}


def test_no_more_large_values_are_left_than_a_bound() -> None:
    former = Former()
    for epoch in range(3):
        values = [
            (f"{epoch}/{number}", "bytes", FormerLarge(bytes(16), LARGE, None))
            for number in range(LARGE_MAX - 1)
        ]
        former.keep((), values, epoch)
    assert len(former._large) == LARGE_MAX
    assert former._large[-1][0] == "1/0", "the oldest have gone"


def test_large_values_of_a_session_of_its_own_are_offered_in_the_page_that_it_finds() -> None:
    world = World()
    a = world.member("a", looking=True)
    world.settle()
    fill_large(a, bind_large(world))
    page = open_page(world)
    world.live(2.0)
    assert a.state.page is page
    find(a)
    assert a.state.hit("k", world.now) is not None


def test_a_forked_child_can_offer_the_large_values_of_its_parent() -> None:
    world = World()
    page, (a,) = host(world, "a")
    fill_large(a, bind_large(world))
    child = world.member("child", looking=True)
    digests = dict(a.state.cache.digests)
    child.state.inherit(page, a.state.membership, world.now, digests)
    assert [value[0] for value in child.state.cache.large_values()] == ["k"]


# ---- the owner of a page ----------------------------------------------------------------------


def test_the_host_cache_of_an_ended_session_goes_into_the_next_one() -> None:
    world = World(durable=True)
    world.engine_holds("k", "l")
    owner = OwnerMember(world)
    world.settle()
    first = owner.page
    for key in "kl":
        stored = world.engine.read(key)
        assert stored is not None
        first.table[key] = Found(0, True, stored)
    restart(world, owner)
    assert owner.page is not first
    assert set(owner.page.table) == {"k", "l"}
    assert owner.page.table["k"].stored == world.engine.read("k")
    (b,) = world.joined("b")
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert owner.page.words["k"] == 1, "it is a holder"


@pytest.mark.parametrize("failing", ["put", "values"])
def test_a_host_cache_that_cannot_be_used_costs_only_its_values(failing: str) -> None:
    world = World(durable=True)
    world.engine_holds("k")
    owner = OwnerMember(world)
    world.settle()
    stored = world.engine.read("k")
    assert stored is not None
    owner.page.table["k"] = Found(0, True, stored)
    first = owner.page
    owner.failing.add(failing)
    restart(world, owner)
    assert first.end == 0.0
    assert owner.page is not first
    assert owner.page.end > world.now
    assert owner.state.counters["revalidated"] == 0


# ---- the quiet period -------------------------------------------------------------------------


def test_welcome_tells_what_is_left_of_the_quiet_period_and_writes_wait_for_it() -> None:
    world = World(durable=True, quiet=30.0)
    world.engine_holds("k")
    world.advance(10.0)
    (a,) = world.joined("a")
    assert a.state.quiet_until == world.now + 20.0
    deleting = a.begin_delete("k", timeout=5.0)
    deleting.send()
    while isinstance(deleting.step, Request) and deleting.step.until < world.quiet_until:
        world.live(deleting.step.until - world.now, step=0.5)
        deleting.time_out()
        deleting.send()
    world.live(world.quiet_until - world.now)
    world.commit()
    deleting.answer()
    assert deleting.result["k"].status is DelStatus.DELETED


def test_a_write_does_not_wait_for_a_global_that_is_lost_in_its_quiet_period() -> None:
    world = World(durable=True, quiet=1000.0)
    world.engine_holds("k")
    (a,) = world.joined("a")
    deleting = a.begin_delete("k", timeout=5.0)
    deleting.send()
    world.members.remove(a)
    begun = world.now
    while not deleting.done:
        deleting.time_out()
    assert isinstance(deleting.error, OutcomeUnknown)
    assert world.now <= begun + 5.0 + 2 * LEASE


def test_a_write_that_had_no_time_left_does_not_ask_without_a_pause() -> None:
    world = World(durable=True, quiet=20.0)
    world.engine_holds("k")
    a = world.member("a")
    deleting = a.begin_delete("k", timeout=0.5)
    assert deleting.waits
    world.live(2 * LEASE)  # its thread stands still while there comes a session
    deleting.look()
    asked = 0
    while isinstance(deleting.step, Request) and deleting.step.until < world.quiet_until:
        asked += 1
        assert asked < 50
        world.live(max(0.0, deleting.step.until - world.now), step=0.5)
        deleting.time_out()
    assert asked > 3

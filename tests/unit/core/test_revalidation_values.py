"""Revalidation of values that are kept decoded, and of large values."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.codecs import KEPT, encode_kept
from dstore.core.local.cache import Cache, FormerLarge, MappedBody
from dstore.core.local.former import LARGE_MAX, Former
from dstore.core.local.membership import Entry
from dstore.core.local.state import LOOK_SOON
from dstore.protocol import content
from dstore.protocol.messages import DelStatus, Found, Large, Stored
from dstore.protocol.offers import OFFER_KEYS_MAX, digest
from tests.unit.core.revalidation import answer, lost, offered, restart
from tests.unit.core.sharing import host, open_page
from tests.unit.core.world import LEASE, Member, World

pytestmark = pytest.mark.at_once
"""What is offered is compared with values that are here."""


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

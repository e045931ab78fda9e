"""Large values at Global and in a Local: what is bound, what is gone, and fills that are slow."""

from __future__ import annotations

from dstore.core.local import cache as caches
from dstore.core.local.cache import SHARED_OVERHEAD, MappedBody
from dstore.core.local.steps import FetchBody, StepResult
from dstore.errors import RequestRefused
from dstore.protocol.messages import Refusal, SetStatus, Stored, Unstage
from dstore.server.engines.memory import ENTRY_OVERHEAD, LARGE_OVERHEAD
from tests.unit.core.large_values import BODY, begin_set, bound, failed, large, sent, staged, supply
from tests.unit.core.world import Call, World


def obtained(call: Call, body: bytes = BODY) -> None:
    assert isinstance(call.step, FetchBody)
    call.resume(StepResult(call.world.now, body=MappedBody(memoryview(body), shared=True)))


def test_deleted_and_replaced_values_are_given_back() -> None:
    world = World()
    (a,) = world.joined("a")
    first = bound(a)
    second = large(world)
    call = begin_set(a, "k", second, replace=True)
    sent(call)
    supply(call)
    sent(call)
    assert call.result["k"].status is SetStatus.REPLACED
    assert world.bulk.read(first.token, 0, 1) is None
    a.delete("k")
    assert world.bulk.read(second.token, 0, 1) is None
    assert world.engine.size == 0


def test_a_small_value_under_the_token_of_a_large_one_takes_nothing_with_it() -> None:
    world = World()
    a, b = world.joined("a", "b")
    first = bound(a)
    thief = Stored(first.token, "bytes", b"small")
    for key, replace in (("l", False), ("l", True), ("k2", False)):
        call = begin_set(b, key, thief, replace=replace)
        sent(call)
    b.delete("l")
    call = begin_set(b, "k2", Stored(world.random16(), "bytes", b"other"), replace=True)
    sent(call)
    left = world.bulk.read(first.token, 0, 100)
    assert left is not None
    assert bytes(left) == BODY


def test_both_values_of_a_replacement_that_waits_count_against_the_limit() -> None:
    world = World(limit=ENTRY_OVERHEAD + LARGE_OVERHEAD + 1700)
    (a,) = world.joined("a")
    body = bytes(600)
    stored = large(world, body)
    first = begin_set(a, "k", stored)
    sent(first)
    supply(first, body)
    sent(first)
    second = large(world, body)
    staged(a, second, 0, body)
    replacing = begin_set(a, "k", second, replace=True)
    replacing.send()
    assert staged(a, large(world, bytes(900)), 0, b"x").refusal is Refusal.FULL
    world.settle()
    replacing.answer()
    assert replacing.result["k"].status is SetStatus.REPLACED
    assert staged(a, large(world, bytes(900)), 0, b"x").received == 1


def test_nobody_else_can_give_up_an_upload() -> None:
    world = World()
    a, b = world.joined("a", "b")
    stored = large(world)
    staged(a, stored, 0, BODY[:3])
    world.deliver(b"x", Unstage(world.epoch, b.state.session, stored.token))
    assert len(world.state._stages) == 1
    world.deliver(b"x", Unstage(world.epoch, a.state.session, stored.token))
    assert len(world.state._stages) == 0


def test_a_value_that_is_gone_is_asked_for_again() -> None:
    world = World()
    a, b = world.joined("a", "b")
    bound(a)
    read = b.begin_get("k")
    sent(read)
    assert isinstance(read.step, FetchBody)
    a.delete("k")
    failed(read, Refusal.GONE)
    sent(read)
    assert read.done
    assert read.result == {}


def test_a_value_that_is_always_gone_ends_in_an_error() -> None:
    world = World()
    a, b = world.joined("a", "b")
    bound(a)
    read = b.begin_get("k")
    for _ in range(5):
        sent(read)
        failed(read, Refusal.GONE)
    assert isinstance(read.error, RequestRefused)
    assert not b.state.in_flight


def test_a_deletion_while_the_value_travels_is_waited_for_and_nothing_is_cached() -> None:
    world = World()
    a, b = world.joined("a", "b")
    stored = bound(a)
    read = b.begin_get("k")
    sent(read)
    deletion = a.delete("k")  # b acknowledges, though its fill is still open
    assert (deletion.confirmed, deletion.expired) == (2, 0)
    obtained(read)
    answer = read.result["k"]
    assert answer.entry is None
    assert bytes(answer.stored.body) == BODY
    assert "k" not in b.state.entries
    assert b.state._dropped_tokens == [stored.token]  # no other process may find the file


def test_who_never_read_a_value_gives_up_what_others_of_the_host_left_of_it() -> None:
    world = World()
    a, bystander = world.joined("a", "bystander")
    stored = bound(a)
    a.set("small", b"v")
    a.delete("small")
    a.delete("k")
    world.publish()
    bystander.turn()
    assert bystander.given_up == [stored.token]
    stored = bound(a)
    replacing = begin_set(a, "k", large(world), replace=True)
    sent(replacing)
    supply(replacing)
    replacing.send()
    world.settle()
    world.publish()
    bystander.turn()
    assert bystander.given_up[1:] == [stored.token]


def test_a_value_is_cached_with_the_bytes_that_were_obtained() -> None:
    world = World()
    a, b = world.joined("a", "b")
    stored = bound(a)
    read = b.begin_get("k")
    sent(read)
    obtained(read)
    entry = b.state.entries["k"]
    assert entry.shared == stored.token
    # The bytes are shared: they take no memory of this process.
    overheads = caches.ENTRY_OVERHEAD + caches.STORED_OVERHEAD + caches.DIGEST_OVERHEAD
    assert entry.size == overheads + SHARED_OVERHEAD + len(entry.key)
    assert bytes(entry.value.body) == BODY  # type: ignore[attr-defined]
    a.delete("k")
    assert b.state.cache.shared == {}


def test_a_value_that_the_cache_has_no_room_for_stays_with_the_host() -> None:
    world = World()
    b = world.member("b", cache_bytes=1)
    (a,) = world.joined("a")
    bound(a)
    read = b.begin_get("k")
    sent(read)
    obtained(read)
    assert read.result["k"].entry is None
    assert b.state._dropped_tokens == []


def test_who_joins_a_get_whose_value_moves_gets_it_however_long_that_takes() -> None:
    world = World()
    a, b = world.joined("a", "b")
    bound(a)
    first = b.begin_get("k", timeout=0.5)
    sent(first)
    second = b.begin_get("k", timeout=0.5)
    assert second.waits
    second.time_out()
    sent(second)  # it asks by itself, and will wait for the host's file
    assert isinstance(second.step, FetchBody)
    assert second.step.stall_timeout > 0.1
    world.live(3.0)
    obtained(second)
    obtained(first)
    assert first.result["k"].stored == second.result["k"].stored


def test_a_session_that_ends_while_the_value_travels_voids_the_fill() -> None:
    world = World()
    a, b = world.joined("a", "b")
    bound(a)
    read = b.begin_get("k")
    sent(read)
    world.start_global()
    failed(read, Refusal.OTHER_EPOCH)
    world.settle()
    read.look()
    sent(read)
    assert isinstance(read.step, FetchBody)
    assert read.step.envelope[:2] == (world.epoch, b.state.session)
    obtained(read)
    assert b.state.entries["k"] is read.result["k"].entry


def test_a_repeat_of_a_set_that_was_told_absent_is_told_so_again() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_set(a, "k", large(world))
    call.send()
    first = call.replies.popleft()
    call.send()
    assert call.replies[-1] == first

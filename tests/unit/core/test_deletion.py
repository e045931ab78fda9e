"""DEL and replacement: two phases, on the value that was found."""

from __future__ import annotations

import pytest

from dstore.core.local.state import RENEW
from dstore.protocol.messages import Ack, Broadcast, DelStatus, Found, Goodbye, SetStatus, Sync
from tests.unit.core.world import LEASE, Call, Member, World, body


def pending(world: World, key: str = "k", holder: bool = True) -> tuple[Member, Member, Call]:
    """A key in its first phase: b deletes it, a holds it and has not heard."""
    a, b = world.joined("a", "b")
    b.set(key, b"v")
    if holder:
        a.get(key)
    deletion = b.begin_delete(key)
    deletion.send()
    b.turn()
    return a, b, deletion


def test_the_value_stays_until_every_holder_has_acknowledged() -> None:
    world = World()
    a, _b, deletion = pending(world)
    (c,) = world.joined_without("c", a)
    assert world.engine.read("k") is not None
    reading = c.begin_get("k")
    reading.send()
    (reply,) = reading.replies
    found = reply.items[0]
    assert isinstance(found, Found)
    assert not found.cacheable
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert c.hit("k") is None, "the value of a pending key is not cached"
    assert not deletion.replies
    a.turn()
    assert deletion.replies
    assert world.engine.read("k") is None
    deletion.answer()
    result = deletion.result["k"]
    assert (result.status, result.confirmed, result.expired) == (DelStatus.DELETED, 2, 0)


def test_a_reader_of_a_pending_key_becomes_no_holder() -> None:
    world = World()
    a, _b, deletion = pending(world)
    (c,) = world.joined_without("c", a)
    c.get("k")
    world.members.remove(c)
    a.turn()
    assert deletion.replies


def test_the_deleter_is_a_holder_like_any_other() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    deletion = a.begin_delete("k")
    deletion.send()
    assert not deletion.replies
    a.turn()
    assert deletion.replies
    assert a.hit("k") is None


def test_a_dead_holder_delays_its_keys_until_its_lease_has_run_out() -> None:
    world = World()
    a, _b, deletion = pending(world)
    world.members.remove(a)
    world.live(LEASE - 0.01)
    assert not deletion.replies
    world.live(0.02)
    deletion.answer()
    result = deletion.result["k"]
    assert (result.confirmed, result.expired) == (1, 1)


def test_globals_wait_ends_not_before_the_locals_lease() -> None:
    world = World()
    a, _b, deletion = pending(world)
    world.members.remove(a)
    while not deletion.replies:
        world.advance(0.001)
        world.settle()
    assert world.now >= a.state.lease_end
    assert a.hit("k") is None


def test_the_lease_counts_as_it_stood_in_the_first_phase() -> None:
    """A Local that renews but cannot hear deletions delays nobody for more than one lease."""
    world = World()
    a, b, deletion = pending(world)
    began = world.now
    while not deletion.replies:
        world.advance(LEASE * RENEW)
        a.tick()
        for message in list(a.outgoing):
            # It renews as if it had applied nothing, and the answers never reach it.
            world.deliver(a.route, message)
        a.outgoing.clear()
        a.control.clear()
        b.turn()
        world.tick()
        assert world.now - began < 2 * LEASE
    assert world.now - began <= LEASE * (1 + RENEW)


def test_a_set_of_a_pending_key_queues_until_the_commit() -> None:
    world = World()
    a, b, _deletion = pending(world)
    setting = b.begin_set(("k", b"new"))
    setting.send()
    assert not setting.replies
    a.turn()
    setting.answer()
    assert setting.result["k"].status is SetStatus.STORED
    assert b.hit("k") == b"new"
    assert a.get("k") == b"new"


def test_a_replacement_of_a_pending_key_queues_until_the_commit() -> None:
    """It must not join the other's wait: by then there may be another value, and other holders."""
    world = World()
    a, b, _deletion = pending(world)
    first = b.begin_set(("k", b"first"))
    first.send()
    second = b.begin_set(("k", b"second"), replace=True)
    second.send()
    assert not second.replies
    a.turn()
    first.answer()
    assert first.result["k"].status is SetStatus.STORED
    assert not second.replies, "the writer of the first value holds it"
    world.settle()
    second.answer()
    assert second.result["k"].status is SetStatus.REPLACED
    assert a.get("k") == b"second"


def test_another_del_joins_the_wait_and_returns_missing() -> None:
    world = World()
    a, b, _deletion = pending(world)
    joined = b.begin_delete("k")
    joined.send()
    assert not joined.replies
    a.turn()
    joined.answer()
    assert joined.result["k"].status is DelStatus.MISSING


def test_a_del_of_a_key_that_is_being_replaced_deletes_the_new_value() -> None:
    """Between old and new there is no moment at which the key is missing."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    replacing = b.begin_set(("k", b"new"), replace=True)
    replacing.send()
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies
    a.turn()
    b.turn()
    replacing.answer()
    assert replacing.result["k"].status is SetStatus.REPLACED
    world.settle()
    deletion.answer()
    assert deletion.result["k"].status is DelStatus.DELETED
    assert a.get("k") is None


def test_a_replacement_is_two_phase() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"old")
    a.get("k")
    replacing = b.begin_set(("k", b"new"), replace=True)
    replacing.send()
    b.turn()
    assert not replacing.replies
    stored = world.engine.read("k")
    assert stored is not None
    assert stored.body == b"old"
    a.turn()
    replacing.answer()
    assert a.get("k") == b"new"


def test_without_wait_a_del_is_answered_after_the_first_phase() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k", wait=False)
    deletion.send()
    deletion.answer()
    result = deletion.result["k"]
    assert (result.status, result.pending) == (DelStatus.PENDING, 2)
    assert world.engine.read("k") is not None
    assert len(a.published) == 1
    world.settle()
    assert world.engine.read("k") is None
    assert a.hit("k") is None


def test_a_del_without_wait_joins_one_that_waits() -> None:
    world = World()
    a, b, deletion = pending(world)
    other = b.begin_delete("k", wait=False)
    other.send()
    other.answer()
    assert other.result["k"].status is DelStatus.PENDING
    a.turn()
    assert deletion.replies


def test_many_keys_are_one_broadcast_and_each_has_its_outcome() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"v"), ("l", b"v")).finish()
    a.get("l")
    deletion = b.begin_delete("k", "missing", "l")
    deletion.send()
    (broadcast,) = a.published
    assert isinstance(broadcast, Broadcast)
    assert (broadcast.first, broadcast.keys) == (1, ["k", "l"])
    world.settle()
    deletion.answer()
    results = deletion.result
    assert {key: result.status for key, result in results.items()} == {
        "k": DelStatus.DELETED,
        "missing": DelStatus.MISSING,
        "l": DelStatus.DELETED,
    }
    assert (results["k"].confirmed, results["l"].confirmed) == (1, 2)


def test_a_commit_removes_the_token_that_was_found_and_no_newer_one() -> None:
    world = World()
    a, _b, deletion = pending(world)
    found = world.engine.read("k")
    assert found is not None
    newer = found._replace(token=b"n" * 16, body=b"newer")
    world.engine.replace("k", found.token, newer)
    a.turn()
    deletion.answer()
    assert world.engine.read("k") == newer
    assert deletion.result["k"].status is DelStatus.FAILED


def test_a_missing_key_is_answered_at_once_and_has_no_invalidation() -> None:
    world = World()
    a, b = world.joined("a", "b")
    assert b.delete("k").status is DelStatus.MISSING
    assert not a.published


def test_the_host_gets_the_dropped_keys_once_and_only_if_cached() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"v"), ("l", b"v")).finish()
    a.get("k")
    b.begin_delete("k", "l").finish()
    assert a.dropped == ["k"]
    assert b.dropped == ["k", "l"]


def test_an_engine_that_raises_on_one_commit_does_not_keep_others_from_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exception is a bug of the engine, which the host of Global logs."""
    world = World()
    a, b, _c = world.joined("a", "b", "c")
    world.engine_holds("i", "j", "k")
    for key in ("i", "j", "k"):
        a.get(key)
    deletions = [b.begin_delete(key) for key in ("i", "j", "k")]
    for deletion in deletions:
        deletion.send()
    remove = world.engine.remove

    def failing(key: str, token: bytes) -> bool:
        if key == "i":
            raise RuntimeError("a bug")
        return remove(key, token)

    monkeypatch.setattr(world.engine, "remove", failing)
    world.deliver(a.route, Sync(world.epoch, a.state._secret, 9, 0, 0))  # brings all three
    with pytest.raises(RuntimeError):
        world.deliver(a.route, Ack(world.epoch, a.state._secret, 3))
    world.advance(world.lease)
    world.tick()
    assert [bool(deletion.replies) for deletion in deletions] == [False, True, True]
    assert not world.state._invalidations.pending


def test_what_a_commit_has_started_is_completed_though_the_engine_raises_on_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replacement without holders starts in the first commit of an event; the second raises."""
    world = World()
    a, b, c = world.joined("a", "b", "c")
    world.engine_holds("k", "z")
    a.get("k")
    a.get("z")
    b.begin_delete("k", "z").send()
    c.begin_set(("k", b"bound again")).send()  # waits for the deletion of k
    world.deliver(c.route, Goodbye(world.epoch, c.state._secret))  # so c will hold nothing
    replacement = b.begin_set(("k", b"new"), replace=True)
    replacement.send()  # waits as well
    remove = world.engine.remove

    def failing(key: str, token: bytes) -> bool:
        if key == "z":
            raise RuntimeError("a bug")
        return remove(key, token)

    monkeypatch.setattr(world.engine, "remove", failing)
    with pytest.raises(RuntimeError):
        world.deliver(a.route, Ack(world.epoch, a.state._secret, 2))
    assert not replacement.replies
    assert world.state.wake_at <= world.now
    world.tick()
    assert replacement.replies

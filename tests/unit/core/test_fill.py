"""The fill rule: which replies may be stored, and what a second asker may be handed."""

from __future__ import annotations

from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import GetReply, Refusal, Refused
from tests.unit.core.world import World, body


def test_a_reply_is_stored_and_answers_the_next_get() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    assert a.get("k") == b"v"
    again = a.begin_get("k")
    assert again.result["k"].from_local


def test_a_deletion_applied_while_the_reply_was_under_way_spoils_the_fill() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    reading = a.begin_get("k")
    reading.send()  # read at Global with seq 0
    deletion = b.begin_delete("k")
    deletion.send()
    world.settle()  # a applies and acknowledges deletion 1
    assert deletion.replies
    reading.answer()
    assert body(reading.result["k"]) == b"v", "the caller that asked may have it"
    assert "k" not in a.state.entries


def test_a_deletion_numbered_before_the_read_does_not_spoil_the_fill() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"old")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    a.turn()
    deletion.answer()
    b.set("k", b"new")
    reading = a.begin_get("k")
    reading.send()
    assert a.state.vector.after("k", 0) and not a.state.vector.after("k", 1)
    reading.answer()
    assert a.hit("k") == b"new"


def test_a_deletion_of_another_key_does_not_spoil_the_fill() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    b.set("l", b"v")
    reading = a.begin_get("k")
    reading.send()
    b.delete("l")
    reading.answer()
    assert a.hit("k") == b"v"


def test_a_reply_to_a_former_session_is_not_stored() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    reading = a.begin_get("k")
    reading.send()
    a.receive(Refused(a.state.epoch, a.state.session, 0, Refusal.UNKNOWN_SESSION, ""))
    world.live(0.2)
    assert a.state.session
    b.delete("k")
    reading.answer()
    assert "k" not in a.state.entries


def test_the_late_reply_to_a_request_given_up_is_not_stored() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    reading = a.begin_get("k")
    reading.send()
    assert a.state.asking("k") == reading.message.request
    reading.give_up()
    assert reading.replies
    assert "k" not in a.state.entries
    assert a.state.asking("k") is None


def test_a_write_is_stored_under_the_same_rule() -> None:
    world = World()
    a, b = world.joined("a", "b")
    setting = a.begin_set(("k", b"v"))
    setting.send()
    b.delete("k")
    setting.answer()
    assert "k" not in a.state.entries


def test_a_second_asker_waits_and_then_does_an_ordinary_hit() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    first = a.begin_get("k")
    second = a.begin_get("k")
    assert second.waits
    first.send()
    first.answer()
    second.look()
    assert second.result["k"].from_local
    assert world.state.counters["gets"] == 1


def test_a_second_asker_is_not_handed_a_reply_older_than_its_call() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"old")
    first = a.begin_get("k")
    first.send()  # the reply with the old value is under way
    deletion = b.begin_delete("k")
    deletion.send()
    world.settle()
    deletion.answer()
    b.set("k", b"new")
    second = a.begin_get("k")  # begins after the deletion was confirmed
    assert second.waits
    first.answer()
    second.look()
    second.send()
    second.answer()
    assert body(second.result["k"]) == b"new"


def test_a_second_asker_is_not_stuck_behind_a_request_that_failed() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    first = a.begin_get("k", timeout=0.1)
    second = a.begin_get("k")
    while not first.done:
        first.time_out()
    assert isinstance(first.error, GlobalUnavailable)
    second.look()
    second.send()
    second.answer()
    assert body(second.result["k"]) == b"v"


def test_a_get_does_not_wait_for_a_write_of_the_same_key() -> None:
    """A write may wait long for others; a GET of the key is answered meanwhile."""
    world = World()
    a, _b = world.joined("a", "b")
    setting = a.begin_set(("k", b"v"))
    reading = a.begin_get("k")
    assert not reading.waits
    reading.give_up()
    setting.give_up()


def test_a_hit_of_one_key_and_a_miss_of_another_in_one_call() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"1"), ("l", b"2")).finish()
    a.get("k")
    both = a.begin_get("k", "l", "missing").finish()
    assert {key: body(answer) for key, answer in both.items()} == {"k": b"1", "l": b"2"}
    assert both["k"].from_local
    assert not both["l"].from_local


def test_a_reply_cut_short_is_asked_for_again() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"1"), ("l", b"2")).finish()
    reading = a.begin_get("k", "l")
    reading.send()
    reply = reading.replies.popleft()
    reading.answer(GetReply.of(reply[:3], reply.seq, reply.items[:1]))
    assert reading.message.keys == ["l"]
    reading.send()
    reading.answer()
    assert set(reading.result) == {"k", "l"}

"""Writes are repeated safely: executed once, or their outcome is said to be unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dstore.config import INLINE_BYTES_MAX, KEY_BYTES_MAX, OUTCOMES_MAX
from dstore.core.authority import sessions
from dstore.core.engine import Outcome
from dstore.core.local import operations
from dstore.core.local.operations import SetOutcome, direct, writing
from dstore.core.local.state import LocalState
from dstore.core.local.steps import StepResult
from dstore.core.local.writer import Writer
from dstore.errors import GlobalUnavailable, OutcomeUnknown, RequestRefused
from dstore.protocol import content, wire
from dstore.protocol.messages import (
    DelStatus,
    Get,
    Refusal,
    Refused,
    Set,
    SetItem,
    SetStatus,
    Stored,
)
from tests.unit.core.world import LEASE, Call, World, item


def test_a_repeated_set_gets_the_recorded_outcome_marked_do_not_cache() -> None:
    world = World()
    a, _b = world.joined("a", "b")
    setting = a.begin_set(("k", b"v"))
    setting.send()
    first = setting.replies.popleft()
    assert first.items[0].cacheable
    setting.time_out()
    setting.send()
    again = setting.replies[0]
    assert again.items[0].status is SetStatus.STORED
    assert not again.items[0].cacheable
    setting.answer()
    assert "k" not in a.state.entries


def test_a_repeated_set_is_not_executed_again_after_a_del() -> None:
    world = World()
    a, b = world.joined("a", "b")
    setting = a.begin_set(("k", b"v"))
    setting.send()
    setting.replies.clear()
    assert b.delete("k").status is DelStatus.DELETED
    setting.time_out()
    setting.send()
    setting.answer()
    assert setting.result["k"].status is SetStatus.STORED
    assert world.engine.read("k") is None


def test_a_repeated_del_does_not_remove_a_newer_value() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"old")
    deletion = a.begin_delete("k")
    deletion.send()
    world.settle()
    deletion.replies.clear()
    b.set("k", b"new")
    deletion.time_out()
    deletion.send()
    world.settle()
    deletion.answer()
    assert deletion.result["k"].status is DelStatus.DELETED
    assert b.get("k") == b"new"


def test_a_repeat_of_a_write_at_work_is_answered_once_where_it_was_asked_last() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = a.begin_delete("k")
    deletion.send()
    deletion.time_out()
    deletion.route = b"elsewhere"
    deletion.send()
    world.settle()
    assert len(world.inboxes[b"elsewhere"]) == 1
    assert not deletion.replies


def test_outcomes_are_kept_until_the_local_says_it_has_seen_them() -> None:
    world = World()
    (a,) = world.joined("a")
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    a.set("k", b"v")
    assert len(session.outcomes) == 1
    a.set("l", b"v")
    assert len(session.outcomes) == 1, "the next write says that the first was seen"
    world.live(1.0)
    assert not session.outcomes, "and so does a renewal"


def test_an_unfinished_write_holds_back_what_is_seen() -> None:
    world = World()
    (a,) = world.joined("a")
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    slow = a.begin_set(("slow", b"v"))
    slow.send()
    slow.replies.clear()
    for number in range(3):
        a.set(f"k{number}", b"v")
    assert slow.message.write in session.outcomes
    slow.give_up()
    a.set("last", b"v")
    assert slow.message.write not in session.outcomes


def test_a_write_that_was_given_up_is_not_executed_when_it_arrives_late() -> None:
    world = World()
    (a,) = world.joined("a")
    late = a.begin_set(("k", b"v"))
    message = late.message
    late.give_up()
    a.set("l", b"v")
    world.deliver(b"late", message)
    (refused,) = world.inboxes[b"late"]
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.STALE_WRITE
    assert world.engine.read("k") is None


def test_outcomes_that_are_never_seen_are_bounded() -> None:
    world = World()
    (a,) = world.joined("a")
    message = a.begin_delete("k").message
    for write in range(1, OUTCOMES_MAX + 2):
        world.inboxes.clear()
        world.deliver(b"r", message._replace(write=write, seen=0))
    (refused,) = world.inboxes[b"r"]
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.BUSY


@pytest.mark.parametrize("kind", ["set", "replace", "delete"])
def test_a_repeat_whose_record_may_be_gone_is_never_executed(kind: str) -> None:
    world = World()
    (a,) = world.joined("a")
    if kind != "set":
        a.set("k", b"old")
    write = (
        a.begin_delete("k")
        if kind == "delete"
        else a.begin_set(("k", b"v"), replace=kind == "replace")
    )
    write.resume(StepResult(world.now + 0.3, None, True))  # sent, and never answered
    world.start_global()
    write.send()
    write.answer()
    if kind != "delete":  # it looks whether its value is bound
        assert isinstance(write.message, Get)
        write.send()
        write.answer()
    assert isinstance(write.error, OutcomeUnknown)
    assert write.error.keys == ["k"]
    stored = world.engine.read("k")
    assert stored is None if kind == "set" else stored is not None


@pytest.mark.parametrize("rebound", [False, True])
def test_a_set_whose_session_was_lost_is_known_by_its_tokens(rebound: bool) -> None:
    """If all are bound with them they have been stored; else the outcome is unknown."""
    world = World(durable=True)
    (a,) = world.joined("a")
    write = a.begin_set(("k", b"v"), ("l", b"v"))
    write.send()
    world.commit(Outcome.DONE, Outcome.FAILED)
    write.replies.clear()
    if rebound:
        world.engine_holds("l")
    write.resume(StepResult(world.now + 0.3, None, True))
    world.start_global()
    write.send()
    write.answer()
    assert write.message == Get(0, 0, write.message.request, ["k", "l"])
    write.send()
    write.answer()
    assert isinstance(write.error, OutcomeUnknown)
    assert write.error.keys == ["k", "l"]

    write = a.begin_set(("n", b"v"), replace=True)
    world.settle()
    write.look()
    write.send()
    world.commit()
    write.replies.clear()
    write.resume(StepResult(world.now + 0.3, None, True))
    world.start_global()
    write.send()
    write.answer()
    write.send()
    write.answer()
    assert write.result == {"n": SetOutcome(SetStatus.STORED, found=True)}


def test_a_set_whose_session_was_lost_stays_unknown_if_global_is_lost_too() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    write = a.begin_set(("k", b"v"))
    write.send()
    world.commit()
    write.replies.clear()
    write.resume(StepResult(world.now + 0.3, None, True))
    world.start_global()
    write.send()
    write.answer()
    while not write.done:
        write.time_out()
    assert isinstance(write.error, OutcomeUnknown)
    assert write.error.keys == ["k"]


def test_a_write_whose_every_copy_was_refused_is_done_again_in_the_new_session() -> None:
    world = World()
    (a,) = world.joined("a")
    setting = a.begin_set(("k", b"v"))
    world.start_global()
    setting.send()
    setting.answer()  # refused: nothing has happened
    assert setting.waits
    assert setting.finish()["k"].status is SetStatus.STORED
    assert a.state.epoch == world.epoch


def test_a_write_that_never_left_raises_global_unavailable() -> None:
    world = World()
    (a,) = world.joined("a")
    setting = a.begin_set(("k", b"v"), timeout=1.0)
    while not setting.done:
        setting.time_out(sent=False)
    assert isinstance(setting.error, GlobalUnavailable)


def test_a_write_that_left_and_was_not_answered_has_an_unknown_outcome() -> None:
    world = World()
    (a,) = world.joined("a")
    setting = a.begin_set(("k", b"v"), timeout=1.0)
    while not setting.done:
        setting.time_out()
    assert isinstance(setting.error, OutcomeUnknown)


def test_every_request_is_sent_again_before_its_deadline() -> None:
    world = World()
    (a,) = world.joined("a")
    reading = a.begin_get("k", timeout=5.0)
    request = reading.message
    copies = 1
    end = world.now + 5.0
    while not reading.done:
        reading.time_out()
        if not reading.done:
            assert reading.message == request
            copies += 1
    assert isinstance(reading.error, GlobalUnavailable)
    assert world.now == end
    assert copies >= 3


def test_a_get_is_asked_again_in_the_new_session() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.state.cache.clear()
    reading = a.begin_get("k")
    world.start_global()
    reading.send()
    reading.answer()
    assert reading.waits
    assert reading.finish()["k"].stored.body == b"v"


def test_set_of_a_key_that_this_local_holds_sends_no_request() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    setting = a.begin_set(("k", b"w"))
    assert setting.done
    assert setting.result["k"].local


def test_set_of_a_held_key_asks_global_when_the_lease_has_lapsed() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    world.advance(10.0)
    setting = a.begin_set(("k", b"w"))
    assert not setting.done
    setting.give_up()


def test_a_closing_global_refuses_new_writes_and_answers_what_is_under_way() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    world.state.close()
    assert not world.state.idle
    setting = b.begin_set(("l", b"v"), timeout=1.0)
    setting.send()
    (refused,) = setting.replies
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.CLOSING
    world.settle()
    assert deletion.replies
    assert world.state.idle
    while not setting.done:
        if setting.waits:
            setting.time_out()
        else:
            setting.send()
            setting.answer()
    assert isinstance(setting.error, GlobalUnavailable), "every copy was refused"


def test_a_full_store_refuses_and_keeps_what_it_has() -> None:
    world = World(limit=1000)
    (a,) = world.joined("a")
    assert a.set("k", b"v" * 100).status is SetStatus.STORED
    assert a.set("l", b"v" * 900).status is SetStatus.FULL
    assert a.set("k", b"v" * 900, replace=True).status is SetStatus.FULL
    assert a.set("k", b"w" * 200, replace=True).status is SetStatus.REPLACED
    assert a.get("l") is None


def test_a_value_above_the_limit_is_refused() -> None:
    world = World()
    (a,) = world.joined("a")
    assert a.set("k", b"v" * 1001).status is SetStatus.TOO_LARGE


def test_a_content_address_is_bound_to_its_content_alone() -> None:
    world = World()
    (a,) = world.joined("a")
    key = content.address(content.digest("bytes", b"v"))
    assert a.set(key, b"other").status is SetStatus.MISMATCH
    assert a.set(key, b"v").status is SetStatus.STORED
    assert not content.PLAIN.matches(key, Stored(bytes(16), "text", b"v"))


def test_many_items_travel_in_messages_of_bounded_size() -> None:
    world = World()
    (a,) = world.joined("a")
    items = [item(world, "k", value) for value in (b"1", b"2")]
    key_twice = a.begin(operations.set_(a.state, items, False, world.now, world.now + 5.0))
    assert [item.key for item in key_twice.message.items] == ["k"]
    assert isinstance(key_twice.message.items[0], SetItem)
    outcome = key_twice.finish()
    assert outcome["k"].status is SetStatus.OCCUPIED


def test_a_write_waits_one_lease_longer_than_its_timeout() -> None:
    """It may have to wait for the lease of a Local that died; also the first of a new Local."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    c = world.member("c")
    deletion = c.begin_delete("k", timeout=0.5)
    deadline = world.now + 0.5
    assert deletion.waits
    c.turn()
    c.turn()
    deletion.look()
    while not deletion.done:
        deletion.time_out()
    assert world.now == deadline + world.lease


@pytest.mark.parametrize("refusal", [Refusal.OTHER_VERSION, Refusal.BAD_MESSAGE])
def test_a_final_refusal_is_raised_unless_another_copy_may_be_executed(refusal: Refusal) -> None:
    world = World()
    (a,) = world.joined("a")
    for lost_copies, expected in ((0, RequestRefused), (1, OutcomeUnknown)):
        setting = a.begin_set(("k", b"v"))
        for _ in range(lost_copies):
            setting.time_out()
        message = setting.message
        setting.answer(Refused(message.epoch, message.session, message.request, refusal, "why"))
        assert isinstance(setting.error, expected)


def test_the_values_of_queued_writes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WRITES_BYTES_MAX", 5_000)
    monkeypatch.setattr(sessions, "WRITES_BYTES_ASSURED", 0)
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    first, second = b.begin_set(("k", b"1" * 600)), c.begin_set(("k", b"2" * 600))
    first.send()
    second.send()
    (refused,) = second.replies
    assert refused.refusal is Refusal.BUSY
    assert "0 bytes of them of this session" in refused.text
    second.answer()
    world.settle()
    first.answer()
    assert first.result["k"].status is SetStatus.STORED
    second.time_out(sent=False)
    second.send()
    second.answer()
    assert second.result["k"].status is SetStatus.OCCUPIED
    deletion.answer()
    world.live(1.0)
    assert world.state._sessions.writes.taken == 0


def test_a_busy_global_is_asked_again() -> None:
    world = World()
    (a,) = world.joined("a")
    setting = a.begin_set(("k", b"v"))
    message = setting.message
    setting.answer(Refused(message.epoch, message.session, message.request, Refusal.BUSY, "why"))
    assert setting.waits
    setting.time_out(sent=False)
    setting.send()
    setting.answer()
    assert setting.result["k"].status is SetStatus.STORED


def test_each_message_of_a_long_write_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "KEYS_PER_MESSAGE_MAX", 1)
    monkeypatch.setattr(direct, "KEYS_PER_MESSAGE_MAX", 1)
    world = World()
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ("l", b"v")).finish()
    deletion = a.begin_delete("k", "l", timeout=1.0)
    deletion.send()
    world.settle()
    world.advance(2.5)  # the holder's lease was waited for
    deletion.answer()
    assert not deletion.done
    deletion.send()
    world.settle()
    deletion.answer()
    assert set(deletion.result) == {"k", "l"}


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("ask_one", "get"),
        ("begin_asking", "get_many"),
        ("begin", "set, step by step"),
        ("reserve", "set"),
        ("reserve", "delete"),
    ],
)
def test_an_interrupt_in_the_middle_leaves_nothing_behind(
    where: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    (a,) = world.joined("a")
    kind_of_state = Writer if hasattr(Writer, where) else LocalState
    begin = getattr(kind_of_state, where)

    def interrupted(*arguments: object, **keywords: object) -> None:
        begin(*arguments, **keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind_of_state, where, interrupted)
    calls: dict[str, Callable[[], Call]] = {
        "get": lambda: a.begin_get("k"),
        "get_many": lambda: a.begin_get("k", "l"),
        "set": lambda: a.begin_set(("k", b"v")),
        "set, step by step": lambda: a.begin(
            operations.set_(a.state, [item(world, "k", b"v")], False, world.now, world.now + 5.0)
        ),
        "delete": lambda: a.begin_delete("k"),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[kind]()
    assert not a.state.in_flight
    assert not a.state.writer.writing
    assert a.state.writer.seen == a.state.writer.next


def test_replacements_that_wait_do_not_exceed_the_limit_together() -> None:
    world = World(limit=4_000)
    a, silent = world.joined("a", "silent")
    keys = [f"k{number}" for number in range(5)]
    for key in keys:
        a.set(key, b"1")
        silent.get(key)
    size = world.engine.size
    world.members.remove(silent)
    calls = [a.begin_set((key, bytes(900)), replace=True) for key in keys]
    for call in calls:
        call.send()
    other = a.begin_set(("other", bytes(900)))
    other.send()
    world.live(2 * LEASE)
    for call in (*calls, other):
        call.answer()
    told = [result.status for call in (*calls, other) for result in call.result.values()]
    assert told.count(SetStatus.FULL) >= 2
    assert told.count(SetStatus.REPLACED) >= 2
    assert size < world.engine.size <= 4_000
    assert world.state._stages.growing == world.state._stages.replacing == 0


def test_in_a_full_store_a_value_is_replaced_by_one_that_is_no_larger() -> None:
    world = World(limit=1000)
    (a,) = world.joined("a")
    number = 0
    while a.set(f"k{number}", bytes(50)).status is SetStatus.STORED:
        number += 1
    assert a.set("k0", b"x" * 50, replace=True).status is SetStatus.REPLACED
    assert a.set("k0", b"x" * 900, replace=True).status is SetStatus.FULL


def test_what_is_replaced_meanwhile_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WRITES_BYTES_SHARE", 4_500)
    monkeypatch.setattr(sessions, "WRITES_BYTES_ASSURED", 0)
    world = World()
    a, silent = world.joined("a", "silent")
    for key in "kl":
        a.set(key, bytes(60))
        silent.get(key)
    world.members.remove(silent)
    first = a.begin_set(("k", b"x" * 900), replace=True)
    first.send()
    second = a.begin_set(("l", b"x" * 900), replace=True)
    second.send()
    assert second.replies[0].refusal is Refusal.BUSY
    world.live(2 * LEASE)
    first.answer()
    assert first.result["k"].status is SetStatus.REPLACED


def test_a_set_has_hardly_more_bytes_than_the_largest_value_in_it_may_have() -> None:
    key = "k" * KEY_BYTES_MAX
    for sizes in ([INLINE_BYTES_MAX - 1] * 2, [5 << 17] * 4, [100] * 10_000, [0] * 25_000):
        items = [
            SetItem(f"{number}{key}"[:KEY_BYTES_MAX], Stored(bytes(16), "c" * 64, bytes(size)))
            for number, size in enumerate(sizes)
        ]
        batches = list(writing._batches(items))
        assert [item for batch in batches for item in batch] == items
        for batch in batches:
            frame = wire.encode(Set(1 << 63, 1 << 63, 1 << 63, 1 << 63, 1 << 63, True, batch))
            assert len(frame) < INLINE_BYTES_MAX + 1024

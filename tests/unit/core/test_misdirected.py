"""A Local whose Global does not own a key: what an operation has done when it says so.

A read may be made elsewhere at any time. A write may be made elsewhere only if no copy of it may
still be executed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local import operations
from dstore.core.local.operations import LargeBody, Misdirected
from dstore.core.local.operations.exchange import RESEND_MOVING
from dstore.core.local.steps import FetchBody, Request, SendBody
from dstore.errors import GlobalUnavailable, OutcomeUnknown, RequestRefused
from dstore.protocol.messages import (
    NO_SESSION,
    AskMap,
    DelStatus,
    GetReply,
    MapReply,
    Refusal,
    Refused,
    SetItem,
    SetStatus,
    Unstage,
)
from dstore.protocol.partitions import partition_of, to_bitmap
from tests.unit.core.cluster import MINE, OTHERS, OWNED, begin_epoch, gain, key_in, member
from tests.unit.core.large_values import BODY, begin_set, bound, failed, large, sent, supply
from tests.unit.core.world import Call, Member, item

Begin = Callable[[Member], Call]
MINE_TOO = key_in(OWNED, 1)


def misdirected(call: Call) -> Misdirected:
    """The error of a call whose request has been answered."""
    assert call.done
    assert isinstance(call.error, Misdirected)
    return call.error


def begin_ttl(a: Member) -> Call:
    return a.begin(operations.ttl(a.state, OTHERS, a.world.now, a.world.now + 5.0))


def begin_steps(a: Member) -> Call:
    """A SET that does not take the direct path."""
    now = a.world.now
    items = [item(a.world, OTHERS, b"v")]
    return a.begin(operations.set_(a.state, items, False, now, now + 5.0))


READS: dict[str, Begin] = {
    "GET": lambda a: a.begin_get(OTHERS),
    "GET of many": lambda a: a.begin_get(OTHERS, MINE_TOO),
    "WAIT": lambda a: a.begin_wait(OTHERS, a.world.now + 50.0),
    "TTL": begin_ttl,
}
WRITES: dict[str, Begin] = {
    "SET": lambda a: a.begin_set((OTHERS, b"v")),
    "SET by steps": begin_steps,
    "replace": lambda a: a.begin_set((OTHERS, b"v"), replace=True),
    "DEL": lambda a: a.begin_delete(OTHERS),
    "DEL without waiting": lambda a: a.begin_delete(OTHERS, wait=False),
    "EXPIRE": lambda a: a.begin_expire(OTHERS, 9.0),
}


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_an_operation_on_a_key_that_global_does_not_own_is_misdirected(name: str) -> None:
    world = member()
    (a,) = world.joined("a")
    call = (READS | WRITES)[name](a)
    call.send()
    call.answer()
    error = misdirected(call)
    assert error.keys == ([OTHERS, MINE_TOO] if "many" in name else [OTHERS])
    assert not error.done
    assert isinstance(error, RequestRefused)  # should it ever come to a program
    assert not a.state.writer.writing
    assert a.state.asking(OTHERS) is None
    gain(world, range(128, 256))
    assert a.set(OTHERS, b"v").status is SetStatus.STORED
    assert a.get(OTHERS) == b"v"


def test_what_is_cached_of_keys_is_still_read_when_others_are_misdirected() -> None:
    world = member()
    (a,) = world.joined("a")
    a.set(MINE, b"v")
    call = a.begin_get(MINE, OTHERS)
    call.send()
    call.answer()
    error = misdirected(call)
    assert error.keys == [OTHERS]
    assert list(error.done) == [MINE]
    assert a.hit(MINE) == b"v"


def test_a_scan_names_partitions_and_is_misdirected_if_one_is_not_owned() -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(MINE, OTHERS)

    def begin(partitions: bytes) -> Call:
        now = world.now
        return a.begin(operations.scan(a.state, "", "", 10, now, now + 5.0, partitions))

    assert begin(to_bitmap(OWNED)).finish().keys == [MINE]
    assert begin(b"").finish().keys == [MINE]
    call = begin(to_bitmap(range(129)))
    call.send()
    call.answer()
    assert misdirected(call).keys == []


def test_the_map_is_asked_for_without_a_session() -> None:
    world = member()
    assert world.partitions is not None
    world.partitions.map = 7, ["tcp://a:1"], bytes(256)
    a = world.member("a")
    call = a.begin(operations.ask_map(a.state, world.now, world.now + 5.0))
    assert isinstance(call.message, AskMap)
    assert call.message.session == NO_SESSION
    reply = call.finish()
    assert isinstance(reply, MapReply)
    assert (reply.version, reply.members, reply.owners) == (7, ["tcp://a:1"], bytes(256))


def test_a_map_that_nobody_answers_ends_with_global_unavailable() -> None:
    world = member()
    (a,) = world.joined("a")
    call = a.begin(operations.ask_map(a.state, world.now, world.now + 5.0))
    while not call.done:
        call.time_out()
    assert isinstance(call.error, GlobalUnavailable)


# ---- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READS)
def test_a_read_is_misdirected_though_a_copy_of_it_has_no_answer(name: str) -> None:
    world = member()
    (a,) = world.joined("a")
    call = READS[name](a)
    call.time_out()
    call.send()
    call.answer()
    misdirected(call)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_misdirected_only_when_no_copy_of_it_is_ever_executed(name: str) -> None:
    """The first copy is on its way for so long that the key is owned when it arrives."""
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(*([] if name.startswith("SET") else [OTHERS]))
    before = world.engine.read(OTHERS)
    call = WRITES[name](a)
    late = call.message
    call.time_out()
    call.send()
    call.answer()
    misdirected(call)
    gain(world, range(128, 256))
    world.deliver(b"late", late)
    assert world.inboxes[b"late"].pop().refusal is Refusal.NOT_MINE  # type: ignore[union-attr]
    world.live(1.0)
    assert world.engine.read(OTHERS) == before
    assert not world.state._deadlines


@pytest.mark.parametrize("name", WRITES)
def test_the_outcome_is_unknown_if_the_session_was_lost_with_an_unanswered_copy(name: str) -> None:
    """Global may have executed it before it gave the partition up: nobody else is asked."""
    world = member()
    (a,) = world.joined("a")
    call = WRITES[name](a)
    call.time_out()
    begin_epoch(world)
    call.send()
    call.answer()
    if "SET" in name or name == "replace":  # it asks by token whether the value is bound
        reply = call.send()
        assert reply.refusal is Refusal.NOT_MINE
        call.answer()
    assert isinstance(call.error, OutcomeUnknown)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_a_hand_over_refuses_is_misdirected_whatever_became_of_other_copies(
    name: str,
) -> None:
    world = member(range(256))
    (a,) = world.joined("a")
    call = WRITES[name](a)
    call.time_out()
    world.state.hold_writes()
    assert call.send().refusal is Refusal.NOT_MINE
    call.answer()
    misdirected(call)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_which_each_copy_was_refused_goes_to_the_new_owner(name: str) -> None:
    """Global gives the partition up, and begins another epoch."""
    world = member(range(256))
    (a,) = world.joined("a")
    call = WRITES[name](a)
    begin_epoch(world)
    assert call.send().refusal is Refusal.OTHER_EPOCH
    call.answer()
    world.settle()
    call.look()
    assert call.send().refusal is Refusal.NOT_MINE
    call.answer()
    misdirected(call)


class Others:
    """What a Local knows of other Globals: whether one of them has the key by now."""

    def __init__(self) -> None:
        self.has_it = False
        self.asked = 0

    def own(self, keys: Iterable[str]) -> bool:
        assert list(keys) == [OTHERS]
        return self.has_it

    def ask(self) -> None:
        self.asked += 1


def until(call: Call) -> float:
    """When a call that waits for a reply sends its request again."""
    assert isinstance(call.step, Request)
    return call.step.until


@pytest.mark.parametrize("name", WRITES)
def test_a_write_to_a_silent_global_ends_when_another_one_has_taken_over(name: str) -> None:
    world = member(range(256))
    (a,) = world.joined("a")
    others = a.state.others = Others()
    call = WRITES[name](a)
    assert until(call) <= world.now + RESEND_MOVING
    others.has_it = True
    while until(call) < a.state.lease_end:
        call.time_out()
        assert not call.done, "Global may answer: it has done so within the last lease"
    assert not others.asked
    others.has_it = False
    call.time_out()
    assert others.asked
    assert not call.done, "nobody else has the key, and Global may come back"
    others.has_it = True
    assert until(call) <= world.now + RESEND_MOVING
    call.time_out()
    assert isinstance(call.error, OutcomeUnknown)
    assert "taken over" in call.error.reason


def test_a_write_to_a_silent_global_that_is_the_only_one_goes_on() -> None:
    world = member()
    (a,) = world.joined("a")
    call = a.begin_delete(MINE)
    pauses = set()
    while not call.done:
        began = world.now
        call.time_out()
        pauses.add(world.now - began)
    assert isinstance(call.error, OutcomeUnknown)
    assert max(pauses) > RESEND_MOVING


# ---- many keys --------------------------------------------------------------------------------


def many(count: int, partitions: range = OWNED) -> list[str]:
    keys = (key for key in (f"m{n}" for n in itertools.count()) if partition_of(key) in partitions)
    return list(itertools.islice(keys, count))


def answer_all(call: Call) -> None:
    """Each request of the call is answered."""
    while not call.done:
        call.send()
        call.answer()


def test_of_many_keys_set_the_outcomes_of_earlier_messages_are_kept() -> None:
    world = member()
    (a,) = world.joined("a")
    keys = many(KEYS_PER_MESSAGE_MAX)
    world.engine_holds(keys[3])
    call = a.begin_set(*[(key, b"v") for key in [*keys, OTHERS, MINE_TOO]])
    answer_all(call)
    error = misdirected(call)
    left = error.keys  # those of the last message
    assert left[-2:] == [OTHERS, MINE_TOO]
    assert left[:-2] == keys[-len(left) + 2 :]
    assert list(error.done) == keys[: -len(left) + 2]
    assert error.done[keys[3]].status is SetStatus.OCCUPIED
    assert error.done[keys[4]].status is SetStatus.STORED
    assert not any(world.engine.read(key) for key in left)
    assert world.engine.read(MINE_TOO) is None


def test_of_one_message_no_key_is_set() -> None:
    world = member()
    (a,) = world.joined("a")
    a.set(MINE, b"old")
    call = a.begin_set((MINE, b"v"), (MINE_TOO, b"v"), (OTHERS, b"v"))
    call.send()
    call.answer()
    error = misdirected(call)
    assert error.keys == [MINE_TOO, OTHERS]
    assert error.done[MINE].local  # the cache has shown that it is occupied
    assert world.engine.read(MINE_TOO) is None


def test_of_many_keys_deleted_the_outcomes_of_earlier_messages_are_kept() -> None:
    world = member()
    (a,) = world.joined("a")
    keys = many(KEYS_PER_MESSAGE_MAX)
    world.engine_holds(keys[3])
    call = a.begin_delete(*keys, OTHERS, MINE_TOO)
    answer_all(call)
    error = misdirected(call)
    assert error.keys == [OTHERS, MINE_TOO]
    assert set(error.done) == set(keys)
    assert error.done[keys[3]].status is DelStatus.DELETED


def test_of_many_keys_read_those_that_are_left_are_named() -> None:
    world = member()
    (a,) = world.joined("a")
    keys = many(KEYS_PER_MESSAGE_MAX)
    world.engine_holds(keys[3])
    call = a.begin_get(*keys, OTHERS, MINE_TOO)
    answer_all(call)
    error = misdirected(call)
    assert set(error.keys) == {OTHERS, MINE_TOO}
    assert set(error.done) == {keys[3]}


# ---- large values -----------------------------------------------------------------------------


def test_a_large_value_whose_key_is_not_owned_when_it_is_fetched_is_misdirected() -> None:
    world = member()
    (a,) = world.joined("a")
    bound(a, MINE)
    (b,) = world.joined("b")
    call = b.begin_get(MINE, MINE_TOO)
    call.send()
    assert isinstance(call.replies[-1], GetReply)
    call.answer()
    assert isinstance(call.step, FetchBody)
    failed(call, Refusal.NOT_MINE)
    error = misdirected(call)
    assert (error.keys, error.done) == ([MINE], {})
    assert b.state.asking(MINE) is None


def test_a_set_that_is_refused_after_its_upload_withdraws_the_upload() -> None:
    """The bytes are needed elsewhere, and would take room here until they are dropped."""
    world = member()
    (a,) = world.joined("a")
    stored = large(world)
    call = begin_set(a, MINE, stored)
    sent(call)
    assert isinstance(call.step, SendBody)
    supply(call)
    assert world.state._stages.reserved
    request = call.message
    envelope = request.epoch, request.session, request.request
    call.answer(Refused(*envelope, Refusal.NOT_MINE, "elsewhere"))
    error = misdirected(call)
    assert (error.keys, error.done) == ([MINE], {})
    assert a.state.writer.uploads == 0
    (withdrawn,) = [each for each in a.tick() if isinstance(each, Unstage)]
    assert withdrawn.token == stored.token
    world.settle()
    assert not world.state._stages.reserved


def test_of_many_values_those_with_an_outcome_before_an_upload_are_kept() -> None:
    world = member()
    (a,) = world.joined("a")
    stored, now = large(world), world.now
    bodies = {stored.token: LargeBody(memoryview(BODY))}
    items = [item(world, MINE, b"v"), SetItem(MINE_TOO, stored)]
    call = a.begin(operations.set_(a.state, items, False, now, now + 5.0, bodies))
    sent(call)
    supply(call)
    request = call.message
    envelope = request.epoch, request.session, request.request
    call.answer(Refused(*envelope, Refusal.NOT_MINE, "elsewhere"))
    error = misdirected(call)
    assert error.keys == [MINE_TOO]
    assert {key: each.status for key, each in error.done.items()} == {MINE: SetStatus.STORED}

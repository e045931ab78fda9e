"""Uploads of large values: whole or not there, counted from the beginning, dropped in time."""

from __future__ import annotations

import pytest

from dstore.core.authority import stages
from dstore.core.engine import Lost
from dstore.core.local import operations, transfer
from dstore.core.local.operations import LargeBody
from dstore.core.local.steps import FetchBody, ReceiveReply, SendBody, StepResult
from dstore.errors import GlobalUnavailable, StoreFull
from dstore.protocol.messages import (
    Fetch,
    Large,
    Refusal,
    SetItem,
    SetStatus,
    Stage,
    Unstage,
)
from tests.unit.core.large_values import (
    BODY,
    CHUNK,
    begin_set,
    bound,
    envelope,
    failed,
    large,
    sends,
    sent,
    staged,
    supply,
)
from tests.unit.core.world import World


def test_a_value_becomes_visible_at_once_and_whole() -> None:
    world = World()
    a, b = world.joined("a", "b")
    stored = large(world)
    call = begin_set(a, "k", stored)
    sent(call)
    assert isinstance(call.step, SendBody)
    for offset in range(0, len(BODY), CHUNK):
        assert b.get("k") is None
        assert world.bulk.read(stored.token, 0, 100) is None
        answer = staged(a, stored, offset, BODY[offset : offset + CHUNK])
        assert answer.received == min(len(BODY), offset + CHUNK)
    assert b.get("k") is None
    call.resume(StepResult(world.now))
    sent(call)
    assert call.result["k"].status is SetStatus.STORED
    read = b.begin_get("k")
    sent(read)
    assert isinstance(read.step, FetchBody)
    assert read.step.stored == stored
    assert bytes(world.bulk.read(stored.token, 0, 100) or b"") == BODY


def test_an_upload_that_turns_out_not_to_fit_is_refused_and_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(token: bytes, offset: int, data: object) -> None:
        raise StoreFull("others have taken the room")

    world = World()
    (a,) = world.joined("a")
    stored = large(world)
    assert staged(a, stored, 0, BODY[:CHUNK]).received == CHUNK
    with monkeypatch.context() as patched:
        patched.setattr(world.bulk, "write", full)
        assert staged(a, stored, CHUNK, BODY[CHUNK:]).refusal is Refusal.FULL
    assert len(world.state._stages) == world.state._stages.reserved == 0
    assert stored.token not in world.bulk
    assert staged(a, stored, 0, BODY).received == len(BODY), "and may be begun afresh"


def test_an_upload_that_is_not_complete_cannot_be_bound() -> None:
    world = World()
    (a,) = world.joined("a")
    stored = large(world)
    staged(a, stored, 0, BODY[:-1])
    call = begin_set(a, "k", stored)
    sent(call)
    assert isinstance(call.step, SendBody)
    assert a.get("k") is None


def test_chunks_that_come_twice_or_overlap_change_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    stored = large(world)
    assert staged(a, stored, 0, BODY[:4]).received == 4
    assert staged(a, stored, 0, BODY[:4]).received == 4
    assert staged(a, stored, 2, BODY[2:6]).received == 6
    assert staged(a, stored, 8, BODY[8:]).received == 6  # a gap is not filled in
    assert staged(a, stored, 6, BODY[6:]).received == 10
    assert staged(a, stored, 0, BODY[:4]).received == 10
    assert bytes(world.bulk.read(stored.token, 0, 100) or b"") == BODY


def test_a_late_chunk_of_a_value_that_is_bound_starts_no_upload() -> None:
    world = World()
    (a,) = world.joined("a")
    stored = bound(a)
    assert staged(a, stored, 0, b"XXX").received == len(BODY)
    assert len(world.state._stages) == 0
    assert bytes(world.bulk.read(stored.token, 0, 100) or b"") == BODY


def test_a_damaged_upload_is_refused_and_forgotten() -> None:
    world = World()
    (a,) = world.joined("a")
    stored = large(world)
    call = begin_set(a, "k", stored)
    sent(call)
    answer = staged(a, stored, 0, b"X" + BODY[1:])
    assert answer.refusal is Refusal.DAMAGED
    assert len(world.state._stages) == 0
    failed(call, Refusal.DAMAGED)
    assert call.result["k"].status is SetStatus.MISMATCH


@pytest.mark.parametrize(
    ("offset", "data", "other"),
    [(8, b"abc", False), (0, b"abc", True)],
    ids=["beyond the end", "another size"],
)
def test_parts_that_do_not_fit_together_are_refused(offset: int, data: bytes, other: bool) -> None:
    world = World()
    (a,) = world.joined("a")
    stored = large(world)
    staged(a, stored, 0, BODY[:8])
    if other:
        stored = stored._replace(body=Large(11, bytes(32)))
    assert staged(a, stored, offset, data).refusal is Refusal.BAD_MESSAGE


def test_an_upload_counts_against_the_limit_from_its_beginning() -> None:
    world = World(limit=1000)
    (a,) = world.joined("a")
    body = bytes(600)
    assert staged(a, large(world, body), 0, body[:1]).received == 1
    second = large(world, body)
    assert staged(a, second, 0, body[:1]).refusal is Refusal.FULL
    call = begin_set(a, "k", second)
    sent(call)
    assert call.result["k"].status is SetStatus.FULL


def test_who_is_refused_while_uploading_is_told_that_the_store_is_full() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_set(a, "k", large(world))
    sent(call)
    failed(call, Refusal.FULL)
    assert call.result["k"].status is SetStatus.FULL


def test_an_upload_whose_bytes_were_lost_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (a,) = world.joined("a")
    stored, write = large(world), world.bulk.write
    staged(a, stored, 0, BODY[:3])

    def lost(*_: object) -> None:
        monkeypatch.setattr(world.bulk, "write", write)
        raise Lost

    monkeypatch.setattr(world.bulk, "write", lost)
    assert staged(a, stored, 3, BODY[3:6]).received == 0
    assert staged(a, stored, 3, BODY[3:6]).received == 0
    assert staged(a, stored, 0, BODY).received == len(BODY)
    call = begin_set(a, "k", stored)
    sent(call)
    assert call.result["k"].status is SetStatus.STORED


def test_a_value_that_is_too_large_or_does_not_fit_is_refused_before_it_is_uploaded() -> None:
    world = World(limit=900)
    (a,) = world.joined("a")
    for size, status in ((1001, SetStatus.TOO_LARGE), (901, SetStatus.FULL)):
        call = begin_set(a, "k", large(world, bytes(size)))
        sent(call)
        assert call.result["k"].status is status
    assert staged(a, large(world, bytes(1001)), 0, b"x").refusal is Refusal.TOO_LARGE


def test_an_occupied_key_is_told_before_anything_is_uploaded() -> None:
    world = World()
    a, b = world.joined("a", "b")
    bound(a)
    call = begin_set(b, "k", large(world))
    sent(call)
    assert call.result["k"] == operations.SetOutcome(SetStatus.OCCUPIED)
    assert "k" not in b.state.entries


def test_an_upload_is_dropped_when_its_session_ends_or_it_stops_or_is_given_up() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    one, two = large(world), large(world)
    staged(a, one, 0, BODY[:3])
    staged(b, two, 0, BODY)
    a.state.goodbye(world.now)
    world.settle()
    assert len(world.state._stages) == 1
    world.live(stages.STAGE_IDLE + 0.1, step=0.5)
    assert (len(world.state._stages), world.state._stages.reserved) == (0, 0)
    assert world.bulk.read(two.token, 0, 1) is None
    three = large(world)
    call = begin_set(c, "k", three)
    sent(call)
    staged(c, three, 0, BODY[:3])
    call.give_up()
    assert c.tick() == [Unstage(world.epoch, c.state.session, three.token)]
    world.settle()
    assert len(world.state._stages) == 0


def test_a_lost_upload_is_sent_again_and_not_for_ever() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_set(a, "k", large(world))
    for _ in range(5):
        sent(call)
        assert isinstance(call.step, SendBody)
        call.resume(StepResult(world.now))  # it says it has sent it, and Global has nothing
    sent(call)
    assert isinstance(call.error, GlobalUnavailable)


@pytest.mark.parametrize("seconds", [0.0, 0.9 * stages.STAGE_IDLE])
def test_of_many_values_each_is_bound_as_soon_as_it_is_there(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "UPLOADS_MAX", 1)
    world = World()
    (a,) = world.joined("a")
    items = [SetItem(f"k{number}", large(world)) for number in range(4)]
    bodies = {item.stored.token: LargeBody(memoryview(BODY)) for item in items}
    call = a.begin(operations.set_(a.state, items, False, world.now, world.now + 20.0, bodies))
    sent(call)
    for _ in items:
        world.live(seconds)  # what is complete would not wait for all of the others
        supply(call)
        sent(call)
    assert {outcome.status for outcome in call.result.values()} == {SetStatus.STORED}


def test_credit_is_shared_out_among_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CHUNK_BYTES", 10)
    monkeypatch.setattr(stages, "CREDIT_TOTAL", 100)
    world = World(limit=1 << 30)
    (a,) = world.joined("a")
    credits = [staged(a, large(world), 0, BODY[:1]).credit for _ in range(12)]
    assert credits == [80, 50, 33, 25, 20, 16, 14, 12, 11, 10, 10, 10]


def test_one_upload_too_many_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "UPLOADS_MAX", 1)
    world = World()
    (a,) = world.joined("a")
    first, second = large(world), large(world)
    staged(a, first, 0, BODY[:1])
    refused = staged(a, second, 0, BODY[:1])
    assert refused.refusal is Refusal.BUSY
    moving = transfer.upload(envelope(), second, memoryview(BODY), 0.0, 4.0, CHUNK)
    sends(moving, next(moving), 0.0)
    step = moving.send(StepResult(0.1, refused))
    assert isinstance(step, ReceiveReply)
    parts, _ = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert [each.offset for each in parts] == [0]


def test_an_unknown_session_uploads_and_fetches_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    stored = bound(a)
    world.deliver(b"x", Stage(world.epoch, 99, 1, large(world), 0, BODY))
    world.deliver(b"x", Fetch(world.epoch, 99, 1, "k", stored.token, 0, 3))
    world.deliver(b"x", Unstage(world.epoch, 99, stored.token))
    answers = list(world.inboxes[b"x"])
    assert [each.refusal for each in answers] == [Refusal.UNKNOWN_SESSION] * 2  # type: ignore[union-attr]
    assert len(world.state._stages) == 0

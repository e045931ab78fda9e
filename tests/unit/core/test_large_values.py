"""Large values at Global and in a Local: uploads, transfers, and fills that take their time."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority import stages
from dstore.core.engine import Lost
from dstore.core.local import cache as caches
from dstore.core.local import operations, transfer
from dstore.core.local.cache import SHARED_OVERHEAD, MappedBody
from dstore.core.local.operations import LargeBody
from dstore.core.local.steps import (
    FetchBody,
    ReceiveReply,
    SendBody,
    SendChunk,
    StepResult,
    Transfer,
    TransferFailed,
)
from dstore.core.local.transfer import Damaged
from dstore.errors import GlobalUnavailable, RequestRefused, StoreFull
from dstore.protocol import content
from dstore.protocol.messages import (
    Chunk,
    Fetch,
    Large,
    Refusal,
    Refused,
    SetItem,
    SetStatus,
    Stage,
    Staged,
    Stored,
    Unstage,
)
from dstore.server.engines.memory import ENTRY_OVERHEAD, LARGE_OVERHEAD
from tests.unit.core.world import Call, Member, World

BODY = b"0123456789"
CHUNK = 3


def large(world: World, body: bytes = BODY) -> Stored:
    return Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))


def begin_set(member: Member, key: str, stored: Stored, *, replace: bool = False) -> Call:
    now = member.world.now
    view = memoryview(BODY)
    bodies = {stored.token: LargeBody(view, MappedBody(view, shared=True))}
    items = [SetItem(key, stored)]
    return member.begin(operations.set_(member.state, items, replace, now, now + 5.0, bodies))


def sent(call: Call) -> None:
    """The request goes to Global and its answer comes."""
    call.send()
    call.world.settle()
    call.answer()


def staged(member: Member, stored: Stored, offset: int, data: bytes) -> Any:
    """Global's answer to one chunk."""
    state = member.state
    member.world.deliver(b"x", Stage(state.epoch, state.session, 1, stored, offset, data))
    return member.world.inboxes[b"x"].pop()


def supply(call: Call, body: bytes = BODY) -> None:
    """Upload what the operation wants to have uploaded."""
    assert isinstance(call.step, SendBody)
    world, step = call.world, call.step
    carry(world, transfer.upload(step.envelope, step.stored, memoryview(body), 0, 5.0, CHUNK))
    call.resume(StepResult(world.now))


def obtained(call: Call, body: bytes = BODY) -> None:
    assert isinstance(call.step, FetchBody)
    call.resume(StepResult(call.world.now, body=MappedBody(memoryview(body), shared=True)))


def failed(call: Call, refusal: Refusal | None) -> None:
    step = call.step
    assert isinstance(step, (FetchBody, SendBody))
    refused = Refused(*step.envelope, refusal, "no") if refusal is not None else None
    call.resume(StepResult(call.world.now, failed=TransferFailed(refused)))


def carry(world: World, moving: Transfer) -> None:
    """Let a transfer run over a channel that loses nothing."""
    step = next(moving)
    try:
        while True:
            if isinstance(step, SendChunk):
                world.deliver(b"t", step.message)
                step = moving.send(StepResult(world.now, sent=True))
            else:
                step = moving.send(StepResult(world.now, world.inboxes[b"t"].popleft()))  # type: ignore[arg-type]
    except StopIteration:
        return


def bound(member: Member, key: str = "k") -> Stored:
    """A large value, set by a member that uploads it."""
    stored = large(member.world)
    call = begin_set(member, key, stored)
    sent(call)
    supply(call)
    sent(call)
    assert call.result[key].status is SetStatus.STORED
    return stored


# ---- uploads ----------------------------------------------------------------------------------


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


# ---- what is bound, and what is gone ----------------------------------------------------------


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


# ---- on the way -------------------------------------------------------------------------------


def envelope() -> tuple[int, int, int]:
    return (1, 1, 7)


def download(stored: Stored, into: bytearray) -> Transfer:
    def write(offset: int, data: Any) -> None:
        into[offset : offset + len(data)] = data

    return transfer.download(envelope(), "k", stored, write, 0.0, 4.0, CHUNK)


def chunk(stored: Stored, offset: int, data: bytes = b"") -> Chunk:
    return Chunk(*envelope(), stored.token, offset, data or BODY[offset : offset + CHUNK])


def sends(moving: Transfer, step: Any, now: float) -> tuple[list[Any], Any]:
    """What it sends until it waits."""
    messages = []
    while isinstance(step, SendChunk):
        messages.append(step.message)
        step = moving.send(StepResult(now, sent=True))
    return messages, step


def test_a_download_asks_for_a_few_chunks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNKS_AHEAD", 2)
    stored = large(World())
    got = bytearray(len(BODY))
    moving = download(stored, got)
    asked, _ = sends(moving, next(moving), 0.0)
    assert [(each.offset, each.length) for each in asked] == [(0, 3), (3, 3)]
    asked, _ = sends(moving, moving.send(StepResult(0.1, chunk(stored, 0))), 0.1)
    assert [(each.offset, each.length) for each in asked] == [(6, 3)]
    asked, _ = sends(moving, moving.send(StepResult(0.1, chunk(stored, 3))), 0.1)
    assert [(each.offset, each.length) for each in asked] == [(9, 1)]
    moving.send(StepResult(0.1, chunk(stored, 6)))
    with pytest.raises(StopIteration):
        moving.send(StepResult(0.1, chunk(stored, 9)))
    assert bytes(got) == BODY


def test_a_download_goes_on_from_what_has_arrived() -> None:
    stored = large(World())
    got = bytearray(len(BODY))
    moving = download(stored, got)
    _, step = sends(moving, next(moving), 0.0)
    moving.send(StepResult(0.1, chunk(stored, 0)))
    step = moving.send(StepResult(0.1, chunk(stored, 6)))  # 3 was lost: this one is of no use
    assert isinstance(step, ReceiveReply)
    asked, step = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert [each.offset for each in asked] == [3, 6, 9]
    moving.send(StepResult(1.0, chunk(stored, 0, b"XXX")))  # an old one that comes late
    for offset in (3, 6):
        moving.send(StepResult(1.0, chunk(stored, offset)))
    with pytest.raises(StopIteration):
        moving.send(StepResult(1.0, chunk(stored, 9)))
    assert bytes(got) == BODY


def test_a_transfer_that_stands_still_gives_up_and_one_that_moves_does_not() -> None:
    stored = large(World())
    moving = download(stored, bytearray(len(BODY)))
    _, step = sends(moving, next(moving), 0.0)
    now = 0.0
    for offset in (0, 3, 6):
        now += 3.9
        _, step = sends(moving, moving.send(StepResult(now, chunk(stored, offset))), now)
    end = now + 4.0
    while step.until < end:
        _, step = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert step.until == end
    with pytest.raises(TransferFailed) as raised:
        moving.send(StepResult(end, None))
    assert raised.value.refusal is None


def test_a_download_that_does_not_have_its_digest_is_damaged() -> None:
    stored = large(World())
    moving = download(stored, bytearray(len(BODY)))
    sends(moving, next(moving), 0.0)
    for offset in (0, 3, 6):
        moving.send(StepResult(0.1, chunk(stored, offset)))
    with pytest.raises(Damaged):
        moving.send(StepResult(0.1, chunk(stored, 9, b"X")))


def test_an_upload_sends_no_more_than_its_credit() -> None:
    stored = large(World())
    moving = transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK)
    parts, _ = sends(moving, next(moving), 0.0)
    assert [(each.offset, bytes(each.data)) for each in parts] == [(0, b"012")]
    confirmed = Staged(*envelope(), stored.token, 3, 6)
    parts, _ = sends(moving, moving.send(StepResult(0.1, confirmed)), 0.1)
    assert [each.offset for each in parts] == [3, 6]


def test_an_upload_begins_anew_when_global_has_dropped_it() -> None:
    stored = large(World())
    moving = transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK)
    sends(moving, next(moving), 0.0)
    _, step = sends(
        moving, moving.send(StepResult(0.1, Staged(*envelope(), stored.token, 3, 9))), 0.1
    )
    for _ in range(3):  # each of the chunks under way is answered so
        step = moving.send(StepResult(0.2, Staged(*envelope(), stored.token, 0, 9)))
        assert isinstance(step, ReceiveReply)
    parts, _ = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert [each.offset for each in parts] == [0, 3, 6]


def test_a_refused_transfer_says_by_what() -> None:
    stored = large(World())
    for moving in (
        download(stored, bytearray(len(BODY))),
        transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK),
    ):
        sends(moving, next(moving), 0.0)
        with pytest.raises(TransferFailed) as raised:
            moving.send(StepResult(0.1, Refused(*envelope(), Refusal.GONE, "gone")))
        assert raised.value.refusal is not None

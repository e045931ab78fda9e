"""What a Local can make Global hold: counted as Python takes it, bounded, shared out."""

from __future__ import annotations

import gc
import operator
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from dstore.config import LABEL_MAX, SESSION_BYTES, WRITES_BYTES_ASSURED
from dstore.core.authority import invalidations, loads, reads, sessions, stages
from dstore.core.authority.budgets import Account, Budget
from dstore.core.authority.effects import Send
from dstore.core.authority.holders import Holders, bits_of
from dstore.core.authority.invalidations import InvalidationLog
from dstore.protocol import wire
from dstore.protocol.messages import (
    Del,
    DelStatus,
    Get,
    Hello,
    Large,
    Refusal,
    Refused,
    Set,
    SetItem,
    SetStatus,
    Stage,
    Stored,
    Sync,
    ToGlobal,
    Unwait,
    Wait,
)
from tests.unit.core.world import LEASE, Member, World

KEYS: dict[str, Callable[[int], str]] = {
    "short": lambda number: f"k{number}",
    "long": lambda number: f"{number:0>500}",
    "wide": lambda number: "\U0001f600" + f"{number:0>500}",
    "not UTF-8": lambda number: "\udcff" * 200 + f"{number}",
}


def arrived(world: World, message: ToGlobal, route: bytes = b"x") -> list[Any]:
    """Let a message arrive as it does, as a frame of its own, and return what is answered."""
    effects = world.state.receive(
        route, wire.decode_to_global(wire.encode(message), None), world.now
    )
    return [effect.message for effect in effects if isinstance(effect, Send)]


def traced(act: Callable[[], None]) -> int:
    """Bytes that are still held after ``act``."""
    gc.collect()
    tracemalloc.start()
    try:
        act()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def own(member: Member) -> tuple[int, int]:
    return member.state.epoch, member.state.session


def owner(member: Member) -> tuple[int, int]:
    return member.state.epoch, member.state._secret


def pending_key(world: World, holder: Member, deleter: Member, *keys: str) -> None:
    """The deletions of these keys wait for a holder that says nothing."""
    for key in keys:
        world.engine_holds(key)
        holder.get(key)
    world.members.remove(holder)
    arrived(world, Del(*own(deleter), 1, 1, 0, True, list(keys)))


def hoarded(act: Callable[[], None], account: Account | Budget | Holders) -> tuple[int, int]:
    """Bytes that are taken by what ``act`` leaves behind, and those that are counted for it."""
    read = operator.attrgetter("bytes" if isinstance(account, Holders) else "taken")
    before = read(account)
    taken = traced(act)
    return taken, read(account) - before


# ---- what is counted is what is taken ---------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
def test_writes_that_queue_take_no_more_than_what_is_counted(kind: str) -> None:
    world = World(limit=1 << 30)
    a, b, c = world.joined("a", "b", "c")
    keys = [KEYS[kind](number) for number in range(1000)]
    pending_key(world, a, c, *keys)

    def act() -> None:
        for start in range(0, 1000, 100):
            items = [
                SetItem(key, Stored(world.random16(), "x" * 64, bytes(100)))
                for key in keys[start : start + 100]
            ]
            arrived(world, Set(*own(b), 1, start + 1, 0, True, items))

    taken, counted = hoarded(act, world.state._sessions.writes)
    assert counted / 6 < taken <= counted


@pytest.mark.parametrize("replaced", [False, True])
def test_deletions_that_wait_take_no_more_than_what_is_counted(replaced: bool) -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    pending_key(world, a, c, "k")
    if replaced:
        items = [SetItem("k", Stored(world.random16(), "bytes", b"v"))]
        arrived(world, Set(*own(c), 1, 2, 0, True, items))

    def act() -> None:
        for write in range(1, 101):
            arrived(world, Del(*own(b), 1, write, 0, True, ["k"] * 100))

    taken, counted = hoarded(act, world.state._sessions.writes)
    assert taken <= counted


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("kind", KEYS)
def test_pending_deletions_take_no_more_than_what_is_counted(kind: str, wait: bool) -> None:
    world = World(log_length=1, limit=1 << 30)
    a, b, c = world.joined("a", "b", "c")
    keys = [KEYS[kind](number) for number in range(1000)]
    for key in keys:
        world.engine_holds(key)
        a.get(key)
        c.get(key)
    world.members.remove(a)
    world.members.remove(c)

    def act() -> None:
        for write in range(1, 11):
            arrived(world, Del(*own(b), 1, write, 0, wait, keys[write * 100 - 100 : write * 100]))
        world.state._invalidations.broadcast_due(world.now + 1.0)
        world.state._out.take()

    taken, counted = hoarded(act, world.state._sessions.writes)
    assert counted / 6 < taken <= counted
    world.members += [a, c]
    world.live(1.0)
    b.get("done")
    arrived(world, Del(*own(b), 1, 100, 100, True, ["k"]))
    arrived(world, Del(*own(b), 1, 101, 101, True, ["k"]))
    assert world.state._sessions.writes.taken < 1000, "all but the last outcome is given back"


@pytest.mark.parametrize("size", [1, 1000])
def test_outcomes_take_no_more_than_what_is_counted(size: int) -> None:
    world = World()
    (a,) = world.joined("a")

    def act() -> None:
        for write in range(1, 201):
            arrived(world, Del(*own(a), 1, write, 0, True, ["k"] * size))

    taken, counted = hoarded(act, world.state._sessions.writes)
    assert counted / 6 < taken <= counted
    assert counted < 200 * (300 + 25 * size)
    world.state._sessions.close(next(iter(world.state._sessions)))
    assert world.state._sessions.writes.taken == 0


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("kind", KEYS)
def test_waits_take_no_more_than_what_is_counted(kind: str, stale: bool) -> None:
    world = World()
    (a,) = world.joined("a")
    key = KEYS[kind]
    count = 1200

    def act() -> None:
        for number in range(count * (3 if stale else 1)):
            arrived(world, Wait(*own(a), 1000 + number, key(number), 50.0 + number / 1000))
            if stale and number >= count:
                gone = number - count
                arrived(world, Unwait(*own(a), 1000 + gone, key(gone)))

    taken, counted = hoarded(act, world.state._sessions.waits)
    assert counted / 6 < taken <= counted


@pytest.mark.at_once
@pytest.mark.parametrize("each", [1, 200])
@pytest.mark.parametrize("kind", KEYS)
def test_parked_requests_take_no_more_than_what_is_counted(
    monkeypatch: pytest.MonkeyPatch, kind: str, each: int
) -> None:
    monkeypatch.setattr(loads, "LOAD_BYTES_MIN", 0)
    world = World(away=True, limit=1 << 30)
    (a,) = world.joined("a")
    key = KEYS[kind]
    for number in range(400):
        world.engine.bind(key(number), Stored(world.random16(), "bytes", bytes(100)))

    def act() -> None:
        for start in range(0, 400, each):
            for request in (start, start + 1000):  # the second one waits for what the first does
                keys = [key(number) for number in range(start, start + each)]
                message = Get(*own(a), request, keys)
                world.deliver(b"x", wire.decode_to_global(wire.encode(message), None))

    taken, counted = hoarded(act, world.state._sessions.loads)
    assert counted / 8 < taken <= counted
    assert len(world.state._loads) == 2 * 400 // each


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("width", [1, 2000])
def test_holders_take_no_more_than_what_is_counted(width: int, kind: str) -> None:
    holders = Holders()
    bits = [holders.claim() for _ in range(width)]
    key = KEYS[kind]

    def act() -> None:
        for number in range(2000):
            assert holders.add(key(number), bits[number % width])
            key(number).encode(errors="surrogateescape")

    taken, counted = hoarded(act, holders)
    assert counted / 6 < taken <= counted


@pytest.mark.parametrize("kind", KEYS)
def test_the_log_takes_no_more_than_what_is_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidations, "LOG_BYTES_MAX", 500_000)
    log = InvalidationLog(1 << 18)
    key = KEYS[kind]

    def act() -> None:
        for number in range(20_000):
            log.append(key(number))

    assert 100_000 < traced(act) <= 520_000
    assert log.since(log.reach - 1) is None
    assert log.since(19_990) == [key(number) for number in range(19_990, 20_000)]


def test_what_holders_take_is_counted_back_whatever_comes_and_goes() -> None:
    dice = random.Random(3)
    holders = Holders()
    in_use: list[int] = []
    for _ in range(20_000):
        chance = dice.random()
        if chance < 0.05 or not in_use:
            in_use.append(holders.claim())
        elif chance < 0.08:
            holders.retire(in_use.pop(dice.randrange(len(in_use))))
        elif chance < 0.2:
            holders.drop(f"k{dice.randrange(50)}")
        elif chance < 0.25:
            holders.sweep(dice.randrange(1, 20))
        else:
            holders.add(f"k{dice.randrange(50)}", dice.choice(in_use))
    fresh = Holders()
    for key, bits in holders._of.items():
        for bit in bits_of(bits):
            fresh.add(key, bit)
    assert holders.bytes == fresh.bytes > 0
    for key in list(holders._of):
        holders.drop(key)
    assert holders.bytes == 0


# ---- what happens when a budget is spent ------------------------------------------------------


def test_a_budget_is_shared_out_and_the_first_bytes_are_assured() -> None:
    budget = Budget(total=100, share=60, assured=5)
    greedy, other, small = Account(budget), Account(budget), Account(budget)
    assert greedy.admits(60)
    assert not greedy.admits(61)
    greedy.take(60)
    assert not greedy.admits(1)
    assert other.admits(40)
    other.take(40)
    assert not other.admits(1)
    assert small.admits(5)
    small.take(5)
    assert not small.admits(1)
    greedy.take(-60)
    assert small.admits(55)


@pytest.mark.at_once
def test_when_there_is_no_room_for_holders_values_are_not_cacheable() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.state._holders.limit = 3 * 220
    for number in range(5):
        assert a.set(f"k{number}", b"v").status is SetStatus.STORED
    assert len(world.state._holders) == 3
    for member in (a, b):
        for number in range(5):
            assert member.get(f"k{number}") == b"v"
            assert (member.hit(f"k{number}") is not None) is (number < 3)
    (reply,) = arrived(world, Get(*own(b), 9, ["k0", "k4"]))
    assert [found.cacheable for found in reply.items] == [True, False]
    assert a.delete("k4").confirmed == 0
    assert a.delete("k0").confirmed == 2
    assert b.get("k3") == b"v"
    assert b.hit("k3") == b"v", "there is room again"


def test_a_session_that_never_says_what_it_has_seen_does_not_keep_others_from_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "WRITES_BYTES_MAX", 100_000)
    monkeypatch.setattr(sessions, "WRITES_BYTES_SHARE", 60_000)
    world = World()
    *greedy, honest = world.joined("a", "b", "c", "honest")
    for member in greedy:
        write = 0
        while True:
            write += 1
            (reply,) = arrived(world, Del(*own(member), 1, write, 0, True, ["k"] * 30))
            if isinstance(reply, Refused):
                break
        assert reply.refusal is Refusal.BUSY
    writes = world.state._sessions.writes
    assert 60_000 < writes.taken <= 100_000 + 2 * WRITES_BYTES_ASSURED
    for number in range(100):
        assert honest.set(f"k{number}", b"v").status is SetStatus.STORED
        assert honest.delete(f"k{number}").status is DelStatus.DELETED
    for member in greedy:
        member.state.goodbye(world.now)
    world.settle()
    assert writes.taken < 2_000


def test_writes_that_outlive_their_session_count_until_they_have_ended() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    pending_key(world, a, c, "k")
    arrived(world, Del(*own(c), 1, 2, 3, True, ["other"]))
    arrived(world, Set(*own(b), 1, 1, 0, False, [SetItem("k", Stored(bytes(16), "c", b"v"))]))
    writes = world.state._sessions.writes
    before = writes.taken
    b.state.goodbye(world.now)
    world.settle()
    assert writes.taken == before > 0
    world.live(2 * LEASE)
    c.state.goodbye(world.now)
    world.settle()
    assert writes.taken == 0


def test_a_session_cannot_take_all_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "UPLOADS_SHARE", 2)
    world = World(limit=100_000)
    a, b = world.joined("a", "b")

    def staged(member: Member, size: int, data: bytes = b"x") -> Any:
        stored = Stored(world.random16(), "bytes", Large(size, bytes(32)))
        world.deliver(b"s", Stage(*own(member), 1, stored, 0, data))
        return world.inboxes[b"s"].pop()

    monkeypatch.setattr(world.state._stages, "value_limit", 100_000)
    assert staged(a, 50_000).received == 1, "one may be as large as there is room"
    assert staged(a, 1_000).refusal is Refusal.BUSY, "then it has its share of the memory"
    assert staged(b, 20_000).received == 1
    assert staged(b, 6_000).refusal is Refusal.BUSY
    assert staged(b, 5_000).received == 1
    refused = staged(b, 1)
    assert refused.refusal is Refusal.BUSY
    assert refused.text == "2 uploads of this session are under way"
    assert staged(a, 60_000).refusal is Refusal.FULL
    b.state.goodbye(world.now)
    world.settle()
    assert {each.session for each in world.state._stages._uploads.values()} == {a.state.session}


def test_an_upload_that_hardly_moves_is_dropped() -> None:
    world = World(limit=1 << 20)
    (a,) = world.joined("a")
    world.state._stages.value_limit = 1 << 20
    slow = Stored(world.random16(), "bytes", Large(100_000, bytes(32)))
    fast = Stored(world.random16(), "bytes", Large(150_000, bytes(32)))
    for second in range(12):
        chunk = bytes(10_000)
        for stored, data in ((slow, b"x"), (fast, chunk)):
            offset = second * len(data)
            world.deliver(b"s", Stage(*own(a), 1, stored, offset, data))
        world.live(1.0, step=0.5)
    assert set(world.state._stages._uploads) == {fast.token}


def test_invalidations_that_are_asked_for_again_and_again_are_sent_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invalidations, "REPEATED_MAX", 100)
    world = World()
    a, b = world.joined("a", "b")
    keys = [f"k{number}" for number in range(40)]
    world.engine_holds(*keys)
    for key in keys:
        arrived(world, Del(*own(b), 1, int(key[1:]) + 1, 0, True, [key]))

    def told() -> list[str] | None:
        (answer,) = arrived(world, Sync(*owner(a), 1, 0, 0))
        found: list[str] | None = answer.keys
        return found

    assert [told() for _ in range(4)] == [keys, keys, keys, None]
    world.advance(LEASE)
    assert told() == keys
    world.renew(b)
    world.settle()
    assert a.state.applied == 40


@pytest.mark.at_once
def test_many_requests_that_wait_for_one_key_are_answered_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reads, "ANSWERS_BYTES", 10 * (reads.ANSWER_BYTES + 5))
    world = World()
    a, b = world.joined("a", "b")
    for number in range(25):
        arrived(world, Wait(*own(a), 100 + number, "k", 50.0))
    items = [SetItem("k", Stored(bytes(16), "bytes", b"value"))]
    answers = arrived(world, Set(*own(b), 1, 1, 0, False, items))
    assert len(answers) == 1 + 10
    assert world.state.wake_at <= world.now
    assert not world.state.idle
    reply = arrived(world, Get(*own(b), 2, ["k"]))
    assert reply[0].items[0].stored.body == b"value", "others come in between"
    assert len(world.state.tick(world.now)) == 10
    # It is deleted meanwhile: the others wait on.
    world.members.remove(a)
    arrived(world, Del(*own(b), 3, 2, 0, True, ["k"]))
    world.live(1.1 * LEASE)
    assert world.engine.read("k") is None
    left = len(world.state._waits)
    assert left == 0 or world.state._waits.answerable() is None


def test_sessions_take_what_the_limits_say() -> None:
    world = World()
    world.state._memberships.max_clients = 1000

    def act() -> None:
        for number in range(1000):
            hello = Hello(world.random16(), 0, 0, chr(0x1F600) * LABEL_MAX)
            arrived(world, hello, b"%05d" % number)
            session = world.state._sessions.by_nonce(hello.nonce)
            assert session is not None
            arrived(world, Sync(world.epoch, session.secret, 1, 0, 0, True), b"%05d" % number)

    assert traced(act) <= 1000 * SESSION_BYTES


def test_the_metrics_of_all_locals_are_not_gathered_for_each_request() -> None:
    world = World()
    world.joined(*(f"m{number}" for number in range(100)))
    first = world.state.metrics(world.now)["locals"]
    assert world.state.metrics(world.now + 0.001)["locals"] is first
    assert world.state.metrics(world.now + 0.003)["locals"] is not first
    world.joined("late")
    assert len(world.state.metrics(world.now)["locals"]) == 101  # type: ignore[arg-type]

"""A Global that owns some partitions: what it answers, until when, and what it does while they are
quiet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dstore.core.authority.effects import NEVER
from dstore.core.authority.partitions import Partitions
from dstore.core.engine import NO_DEADLINE
from dstore.protocol.messages import (
    NO_SESSION,
    NO_TOKEN,
    Ack,
    AskMap,
    Del,
    DelReply,
    DelStatus,
    Expire,
    ExpireReply,
    ExpireStatus,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Kind,
    MapReply,
    Offer,
    Offered,
    Refusal,
    Refused,
    Scan,
    ScanReply,
    Set,
    SetReply,
    SetStatus,
    Stage,
    Staged,
    Stats,
    StatsReply,
    Stored,
    Sync,
    Ttl,
    TtlReply,
    Wait,
    Welcome,
)
from dstore.protocol.offers import digest
from dstore.protocol.partitions import NOBODY, PARTITIONS, to_bitmap
from tests.unit.core.cluster import (
    MINE,
    OTHERS,
    OWNED,
    OWNERSHIP,
    begin_epoch,
    gain,
    key_in,
    member,
)
from tests.unit.core.host_page import FakePage
from tests.unit.core.large_values import large
from tests.unit.core.world import LEASE, Member, World, item

QUIET = key_in(range(128, 256), 1)
"""A key of a partition that is gained with a quiet duration."""


def ask(world: World, message: Any, route: bytes = b"x") -> Any:
    """The reply to a message, or None."""
    world.deliver(route, message)
    inbox = world.inboxes.get(route)
    return inbox.pop() if inbox else None


def writer(world: World) -> int:
    """The id of a writer session."""
    welcome = ask(world, Hello(world.random16(), 0, NO_SESSION, "w", Kind.WRITER))
    assert isinstance(welcome, Welcome)
    return welcome.session


def value(world: World) -> Stored:
    return Stored(world.random16(), "bytes", b"v")


# ---- who owns a key ---------------------------------------------------------------------------

READS: list[Callable[[tuple[int, int, int]], Any]] = [
    lambda asked: Get(*asked, [OTHERS]),
    lambda asked: Get(*asked, [MINE, OTHERS]),
    lambda asked: Wait(*asked, OTHERS, 1.0),
    lambda asked: Ttl(*asked, OTHERS),
    lambda asked: Fetch(*asked, OTHERS, NO_TOKEN, 0, 1),
    lambda asked: Scan(*asked, "", "", 10, to_bitmap([0, 200])),
]


@pytest.mark.parametrize("named", [True, False], ids=["in a session", "without a session"])
@pytest.mark.parametrize("make", READS)
def test_a_read_of_a_key_that_is_not_owned_is_refused_as_a_whole(
    make: Callable[[tuple[int, int, int]], Any], named: bool
) -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(MINE, OTHERS)
    message = make((a.state.epoch, a.state.session if named else NO_SESSION, 7))
    refused = ask(world, message)
    assert isinstance(refused, Refused)
    assert (refused.refusal, refused.request) == (Refusal.NOT_MINE, 7)
    assert not world.state._holders
    if isinstance(message, Get):
        assert world.state.read(message, world.now) is None
    assert a.get(MINE) == b"v"


def writes(world: World, session: int, *keys: str) -> list[Any]:
    """One write of each kind, with the same number."""
    asked = world.epoch, session, 7, 1, 1
    return [
        Set(*asked, True, [item(world, key, b"new") for key in keys]),
        Del(*asked, True, list(keys)),
        Expire(*asked, 9.0, list(keys)),
    ]


@pytest.mark.parametrize("kind", range(3), ids=["SET", "DEL", "EXPIRE"])
def test_a_write_that_names_a_key_that_is_not_owned_changes_nothing(kind: int) -> None:
    world = member()
    session = writer(world)
    world.engine_holds(MINE, OTHERS)
    before = world.engine.read(MINE)
    refused = ask(world, writes(world, session, MINE, OTHERS)[kind])
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.NOT_MINE
    assert not world.state._invalidations.pending
    assert not world.state._deadlines
    assert world.engine.read(MINE) == before
    write = world.epoch, session, 8, 2, 2
    assert isinstance(ask(world, Del(*write, True, [MINE])), DelReply)


@pytest.mark.parametrize("kind", range(3), ids=["SET", "DEL", "EXPIRE"])
def test_no_copy_of_a_write_that_was_refused_is_executed_when_the_key_is_owned_later(
    kind: int,
) -> None:
    """Else its Local, which has written to the former owner meanwhile, would have written twice."""
    world = member()
    session = writer(world)
    world.engine_holds(OTHERS)
    before = world.engine.read(OTHERS)
    message = writes(world, session, OTHERS)[kind]
    assert ask(world, message).refusal is Refusal.NOT_MINE
    gain(world, range(128, 256))
    for _ in range(2):
        assert ask(world, message).refusal is Refusal.NOT_MINE
    assert world.engine.read(OTHERS) == before
    seen = world.epoch, session, 8, 2, 2
    assert ask(world, Del(*seen, True, [OTHERS])).items[0].status is DelStatus.DELETED
    assert ask(world, message).refusal is Refusal.STALE_WRITE


def test_the_refusals_that_are_kept_for_a_session_have_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = member()
    session = writer(world)
    taken = world.state._sessions.writes.taken
    monkeypatch.setattr("dstore.core.authority.writes.OUTCOMES_MAX", 3)
    for write in (1, 2, 3):
        message = Del(world.epoch, session, 7, write, 1, True, [OTHERS])
        assert ask(world, message).refusal is Refusal.NOT_MINE
    message = Del(world.epoch, session, 7, 4, 1, True, [OTHERS])
    assert ask(world, message).refusal is Refusal.BUSY
    assert world.state._sessions.writes.taken > taken
    assert ask(world, message._replace(seen=4)).refusal is Refusal.NOT_MINE
    ask(world, message._replace(seen=9, write=9, keys=[MINE]))
    ask(world, message._replace(seen=10, write=10, keys=[MINE]))
    ended = world.state._sessions.get(session)
    assert ended is not None
    ended.forget_outcomes(99)
    assert world.state._sessions.writes.taken == taken


def test_no_copy_of_a_write_that_a_hand_over_has_refused_is_executed() -> None:
    """It may be given up. Then writes are taken again, and the first copy of a DEL arrives late."""
    world = member()
    session = writer(world)
    world.engine_holds(MINE)
    world.state.hold_writes()
    for write, key in enumerate((MINE, OTHERS), start=1):
        message = Del(world.epoch, session, 7, write, 1, True, [key])
        assert ask(world, message).refusal is Refusal.NOT_MINE
    world.state.take_writes(world.now)
    message = Del(world.epoch, session, 8, 1, 1, True, [MINE])
    assert ask(world, message).refusal is Refusal.NOT_MINE
    assert world.engine.read(MINE) is not None
    reply = ask(world, Del(world.epoch, session, 9, 3, 1, True, [MINE]))
    assert isinstance(reply, DelReply), "another write is executed"


def test_an_upload_names_no_key_and_is_taken() -> None:
    world = member()
    (a,) = world.joined("a")
    stored = large(world)
    answer = ask(world, Stage(a.state.epoch, a.state.session, 1, stored, 0, b"01"))
    assert isinstance(answer, Staged)


def test_an_offered_key_that_is_not_owned_is_not_the_same() -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(MINE, OTHERS)
    state = a.state
    of_value = digest(state.epoch, state.session, "bytes", b"v")
    reply = ask(world, Offer(state.epoch, state.session, 7, [OTHERS, MINE], of_value * 2))
    assert isinstance(reply, Offered)
    assert reply.same == ([] if world.away else [1])
    assert not list(world.state._sessions.holding(OTHERS))


def test_a_gain_serves_further_partitions_in_the_same_epoch() -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(OTHERS)
    session = a.state.session
    gain(world, range(128, 256))
    assert a.get(OTHERS) == b"v"
    assert a.delete(OTHERS).status is DelStatus.DELETED
    assert a.state.session == session


def test_a_global_that_is_no_member_gains_nothing_and_owns_all_keys() -> None:
    world = World()
    (a,) = world.joined("a")
    with pytest.raises(ValueError, match="serves all keys"):
        gain(world, [1])
    for key in (MINE, OTHERS):
        assert a.set(key, b"v").status is SetStatus.STORED
        assert a.get(key) == b"v"


# ---- scans and the map ------------------------------------------------------------------------


def scanned(world: World, limit: int, partitions: bytes = b"") -> list[str]:
    """All keys, page by page."""
    keys: list[str] = []
    after = ""
    while True:
        page = ask(world, Scan(0, NO_SESSION, 1, "", after, limit, partitions))
        assert isinstance(page, ScanReply)
        assert len(page.keys) <= limit
        keys += page.keys
        after = page.after
        if not after:
            return keys


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_scan_has_the_keys_of_the_partitions_that_it_names(limit: int) -> None:
    world = member()
    low, high = ([key_in(part, n) for n in range(10)] for part in (range(64), range(64, 128)))
    world.engine_holds(*low, *high)
    assert scanned(world, limit, to_bitmap(range(64))) == sorted(low)
    assert scanned(world, limit, to_bitmap(OWNED)) == sorted(low + high)
    assert scanned(world, limit, to_bitmap([])) == []
    assert scanned(world, limit) == sorted(low + high)


def test_a_scan_does_not_show_keys_that_are_loaded_and_not_served_yet() -> None:
    world = member()
    world.engine_holds(MINE, OTHERS)
    assert scanned(world, 10) == [MINE]
    gain(world, range(128, 256))
    assert scanned(world, 10) == sorted([MINE, OTHERS])


def test_a_global_without_partitions_answers_a_scan_of_some() -> None:
    world = World()
    world.engine_holds(MINE, OTHERS)
    assert scanned(world, 10, to_bitmap(OWNED)) == [MINE]


@pytest.mark.parametrize("named", [True, False], ids=["in a session", "without a session"])
def test_the_map_is_answered_also_without_a_session(named: bool) -> None:
    world = member()
    (a,) = world.joined("a")
    assert world.partitions is not None
    owners = bytes([0, 1, NOBODY] * 85 + [0])
    assert len(owners) == PARTITIONS
    world.partitions.map = 12, ["tcp://a:1", "tcp://b:1"], owners
    asked = (a.state.epoch, a.state.session, 7) if named else (0, NO_SESSION, 7)
    reply = ask(world, AskMap(*asked))
    assert reply == MapReply(world.epoch, *asked[1:], 12, ["tcp://a:1", "tcp://b:1"], owners)


def test_the_map_of_a_global_without_a_cluster_is_empty() -> None:
    world = World()
    assert ask(world, AskMap(0, NO_SESSION, 7)) == MapReply(world.epoch, 0, 7, 0, [], b"")


# ---- the ownership lease ----------------------------------------------------------------------


def lapse(world: World) -> None:
    world.now += OWNERSHIP


@pytest.mark.parametrize(
    "make",
    [
        lambda a: Hello(bytes(16), 0, NO_SESSION, "new"),
        lambda a: Sync(a.epoch, a._secret, 9, 0, 0),
        lambda a: Get(a.epoch, a.session, 7, [MINE]),
        lambda a: Get(a.epoch, NO_SESSION, 7, [MINE]),
        lambda a: Del(a.epoch, a.session, 7, 1, 1, True, [OTHERS]),
        lambda a: AskMap(a.epoch, NO_SESSION, 7),
        lambda a: Stats(a.epoch, NO_SESSION, 7),
        lambda a: Goodbye(a.epoch, a._secret),
        lambda a: Get(a.epoch + 1, a.session, 7, [MINE]),
    ],
)
def test_nothing_is_answered_or_granted_from_the_end_of_the_ownership_lease_on(make: Any) -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(MINE)
    sessions = len(world.state._sessions)
    message = make(a.state)
    world.now += OWNERSHIP - 0.001
    if isinstance(message, Get):  # so it is answered before
        assert ask(world, message) is not None
    world.now += 0.001
    assert ask(world, message) is None
    if isinstance(message, Get):
        assert world.state.read(message, world.now) is None
    assert len(world.state._sessions) == sessions


def test_a_deletion_is_not_committed_after_the_end_of_the_ownership_lease() -> None:
    """Its holder acknowledges; but the key may be another member's by now."""
    world = member()
    a, b = world.joined("a", "b")
    a.set(MINE, b"v")
    b.get(MINE)
    a.begin_delete(MINE).send()
    lapse(world)
    world.deliver(b.route, Ack(b.state.epoch, b.state._secret, 1))
    world.tick()
    assert world.engine.read(MINE) is not None
    assert world.state.wake_at == NEVER


def test_what_has_become_durable_is_not_answered_after_the_end_of_the_ownership_lease() -> None:
    world = member(durable=True)
    (a,) = world.joined("a")
    call = a.begin_set((MINE, b"v"))
    call.send()
    lapse(world)
    world.commit()
    assert not call.replies
    assert world.engine.read(MINE) is None


@pytest.mark.at_once
def test_what_was_loaded_is_not_answered_after_the_end_of_the_ownership_lease() -> None:
    world = member(away=True)
    (a,) = world.joined("a")
    world.engine_holds(MINE)
    call = a.begin_get(MINE)
    call.send()
    lapse(world)
    world.load()
    assert not call.replies


def test_a_wait_does_not_end_after_the_end_of_the_ownership_lease() -> None:
    world = member()
    (a,) = world.joined("a")
    world.deliver(b"x", Wait(a.state.epoch, a.state.session, 7, MINE, 30.0))
    lapse(world)
    world.tick()
    assert not world.inboxes.get(b"x")


def test_a_revoked_identity_is_not_waited_for_after_the_end_of_the_ownership_lease() -> None:
    from dstore.core.authority.identity import Identity, Role

    mine = Identity("m", Role.ADMIN)
    world = member()
    a, b = *world.joined("a"), *world.joined("b", identity=mine)
    a.set(MINE, b"v")
    b.get(MINE)
    call = a.begin_delete(MINE)
    call.send()
    lapse(world)
    world.revoke(mine)
    assert mine.revoked
    assert not call.replies


def test_the_page_of_its_own_host_gets_no_lease_after_the_end_of_the_ownership_lease() -> None:
    world = member()
    page = FakePage(world)
    world.state.open_host(world.now, "host")
    world.state.share(page, world.now)
    world.now += OWNERSHIP - 0.1
    world.tick()
    end = page.end
    assert end == world.now + LEASE
    world.now += LEASE
    world.tick()
    assert page.end == end
    late = FakePage(world)
    late.end = 1.0  # a page begins without a lease, and is not void yet
    world.state.open_host(world.now, "host")
    world.state.share(late, world.now)
    assert late.end == 0.0
    stuck = FakePage(world, "void", "renew")
    world.state.share(stuck, world.now)
    assert world.state.host_lost
    assert page.end == 0.0  # which open_host has voided


def test_what_has_lapsed_stays_so_though_the_ownership_lease_is_moved_on() -> None:
    """A batch that had become durable in between was not applied: memory is behind."""
    world = member(durable=True)
    (a,) = world.joined("a")
    world.engine_holds(MINE)
    call = a.begin_delete(MINE)
    call.send()
    lapse(world)
    world.commit()  # the database has removed the key
    assert world.partitions is not None
    world.partitions.ends = world.now + OWNERSHIP
    assert ask(world, Get(a.state.epoch, a.state.session, 7, [MINE])) is None
    gain(world, range(128, 256))
    assert not world.partitions.owns(OTHERS)


def test_the_ownership_lease_is_moved_on_in_time() -> None:
    world = member()
    (a,) = world.joined("a")
    for _ in range(3):
        world.now += OWNERSHIP - 1
        assert world.partitions is not None
        world.partitions.ends = world.now + OWNERSHIP
        assert isinstance(ask(world, Get(0, NO_SESSION, 7, [MINE])), GetReply)
    assert isinstance(ask(world, Stats(0, NO_SESSION, 7)), StatsReply)
    assert a.state.session


# ---- the end of an epoch ----------------------------------------------------------------------


@pytest.mark.at_once
@pytest.mark.parametrize("lapsed", [True, False], ids=["ownership lost", "given up"])
def test_the_end_of_an_epoch_refuses_the_reads_that_wait_and_no_write(lapsed: bool) -> None:
    world = member(away=True, durable=True)
    a, b = world.joined("a", "b")
    world.engine_holds(MINE)
    free = key_in(OWNED, 1)
    waiting, parked = a.begin_wait(free, world.now + 100), a.begin_get(MINE)
    write = b.begin_set((key_in(OWNED, 2), b"v"))
    for call in (waiting, parked, write):
        assert call.send() is None
    if lapsed:
        lapse(world)
    world._perform(world.state.end())
    for call in (waiting, parked):
        (refused,) = call.replies
        assert refused.refusal is Refusal.OTHER_EPOCH
    assert not write.replies
    begin_epoch(world, [])
    world.inboxes[a.route].clear()
    waiting.answer()
    assert not a.state.session  # it joins again at once
    world.settle()
    waiting.look()
    assert waiting.send().refusal is Refusal.NOT_MINE


# ---- quiet partitions -------------------------------------------------------------------------


def quiet_member(seconds: float = 3.0, **settings: Any) -> tuple[World, Member]:
    """A member that has just gained the partition of QUIET, and a Local of it."""
    world = member(**settings)
    (a,) = world.joined("a")
    world.engine_holds(QUIET, MINE)
    gain(world, range(128, 256), seconds)
    return world, a


def keep_alive(world: World, seconds: float) -> None:
    world.live(seconds, step=0.1)


@pytest.mark.parametrize("replace", [True, False], ids=["replacement", "deletion"])
def test_nothing_is_removed_or_replaced_in_a_quiet_partition(replace: bool) -> None:
    world, a = quiet_member()
    before = world.engine.read(QUIET)
    call = a.begin_set((QUIET, b"w"), replace=True) if replace else a.begin_delete(QUIET)
    call.send()
    keep_alive(world, 2.9)
    assert not call.replies
    assert world.engine.read(QUIET) == before
    keep_alive(world, 0.2)
    assert len(call.replies) == 1
    assert world.engine.read(QUIET) != before


def test_a_quiet_partition_is_read_and_new_keys_are_bound_in_it() -> None:
    _, a = quiet_member()
    assert a.get(QUIET) == b"v"
    assert a.hit(QUIET) == b"v"
    new = key_in(range(128, 256), 5)
    assert a.set(new, b"w").status is SetStatus.STORED
    assert a.set(QUIET, b"w").status is SetStatus.OCCUPIED
    assert a.expire(QUIET, 50.0) is ExpireStatus.DONE


def test_a_deletion_that_waits_for_its_quiet_partition_holds_up_no_other() -> None:
    _, a = quiet_member()
    call = a.begin_delete(QUIET)
    call.send()
    assert a.delete(MINE).status is DelStatus.DELETED
    assert not call.replies


def test_partitions_are_quiet_each_for_its_own_time() -> None:
    world = member([])
    (a,) = world.joined("a")
    parts = [range(64), range(64, 128), range(128, 192)]
    keys = [key_in(part) for part in parts]
    world.engine_holds(*keys)
    for part, seconds in zip(parts, (3.0, 1.0, 2.0)):
        gain(world, part, seconds)
    calls = [a.begin_delete(key) for key in keys]
    for call in calls:
        call.send()
    for done in ([], [1], [1, 2], [0, 1, 2]):
        assert [n for n, call in enumerate(calls) if call.replies] == done
        keep_alive(world, 1.01)


def test_a_write_that_queues_behind_a_quiet_deletion_follows_it() -> None:
    world, a = quiet_member()
    a.begin_delete(QUIET, wait=False).send()
    call = a.begin_set((QUIET, b"w"))
    call.send()
    keep_alive(world, 2.0)
    assert not call.replies
    keep_alive(world, 1.1)
    (reply,) = call.replies
    assert isinstance(reply, SetReply)
    assert reply.items[0].status is SetStatus.STORED


def test_what_a_step_has_started_is_notified_though_the_last_one_is_quiet() -> None:
    """A DEL of a key that is not quiet, queued behind a replacement, and then a quiet one."""
    world, a = quiet_member()
    replacing = a.begin_set((MINE, b"w"), (QUIET, b"w"), replace=True)
    replacing.send()
    deleting = a.begin_delete(MINE)
    deleting.send()
    world.settle()
    (reply,) = deleting.replies
    assert reply.items[0].status is DelStatus.DELETED
    assert not replacing.replies


def test_welcome_has_the_longest_time_for_which_a_partition_is_quiet() -> None:
    world, _ = quiet_member(3.0)
    gain(world, [3], 5.0)
    world.now += 1.0
    welcome = ask(world, Hello(bytes(16), 0, NO_SESSION, "b"))
    assert isinstance(welcome, Welcome)
    assert welcome.quiet == pytest.approx(4.0)


def test_a_gain_brings_deadlines_and_what_has_passed_expires_after_the_quiet_time() -> None:
    world = member()
    (a,) = world.joined("a")
    late, soon, ever = (key_in(range(128, 256), n) for n in (1, 2, 3))
    world.engine_holds(late, soon, ever)
    tokens = {key: world.engine.read(key).token for key in (late, soon, ever)}  # type: ignore[union-attr]
    deadlines = [
        (late, tokens[late], world.wall - 60),
        (soon, tokens[soon], world.wall + 5.0),
        (ever, tokens[ever], NO_DEADLINE),
    ]
    gain(world, range(128, 256), 3.0, deadlines)
    assert a.ttl(soon)[1] == pytest.approx(5.0)
    keep_alive(world, 2.9)
    assert world.engine.read(late) is not None
    assert not world.state._invalidations.pending  # it has not even begun
    keep_alive(world, 0.3)
    assert world.engine.read(late) is None
    keep_alive(world, 2.0)
    assert world.engine.read(soon) is None
    assert world.engine.read(ever) is not None


def test_keys_that_have_expired_in_a_quiet_partition_hold_up_no_other_expiry() -> None:
    """More of them than may be pending at one time, and than may begin in one lease."""
    world = member(log_length=100)
    (a,) = world.joined("a")
    quiet = [key_in(range(128, 256), n) for n in range(300)]
    world.engine_holds(*quiet)
    deadlines = [(key, world.engine.read(key).token, world.wall - 60) for key in quiet]  # type: ignore[union-attr]
    gain(world, range(128, 256), 3.0, deadlines)
    a.set(MINE, b"v", ttl=0.5)
    keep_alive(world, 0.7)
    assert world.engine.read(MINE) is None
    assert all(world.engine.read(key) is not None for key in quiet)
    keep_alive(world, 20.0)
    assert not any(world.engine.read(key) for key in quiet)
    assert not world.state._deadlines
    assert world.state.idle


def test_a_key_that_was_written_while_its_expiry_waited_for_the_quiet_time_lives() -> None:
    world = member()
    (a,) = world.joined("a")
    world.engine_holds(QUIET)
    token = world.engine.read(QUIET).token  # type: ignore[union-attr]
    gain(world, range(128, 256), 3.0, [(QUIET, token, world.wall - 60)])
    keep_alive(world, 0.5)
    call = a.begin_expire(QUIET, None)  # it meets the passed deadline, and queues behind the expiry
    call.send()
    keep_alive(world, 3.0)
    (reply,) = call.replies
    assert isinstance(reply, ExpireReply)
    assert reply.items == [ExpireStatus.MISSING]
    assert a.set(QUIET, b"new").status is SetStatus.STORED
    keep_alive(world, 3.0)
    assert a.get(QUIET) == b"new"


def test_a_gain_after_another_never_shortens_the_quiet_time() -> None:
    partitions = Partitions(10.0)
    partitions.gain([1, 2], 5.0)
    partitions.gain([2, 3], 3.0)
    keys = [key_in([number]) for number in (1, 2, 3, 4)]
    assert [partitions.quiet_until(key) for key in keys] == [5.0, 5.0, 3.0, 0.0]
    assert [partitions.owns(key) for key in keys] == [True, True, True, False]
    assert (len(partitions), partitions.all_quiet_until) == (3, 5.0)
    assert repr(partitions) == "<Partitions owned=3 ends=10.000 lapsed=False>"


def test_the_reply_to_a_ttl_of_an_owned_key_is_as_ever() -> None:
    world = member()
    world.engine_holds(MINE)
    reply = ask(world, Ttl(0, NO_SESSION, 7, MINE))
    assert reply == TtlReply(world.epoch, NO_SESSION, 7, True, None)

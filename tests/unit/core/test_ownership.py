"""What a member of a cluster owns, from when on, and until when."""

from __future__ import annotations

import pytest

from dstore.core.cluster.assignment import assignment
from dstore.core.cluster.messages import (
    Beat,
    Gained,
    HandOver,
    Leave,
    Left,
    Lost,
    MapChanged,
    Member,
    Partition,
)
from dstore.core.cluster.ownership import BEATS, LEAVES_MAX, RETRY
from dstore.core.cluster.sightings import MARGIN
from dstore.protocol.partitions import NOBODY
from tests.simulation.cluster.tables import MEMBER, PARTITION, carry_out
from tests.unit.core.members import CACHE_LEASE, LEASE, PARTITIONS, Cluster, Machine

ALL = set(range(PARTITIONS))
ENDS = LEASE * (1 - MARGIN)
DEAD = LEASE * (1 + MARGIN)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def alone(cluster: Cluster) -> Machine:
    machine = cluster.add(b"a")
    machine.settle()
    return machine


def _row(cluster: Cluster, number: int) -> Partition:
    row = cluster.tables.get((PARTITION, number))
    assert isinstance(row, Partition)
    return row


# ---- the lease ---------------------------------------------------------------------------------


def test_the_first_member_owns_all_partitions_without_a_quiet_time(
    cluster: Cluster, alone: Machine
) -> None:
    assert alone.serving == ALL
    assert set(alone.served.values()) == {0.0}
    assert set(alone.fences.values()) == {1}
    assert _row(cluster, 3) == Partition(alone.state.me, 1, CACHE_LEASE)


def test_the_ownership_lease_counts_from_before_the_beat_was_asked_for(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.now += LEASE / BEATS
    asked = cluster.now
    alone.tick()
    cluster.now += 1.0
    alone.answer()
    assert alone.state.ends == asked + ENDS


def test_a_beat_that_fails_does_not_renew_the_lease_and_is_repeated_soon(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.now = alone.state.wake_at
    ends = alone.state.ends
    for fate in (alone.fail, alone.doubt):
        alone.tick()
        fate()
        assert alone.state.ends == ends
        assert alone.state.wake_at == cluster.now + LEASE * RETRY
        cluster.now = alone.state.wake_at
    alone.settle()
    assert alone.state.ends > ends
    assert alone.serving == ALL
    assert not alone.happened(Lost)


def test_a_lease_that_has_ended_is_lost_though_the_answer_comes_later(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.now = alone.state.wake_at
    alone.tick()
    beat = alone.asked
    cluster.now = alone.state.wake_at
    assert cluster.now == alone.state.ends
    alone.tick()
    assert alone.happened(Lost) == 1
    assert alone.state.ends == 0.0
    assert not alone.state.owned
    alone.answer()
    assert alone.state.ends == 0.0, "the beat was asked for in the life before"
    assert isinstance(alone.asked, Beat)
    assert alone.asked.join is not None
    assert alone.asked is not beat


def test_an_answer_at_the_end_of_the_lease_comes_too_late(cluster: Cluster, alone: Machine) -> None:
    cluster.now = alone.state.wake_at
    alone.tick()
    cluster.now = alone.state.ends
    alone.answer()
    assert alone.happened(Lost) == 1
    assert not alone.serving


def test_a_join_that_is_answered_too_late_begins_no_lease(cluster: Cluster) -> None:
    machine = cluster.add(b"a")
    machine.tick()
    cluster.now += ENDS
    machine.answer()
    assert machine.state.ends == 0.0
    assert not machine.happened(Lost), "there was nothing to lose"
    cluster.run(1.0)
    assert machine.serving == ALL


def test_an_answer_to_another_ask_and_a_second_one_are_ignored(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.now = alone.state.wake_at
    alone.tick()
    ask = alone.asked
    assert ask is not None
    alone.fail()
    view = carry_out(ask, cluster.tables)
    assert alone.state.answered(ask, view, cluster.now) == []
    cluster.now = alone.state.wake_at
    alone.tick()
    assert alone.state.answered(ask, view, cluster.now) == []
    alone.answer()
    assert not alone.happened(Lost)


# ---- loss --------------------------------------------------------------------------------------


def test_a_member_whose_row_was_deleted_has_lost_all_and_joins_again(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.tables.put((MEMBER, alone.state.me), None)
    cluster.now = alone.state.wake_at
    alone.settle()
    assert alone.happened(Lost) == 1
    assert not alone.serving
    cluster.run(1.0)
    assert alone.serving == ALL
    assert set(alone.fences.values()) == {2}


def test_partitions_that_are_ones_own_by_row_only_are_claimed_again_and_wait(
    cluster: Cluster, alone: Machine
) -> None:
    """After a loss by the clock alone nobody has taken the rows. The fence has to rise: writes of
    the epoch before may be under way. Its leases are out, too."""
    alone.tick()
    cluster.now += LEASE
    alone.settle()
    assert alone.happened(Lost) == 1
    assert alone.serving == ALL
    assert set(alone.fences.values()) == {2}
    assert set(alone.served.values()) == {cluster.now + CACHE_LEASE}


def test_a_claim_without_an_answer_owns_nothing_until_it_is_seen(cluster: Cluster) -> None:
    machine = cluster.add(b"a")
    machine.tick()
    machine.answer()
    assert isinstance(machine.asked, Beat)
    assert len(machine.asked.claim) == PARTITIONS
    machine.doubt()
    assert not machine.state.owned
    cluster.now = machine.state.wake_at
    machine.tick()
    machine.answer()  # its claim finds another fence, and the row says that the first one was done
    assert machine.serving == ALL
    assert set(machine.fences.values()) == {1}


def test_a_claim_that_was_under_way_at_a_loss_is_not_served(cluster: Cluster) -> None:
    machine = cluster.add(b"a")
    machine.tick()
    machine.answer()
    machine.do(machine.state.lose("rows cannot be read", cluster.now))
    machine.answer()
    assert not machine.serving
    cluster.run(1.0)
    assert machine.serving == ALL
    assert set(machine.fences.values()) == {2}


def test_another_owner_in_the_row_is_a_loss(cluster: Cluster, alone: Machine) -> None:
    cluster.tables.put((PARTITION, 5), Partition(b"x", 9, 0.0))
    cluster.now = alone.state.wake_at
    alone.settle()
    assert alone.happened(Lost) == 1


def test_a_fence_that_the_journal_has_raised_is_taken_over(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.tables.put((PARTITION, 5), _row(cluster, 5)._replace(fence=7))
    cluster.now = alone.state.wake_at
    alone.settle()
    assert alone.state.owned[5].fence == 7
    assert not alone.happened(Lost)


def test_what_the_host_has_found_ends_all(cluster: Cluster, alone: Machine) -> None:
    alone.do(alone.state.lose("a write was refused", cluster.now))
    assert alone.happened(Lost) == 1
    assert not alone.state.owned
    alone.do(alone.state.lose("another one, too", cluster.now))
    assert alone.happened(Lost) == 1
    assert alone.state.wake_at == cluster.now + LEASE * RETRY


# ---- candidates --------------------------------------------------------------------------------


def _two(cluster: Cluster) -> tuple[Machine, Machine]:
    """Two members that have come to know each other, each with its share."""
    one, other = cluster.add(b"a"), cluster.add(b"b")
    cluster.run(3 * LEASE)
    assert cluster.serving == ALL
    assert one.serving
    assert other.serving
    return one, other


def test_a_dead_member_is_buried_when_its_lease_has_surely_ended(cluster: Cluster) -> None:
    one, other = _two(cluster)
    one.paused = True
    fence = _row(cluster, min(one.served)).fence
    lost, ends = set(one.serving), one.state.ends
    cluster.run(ENDS)
    assert lost.isdisjoint(other.serving)
    cluster.run(DEAD - ENDS + LEASE / BEATS)
    assert cluster.now > ends
    assert other.serving == ALL
    assert _row(cluster, min(lost)).fence == fence + 1
    assert all(other.served[each] > cluster.now for each in lost), "its Locals may have leases"
    one.paused = False
    cluster.run(0.0)
    assert one.happened(Lost) == 1


def test_a_beat_is_counted_from_when_it_was_seen(cluster: Cluster) -> None:
    """The other one beats just before the answer with its former beat is read."""
    one, other = _two(cluster)
    cluster.now = other.state.wake_at
    other.tick()
    cluster.now += 1.0
    one.settle()
    beat = one.state._beat
    one.paused = True
    other.answer()
    seen = cluster.now
    assert other.state.view.members[one.state.me].beat == beat
    cluster.run(DEAD - 0.001)
    assert not any(each.dead for each in other.asks if isinstance(each, Beat))
    cluster.run(0.1)
    (dead,) = (each for each in other.asks if isinstance(each, Beat) and each.dead)
    assert dead.dead == ((one.state.me, beat),)
    assert seen + DEAD <= cluster.now


def test_a_member_that_has_beaten_meanwhile_is_not_buried(cluster: Cluster) -> None:
    one, other = _two(cluster)
    other.paused = True
    cluster.run(2 * LEASE)
    before = one.serving
    # The other one has seen nothing for long; what it knows is old, and that is noticed.
    cluster.now += 0.01
    one.settle()
    other.paused = False
    other.settle()
    assert one.state.me in other.state.view.members
    cluster.run(LEASE / BEATS)
    assert before <= one.serving


def test_a_burial_that_finds_a_locked_row_is_repeated_after_a_pause(cluster: Cluster) -> None:
    one, other = _two(cluster)
    one.paused = True
    cluster.tables.lock_at_once = lambda name: name != (MEMBER, one.state.me)  # type: ignore[method-assign]
    cluster.run(DEAD + LEASE)
    burials = [each for each in other.asks if isinstance(each, Beat) and each.dead]
    assert 2 <= len(burials) <= 1 + LEASE / (LEASE * RETRY)
    del cluster.tables.lock_at_once
    cluster.run(LEASE * RETRY)
    assert other.serving == ALL


def test_a_member_that_starts_again_has_another_id_and_waits_for_the_first_to_end(
    cluster: Cluster, alone: Machine
) -> None:
    alone.paused = True
    again = cluster.add(b"A")
    cluster.run(DEAD - 0.001)
    assert not again.serving
    cluster.run(0.01)
    assert again.serving == ALL


# ---- quiet times -------------------------------------------------------------------------------


def test_the_longest_cache_lease_that_may_be_out_is_waited_for(cluster: Cluster) -> None:
    """An owner with short leases gives up before those of the first owner have ended."""
    first = cluster.add(b"a", cache_lease=50.0)
    first.settle()
    first.paused = True
    second = cluster.add(b"b", cache_lease=1.0)
    cluster.run(DEAD + 0.1)
    assert second.serving == ALL
    claimed = cluster.now - 0.1
    assert max(second.served.values()) == pytest.approx(claimed + 50.0)
    assert len(set(second.served.values())) == 1
    cluster.run(10.0)
    second.paused = True
    third = cluster.add(b"c", cache_lease=1.0)
    cluster.run(DEAD + 0.1)
    assert third.serving == ALL
    assert min(third.served.values()) >= claimed + 50.0


def test_a_quiet_time_that_was_waited_out_is_written_down(cluster: Cluster) -> None:
    first = cluster.add(b"a", cache_lease=50.0)
    first.settle()
    first.paused = True
    second = cluster.add(b"b", cache_lease=1.0)
    cluster.run(DEAD + 0.1)
    assert _row(cluster, 3).quiet == 50.0
    cluster.run(49.0)
    assert _row(cluster, 3).quiet == 50.0
    cluster.run(2.0)
    assert _row(cluster, 3).quiet == 1.0
    assert not second.happened(Lost)


# ---- hand-over ---------------------------------------------------------------------------------


def test_a_member_that_has_been_there_for_a_lease_gets_its_share(
    cluster: Cluster, alone: Machine
) -> None:
    new = cluster.add(b"b")
    cluster.run(LEASE - 0.1)
    assert alone.serving == ALL
    cluster.run(2.0)
    planned = assignment((alone.state.me, new.state.me), PARTITIONS)
    assert new.serving == {each for each in ALL if planned[each] == new.state.me}
    assert alone.serving == ALL - new.serving
    assert alone.happened(HandOver) == 1
    assert not alone.happened(Lost)


def test_what_is_handed_over_is_served_until_the_epoch_has_ended(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.add(b"b").settle()
    for _ in range(30):
        cluster.now += LEASE / BEATS
        for machine in cluster.machines:
            machine.settle()
        if alone.handing is not None:
            break
    assert alone.handing is not None
    numbers = alone.handing.numbers
    assert set(alone.state.owned) == ALL
    cluster.now += LEASE / BEATS
    alone.settle()
    assert _row(cluster, numbers[0]).owner == alone.state.me
    alone.hand_over()
    ended = cluster.now
    alone.answer()
    assert _row(cluster, numbers[0]) == Partition(None, 2, CACHE_LEASE)
    assert set(alone.state.owned) == ALL - set(numbers)
    assert set(alone.served.values()) == {ended + CACHE_LEASE}, "leases of the epoch before"


def test_an_owner_that_gets_it_waits_for_the_leases_of_the_one_that_gave_it_up(
    cluster: Cluster, alone: Machine
) -> None:
    new = cluster.add(b"b")
    while not new.serving:
        cluster.run(0.1)
    assert min(new.served.values()) > cluster.now + CACHE_LEASE - 0.2


def test_a_release_without_an_answer_is_repeated_or_the_partition_claimed_again(
    cluster: Cluster, alone: Machine
) -> None:
    cluster.add(b"b")
    while alone.handing is None:
        cluster.now += LEASE / BEATS
        for machine in cluster.machines:
            machine.settle()
    numbers = alone.handing.numbers
    alone.hand_over()
    alone.fail()
    assert _row(cluster, numbers[0]).owner == alone.state.me
    cluster.run(LEASE / BEATS)
    assert _row(cluster, numbers[0]).owner == cluster.machines[1].state.me
    assert cluster.serving == ALL


def test_hand_overs_are_gathered_and_rare(cluster: Cluster, alone: Machine) -> None:
    for name in (b"b", b"c", b"d"):
        cluster.add(name)
        cluster.run(0.4)
    cluster.run(3 * LEASE)
    assert 1 <= alone.happened(HandOver) <= 2
    assert cluster.serving == ALL
    assert all(machine.serving for machine in cluster.machines)


def test_a_member_that_stalls_gets_nothing(cluster: Cluster, alone: Machine) -> None:
    new = cluster.add(b"b")
    new.settle()
    for _ in range(8):
        new.paused = not new.paused
        cluster.run(LEASE * (0.6 if new.paused else 0.4))
    assert not new.serving
    assert not alone.happened(HandOver)


def test_a_loss_ends_a_hand_over(cluster: Cluster, alone: Machine) -> None:
    cluster.add(b"b")
    while alone.handing is None:
        cluster.now += LEASE / BEATS
        for machine in cluster.machines:
            machine.settle()
    alone.do(alone.state.lose("it is over", cluster.now))
    assert alone.handing is None
    alone.do(alone.state.handed_over(cluster.now))
    assert not alone.state.owned


# ---- leaving -----------------------------------------------------------------------------------


def test_a_member_that_drains_hands_over_all_and_leaves(cluster: Cluster) -> None:
    one, other = _two(cluster)
    one.do(one.state.drain(cluster.now))
    assert one.handing is not None
    assert set(one.handing.numbers) == set(one.served)
    one.hand_over()
    one.settle()
    assert one.happened(Left) == 1
    assert cluster.tables.get((MEMBER, one.state.me)) is None
    cluster.run(LEASE / BEATS)
    assert other.serving == ALL
    assert one.state.wake_at == float("inf")


def test_a_member_that_leaves_refuses_for_a_while_what_clients_still_send_to_it(
    cluster: Cluster,
) -> None:
    one, other = _two(cluster)
    one.do(one.state.drain(cluster.now, linger=2.0))
    one.hand_over()
    cluster.run(1.9)
    assert other.serving == ALL
    assert cluster.now < one.state.ends
    assert not one.happened(Left)
    cluster.run(0.2)
    assert one.happened(Left) == 1


def test_a_second_call_leaves_at_once(cluster: Cluster) -> None:
    one, _ = _two(cluster)
    one.do(one.state.drain(cluster.now, linger=50.0))
    one.hand_over()
    one.settle()
    assert not one.happened(Left)
    one.do(one.state.drain(cluster.now))
    one.settle()
    assert one.happened(Left) == 1


def test_nobody_has_to_be_there_for_a_member_to_leave(cluster: Cluster, alone: Machine) -> None:
    alone.do(alone.state.drain(cluster.now, linger=50.0))
    alone.hand_over()
    alone.settle()
    assert alone.happened(Left) == 1
    again = cluster.add(b"A")
    again.settle()
    assert again.serving == ALL, "nothing has to be waited for"
    assert set(again.served.values()) == {cluster.now + CACHE_LEASE}


def test_a_member_that_has_asked_for_nothing_leaves_at_once(cluster: Cluster) -> None:
    machine = cluster.add(b"a")
    machine.do(machine.state.drain(cluster.now))
    assert machine.happened(Left) == 1
    assert not machine.asks


def test_a_member_that_cannot_reach_the_database_leaves_all_the_same(
    cluster: Cluster, alone: Machine
) -> None:
    alone.do(alone.state.drain(cluster.now))
    alone.hand_over()
    alone.fail()  # a beat that says that it drains
    for _ in range(LEAVES_MAX):
        cluster.now = max(cluster.now, alone.state.wake_at)
        alone.tick()
        alone.fail()
    assert alone.happened(Left) == 1
    assert sum(isinstance(each, Leave) for each in alone.asks) == LEAVES_MAX


def test_what_is_gained_while_draining_is_not_served(cluster: Cluster) -> None:
    machine = cluster.add(b"a")
    machine.tick()
    machine.answer()
    machine.do(machine.state.drain(cluster.now))
    machine.answer()  # to its claims
    assert not machine.happened(Gained)
    machine.settle()
    assert machine.happened(Left) == 1


def test_an_operator_drains_a_member_by_its_row(cluster: Cluster) -> None:
    one, other = _two(cluster)
    name = (MEMBER, one.state.me)
    cluster.tables.put(name, cluster.tables.get(name)._replace(draining=True))
    cluster.run(2 * LEASE / BEATS)
    assert not one.serving
    assert other.serving == ALL
    cluster.run(2 * LEASE)
    assert other.serving == ALL
    assert not one.happened(Left), "it is there until somebody ends it"


def test_the_last_member_is_not_drained_by_its_row(cluster: Cluster, alone: Machine) -> None:
    name = (MEMBER, alone.state.me)
    cluster.tables.put(name, cluster.tables.get(name)._replace(draining=True))
    cluster.run(LEASE)
    assert alone.serving == ALL


# ---- the map -----------------------------------------------------------------------------------


def test_the_map_names_the_owners_and_its_version_rises_with_each_change(cluster: Cluster) -> None:
    one, other = _two(cluster)
    cluster.run(1.0)
    assert one.map == other.map
    assert one.map is not None
    version, members, owners = one.map
    assert members == ["tcp://a:1", "tcp://b:1"]
    for number in ALL:
        assert (number in one.serving) == (members[owners[number]] == "tcp://a:1")
    one.paused = True
    cluster.run(DEAD + 1.0)
    assert other.map is not None
    assert other.map.version > version
    assert other.map.members == ["tcp://b:1"]


def test_a_partition_whose_owner_is_gone_belongs_to_nobody(cluster: Cluster) -> None:
    one = cluster.add(b"a")
    cluster.tables.put((PARTITION, 2), Partition(b"gone", 5, 2.0))
    one.tick()
    one.answer()
    assert one.map is not None
    assert set(one.map.owners) == {NOBODY}


def test_a_map_is_reported_once(cluster: Cluster, alone: Machine) -> None:
    before = alone.happened(MapChanged)
    cluster.run(2 * LEASE)
    assert alone.happened(MapChanged) == before


# ---- the tables --------------------------------------------------------------------------------


def test_a_transaction_that_comes_late_does_nothing(cluster: Cluster, alone: Machine) -> None:
    cluster.now = alone.state.wake_at
    alone.tick()
    late = alone.asked
    alone.fail()
    assert isinstance(late, Beat)
    late = late._replace(release=((3, 1),), claim=((4, 1),))
    cluster.run(1.0)
    before = dict(cluster.tables.rows)
    view = carry_out(late, cluster.tables)
    assert cluster.tables.rows == before
    assert view.members[alone.state.me].beat > late.beat
    carry_out(Leave(alone.state.me, late.beat), cluster.tables)
    assert cluster.tables.rows == before


def test_a_partition_of_a_live_member_is_not_claimed(cluster: Cluster, alone: Machine) -> None:
    row = Member("tcp://x:1", 1, LEASE, CACHE_LEASE, False)
    carry_out(Beat(b"x", 1, row), cluster.tables)
    carry_out(Beat(b"x", 2, claim=((3, 1),)), cluster.tables)
    assert _row(cluster, 3).owner == alone.state.me
    carry_out(Beat(b"x", 3, dead=((alone.state.me, alone.state._beat),)), cluster.tables)
    carry_out(Beat(b"x", 4, claim=((3, 0), (4, 1))), cluster.tables)
    assert _row(cluster, 3).owner == alone.state.me, "its fence is another"
    assert _row(cluster, 4) == Partition(b"x", 2, CACHE_LEASE)


# ---- assignment --------------------------------------------------------------------------------


def test_all_members_come_to_the_same_assignment_and_few_partitions_move() -> None:
    members = tuple(sorted(bytes([number]) * 16 for number in range(8)))
    before = assignment(members, 256)
    after = assignment(members[:-1], 256)
    moved = [number for number in range(256) if before[number] != after[number]]
    assert all(before[number] == members[-1] for number in moved)
    assert 10 < len(moved) < 60
    for member in members:
        assert 10 < before.count(member) < 60
    assert assignment((), 3) == (None, None, None)

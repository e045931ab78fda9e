"""Globals as members of a cluster, over a database that is a stand-in: what happens in what order.

With PostgreSQL and real processes: ``test_cluster_processes``.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.core.cluster.messages import Partition
from dstore.core.cluster.sightings import Sightings
from dstore.core.engine import Loaded
from dstore.protocol import wire
from dstore.protocol.messages import (
    AskMap,
    Del,
    Get,
    GetReply,
    Hello,
    MapReply,
    Refusal,
    Refused,
    ToLocal,
)
from dstore.protocol.partitions import NOBODY, PARTITIONS, partition_of
from dstore.runtime import clock
from dstore.server import loop as server_loop
from dstore.server.cluster import member as members
from dstore.server.cluster.member import Member
from dstore.server.loop import Loop
from dstore.shm.page import VOID
from tests.cluster_storage import FakeDatabase
from tests.integration.processes import PATIENCE, RawClient

OWNERSHIP = 1.2
"""Seconds of an ownership lease: long enough for a busy machine."""
SOON = 0.5
"""The same in tests that wait for its end."""
LEASE = 0.2
URL = "postgresql://nowhere/"
KEYS = [f"k{number}" for number in range(100)]


@pytest.fixture(autouse=True)
def _no_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client of these tests minds that a Global closes its sockets at once."""
    monkeypatch.setattr(server_loop, "LAST_WORDS", 0.0)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> FakeDatabase:
    database = FakeDatabase()
    # A hand-over to a member begins when it has been there for an ownership lease; here, at once.
    monkeypatch.setattr(Sightings, "settled", Sightings.live)
    monkeypatch.setattr(members, "open_storage", database.open)
    return database


Start = Callable[..., dstore.Global]


@pytest.fixture
def start(database: FakeDatabase) -> Iterator[Start]:
    """A function that starts a member, which is closed with the test."""
    with ExitStack() as stack:

        def started(**options: Any) -> dstore.Global:
            options = {"lease": LEASE, "ownership_lease": OWNERSHIP, **options}
            return stack.enter_context(dstore.Global("tcp://127.0.0.1:0", engine=URL, **options))

        yield started
        database.loading.set()
        database.release_commits()


def loop_of(served: dstore.Global) -> Loop:
    loop = served._loop
    assert loop is not None
    return loop


def member_of(served: dstore.Global) -> Member:
    member = loop_of(served)._member
    assert member is not None
    return member


def serving(served: dstore.Global) -> set[int]:
    """The partitions that a member serves."""
    return set(member_of(served)._serving)


def until(condition: Callable[[], object]) -> None:
    """Return when a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def serves(served: dstore.Global, count: int = PARTITIONS) -> dstore.Global:
    """Wait until a member serves that number of partitions, or more."""
    until(lambda: len(serving(served)) >= count)
    return served


def shared(one: dstore.Global, other: dstore.Global) -> None:
    """Wait until two members have shared the partitions, and serve all of them."""
    until(lambda: serving(other) and len(serving(one)) + len(serving(other)) == PARTITIONS)
    assert not serving(one) & serving(other)


def of(served: dstore.Global) -> list[str]:
    """The keys in the partitions that a member serves."""
    return [key for key in KEYS if partition_of(key) in serving(served)]


def ask_within(raw: RawClient, message: Any, seconds: float) -> ToLocal | None:
    """Send a message and return its answer, or None if there is none in time."""
    raw.socket.send(wire.encode(message))
    if not raw.socket.poll(int(seconds * 1000)):
        return None
    return raw.receive()


# ---- one member, and another one -----------------------------------------------------------------


def test_one_member_serves_everything(start: Start, database: FakeDatabase) -> None:
    served = serves(start())
    with dstore.Node(served.address) as node:
        node.set_many({key: key.upper() for key in KEYS})
        assert node.delete(KEYS[0])
        assert node.get_many(KEYS) == {key: key.upper() for key in KEYS[1:]}
        figures = node.global_stats()
    assert figures["partitions"] == PARTITIONS
    assert 0 < figures["ownership_left"] <= OWNERSHIP
    assert figures["members"] == 1
    assert set(database.rows) == set(KEYS[1:])


def test_a_second_member_gets_its_share(start: Start) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many({key: key.upper() for key in KEYS})
        two = start()
        shared(one, two)
        assert node.get_many(of(one)) == {key: key.upper() for key in of(one)}
    with dstore.Node(two.address) as node:
        assert node.get_many(of(two)) == {key: key.upper() for key in of(two)}
        node.set("another", 1) if partition_of("another") in serving(two) else None
    with RawClient(one.address) as raw:
        raw.join()
        reply = raw.ask(Get(raw.epoch, raw.session, 1, [of(two)[0]]))
        assert isinstance(reply, Refused) and reply.refusal is Refusal.NOT_MINE
        found = raw.ask(AskMap(raw.epoch, raw.session, 2))
        assert isinstance(found, MapReply)
        assert sorted(found.members) == sorted([one.address, two.address])
        theirs = {number for number in range(PARTITIONS) if found.owners[number] != NOBODY}
        owners = [found.members[found.owners[number]] for number in sorted(theirs)]
        assert all(
            (number in serving(one)) == (owner == one.address)
            for number, owner in zip(sorted(theirs), owners)
        )


def test_a_member_that_is_closed_leaves_what_it_had_to_others(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dstore.global")
    one = serves(start())
    two = start()
    shared(one, two)
    began = time.monotonic()
    one.close()
    serves(two)
    assert time.monotonic() - began < PATIENCE / 4
    assert "left the cluster" in caplog.text
    assert {each.levelno for each in caplog.records} == {logging.INFO}, "all went well"


def test_what_is_given_to_clients_is_what_was_advertised(start: Start) -> None:
    served = serves(start(advertise="tcp://somewhere:5000"))
    with RawClient(served.address) as raw:
        raw.join()
        found = raw.ask(AskMap(raw.epoch, raw.session, 1))
    assert isinstance(found, MapReply)
    assert found.members == ["tcp://somewhere:5000"]


# ---- epochs --------------------------------------------------------------------------------------


def test_sessions_of_an_epoch_that_has_ended_are_refused(start: Start) -> None:
    one = serves(start())
    with RawClient(one.address) as raw:
        raw.join()
        shared(one, start())
        kept = of(one)[0]
        reply = raw.ask(Get(raw.epoch, raw.session, 1, [kept]))
        assert isinstance(reply, Refused) and reply.refusal is Refusal.OTHER_EPOCH
        former = raw.epoch
        raw.join()
        assert raw.epoch != former
        assert isinstance(raw.ask(Get(raw.epoch, raw.session, 2, [kept])), GetReply)


def test_the_page_of_the_host_is_void_before_the_next_epoch_begins(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(config.HOST_VARIABLE)
    one = serves(start())
    loop = loop_of(one)
    until(lambda: loop._host is not None and loop._host._page is not None)
    host = loop._host
    assert host is not None and host._page is not None
    lease, words = host._page._page.lease, []
    assert lease[0] != VOID
    begin = loop.begin_epoch

    def noted() -> None:
        words.append(lease[0])
        begin()

    monkeypatch.setattr(loop, "begin_epoch", noted)
    shared(one, start())
    assert words == [VOID]
    until(lambda: loop._host is not None and loop._host._page is not None)


def test_what_is_kept_over_a_hand_over_is_quiet_for_a_lease(start: Start) -> None:
    """Locals of the former epoch may have it."""
    one = serves(start(lease=PATIENCE))
    with RawClient(one.address) as raw:
        raw.join()
        raw.ask(Get(raw.epoch, raw.session, 1, KEYS))
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
    shared(one, start(lease=PATIENCE))
    quiet = loop_of(one).state._partitions
    assert quiet is not None
    assert quiet.quiet_until(of(one)[0]) > clock.now() + PATIENCE / 2


def test_deadlines_go_on_over_a_hand_over(start: Start) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1), ttl=1000.0)
        two = start()
        shared(one, two)
        kept = of(one)
        assert node.ttl(kept[0]) is not None
        node.expire(kept[0], 0.05)
        until(lambda: node.get(kept[0], None) is None)
    with dstore.Node(two.address) as node:
        assert 900.0 < (node.ttl(of(two)[0]) or 0.0) < 1000.0


def test_counters_go_on_over_a_hand_over(start: Start) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
        before = node.global_stats()["sets"]
        shared(one, start())
        assert node.global_stats()["sets"] >= before > 0


def test_what_was_loaded_for_a_former_epoch_is_dropped(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epochs number their loads alike, and the engine goes on over an epoch."""
    one = serves(start())
    shared(one, start())
    loop = loop_of(one)
    taken = loop._take_results
    loads: list[int] = []

    def noted(router: Any, number: int, results: Any) -> None:
        loads.append(number)
        taken(router, number, results)

    late: list[tuple[int, list[Loaded]]] = [(1, [b"late"])]
    monkeypatch.setattr(loop, "_take_results", noted)
    monkeypatch.setattr(loop._engine, "loaded", lambda: [late.pop()] if late else [])
    until(lambda: not late)
    with RawClient(one.address) as raw:
        raw.join()  # by now it was taken
    assert loads == []
    assert "_take_results failed" not in caplog.text


# ---- hand-over -----------------------------------------------------------------------------------


def test_a_hand_over_waits_for_writes_that_have_begun(
    start: Start, database: FakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "READS_MAX", 0.0)  # it waits for writes alone
    one = serves(start())
    with dstore.Node(one.address) as node, ThreadPoolExecutor(1) as pool:
        node.set("read", "value")
        database.held = True
        setting = pool.submit(node.set, KEYS[0], "kept")
        until(lambda: loop_of(one).state.writing)
        two = start()
        until(lambda: loop_of(one).state._writes.closing)
        with RawClient(one.address) as raw:  # reads go on, also those of newcomers
            raw.join()
            assert isinstance(raw.ask(Get(raw.epoch, raw.session, 1, ["read"])), GetReply)
            reply = raw.ask(Del(raw.epoch, raw.session, 2, 0, 0, True, ["read"]))
            assert isinstance(reply, Refused) and reply.refusal is Refusal.CLOSING
        assert len(serving(one)) == PARTITIONS
        database.release_commits()
        setting.result(PATIENCE)
        shared(one, two)
    owner = one if partition_of(KEYS[0]) in serving(one) else two
    with dstore.Node(owner.address) as node:
        assert node.get(KEYS[0]) == "kept"


def test_a_hand_over_that_cannot_end_is_tried_later(
    start: Start,
    database: FakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(members, "DRAIN_SLACK", 0.05)
    monkeypatch.setattr(members, "DRAIN_LEASES", 0)
    monkeypatch.setattr(members, "DRAIN_PAUSE", 0.3)
    one = serves(start())
    state = loop_of(one).state
    with dstore.Node(one.address) as node, ThreadPoolExecutor(1) as pool:
        database.held = True
        setting = pool.submit(node.set, KEYS[0], "kept")
        until(lambda: state.writing)
        two = start()
        until(lambda: "not handed over yet" in caplog.text)
        until(lambda: not state._writes.closing)
        assert len(serving(one)) == PARTITIONS
        database.release_commits()
        setting.result(PATIENCE)
        shared(one, two)


def test_what_is_being_loaded_can_be_handed_over(start: Start, database: FakeDatabase) -> None:
    database.loading.clear()
    one = start()
    until(lambda: member_of(one)._loads)
    two = start()
    until(lambda: member_of(two)._loads)
    database.loading.set()
    shared(one, two)


# ---- loading -------------------------------------------------------------------------------------


def test_messages_are_answered_while_rows_are_loaded(start: Start, database: FakeDatabase) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
    one.close()
    database.loading.clear()
    two = start()
    until(lambda: member_of(two)._loads)
    with RawClient(two.address) as raw:
        raw.join()
        reply = raw.ask(Get(raw.epoch, raw.session, 1, KEYS[:1]))
        assert isinstance(reply, Refused) and reply.refusal is Refusal.NOT_MINE
        database.loading.set()
        serves(two)
        assert isinstance(raw.ask(Get(raw.epoch, raw.session, 2, KEYS[:1])), GetReply)


def test_rows_that_cannot_be_loaded_are_loaded_again(
    start: Start, database: FakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
    one.close()
    database.failures = 1
    with dstore.Node(serves(start()).address) as node:
        assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
    assert database.failures == 0
    assert "rows cannot be loaded" in caplog.text


def test_partitions_whose_fences_were_raised_by_a_late_barrier_are_claimed_again(
    start: Start, database: FakeDatabase
) -> None:
    """A barrier of before a loss is carried out after the claim that followed the loss."""
    database.loading.clear()
    one = start()
    until(lambda: member_of(one)._loads)
    with database.lock:
        number = partition_of(KEYS[0])
        owner, fence, quiet = database.partitions[number]
        database.partitions[number] = Partition(owner, fence + 1, quiet)
    database.loading.set()
    serves(one)
    with dstore.Node(one.address) as node:
        node.set(KEYS[0], 1)


# ---- loss ----------------------------------------------------------------------------------------


def test_without_the_database_nothing_is_answered_until_it_is_back(
    start: Start, database: FakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    one = serves(start(ownership_lease=SOON))
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
    with RawClient(one.address) as raw:
        raw.join()
        former = raw.epoch
        database.down = True
        until(lambda: not member_of(one).answers(clock.now()))
        assert ask_within(raw, Get(raw.epoch, raw.session, 1, KEYS[:1]), 0.1) is None
        assert ask_within(raw, AskMap(0, 0, 1), 0.1) is None
        assert ask_within(raw, Hello(os.urandom(16), 0, 0, "raw"), 0.1) is None
        del database.rows[KEYS[0]]  # another member may have owned it meanwhile
        database.down = False
        serves(one)
        raw.join()
        assert raw.epoch != former
        reply = raw.ask(Get(raw.epoch, raw.session, 1, KEYS[:1]))
        assert isinstance(reply, GetReply) and reply.bodies == [None]
    with dstore.Node(one.address) as node:
        assert node.get_many(KEYS) == dict.fromkeys(KEYS[1:], 1)
        node.set("new", 2)
    assert "owns nothing any more" in caplog.text


def test_a_member_that_others_have_declared_dead_forgets_everything(
    start: Start, database: FakeDatabase
) -> None:
    one = serves(start())
    epoch = loop_of(one).state.epoch
    with database.lock:
        database.members.clear()
    until(lambda: loop_of(one).state.epoch != epoch)
    serves(one)


def test_a_write_under_another_fence_is_not_answered_and_ends_the_epoch(
    start: Start, database: FakeDatabase
) -> None:
    one = serves(start())
    epoch = loop_of(one).state.epoch
    with RawClient(one.address) as raw, dstore.Node(one.address, timeout=PATIENCE) as node:
        raw.join()
        with database.lock:
            number = partition_of(KEYS[0])
            database.partitions[number] = Partition(None, 100, 0.0)
        with pytest.raises(dstore.OutcomeUnknown):
            node.set(KEYS[0], 1)
        until(lambda: loop_of(one).state.epoch != epoch)
        serves(one)
        assert node.get(KEYS[0], None) is None
    assert KEYS[0] not in database.rows


def test_a_fault_of_a_member_costs_an_epoch_and_no_more(
    start: Start, database: FakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
        member, epoch = member_of(one), loop_of(one).state.epoch
        go_on = member._go_on_handing_over

        def fail(service: Any) -> None:
            monkeypatch.setattr(member, "_go_on_handing_over", go_on)
            raise RuntimeError("a fault")

        monkeypatch.setattr(member, "_go_on_handing_over", fail)
        until(lambda: loop_of(one).state.epoch != epoch)
        serves(one)
        assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)


def test_a_member_that_fails_again_and_again_ends(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = serves(start())

    def fail(service: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(member_of(one), "_go_on_handing_over", fail)
    until(lambda: "fails whenever it joins again" in caplog.text)
    assert one._phase.value == "closed"


def test_a_member_takes_over_what_a_dead_one_had(start: Start, database: FakeDatabase) -> None:
    one, two = serves(start(ownership_lease=SOON)), start(ownership_lease=SOON)
    shared(one, two)
    with dstore.Node(two.address) as node:
        theirs = of(two)
        node.set_many(dict.fromkeys(theirs, 1))
        database.storages[1].cut = True
        serves(one)
    with dstore.Node(one.address) as node:
        assert node.get_many(theirs) == dict.fromkeys(theirs, 1)
        quiet = loop_of(one).state._partitions
        assert quiet is not None and quiet.quiet_until(theirs[0]) > 0.0
    until(lambda: not member_of(two).answers(clock.now()))


# ---- the end -------------------------------------------------------------------------------------


def test_a_member_without_a_database_ends_in_bounded_time(
    start: Start, database: FakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = serves(start(ownership_lease=SOON))
    database.down = True
    began = time.monotonic()
    one.close()
    assert time.monotonic() - began < PATIENCE / 4


def test_a_forked_child_leaves_everything_to_its_parent(start: Start) -> None:
    one = serves(start())
    with dstore.Node(one.address) as node:
        node.set(KEYS[0], 1)
        child = os.fork()
        if not child:
            try:
                one.close()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert node.get(KEYS[0]) == 1
        assert len(serving(one)) == PARTITIONS


# ---- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "mysql://host/name"}, "begins with postgresql://"),
        ({"engine": URL, "data": "folder"}, "data is not for a member"),
        ({"engine": URL, "ownership_lease": 0.01}, "ownership_lease is 0.2 to"),
        ({"advertise": "tcp://host:1"}, "advertise is for a member"),
        ({"ownership_lease": 5.0}, "ownership_lease is for a member"),
        ({"engine": URL, "address": "tcp://*:0", "insecure": True}, "give advertise"),
        ({"engine": URL, "advertise": "tcp://*:0"}, "the port must be"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, dstore.AddressError), match=said):
        dstore.Global(**{"address": "tcp://127.0.0.1:0", **options})


def test_a_wrong_url_is_not_shown() -> None:
    with pytest.raises(ValueError, match="postgresql://") as caught:
        dstore.Global("tcp://127.0.0.1:0", engine="secret://me:password@host/name")
    assert "password" not in str(caught.value)
    served = dstore.Global("tcp://127.0.0.1:0", engine="postgresql://me:password@host/name")
    assert "password" not in repr(served._settings)

"""To which Globals a Local belongs: those of one cluster, and no others take its writes."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.partitions import Partitions
from dstore.core.local import operations
from dstore.core.local.state import PRIVATE_AFTER
from dstore.errors import GlobalUnavailable, OutcomeUnknown, WrongServer
from dstore.protocol.clusters import mark
from dstore.protocol.messages import (
    NO_SESSION,
    AskMap,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Kind,
    MapReply,
    Refusal,
    Refused,
    Scan,
    Stats,
    Ttl,
    Unwait,
    Wait,
    Welcome,
)
from dstore.protocol.partitions import PARTITIONS
from dstore.server.engines.memory import MemoryEngine
from tests.engines import AwayEngine
from tests.unit.core.sharing import host, open_page, process
from tests.unit.core.test_owner import OwnerMember
from tests.unit.core.world import Call, Member, World

OURS, OTHER, ALONE = b"o" * 16, b"x" * 16, b""
STRANGERS = pytest.mark.parametrize("stranger", [ALONE, OTHER], ids=["alone", "of another cluster"])


def begin(world: World, cluster: bytes) -> None:
    """What listens at the address is a member of this cluster from now on, without any key."""
    world.engine = MemoryEngine(1 << 20)
    world.loading = AwayEngine(world.engine)
    world.partitions = None
    if cluster:
        world.partitions = Partitions(world.now + 1000.0, cluster)
        world.partitions.gain(range(PARTITIONS), 0.0)
        world.partitions.map = (1, ["tcp://a:1"], bytes(PARTITIONS))
    world.page = None
    world.start_global()


def in_cluster(cluster: bytes = OURS) -> World:
    world = World()
    begin(world, cluster)
    return world


def sessions(world: World) -> int:
    return len(list(world.state._sessions))


def reconnect(*members: Member) -> None:
    for member in members:
        member.outgoing.clear()
        member.control.clear()
        member.state.reconnected(member.world.now)


def replaced(world: World, cluster: bytes, *members: Member) -> None:
    """Another Global begins at the address."""
    begin(world, cluster)
    reconnect(*members)
    world.settle()


def lost(call: Call) -> Any:
    """The caller is told that its session is unknown."""
    reply = call.send()
    assert isinstance(reply, Refused)
    call.answer()
    return reply


# ---- what a Global says ---------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [OURS, ALONE])
def test_welcome_map_and_page_name_the_cluster(cluster: bytes) -> None:
    world = in_cluster(cluster)
    world.deliver(b"x", Hello(world.random16(), 0, NO_SESSION, "x"))
    world.deliver(b"x", AskMap(0, NO_SESSION, 1))
    welcome, found = world.inboxes[b"x"]
    assert isinstance(welcome, Welcome)
    assert isinstance(found, MapReply)
    assert welcome.cluster == found.cluster == open_page(world).cluster == cluster


def test_the_cluster_may_be_known_later_than_the_epoch_begins() -> None:
    world = in_cluster()
    assert world.partitions is not None
    world.partitions.cluster = OTHER
    assert world.state.cluster == OTHER
    (a,) = world.joined("a")
    assert a.state.cluster == OTHER


def test_a_request_without_a_session_that_names_another_cluster_is_refused() -> None:
    """A Global by itself would say that the key is missing."""
    for cluster, asked, fine in (
        (OURS, mark(OURS), True),
        (OURS, 0, True),
        (OURS, mark(OTHER), False),
        (OTHER, mark(OURS), False),
        (ALONE, mark(OURS), False),
        (ALONE, 0, True),
    ):
        world = in_cluster(cluster)
        named = asked, NO_SESSION, 1
        for message in (
            Get(*named, ["k"]),
            Wait(*named, "k", 0.001),
            Ttl(*named, "k"),
            Scan(*named, "", "", 9),
            Stats(*named),
        ):
            world.deliver(b"x", message)
            world.advance(0.01)
            world.tick()
            reply = world.inboxes[b"x"].pop()
            assert isinstance(reply, Refused) != fine
            assert fine or reply.refusal is Refusal.OTHER_EPOCH  # type: ignore[union-attr]


def test_a_mark_is_never_that_of_no_cluster() -> None:
    assert mark(ALONE) == 0
    assert mark(OURS) == int.from_bytes(b"o" * 8, "big")


# ---- joining --------------------------------------------------------------------------------


@STRANGERS
def test_a_local_joins_no_global_of_another_cluster(stranger: bytes) -> None:
    """What it would write there is lost to the cluster."""
    world = in_cluster()
    (a,) = world.joined("a")
    a.set("k", b"v")
    replaced(world, stranger, a)
    assert not a.state.session
    assert a.hit("k") is None or world.now < a.state.lease_end
    for call in (a.begin_set(("new", b"v")), a.begin_delete("k"), a.begin_get("new")):
        assert isinstance(call.error, WrongServer)
        text = str(call.error)
        assert "by itself" in text or "another cluster" in text
        assert OURS.hex()[:8] in text
    assert len(world.engine) == 0
    assert sessions(world) == 0, "it has said goodbye"


@STRANGERS
def test_it_joins_again_when_the_member_is_back(stranger: bytes) -> None:
    world = in_cluster()
    (a,) = world.joined("a")
    replaced(world, stranger, a)
    assert a.state.denied is not None
    begin(world, OURS)
    reconnect(a)
    assert a.state.denied is None, "another Global may answer now: calls wait for its answer"
    call = a.begin_set(("k", b"v"))
    assert call.waits
    call.finish()
    assert len(world.engine) == 1


def test_a_hello_is_repeated_as_long_as_a_stranger_answers() -> None:
    """Nothing says that the member is back, where a proxy keeps the connection."""
    world = in_cluster()
    (a,) = world.joined("a")
    replaced(world, ALONE, a)
    for _ in range(5):
        world.live(1.5)
        assert sessions(world) == 0
        assert a.begin_get("k").done
    begin(world, OURS)
    world.live(1.5)
    assert a.state.session
    assert a.get("k") is None


def test_a_local_that_has_known_no_cluster_joins_any() -> None:
    world = in_cluster(ALONE)
    (a,) = world.joined("a")
    a.set("k", b"v")
    replaced(world, ALONE, a)
    a.set("k", b"v")
    replaced(world, OURS, a)
    assert a.set("k", b"v").status == 0
    replaced(world, ALONE, a)
    assert not a.state.session, "it is a member by now, for good"


@STRANGERS
def test_a_write_on_its_way_is_not_executed_by_a_stranger(stranger: bytes) -> None:
    world = in_cluster()
    (a,) = world.joined("a")
    writes = [a.begin_set(("k", b"v")), a.begin_set(("l", b"v"), replace=True)]
    deletion = a.begin_delete("k")
    for each in (*writes, deletion):
        each.time_out()  # it was sent, and the member ends
    begin(world, stranger)
    reconnect(a)
    for each in (*writes, deletion):
        assert each.waits or each.message
        while not each.done:
            if each.waits:
                world.settle()
                each.time_out()
            else:
                assert isinstance(each.send(), Refused)
                each.answer()
        assert isinstance(each.error, OutcomeUnknown)
    assert len(world.engine) == 0


@STRANGERS
def test_a_write_that_was_not_sent_is_not_sent_to_a_stranger(stranger: bytes) -> None:
    world = in_cluster()
    (a,) = world.joined("a")
    call = a.begin_set(("k", b"v"))
    begin(world, stranger)
    lost(call)
    assert call.waits
    world.settle()
    call.look()
    assert isinstance(call.error, WrongServer)
    assert len(world.engine) == 0


@STRANGERS
def test_the_session_for_writes_is_of_the_cluster_too(stranger: bytes) -> None:
    world = in_cluster()
    page, (a,) = host(world, "a")
    page.silent = True
    begin(world, stranger)
    call = a.begin_set(("k", b"v"))
    assert call.waits
    world.settle()
    call.look()
    assert isinstance(call.error, WrongServer)
    assert not a.state.writer.session
    assert len(world.engine) == 0
    again = a.begin_set(("k", b"v"))
    begin(world, OURS)
    again.finish()
    assert a.state.writer.session


def test_only_an_answer_to_its_own_hello_counts() -> None:
    world = World()
    a = world.member("a")
    a.tick()
    a.receive(Welcome(9, 9, b"n" * 16, 0, 2.0, "tcp://*:2", 1000, 1000, 9, cluster=OTHER))
    assert a.state.cluster == ALONE
    begin(world, OURS)
    world.settle()
    assert a.state.cluster == OURS
    a.receive(Welcome(9, 9, b"n" * 16, 0, 2.0, "tcp://*:2", 1000, 1000, 9, cluster=OTHER))
    assert a.state.denied is None


def test_a_late_answer_of_a_stranger_changes_nothing_in_a_session() -> None:
    world = in_cluster()
    a = world.member("a")
    (hello,) = a.tick()
    assert isinstance(hello, Hello)
    world.settle()
    a.receive(Welcome(9, 9, hello.nonce, 0, 2.0, "tcp://*:2", 1000, 1000, 77, cluster=ALONE))
    assert a.state.denied is None
    assert a.state.session
    assert a.tick() == [Goodbye(9, 77)]


# ---- what a Node knows of the cluster ---------------------------------------------------------


@STRANGERS
def test_a_session_at_another_global_ends_when_the_cluster_becomes_known(stranger: bytes) -> None:
    """The Local was opened before the first map was there."""
    world = in_cluster(stranger)
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.state.belong(OURS, world.now)
    assert a.hit("k") is None
    assert not a.state.session
    call = a.begin_set(("new", b"v"))
    world.settle()
    call.look()
    assert isinstance(call.error, WrongServer)
    assert len(world.engine) == 1
    assert sessions(world) == 0


def test_a_session_at_a_member_stays_when_the_cluster_becomes_known() -> None:
    world = in_cluster()
    (a,) = world.joined("a")
    session = a.state.session
    a.state.belong(OURS, world.now)
    assert a.state.session == session


def test_a_page_and_a_session_for_writes_end_when_another_cluster_becomes_known() -> None:
    world = in_cluster(ALONE)
    _, (a,) = host(world, "a")
    a.set("k", b"v")
    assert a.state.writer.session
    a.state.belong(OURS, world.now)
    assert a.state.page is None
    assert not a.state.writer.session
    world.settle()
    assert [each.kind for each in world.state._sessions if each.kind is Kind.WRITER] == []


def test_a_map_of_another_cluster_is_an_error() -> None:
    world = in_cluster()
    (a,) = world.joined("a")

    def asked() -> Call:
        return a.begin(operations.ask_map(a.state, world.now, world.now + 1.0))

    assert asked().finish().cluster == OURS
    for stranger in (ALONE, OTHER):
        begin(world, stranger)
        call = asked()
        call.send()
        call.answer()
        assert isinstance(call.error, WrongServer)


def test_closing_ends_all_the_same() -> None:
    world = in_cluster(ALONE)
    (a,) = world.joined("a")
    a.state.goodbye(world.now)
    a.state.belong(OURS, world.now)
    world.settle()
    assert sessions(world) == 0


# ---- pages ------------------------------------------------------------------------------------


@STRANGERS
def test_a_page_of_another_cluster_is_not_used(stranger: bytes) -> None:
    """Its Global has values of its own under the same keys, and misses those of the cluster."""
    world = in_cluster()
    (a,) = world.joined("a")
    replaced(world, stranger, a)
    page = open_page(world)
    a.state.attach(page, world.now)
    assert a.state.page is None
    assert a.state.no_page
    assert isinstance(a.begin_get("k").error, WrongServer)
    begin(world, OURS)
    a.state.attach(open_page(world), world.now)
    assert a.state.page is world.page
    assert a.state.denied is None


@STRANGERS
def test_a_process_that_never_joins_by_itself_says_so(stranger: bytes) -> None:
    world = in_cluster()
    page, (a,) = host(world, "a", joining=False)
    page.void()
    a.state.see_page()
    world.settle()
    begin(world, stranger)
    open_page(world)
    world.live(PRIVATE_AFTER)
    call = a.begin_get("k")
    assert isinstance(call.error, WrongServer)
    begin(world, OURS)
    open_page(world)
    world.live(1.5)
    assert a.get("k") is None


def test_the_first_page_says_which_cluster_it_is() -> None:
    world = in_cluster()
    page, (a,) = host(world, "a")
    assert a.state.cluster == OURS
    page.void()
    begin(world, ALONE)
    other = process(world, "b")
    other.state.belong(OURS, world.now)
    stranger = open_page(world)
    for each in (a, other):
        each.state.attach(stranger, world.now)
        assert each.state.page is not stranger


@STRANGERS
def test_a_read_between_two_pages_is_not_answered_by_a_stranger(stranger: bytes) -> None:
    """Such reads need no session. A Global by itself would say that the key is missing."""
    world = in_cluster()
    page, (a,) = host(world, "a")
    page.void()
    a.state.see_page()
    world.settle()
    assert a.state.bridging
    call = a.begin_get("k")
    assert (call.message.epoch, call.message.session) == (mark(OURS), NO_SESSION)
    assert isinstance(call.send(), GetReply), "a member answers"
    begin(world, stranger)
    call.replies.clear()
    lost(call)
    assert call.waits, "it joins at once, to find out what is there"
    world.settle()
    call.look()
    assert isinstance(call.error, WrongServer)


def test_a_wait_between_two_pages_is_withdrawn() -> None:
    world = in_cluster()
    page, (a,) = host(world, "a")
    page.void()
    a.state.see_page()
    world.settle()
    call = a.begin_wait("k", world.now + 50.0)
    call.send()
    assert len(world.state._waits) == 1
    call.give_up()
    assert isinstance(a.tick()[-1], Unwait)
    world.settle()
    assert len(world.state._waits) == 0


# ---- the owner of a page ------------------------------------------------------------------------


@STRANGERS
def test_an_owner_makes_no_page_for_another_cluster(stranger: bytes) -> None:
    world = in_cluster()
    member = OwnerMember(world)
    world.settle()
    assert member.page.welcome.cluster == OURS
    begin(world, stranger)
    reconnect(member)
    world.live(3.0)
    assert member.owner.published is None
    assert len(member.pages) == 1
    assert OURS.hex()[:8] in member.owner.trouble
    assert member.owner.denied is None, "it goes on to ask"
    begin(world, OURS)
    world.live(1.5)
    assert member.owner.published is member.page
    assert not member.owner.trouble


def test_the_page_of_an_owner_is_void_before_it_leaves_another_cluster() -> None:
    world = in_cluster(ALONE)
    member = OwnerMember(world)
    world.settle()
    member.owner.belong(OURS, world.now)
    world.settle()
    assert member.page.closed
    assert member.owner.published is None
    steps = member.journal_of("void", "Goodbye")
    assert steps[:2] == ["void", "Goodbye"]


def test_the_error_is_no_timeout() -> None:
    assert not issubclass(WrongServer, GlobalUnavailable)

"""The owner of a membership where Global is elsewhere: what is written, and in which order."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dstore.core.local.effects import LocalEffect, Tell
from dstore.core.local.owner import PAGE_PAUSE, OwnerState
from dstore.core.local.state import MARGIN
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Broadcast,
    DelStatus,
    Goodbye,
    Hello,
    Key,
    Refusal,
    Refused,
    Sync,
    Synced,
    Welcome,
)
from tests.unit.core.host_page import FakePage, Process
from tests.unit.core.world import LEASE, Member, World


class OwnerMember(Member):
    """An owner and its pages. ``journal`` has what it wrote and sent, in this order.

    What is in ``failing`` raises, in each page; ``open`` is the creation of one.
    """

    def __init__(self, world: World, name: str = "owner") -> None:
        super().__init__(world, name, 0)
        self.pages: list[JournaledPage] = []
        self.journal: list[str] = []
        self.failing: set[str] = set()
        self.owner = self.state = OwnerState(
            random16=world.random16, label=name, open_page=self._open
        )
        world.members.append(self)

    def _open(self, message: Welcome) -> JournaledPage:
        if "open" in self.failing:
            raise OSError("no memory")
        self.journal.append("open")
        page = JournaledPage(self, message)
        self.pages.append(page)
        return page

    def _perform(self, effects: Iterable[LocalEffect]) -> None:
        effects = list(effects)
        for each in effects:
            if isinstance(each, Tell):
                self.journal.append(type(each.message).__name__)
        super()._perform(effects)

    @property
    def page(self) -> JournaledPage:
        """The newest page."""
        return self.pages[-1]

    @property
    def process(self) -> Process:
        """A process of the host that uses the newest page."""
        return Process(self.world, self.page, self.page.welcome.session)

    def journal_of(self, *steps: str) -> list[str]:
        return [each for each in self.journal if each in steps]


class JournaledPage(FakePage):
    """A page that notes what happens to it, and the state of the owner when it does."""

    def __init__(self, member: OwnerMember, welcome: Welcome) -> None:
        super().__init__(member.world)
        self.failing = member.failing
        self.member = member
        self.welcome = welcome
        self.closed = False
        self.applied: list[int] = []  # what the owner had applied when a word was written

    def note(self, key: Key, seq: int) -> None:
        self.member.journal.append("note")
        self.applied.append(self.member.owner.applied)
        super().note(key, seq)

    def renew(self, end: float) -> None:
        self.member.journal.append("renew")
        super().renew(end)

    def void(self) -> None:
        self.member.journal.append("void")
        super().void()

    def close(self) -> None:
        self.member.journal.append("close")
        assert self.end == 0.0 or "void" in self.failing, "it was voided before"
        self.closed = True


def owned() -> tuple[World, OwnerMember]:
    """An owner whose page is there."""
    world = World()
    member = OwnerMember(world)
    world.settle()
    assert member.owner.published is member.page
    return world, member


def test_a_page_is_made_after_welcome_and_has_the_public_session() -> None:
    world = World()
    member = OwnerMember(world)
    member.tick()
    assert member.journal == ["Hello"]
    assert not member.pages
    world.settle()
    assert member.journal[:3] == ["Hello", "open", "renew"]
    welcome = member.page.welcome
    assert welcome.session == member.owner.session != welcome.secret
    assert member.page.end == world.now + LEASE * (1 - MARGIN)


def test_a_repeated_welcome_changes_nothing() -> None:
    world, member = owned()
    end = member.page.end
    world.advance(LEASE / 2)
    member.receive(member.page.welcome)
    assert len(member.pages) == 1
    assert member.page.end == end


def test_a_repeated_welcome_makes_no_page_for_a_session_that_had_none() -> None:
    world = World()
    member = OwnerMember(world)
    member.failing.add("open")
    member.tick()
    member.send()
    welcome = member.listen()
    member.failing.clear()
    member.receive(welcome)
    assert not member.pages


def test_a_welcome_of_a_former_hello_makes_no_page() -> None:
    world, member = owned()
    former = member.page.welcome
    world.start_global()
    member.owner.renew(world.now)
    member.tick()
    member.send()
    member.listen()  # the refusal
    member.receive(former)
    assert len(member.pages) == 1


def test_a_word_is_written_before_it_counts_as_applied_and_is_acknowledged() -> None:
    world, member = owned()
    (writer,) = world.joined("writer")
    world.engine_holds("k")
    process = member.process
    assert process.fill("k") == b"v"
    member.journal.clear()
    deletion = writer.begin_delete("k")
    deletion.send()
    world.tick()
    assert not deletion.replies
    assert process.hit("k") == b"v"
    world.settle()
    assert process.hit("k") is None
    assert member.page.applied == [member.page.words["k"] - 1]
    assert member.journal_of("note", "Ack") == ["note", "Ack"]
    assert deletion.replies, "it waited for the acknowledgement, and for nothing else"


def test_words_of_a_sync_answer_are_written_before_the_lease() -> None:
    world, member = owned()
    (writer,) = world.joined("writer")
    world.engine_holds("k")
    process = member.process
    process.fill("k")
    member.published.clear()
    world.members.remove(member)  # it hears nothing
    world.advance(LEASE + 0.1)
    writer.delete("k")
    assert process.hit("k") is None, "the lease has lapsed"
    member.published.clear()
    member.control.clear()
    member.journal.clear()
    world.members.append(member)
    world.renew(member)
    assert member.journal_of("note", "renew")[:2] == ["note", "renew"]
    assert member.page.end > world.now
    assert process.hit("k") is None
    assert len(member.pages) == 1, "a lapse alone ends no session"


def test_a_flush_is_another_session_with_another_page() -> None:
    world, member = owned()
    (writer,) = world.joined("writer")
    keys = [f"k{n}" for n in range(world.log_length + 10)]
    world.engine_holds(*keys)
    process = member.process
    process.fill(keys[0])
    world.members.remove(member)
    world.advance(LEASE + 0.1)
    for key in keys:
        writer.delete(key)
    member.published.clear()
    member.control.clear()
    member.journal.clear()
    world.members.append(member)
    world.renew(member)
    assert member.journal_of("void", "close", "Hello", "open") == ["void", "close", "Hello", "open"]
    former, newest = member.pages
    assert former.closed and former.end == 0.0
    assert newest.welcome.session != former.welcome.session
    assert process.hit(keys[0]) is None
    assert former.words == {}, "nothing is written to the former page"
    assert member.owner.wake_at > world.now


def test_a_stop_voids_and_removes_before_the_goodbye() -> None:
    world, member = owned()
    member.journal.clear()
    member.owner.goodbye(world.now)
    assert member.journal == ["void", "close"]
    world.settle()
    assert member.journal == ["void", "close", "Goodbye"]
    assert not member.owner.leaving
    assert len(world.state._sessions) == 0


def test_a_goodbye_names_the_secret() -> None:
    world, member = owned()
    member.owner.goodbye(world.now)
    (goodbye,) = member.tick()
    assert goodbye == Goodbye(world.epoch, member.page.welcome.secret)


def test_a_lost_session_voids_and_removes_before_the_next_hello() -> None:
    world, member = owned()
    former = member.page
    world.start_global()
    member.journal.clear()
    world.renew(member)
    assert member.journal_of("void", "close", "Hello", "open") == ["void", "close", "Hello", "open"]
    assert former.closed
    assert member.page.welcome.epoch == world.epoch
    world.live(LEASE)
    assert former.end == 0.0
    assert former.words == {}


def test_another_session_replaces_the_own_one_only() -> None:
    world, member = owned()
    member.owner.abandon(world.now)  # the page was removed
    (hello,) = member.tick()
    assert isinstance(hello, Hello)
    assert hello.replaces_secret == member.page.welcome.secret
    restarted = OwnerMember(world, "restarted")
    (hello,) = restarted.tick()
    assert isinstance(hello, Hello)
    assert (hello.replaces_epoch, hello.replaces_secret) == (0, NO_SESSION)


def test_a_removed_page_is_replaced_at_once() -> None:
    world, member = owned()
    member.owner.abandon(world.now)
    world.settle()
    assert len(member.pages) == 2
    assert member.pages[0].closed
    assert len(world.state._sessions) == 1


def test_without_memory_for_a_page_it_tries_again() -> None:
    world = World()
    member = OwnerMember(world)
    member.failing.add("open")
    world.settle()
    assert member.owner.trouble == "no memory"
    assert member.journal.count("Hello") == 1, "it does not try again at once"
    member.failing.clear()
    world.live(2 * PAGE_PAUSE)
    assert member.owner.published is member.page
    assert member.owner.trouble == ""
    assert len(world.state._sessions) == 1


@pytest.mark.parametrize("what", ["note", "renew"])
def test_a_page_that_cannot_be_written_is_void_and_replaced(what: str) -> None:
    world, member = owned()
    (writer,) = world.joined("writer")
    world.engine_holds("k")
    process = member.process
    process.fill("k")
    former = member.page
    member.failing.add(what)
    if what == "renew":
        world.live(LEASE / 2)
    assert writer.delete("k").status is DelStatus.DELETED
    assert process.hit("k") is None
    assert former.end == 0.0
    member.failing.clear()
    world.live(2 * PAGE_PAUSE)
    assert member.page is not former
    assert member.owner.published is member.page


def test_a_page_that_never_gets_a_lease_is_no_reason_to_join_again_at_once() -> None:
    world = World()
    member = OwnerMember(world)
    member.failing.add("renew")
    world.settle()
    assert member.journal.count("Hello") == 1
    member.failing.clear()
    world.live(2 * PAGE_PAUSE)
    assert member.owner.published is member.page


def test_a_page_that_cannot_be_voided_keeps_the_owner_silent_until_its_lease_ends() -> None:
    world, member = owned()
    (writer,) = world.joined("writer")
    world.engine_holds("k")
    process = member.process
    process.fill("k")
    former, end = member.page, member.page.end
    member.failing |= {"note", "void"}
    member.journal.clear()
    deletion = writer.begin_delete("k")
    deletion.send()
    world.tick()
    with pytest.raises(OSError, match="void"):
        member.turn()
    assert member.owner.applied == 0, "nothing that is not in the page counts"
    while world.now < end:
        assert process.hit("k") == b"v", "so it is, and no deletion may be confirmed"
        assert not deletion.replies
        assert member.journal_of("Ack", "Hello", "Goodbye", "Sync") == []
        assert member.owner.wake_at >= end
        world.advance(0.05)
        world.settle()
    member.failing.clear()
    world.live(LEASE)
    assert deletion.replies
    assert member.owner.published is member.page is not former


def test_a_page_that_cannot_be_voided_silences_the_goodbye_too() -> None:
    world, member = owned()
    member.failing.add("void")
    member.journal.clear()
    with pytest.raises(OSError, match="void"):
        member.owner.goodbye(world.now)
    assert member.tick() == []
    world.now = member.page.end
    assert [type(each) for each in member.tick()] == [Goodbye]


def test_another_version_of_the_protocol_ends_it() -> None:
    world, member = owned()
    refused = Refused(world.epoch, 0, 0, Refusal.OTHER_VERSION, "only version 8")
    member.receive(refused)
    assert member.owner.refusal == "only version 8"
    assert member.page.closed
    assert member.page.end == 0.0


def test_an_invalidation_below_a_word_leaves_it() -> None:
    world, member = owned()
    member.page.words["k"] = 7
    member.receive(Broadcast(world.epoch, 1, ["k"], False))
    assert member.page.words["k"] == 7


def test_copies_of_large_values_are_dropped() -> None:
    world, member = owned()
    member.receive(Broadcast(world.epoch, 1, ["k"], False, [b"t" * 16]))
    member.tick()
    assert member.given_up == [b"t" * 16]


def test_it_renews_and_acknowledges_by_its_secret() -> None:
    world, member = owned()
    member.receive(Broadcast(world.epoch, 1, ["k"], True))
    world.advance(LEASE / 2)
    sent = member.tick()
    secret = member.page.welcome.secret
    assert [type(each) for each in sent] == [Ack, Sync]
    assert all(each.secret == secret for each in sent)  # type: ignore[union-attr]


def test_an_answer_to_another_session_does_not_renew() -> None:
    world, member = owned()
    end = member.page.end
    world.advance(LEASE / 2)
    member.tick()
    serial = member.outgoing[-1].serial  # type: ignore[union-attr]
    member.receive(Synced(world.epoch, 12345, serial, 0, 0, [], False))
    assert member.page.end == end


def test_it_has_no_entries() -> None:
    _, member = owned()
    assert member.owner.cache.limit == 0
    assert member.owner.entries == {}

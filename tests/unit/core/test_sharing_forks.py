"""A forked child of a process that shares the membership of its host: what it inherits."""

from __future__ import annotations

from tests.unit.core.sharing import VALUE, HostPage, open_page, parent_with_entries
from tests.unit.core.world import World


def test_a_child_goes_on_with_the_entries_of_its_parent() -> None:
    world = World()
    page, a = parent_with_entries(world)
    child = world.member("child", looking=True)
    again = HostPage(world, page.session, page.vector.buckets)
    again.vector, again.lease_word = page.vector, page.lease_word
    child.state.inherit(again, a.state.membership, world.now)
    assert child.hit("k") == b"old"
    page.note("k", 1)
    assert child.hit("k") is None
    assert child.hit("l") == b"old"
    assert child.state.membership.words is again.vector.words
    assert [entry.key for entry in child.state.cache] == ["k", "l", "m"]


def test_a_child_of_a_thread_in_the_middle_of_an_insertion_has_a_whole_cache() -> None:
    world = World()
    page, a = parent_with_entries(world)
    cache = a.state.cache
    half = cache.made("n", 0, *VALUE, page.vector.bucket("n"))
    half.older = cache._newest  # the dictionary has it, the list does not
    cache.entries["n"] = half
    child = world.member("child", cache_bytes=half.size * 3, looking=True)
    child.state.inherit(page, a.state.membership, world.now)
    own = child.state.cache
    assert [entry.key for entry in own] == ["l", "m", "n"], "the oldest was evicted"
    assert own.size == sum(entry.size for entry in own)
    assert own.size <= own.limit
    for key in ("l", "m", "n"):
        assert own.discard(key)
    assert own.size == 0 and list(own) == []


def test_a_child_inherits_nothing_of_another_membership() -> None:
    """A thread of the parent has switched the page, and not yet the membership."""
    world = World()
    _page, a = parent_with_entries(world)
    former = a.state.membership
    page = open_page(world)
    child = world.member("child", looking=True)
    child.state.inherit(page, former, world.now)
    assert child.state.page is page
    assert child.state.membership is not former
    assert not child.state.entries


def test_a_child_that_has_to_report_deletions_inherits_no_entries() -> None:
    """What was invalidated before its observer has begun would not be reported."""
    world = World()
    page, a = parent_with_entries(world)
    child = world.member("child", looking=True, observing=True)
    child.state.inherit(page, a.state.membership, world.now)
    assert child.state.page is page
    assert not child.state.entries

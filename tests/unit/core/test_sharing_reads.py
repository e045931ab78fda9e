"""A Local that shares the membership of its host: what it reads from a page, and what it keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dstore.client.host_reader import PureHostReader
from dstore.core.local.membership import PureMembership, lease_word
from dstore.core.local.shared import Record
from dstore.protocol.messages import SetStatus
from dstore.runtime import clock
from tests.unit.core.sharing import (
    VALUE,
    HostPage,
    host,
    large,
    open_page,
    parent_with_entries,
    stored,
)
from tests.unit.core.world import LEASE, World, body

# ---- hits -------------------------------------------------------------------------------------


def test_a_value_is_kept_by_the_process_from_the_second_read_on() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    assert a.hit("k") == b"old"
    assert "k" not in a.state.entries
    assert a.hit("k") == b"old"
    assert "k" in a.state.entries
    del page.table["k"]
    assert a.hit("k") == b"old"


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_a_value_is_valid_if_no_word_is_above_its_number(kept: bool) -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k", 5)
    if kept:
        a.state.cache.insert("k", 5, *VALUE, page.vector.bucket("k"))
        page.table.clear()
    page.note("k", 5)
    assert a.hit("k") == b"old"
    page.note("k", 6)
    assert a.hit("k") is None
    assert a.begin_get("k").message.keys == ["k"]


def test_the_host_cache_serves_where_the_entry_is_out_of_date() -> None:
    world = World()
    page, (a,) = host(world, "a")
    a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
    page.note("k", 1)
    page.table["k"] = Record(1, bytes(16), "bytes", b"new")
    assert a.hit("k") == b"new"


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_the_words_are_read_before_the_clock(kept: bool) -> None:
    """The process stands still in between; the lease ends, and the page is not written any more."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    if kept:
        a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
        page.table.clear()
    page.slow(page.lapse)
    assert a.hit("k") is None


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_the_lease_is_noted_before_the_words_are_read(kept: bool) -> None:
    """In between: the lease lapses, the key is deleted, and the page is renewed, words first."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    if kept:
        a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
        page.table.clear()

    def renewed() -> None:
        page.lapse()
        page.silent = False
        page.renew(world.now + LEASE)

    page.slow(renewed)
    assert a.hit("k") is None


def test_stale_values_are_those_of_which_no_deletion_is_known() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    stored(page, "l")
    page.note("l", 1)
    page.lapse()
    assert a.state.hit("k", world.now) is None
    assert a.begin_get("k", stale_ok=True).result["k"].from_local
    many = a.begin_get("k", "l", stale_ok=True)
    assert many.message.keys == ["l"]


def test_many_keys_are_read_from_entries_host_cache_and_global() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    world.engine_holds("k")
    stored(page, "l")
    a.state.cache.insert("m", 0, *VALUE, page.vector.bucket("m"))
    reading = a.begin_get("k", "l", "m", "n")
    assert reading.message.keys == ["k", "n"]
    result = reading.finish()
    assert {key: body(answer) for key, answer in result.items()} == {
        "k": b"v", "l": b"old", "m": b"old",
    }  # fmt: skip
    assert {key for key, answer in result.items() if answer.from_local} == {"l", "m"}
    again = b.begin_get("k", "l")
    assert again.done and set(again.result) == {"k", "l"}


def test_a_key_of_the_host_cache_is_known_to_be_occupied() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    outcomes = a.begin_set(("k", b"new"))
    assert outcomes.done
    assert outcomes.result["k"].status is SetStatus.OCCUPIED and outcomes.result["k"].local


# ---- filling ----------------------------------------------------------------------------------


def test_a_reply_is_dead_on_arrival_if_its_word_was_raised_meanwhile() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    world.engine_holds("k", "l", "m")
    reading, many = a.begin_get("k"), a.begin_get("l", "m")
    reading.send()
    many.send()
    b.begin_delete("k", "l").finish()
    reading.answer()
    many.answer()
    assert body(reading.result["k"]) == body(many.result["l"]) == b"v"
    assert set(page.table) == {"m"}
    assert a.hit("k") is None and a.hit("l") is None


@pytest.mark.parametrize("keys", [["k"], ["k", "l"]])
def test_a_value_is_kept_under_the_membership_that_asked_only(keys: list[str]) -> None:
    """The next page may have lower words: numbers of different sessions are never compared."""
    world = World()
    former, (a,) = host(world, "a")
    world.engine_holds(*keys)
    reading = a.begin_get(*keys)
    reading.send()
    former.void()
    page = open_page(world)
    a.state.detach(world.now)
    a.state.attach(page, world.now)
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert not a.state.entries and not page.table and not former.table


def test_a_value_that_the_host_cache_does_not_take_is_kept_by_the_process() -> None:
    world = World()
    page, (a,) = host(world, "a")
    page.full = True
    world.engine_holds("k", "l", "m")
    a.get("k")
    a.begin_get("l", "m").finish()
    assert set(a.state.entries) == {"k", "l", "m"}
    assert a.hit("l") == b"v"


def test_what_is_set_is_there_for_the_others() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.set("k", b"1")
    assert b.hit("k") == b"1"
    b.set("k", b"2", replace=True)
    assert a.hit("k") == b.hit("k") == b"2"
    a.delete("k")
    assert a.hit("k") is None and b.hit("k") is None


def test_a_large_value_follows_the_words_too() -> None:
    world = World()
    page, (a,) = host(world, "a")
    found, mapped = large(world)
    entry = a.state.fill(a.state.membership, "k", found, mapped)
    assert entry is not None and entry.bucket == page.vector.bucket("k")
    assert not a.state.drop_dead(entry)
    page.note("k", 4)
    assert a.hit("k") is None
    assert a.state.drop_dead(entry), "its file must not be kept"
    assert not a.state.cache.shared and not a.state.entries
    assert a.state.fill(a.state.membership, "k", found, mapped) is None
    a.tick()
    assert a.given_up == [found.stored.token]


# ---- the look at the host cache that takes no lock --------------------------------------------


def look(state: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do what ``Node._find_on_host`` does, with the reader in Python."""
    monkeypatch.setattr(clock, "now_ns", lambda: lease_word(world.now))
    membership, page = state.membership, state.page
    if membership.words is not page.vector.words:
        return None
    reader = object.__new__(PureHostReader)
    reader._hashed, reader._find = page.vector.hashed, page.find
    return reader.read(with_words(membership, page), "k")


@pytest.mark.parametrize(("word", "valid"), [(4, True), (5, True), (6, False)])
def test_a_look_at_the_host_cache_compares_the_word(
    word: int, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k", 5)
    page.note("k", word)
    found = look(a.state, world, monkeypatch)
    assert (found == (page.vector.hashed("k"), page.table["k"])) is valid


@pytest.mark.parametrize("where", ["table", "word"])
@pytest.mark.parametrize("renewed", [False, True])
def test_a_look_at_the_host_cache_notes_the_lease_first_and_reads_the_clock_last(
    where: str, renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between the lease ends; the key may be deleted then, and the page may be renewed."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")

    def interrupted() -> None:
        page.lapse()
        if renewed:
            page.silent = False
            page.renew(world.now + LEASE)

    if where == "table":
        page.found = interrupted
    else:
        page.slow(interrupted)
    state = SimpleNamespace(membership=with_words(a.state.membership, page), page=page)
    assert look(state, world, monkeypatch) is None


def with_words(membership: Any, page: HostPage) -> PureMembership:
    """The same membership, whose words are those of the page, in Python."""
    changed = PureMembership(membership.entries, page.vector.words, page.lease_word)
    changed.epoch, changed.session = membership.epoch, membership.session
    return changed


@pytest.mark.parametrize("which", [0, 1])
def test_a_look_at_the_host_cache_in_the_middle_of_a_switch_finds_nothing(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of one session with the lease of another."""
    world = World()
    former, (a,) = host(world, "a")
    old = a.state.membership
    page = open_page(world)
    a.state.attach(page, world.now)
    former.lease_word[0] = page.lease_word[0]
    for each in (former, page):
        stored(each, "k")
    mixed = [(old, page), (a.state.membership, former)][which]
    assert look(SimpleNamespace(membership=mixed[0], page=mixed[1]), world, monkeypatch) is None
    assert look(a.state, world, monkeypatch) is not None


def test_a_child_looks_at_the_host_cache_like_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    page, a = parent_with_entries(world)
    stored(page, "k")
    child = world.member("child", looking=True)
    again = HostPage(world, page.session, page.vector.buckets)
    again.vector.words = page.vector.words[:]  # the same words, by another view
    again.lease_word, again.table = page.lease_word, page.table
    child.state.inherit(again, a.state.membership, world.now)
    assert look(child.state, world, monkeypatch) is not None

"""Ctrl-C in the middle of a change of memberships, between any two instructions of Python.

A program may catch KeyboardInterrupt, and go on with its Node.
"""

from __future__ import annotations

import pytest

from dstore.client.hits import find
from dstore.core.local import cache, entries
from dstore.core.local import state as state_module
from dstore.core.local.membership import LEASE_MAX, Entry
from dstore.protocol.clusters import mark
from dstore.protocol.messages import NO_SESSION, Refusal, Refused
from tests.unit.core.sharing import open_page, process
from tests.unit.core.test_clusters import OTHER, OURS, in_cluster
from tests.unit.core.world import LEASE, Member, World
from tests.unit.test_index import between, interrupt

MODULES = cache, entries, state_module
STEPS_MAX = 10_000


def test_what_is_stored_in_the_middle_is_no_hit_of_the_former_membership() -> None:
    """The page that was given up may have a lease for long, and learns nothing of such an entry."""
    for step in range(1, STEPS_MAX):
        world = World()
        page = open_page(world)
        page.lease_word[0] = LEASE_MAX  # of the clock of a hit
        a = process(world, "a")
        index: dict[str, Entry] = {}
        a.state.join_index(index)
        try:
            if not between(step, lambda: a.state.detach(world.now), interrupt, *MODULES):  # noqa: B023
                break
        except KeyboardInterrupt:
            pass
        a.state.fill_small(a.state.membership, "k", 1, bytes(16), "bytes", b"v")
        found = find(a.state, "k", index)
        assert found is None or find(a.state, "k") is found
    assert step > 50


def refuse(member: Member) -> None:
    """Global does not know the session of the page any more."""
    world, state = member.world, member.state
    refused = Refused(state.epoch, state.session, 1, Refusal.UNKNOWN_SESSION, "")
    state.refused(refused, world.now)


def test_a_page_that_was_half_given_up_is_given_up() -> None:
    """Else requests would go on in its session, and be refused again and again."""
    for step in range(1, STEPS_MAX, 3):
        world = World()
        open_page(world)
        a = process(world, "a")
        world.state.close_host(world.now)
        world.page = None
        try:
            if not between(step, lambda: refuse(a), interrupt, *MODULES):  # noqa: B023
                break
        except KeyboardInterrupt:
            pass
        world.live(2 * LEASE, 0.2)
        assert a.state.page is not None or a.state.joined is a.state.membership
        assert a.get("k") is None
    assert step > 50


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_a_change_of_the_cluster_is_made_to_its_end_before_the_next_call(shared: bool) -> None:
    """Else a session at a Global of another cluster would go on, and take writes."""
    for step in range(1, STEPS_MAX):
        world = in_cluster(OTHER)
        if shared:
            open_page(world)
        a = process(world, "a")
        world.settle()
        a.state.want_writer(world.now)
        world.settle()
        assert a.state.session
        assert a.state.writer.session
        try:
            if not between(step, lambda: a.state.belong(OURS, world.now), interrupt, *MODULES):  # noqa: B023
                break
        except KeyboardInterrupt:
            pass
        if a.state.cluster != OURS:  # as a Node looks before each call
            a.state.belong(OURS, world.now)
        assert (a.state.session, a.state.writer.session) == (NO_SESSION, NO_SESSION)
        assert a.state.addressee == (mark(OURS), NO_SESSION)
    assert step > 50

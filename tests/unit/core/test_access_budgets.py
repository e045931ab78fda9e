"""One identity takes only a part of each budget."""

from __future__ import annotations

import pytest

from dstore.config import PEER_SHARE, share_of
from dstore.core.authority import stages
from dstore.protocol.messages import NO_SESSION, Hello, Refusal, Stage, Staged, Wait, Welcome
from tests.unit.core.identities import ask, hello, large, writer
from tests.unit.core.test_strangers import BODY
from tests.unit.core.world import World


def test_one_identity_takes_a_part_of_the_sessions_and_leaves_the_rest_to_others() -> None:
    world = World()
    most = world.state._memberships.max_clients = 8
    greedy, other = writer("greedy"), writer("other")
    for number in range(share_of(most)):
        message = Hello(world.random16(), 0, 0, "g")
        assert isinstance(ask(world, greedy, message, b"%d" % number), Welcome)
    refused = ask(world, greedy, Hello(world.random16(), 0, 0, "g"), b"last")
    assert (refused.refusal, "as many as one identity" in refused.text) == (Refusal.BUSY, True)
    assert isinstance(ask(world, other, Hello(world.random16(), 0, 0, "o"), b"o"), Welcome)


def test_one_identity_with_many_sessions_does_not_take_a_whole_budget() -> None:
    world, greedy, other = World(), writer("greedy"), writer("other")
    waits = world.state._sessions.waits
    waits.total, waits.share, waits.assured = 40_000, 40_000, 2_000
    sessions = [hello(world, greedy).session for _ in range(5)] + [NO_SESSION]
    refused = 0
    for number in range(60):
        asked = world.epoch, sessions[number % 6], number
        refused += ask(world, greedy, Wait(*asked, f"k{number}", 50.0)) is not None
    assert refused
    assert waits.taken <= PEER_SHARE * waits.total
    last = hello(world, greedy)
    few = (0, 0, 0)
    for ident in (last.session, hello(world, other).session, hello(world, other).session):
        taken = 0
        while (
            ask(
                world,
                greedy if ident == last.session else other,
                Wait(world.epoch, ident, taken, f"w{taken}", 50.0),
            )
            is None
        ):
            taken += 1
        few = (*few[1:], taken)
    assert few[0] >= 1  # what is assured to each session
    assert few[1] > few[0]  # and what one identity leaves to others


def test_uploads_of_one_identity_leave_room_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "UPLOADS_MAX", 8)
    world, greedy, other = World(), writer("greedy"), writer("other")
    for number in range(7):
        session = hello(world, greedy).session
        staged = ask(world, greedy, Stage(world.epoch, session, number, large(world), 0, BODY[:1]))
        assert isinstance(staged, Staged) == (number < share_of(8)), staged
    assert staged.refusal is Refusal.BUSY
    session = hello(world, other).session
    assert isinstance(
        ask(world, other, Stage(world.epoch, session, 1, large(world), 0, BODY[:1])), Staged
    )


def test_uploads_of_one_identity_reserve_a_part_of_the_memory() -> None:
    world, greedy, other = World(limit=4_000), writer("greedy"), writer("other")
    answers = []
    for number in range(5):
        session = hello(world, greedy).session
        stored = large(world, bytes(800))
        stage = Stage(world.epoch, session, number, stored, 0, b"\0")
        answers.append(ask(world, greedy, stage))
    assert [isinstance(each, Staged) for each in answers] == [True] * 3 + [False] * 2
    session = hello(world, other).session
    stage = Stage(world.epoch, session, 1, large(world, bytes(800)), 0, b"\0")
    assert isinstance(ask(world, other, stage), Staged)

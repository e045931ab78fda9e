"""FETCHes of parts that have to be loaded: bounded, in turns, in order, never of another value."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.config import LOADS_BYTES_SHARE
from dstore.core.authority.fetches import PARTS_LOADING_MAX
from dstore.core.authority.identity import Identity, Role
from dstore.core.engine import Loaded, Unloaded
from dstore.protocol.messages import Chunk, Fetch, Get, Refusal, Refused, Stage, Stored
from tests.unit.core.large_values import BODY, bound, large
from tests.unit.core.world import Member, World

pytestmark = pytest.mark.at_once


class Place:
    """What makes the large values of a World be somewhere else, as long as ``away`` is set."""

    def __init__(self, world: World) -> None:
        self.away = True
        self._read, world.bulk.read = world.bulk.read, self.read  # type: ignore[method-assign]

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        found = self._read(token, offset, count)
        if found and self.away:
            raise Unloaded(len(found))
        return found


def world_of(*names: str) -> tuple[World, list[Member], Stored, Place]:
    """A World with some Locals, and the large value of "k", which is away."""
    world = World(away=True)
    members = world.joined(*names)
    stored = bound(members[0])
    return world, members, stored, Place(world)


def fetch(
    world: World, member: Member, stored: Stored, offset: int, length: int = 3, number: int = 1
) -> bytes:
    """Deliver a FETCH, over a connection that is named after the member. Returns its route."""
    route = f"of {member.name}".encode()
    message = Fetch(world.epoch, member.state.session, number, "k", stored.token, offset, length)
    world.deliver(route, message)
    return route


def said(world: World, route: bytes) -> list[Any]:
    """Take what was sent to a connection."""
    return list(world.inboxes.pop(route, ()))


def load(world: World, *results: Loaded) -> tuple[int, int]:
    """End the oldest load, by default with the bytes. Returns which part it was."""
    part = world.loads[0].part
    assert part is not None
    offset, length = part
    world.load(*(results or [BODY[offset : offset + length]]))
    return part


def taken(world: World) -> tuple[int, int]:
    """The parked requests, and the bytes that are charged for them."""
    return len(world.state._fetches), world.state._sessions.loads.taken


def test_a_part_is_answered_when_it_is_loaded_and_others_are_answered_before() -> None:
    world, (a, b), stored, _ = world_of("a", "b")
    route = fetch(world, a, stored, 8)
    assert said(world, route) == []
    assert not world.state.idle
    assert world.state.metrics(world.now)["loading"] == 1
    world.deliver(b"x", Get(world.epoch, b.state.session, 1, ["l"]))
    assert len(said(world, b"x")) == 1
    assert load(world) == (8, 2), "no more than there is"
    (chunk,) = said(world, route)
    assert isinstance(chunk, Chunk)
    assert (chunk.offset, bytes(chunk.data), chunk.token) == (8, BODY[8:], stored.token)
    assert (taken(world), world.state.idle) == ((0, 0), True)
    counters = world.state.counters
    assert (counters["loads"], counters["failed_loads"], counters["chunks_out"]) == (1, 0, 1)


def test_a_repeat_loads_nothing_and_is_answered_where_it_came_from_last() -> None:
    world, (a,), stored, _ = world_of("a")
    first = fetch(world, a, stored, 0)
    again = Fetch(world.epoch, a.state.session, 1, "k", stored.token, 0, 3)
    world.deliver(b"y", again)
    assert len(world.loads) == 1
    load(world)
    assert (said(world, first), len(said(world, b"y"))) == ([], 1)
    world.deliver(b"y", again)
    assert len(world.loads) == 1, "it may have been lost"


def test_few_parts_are_loaded_at_a_time_in_their_order_and_sessions_take_turns() -> None:
    world, (a, b), stored, _ = world_of("a", "b")
    for transfer in range(2 * PARTS_LOADING_MAX):
        for offset in (0, 3):
            fetch(world, a, stored, offset, number=transfer)
    of_a, of_b = b"of a", fetch(world, b, stored, 0, number=500)
    fetch(world, b, stored, 3, number=500)
    assert len(world.loads) == PARTS_LOADING_MAX
    answers: list[tuple[bytes, int, int]] = []
    for turn in range(PARTS_LOADING_MAX + 4):
        load(world)
        assert len(world.loads) == PARTS_LOADING_MAX
        for route in (of_a, of_b):
            answers += [(route, each.request, each.offset) for each in said(world, route)]
        assert len(answers) == turn + 1
    assert [each for each in answers if each[0] == of_b] == [(of_b, 500, 0), (of_b, 500, 3)]
    expected = [(of_a, number // 2, 3 * (number % 2)) for number in range(PARTS_LOADING_MAX + 2)]
    assert [each for each in answers if each[0] == of_a] == expected


def test_a_key_that_has_another_value_by_then_has_nothing_to_fetch() -> None:
    world, (a,), stored, _ = world_of("a")
    route = fetch(world, a, stored, 0)
    world.engine.remove("k", stored.token)
    world.engine.bind("k", large(world))
    load(world)
    assert [each.refusal for each in said(world, route)] == [Refusal.GONE]


def test_bytes_that_are_here_by_then_are_answered_whatever_was_loaded() -> None:
    world, (a,), stored, place = world_of("a")
    route = fetch(world, a, stored, 0)
    place.away = False
    load(world, OSError("gone"))
    assert [bytes(each.data) for each in said(world, route)] == [BODY[:3]]


@pytest.mark.parametrize("result", [OSError("away"), BODY[:2], BODY[:4]], ids=repr)
def test_what_cannot_be_read_at_present_is_not_said_to_be_gone(result: Loaded) -> None:
    world, (a,), stored, _ = world_of("a")
    route = fetch(world, a, stored, 0)
    load(world, result)
    assert (said(world, route), taken(world)) == ([], (0, 0))
    assert world.state.counters["failed_loads"] == 1
    fetch(world, a, stored, 0)
    load(world)
    assert len(said(world, route)) == 1


def test_a_value_that_is_lost_is_gone() -> None:
    world, (a,), stored, _ = world_of("a")
    route = fetch(world, a, stored, 0)
    load(world, LookupError("there is none"))
    assert [each.refusal for each in said(world, route)] == [Refusal.GONE]


def test_a_session_that_has_ended_is_refused_and_pays_until_the_load_has_ended() -> None:
    world, (a,), stored, _ = world_of("a")
    route = fetch(world, a, stored, 0)
    a.state.goodbye(world.now)
    world.settle()
    assert taken(world)[0] == 1 and taken(world)[1] > 0
    load(world)
    assert [each.refusal for each in said(world, route)] == [Refusal.UNKNOWN_SESSION]
    assert taken(world) == (0, 0)


def test_an_identity_that_was_revoked_gets_no_answer() -> None:
    world, _, stored, _ = world_of("a")
    mine = Identity("mine", Role.READ, ())
    (b,) = world.joined("b", identity=mine)
    message = Fetch(world.epoch, b.state.session, 1, "k", stored.token, 0, 3)
    world.deliver(b"x", message, mine)
    world.revoke(mine)
    load(world)
    assert (said(world, b"x"), taken(world)) == ([], (0, 0))


def test_a_request_that_finds_no_room_is_not_answered() -> None:
    world, (a,), stored, _ = world_of("a")
    number = 0
    while taken(world)[0] == number:
        number += 1
        route = fetch(world, a, stored, 0, number=number)
        assert number < 10_000
    assert said(world, route) == []
    assert taken(world)[1] <= LOADS_BYTES_SHARE
    assert len(world.loads) == PARTS_LOADING_MAX


def test_the_end_of_an_epoch_refuses_what_is_parked() -> None:
    world, (a,), stored, _ = world_of("a")
    route = fetch(world, a, stored, 0)
    world._perform(world.state.end())
    (refused,) = said(world, route)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.OTHER_EPOCH


def test_a_late_chunk_of_a_value_that_is_away_starts_no_upload() -> None:
    world, (a,), stored, _ = world_of("a")
    chunk = Stage(world.epoch, a.state.session, 1, stored, 0, BODY[:3])
    world.deliver(b"x", chunk)
    (staged,) = said(world, b"x")
    assert (staged.received, len(world.state._stages)) == (len(BODY), 0)

"""Global's short way for a GET: it answers as the long one does, or leaves the GET to that."""

from __future__ import annotations

import pytest

from dstore.core.authority.effects import Send
from dstore.errors import BadMessage
from dstore.protocol import wire
from dstore.protocol.messages import Get, GetReply, Refused, Stats
from tests.unit.core.world import World


@pytest.mark.at_once
def test_the_short_way_answers_as_the_long_one_and_refuses_nothing_by_itself() -> None:
    world = World()
    (a,) = world.joined("a")
    a.begin_set(("k", b"1"), ("l", b"2")).finish()
    for keys in (["k"], ["missing"], ["k", "missing", "l"]):
        get = Get(a.state.epoch, a.state.session, 7, keys)
        (send,) = world.state.receive(b"route", get, world.now)
        assert isinstance(send, Send) and isinstance(send.message, GetReply)
        assert world.state.read(get, world.now) == send.message
    for epoch, session in ((a.state.epoch + 1, a.state.session), (a.state.epoch, 5)):
        get = Get(epoch, session, 7, ["k"])
        assert world.state.read(get, world.now) is None
        (send,) = world.state.receive(b"route", get, world.now)
        assert isinstance(send, Send) and isinstance(send.message, Refused)


@pytest.mark.at_once
def test_the_short_way_makes_its_reader_a_holder() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"1")
    world.state.read(Get(a.state.epoch, a.state.session, 7, ["k"]), world.now)
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies, "it waits for both"
    world.settle()
    deletion.answer()
    assert deletion.result["k"].confirmed == 2


@pytest.mark.parametrize(
    "keys", [["k"], ["k", "l", "漢"], ["k" * 100], ["k"] * 256], ids=lambda keys: str(len(keys))
)
def test_a_get_is_read_in_few_steps_as_it_is_step_by_step(keys: list[str]) -> None:
    frame = wire.encode(Get(2**63, 2**62, 3, keys))
    assert wire.get_of(frame) == wire.decode_to_global(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"rubbish",
        wire.PREFIX,
        wire.PREFIX + b"\xc1",
        wire.encode(Stats(1, 2, 3)),
        wire.encode(Get(1, 2, 3, [])),
        wire.encode(Get(1, 2, 3, [""])),
        wire.encode(Get(1, 2, 3, ["k" * 512])),
        wire.encode(Get(1, 2, 3, ["k"] * 10_001)),
        wire.encode(Get(-1, 2, 3, ["k"])),
        wire.encode(Get(1, -2, 3, ["k"])),
        wire.encode(Get(1, 2, -3, ["k"])),
        wire.encode(Get(True, 2, 3, ["k"])),
        wire.encode(Get(1, 2.0, 3, ["k"])),  # type: ignore[arg-type]
        wire.encode(Get(1, 2, 3, {"k": 1})),  # type: ignore[arg-type]
        wire.PREFIX + b"\x95\xcb\x40\x14\0\0\0\0\0\0\1\2\3\x91\xa1k",  # 5.0 in place of 5
        wire.encode(Get(1, 2, 3, [b"k"])),  # type: ignore[list-item]
        wire.encode(Get(1, 2, 3, "k")),  # type: ignore[arg-type]
        wire.encode(Get(1, 2, 3, ["k"])) + b"\0",
        wire.encode(Get(1, 2, 3, ["k"]))[:-1],
        b"dS\x05" + wire.encode(Get(1, 2, 3, ["k"]))[3:],
    ],
)
def test_a_frame_that_is_not_a_usual_get_is_left_to_the_decoder(frame: bytes) -> None:
    assert wire.get_of(frame) is None
    if frame != wire.encode(Stats(1, 2, 3)):
        with pytest.raises(BadMessage):
            wire.decode_to_global(frame)

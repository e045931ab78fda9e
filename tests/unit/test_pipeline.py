"""The pipeline of requests: what counts as in flight, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dstore.client.commands import DirectCommand
from dstore.client.hosts import pipeline as pipeline_module
from dstore.client.hosts.calls import LoopCall
from dstore.client.hosts.core import Host
from dstore.client.hosts.pipeline import Pipeline
from dstore.client.settings import Settings
from dstore.core.local.operations import PLAIN, GetOne
from dstore.core.local.steps import Request
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import Get


class Line:
    """A socket that takes everything; ``sent`` are the frames."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, frame: bytes) -> bool:
        self.sent.append(frame)
        return True


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pipeline, Line]]:
    host = Host(Settings(host="off", cache_bytes=0, shm=""), "", False)
    made, line = Pipeline(host), Line()
    monkeypatch.setattr(made, "_requests", line)
    yield made, line
    host.large.close()


def unexpected(_: LoopCall, error: GlobalUnavailable) -> None:
    raise error


def call() -> LoopCall:
    command = DirectCommand(lambda state, until: GetOne(state, "k", until, PLAIN), 1.0, len, ("k",))
    return LoopCall(command, lambda: None)


def request(number: int) -> Request:
    return Request(Get(1, 1, number, ["k"]), 0.0)


def test_bytes_stay_in_flight_until_the_request_is_answered(
    pipeline: tuple[Pipeline, Line],
) -> None:
    pipe, line = pipeline
    sender, message = call(), request(1)
    pipe.add(sender, message)
    pipe.send(unexpected)
    size = len(line.sent[0])
    for copies in (2, 3):  # its time is up, and it is sent again
        pipe.pause(sender)
        assert (pipe.bytes_in_flight, pipe.reads) == (size, 1)
        pipe.add(sender, message)
        pipe.send(unexpected)
        assert len(line.sent) == copies
        assert (pipe.bytes_in_flight, pipe.reads) == (size, 1)
    pipe.remove(sender)
    assert (pipe.bytes_in_flight, pipe.reads) == (0, 0)


def test_another_request_of_the_sender_ends_the_count_of_the_first(
    pipeline: tuple[Pipeline, Line],
) -> None:
    pipe, _ = pipeline
    sender = call()
    pipe.add(sender, request(1))
    pipe.send(unexpected)
    pipe.pause(sender)
    pipe.add(sender, request(2))
    assert (pipe.bytes_in_flight, pipe.reads) == (0, 0)
    pipe.send(unexpected)
    assert pipe.reads == 1


def test_repeats_are_sent_when_there_is_no_room_for_others(
    pipeline: tuple[Pipeline, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else requests that were lost with a connection would keep the line full for ever."""
    monkeypatch.setattr(pipeline_module, "IN_FLIGHT_BYTES_MAX", 1)
    pipe, line = pipeline
    first, other = call(), call()
    pipe.add(first, request(1))
    pipe.add(other, request(2))
    pipe.send(unexpected)
    assert len(line.sent) == 1
    pipe.pause(first)
    pipe.add(first, request(1))
    pipe.send(unexpected)
    assert len(line.sent) == 2
    assert line.sent[0] == line.sent[1]
    pipe.remove(first)
    pipe.send(unexpected)
    assert len(line.sent) == 3

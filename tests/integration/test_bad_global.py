"""A Node that meets a Global which is broken, foreign or malicious."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dstore
from dstore.protocol import wire
from dstore.protocol.messages import (
    Ack,
    Broadcast,
    Del,
    DelReply,
    ExpireReply,
    Farewell,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Key,
    ScanReply,
    Set,
    SetReply,
    Stored,
    Sync,
    Synced,
    ToGlobal,
    ToLocal,
    Welcome,
)
from dstore.server.engines.memory import MemoryEngine
from dstore.transport.router import Router
from tests.integration.processes import PATIENCE

EPOCH, SESSION, SECRET = 11, 1, 2


class FakeGlobal:
    """Answers HELLO and SYNC as it should, and the rest as the test says.

    ``publish_first``: frames that are published before each answer.
    """

    def __init__(self, answer: Callable[[Any], ToLocal | bytes | None]) -> None:
        self._router = Router("tcp://127.0.0.1:0", None)
        self.address = self._router.address
        self.noise: list[bytes] = []
        self._answer = answer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._done.is_set():
            if frames := self._router.receive(PATIENCE):
                for frame in self.noise:
                    self._router.publish(frame)
                    self._router.send(frames[0], frame)
                answer = self._reply(wire.decode_to_global(frames[1]))
                if answer is not None:
                    frame = answer if isinstance(answer, bytes) else wire.encode(answer)
                    self._router.send(frames[0], frame)

    def _reply(self, message: ToGlobal) -> ToLocal | bytes | None:
        if isinstance(message, Hello):
            publisher = self._router.advertised
            return Welcome(EPOCH, SESSION, message.nonce, 0, 1.0, publisher, 1000, 1000, SECRET)
        if isinstance(message, Sync):
            return Synced(EPOCH, SESSION, message.serial, message.applied, 0, [])
        if isinstance(message, Ack):
            return None
        if isinstance(message, Goodbye):
            return Farewell(EPOCH, SECRET)
        return self._answer(message)

    def close(self) -> None:
        self._done.set()
        self._router.wake()
        self._thread.join()
        self._router.close()


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeGlobal]]:
    made: list[FakeGlobal] = []

    def make(answer: Callable[[Any], ToLocal | bytes | None]) -> FakeGlobal:
        made.append(FakeGlobal(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


def one_value(message: Get) -> GetReply:
    return GetReply.of((EPOCH, SESSION, message.request), 0, [None] * len(message.keys))


def test_garbage_from_global_is_dropped_and_counted(fake: Callable[..., FakeGlobal]) -> None:
    running = fake(one_value)
    running.noise = [
        b"",
        b"garbage",
        b"dS\x09other version",
        wire.encode(Hello(bytes(16), 0, 0, "a request")),
        wire.encode(Broadcast(EPOCH + 1, 1, ["k"], True)),
        wire.encode(Synced(EPOCH, SESSION + 1, 0, 0, 99, None)),
        wire.encode(ScanReply(EPOCH, SESSION, 10**9, [], "")),
    ]
    with dstore.Node(running.address) as node:
        assert node.get("k", None) is None
        assert node.stats()["malformed"] >= 4
        assert node.stats()["applied"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        lambda message: GetReply.of((EPOCH, SESSION, message.request), 0, []),
        lambda message: ScanReply(EPOCH, SESSION, message.request, [], ""),
        lambda message: SetReply(EPOCH, SESSION, message.request, []),
        lambda message: DelReply(EPOCH, SESSION, message.request, []),
        lambda message: ExpireReply(EPOCH, SESSION, message.request, []),
    ],
)
def test_a_reply_that_does_not_fit_is_refused(
    fake: Callable[..., FakeGlobal], answer: Callable[[Any], ToLocal]
) -> None:
    running = fake(answer)
    with dstore.Node(running.address, timeout=PATIENCE) as node:
        for call in (
            lambda: node.get("k"),
            lambda: node.set("k", 1),
            lambda: node.delete("k"),
            lambda: node.expire("k", 1),
            lambda: node.persist("k"),
            lambda: node.ttl("k"),
            node.global_stats,
        ):
            with pytest.raises((dstore.RequestRefused, dstore.OutcomeUnknown)):
                call()


def test_a_global_that_never_answers_is_unavailable_or_leaves_the_outcome_unknown(
    fake: Callable[..., FakeGlobal],
) -> None:
    asked: list[Any] = []
    running = fake(lambda message: asked.append(message))
    with dstore.Node(running.address, timeout=0.6) as node:
        with pytest.raises(dstore.GlobalUnavailable):
            node.get("k")
        with pytest.raises(dstore.OutcomeUnknown):
            node.set("k", 1)
    gets = [message for message in asked if isinstance(message, Get)]
    sets = [message for message in asked if isinstance(message, Set)]
    assert len(gets) > 1, "it was sent again before its deadline"
    assert gets == [gets[0]] * len(gets)
    assert sets == [sets[0]] * len(sets)
    assert not any(isinstance(message, Del) for message in asked)


class Tampering(MemoryEngine):
    """Hands out something else than it was given."""

    def read(self, key: Key) -> Stored | None:
        stored = super().read(key)
        if stored is None:
            return None
        assert isinstance(stored.body, bytes)
        return stored._replace(body=stored.body + b"!")


def test_a_value_that_does_not_hash_to_its_address_is_refused_and_not_cached() -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", engine=Tampering()) as running,
        dstore.Node(running.address) as writer,
        dstore.Node(running.address) as reader,
    ):
        uid = writer.put(b"content")
        for call in (reader.get, reader.lookup, reader.wait, lambda uid: reader.get_many([uid])):
            with pytest.raises(dstore.ValueCorrupt):
                call(uid)
        with pytest.raises(dstore.ValueCorrupt):
            reader.put(b"content")
        assert reader.stats()["keys"] == 0


def test_a_value_of_an_unknown_codec_is_refused_by_name() -> None:
    class Foreign(MemoryEngine):
        def read(self, key: Key) -> Stored | None:
            stored = super().read(key)
            return stored._replace(codec="pickle") if stored else None

    with (
        dstore.Global("tcp://127.0.0.1:0", engine=Foreign()) as running,
        dstore.Node(running.address) as writer,
        dstore.Node(running.address) as reader,
    ):
        writer.set("k", [1])
        for _ in range(2):  # from Global, then from the cache
            with pytest.raises(dstore.UnknownCodec, match="'pickle'"):
                reader.get("k")


def test_a_node_may_be_closed_from_its_own_callback(free_global: dstore.Global) -> None:
    closed = threading.Event()

    def close(key: Any) -> None:
        node.close()
        closed.set()

    node = dstore.Node(free_global.address, on_deletion=close)
    with dstore.Node(free_global.address) as other:
        node.set("k", 1)
        assert other.delete("k").confirmed == 1
        assert closed.wait(PATIENCE)
        with pytest.raises(dstore.NodeClosed):
            node.get("k")

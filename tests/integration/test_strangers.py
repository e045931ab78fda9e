"""Peers that follow no rules, against a real Global: sessions of others, and too many of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import dstore
from dstore.protocol import wire
from dstore.protocol.messages import (
    Ack,
    Farewell,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Refusal,
    Refused,
    Sync,
    Welcome,
)
from tests.integration.processes import RawClient

GUESSES = 200


def joined(client: RawClient) -> int:
    client.join()
    return client.session


def test_a_stranger_cannot_acknowledge_or_say_goodbye_for_others(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    writer, looker = node(), node()
    writer.set("k", "v")
    with RawClient(free_global.address) as deaf, RawClient(free_global.address) as stranger:
        deaf.join()
        assert isinstance(deaf.ask(Get(deaf.epoch, deaf.session, 1, ["k"])), GetReply)
        deletions: list[dstore.Deletion] = []
        deleting = threading.Thread(target=lambda: deletions.append(writer.delete("k")))
        deleting.start()
        try:
            while not looker.global_stats()["pending"]:
                pass
            own = joined(stranger)
            for guess in (*range(1, GUESSES), own - 1, own + 1, (1 << 63) - 1):
                for message in (
                    Ack(stranger.epoch, guess, 1),
                    Sync(stranger.epoch, guess, 1, 1, 99),
                    Get(stranger.epoch, guess, 1, ["k"]),
                ):
                    refused = stranger.ask(message)
                    assert isinstance(refused, Refused)
                    assert refused.refusal is Refusal.UNKNOWN_SESSION
                farewell = stranger.ask(Goodbye(stranger.epoch, guess))
                assert isinstance(farewell, Farewell)
            known = deaf.session  # with the id alone it asks, and ends nothing
            for message in (Ack(deaf.epoch, known, 1), Sync(deaf.epoch, known, 1, 1, 99)):
                refused = stranger.ask(message)
                assert isinstance(refused, Refused)
                assert refused.refusal is Refusal.UNKNOWN_SESSION
            stranger.ask(Goodbye(deaf.epoch, known))
            stranger.ask(Hello(os.urandom(16), deaf.epoch, known, ""))
            assert isinstance(stranger.ask(Get(deaf.epoch, known, 1, ["k"])), GetReply)
        finally:
            deleting.join()
    assert deletions == [dstore.Deletion(confirmed=1, expired=1, pending=0)]


def test_ids_and_secrets_are_random_and_those_of_others_are_not_shown(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    looker = node()
    metrics = looker.global_stats()
    ids = []
    for _ in range(20):
        with RawClient(free_global.address) as client:
            ids += [joined(client), client.secret]
            metrics = looker.global_stats()
            assert not any(str(each) in repr(metrics) for each in ids)
    assert len(set(ids)) == 40
    assert max(ids) - min(ids) > 1 << 50
    assert all(1 <= each < 1 << 63 for each in ids)
    assert {"max_clients", "holder_bytes", "write_bytes", "wait_bytes"} < set(metrics)
    own = looker.stats()["session"]
    assert own != looker._state.session != 0
    assert own == looker.stats()["session"] != node().stats()["session"]


def test_a_node_that_finds_no_place_says_so_and_joins_when_there_is_one(
    node: Callable[..., dstore.Node],
) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", max_clients=2) as small,
        dstore.Node(small.address) as first,
        dstore.Node(small.address) as second,
    ):
        first.set("k", "v")
        assert second.get("k") == "v"
        with dstore.Node(small.address, timeout=0.3) as third:
            with pytest.raises(dstore.GlobalUnavailable, match=r"2 Locals are here.*max-clients"):
                third.get("k")
            second.close()
            third.timeout = 10.0
            assert third.get("k") == "v"


def test_one_connection_opens_few_sessions(free_global: dstore.Global) -> None:
    with RawClient(free_global.address) as greedy:
        answers = [greedy.ask(Hello(os.urandom(16), 0, 0, "")) for _ in range(20)]
        told = [type(answer) for answer in answers]
        assert told == [Welcome] * 6 + [Refused] * 14
        greedy.socket.send(wire.encode(Goodbye(answers[0].epoch, answers[0].secret)))  # type: ignore[union-attr]
        assert isinstance(greedy.receive(), Farewell)
        assert isinstance(greedy.ask(Hello(os.urandom(16), 0, 0, "")), Welcome)

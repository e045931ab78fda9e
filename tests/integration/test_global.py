"""``dstore.Global``: bad input from anybody, and how it begins and ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore import config
from dstore.config import FRAME_BYTES_MAX
from dstore.protocol import wire
from dstore.protocol.messages import (
    Get,
    GetReply,
    Refusal,
    Refused,
    Set,
    SetItem,
    SetReply,
    SetStatus,
    Stats,
    Stored,
)
from dstore.transport.router import Router
from tests.integration.processes import PATIENCE, GlobalProcess, RawClient, Worker, free_port

MakeNode = Callable[..., dstore.Node]


@pytest.fixture
def raw(free_global: dstore.Global) -> Iterator[RawClient]:
    with RawClient(free_global.address) as client:
        yield client


def refused(client: RawClient, *frames: bytes) -> Refused:
    client.socket.send_multipart(frames)
    answer = client.receive()
    assert isinstance(answer, Refused)
    return answer


def test_foreign_frames_are_refused_counted_and_do_no_harm(
    raw: RawClient, node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = node()
    one.set("k", "v")
    with caplog.at_level(logging.WARNING, "dstore.global"):
        assert refused(raw, b"GET / HTTP/1.1").refusal is Refusal.BAD_MESSAGE
        assert refused(raw, b"").refusal is Refusal.BAD_MESSAGE
        assert refused(raw, b"", b"as REQ would").refusal is Refusal.BAD_MESSAGE
        assert refused(raw, b"dS\xffwhatever").refusal is Refusal.OTHER_VERSION
        assert refused(raw, wire.PREFIX + b"\x91\x63").refusal is Refusal.BAD_MESSAGE
        assert refused(raw, wire.encode(Get(1, 1, 1, ["k"]))[:-1]).refusal is Refusal.BAD_MESSAGE
        for _ in range(200):
            refused(raw, os.urandom(50))
    assert len(caplog.records) <= 3, "log lines are limited in rate"
    assert one.global_stats()["malformed"] == 206
    assert one.get("k") == "v"


def test_a_malformed_request_is_answered_under_its_number(raw: RawClient) -> None:
    raw.join()
    answer = refused(raw, wire.encode(Get(raw.epoch, raw.session, 77, [""])))
    assert (answer.epoch, answer.session, answer.request) == (raw.epoch, raw.session, 77)
    assert "key" in answer.text


def test_a_message_of_another_epoch_or_session_is_refused(raw: RawClient) -> None:
    raw.join()
    answer = raw.ask(Get(raw.epoch + 1, raw.session, 1, ["k"]))
    assert isinstance(answer, Refused)
    assert answer.refusal is Refusal.OTHER_EPOCH
    answer = raw.ask(Get(raw.epoch, raw.session + 1, 1, ["k"]))
    assert isinstance(answer, Refused)
    assert answer.refusal is Refusal.UNKNOWN_SESSION


def test_a_value_above_the_limit_is_refused_from_every_sender(raw: RawClient) -> None:
    raw.join()
    stored = Stored(bytes(16), "bytes", bytes(config.INLINE_BYTES_MAX + 1))
    items = [SetItem("k", stored)]
    answer = raw.ask(Set(raw.epoch, raw.session, 1, 1, 0, False, items))
    assert isinstance(answer, SetReply)
    assert answer.items[0].status is SetStatus.TOO_LARGE


def test_a_frame_of_absurd_size_cuts_off_its_sender_alone(
    free_global: dstore.Global, node: MakeNode
) -> None:
    one = node()
    one.set("k", "v")
    with RawClient(free_global.address) as huge:
        monitor = huge.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        huge.socket.send(bytes(FRAME_BYTES_MAX + 1))
        assert monitor.poll(int(1000 * PATIENCE))
        huge.socket.disable_monitor()
        monitor.close()
    assert one.get("k") == "v"


def test_a_plain_tcp_connection_with_garbage_does_no_harm(
    free_global: dstore.Global, node: MakeNode
) -> None:
    one = node()
    for address in (free_global.address, free_global.publisher):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(1000))
    one.set("k", "v")
    assert one.delete("k").confirmed == 1


def test_a_reader_that_goes_away_in_the_middle_does_no_harm(
    free_global: dstore.Global, node: MakeNode
) -> None:
    one = node()
    one.set("k", bytes(1 << 20))
    for _ in range(20):
        with RawClient(free_global.address) as hasty:
            hasty.join()
            hasty.socket.send(wire.encode(Get(hasty.epoch, hasty.session, 1, ["k"])))
    with RawClient(free_global.address) as patient:
        patient.join()
        assert isinstance(patient.ask(Get(patient.epoch, patient.session, 1, ["k"])), GetReply)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_an_address_in_use_is_refused(scheme: str, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/g"
    with dstore.Global(address) as first:
        with pytest.raises(dstore.AddressError, match="in use"):
            dstore.Global(first.address).start()
        with dstore.Node(first.address) as node:
            node.set("k", "v")


def test_a_publisher_address_in_use_is_refused_and_the_first_port_is_free_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        publisher = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        unlucky = dstore.Global("tcp://127.0.0.1:0", publisher=publisher)
        with pytest.raises(dstore.AddressError, match=publisher):
            unlucky.start()


@pytest.mark.parametrize(
    "address", ["nonsense", "tcp://127.0.0.1:70000", "tcp://300.0.0.1:5", "ipc:///no/such/folder/s"]
)
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(dstore.AddressError):
        dstore.Global(address).start()


@pytest.mark.parametrize(
    "options", [{"lease": 0}, {"log_length": 0}, {"memory_limit": 0}, {"max_clients": 0}]
)
def test_an_option_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lease|log_length|memory_limit|max_clients"):
        dstore.Global(**options)  # type: ignore[arg-type]


def test_an_address_is_free_again_after_close(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with dstore.Global(address):
        pass
    with dstore.Global(address) as second, dstore.Node(address) as node:
        assert second.address == address
        node.set("k", "v")


def test_a_publisher_of_ones_own_choice(tmp_path: Path) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", publisher=f"ipc://{tmp_path}/pub") as running,
        dstore.Node(running.address) as one,
        dstore.Node(running.address) as two,
    ):
        one.set("k", "v")
        two.get("k")
        assert one.delete("k") == dstore.Deletion(2, 0, 0)


def test_locals_find_the_publisher_of_a_global_that_listens_everywhere() -> None:
    with dstore.Global("tcp://*:0", insecure=True) as running:
        address = running.address.replace("*", "127.0.0.1")
        with dstore.Node(address) as one, dstore.Node(address) as two:
            one.set("k", "v")
            two.get("k")
            assert one.delete("k") == dstore.Deletion(2, 0, 0)


def test_what_is_outstanding_is_answered_before_global_ends() -> None:
    """A deletion waits for a worker that is stopped; SIGTERM comes meanwhile."""
    with (
        GlobalProcess(lease=1.0) as served,
        dstore.Node(served.address) as node,
        Worker(served.address) as worker,
    ):
        node.set("k", "v")
        worker.call("get", "k")
        worker.signal(signal.SIGSTOP)
        results: list[object] = []
        waiting = threading.Thread(target=lambda: results.append(node.delete("k")))
        waiting.start()
        while node.global_stats()["pending"] < 1:
            pass
        assert served.stop() == 0
        waiting.join(PATIENCE)
        assert results == [dstore.Deletion(1, 1, 0)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_global_with_code_0(number: signal.Signals) -> None:
    with GlobalProcess() as served:
        served.signal(number)
        assert served.process.wait(PATIENCE) == 0
        served.start()
        assert served.stop() == 0


def test_a_global_that_was_bound_and_never_ran_gives_its_ports_back() -> None:
    bound = dstore.Global(f"tcp://127.0.0.1:{free_port()}")
    bound.bind()
    bound.close()
    bound.close()
    with dstore.Global(bound.address):
        pass


def test_run_in_a_thread_of_ones_own_is_ended_by_close() -> None:
    served = dstore.Global("tcp://127.0.0.1:0")
    served.bind()
    thread = threading.Thread(target=served.run)
    thread.start()
    with dstore.Node(served.address) as node:
        node.set("k", "v")
    served.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_lease_of_a_whole_number_of_seconds() -> None:
    with dstore.Global("tcp://127.0.0.1:0", lease=2) as served, dstore.Node(served.address) as one:
        one.set("k", "v")


@pytest.mark.parametrize("kind", [Get, Stats])
def test_a_fault_of_ours_does_not_end_the_service(
    kind: type[Get | Stats],
    caplog: pytest.LogCaptureFixture,
    raw: RawClient,
    free_global: dstore.Global,
    node: MakeNode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong over one message, the others are served."""

    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise RuntimeError("a fault")

    one = node()
    one.set("k", "v")
    raw.join()
    loop = free_global._loop
    assert loop is not None
    message = (
        Get(raw.epoch, raw.session, 1, ["k"]) if kind is Get else Stats(raw.epoch, raw.session, 1)
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop.state, "read", fail)
        patch.setitem(loop.state._of_readers, Stats, fail)
        raw.socket.send(wire.encode(message))
        assert failed.wait(PATIENCE)
    one.set("l", "v")  # answered by the same thread, after it has logged
    assert one.get("k") == "v"
    assert "Global goes on" in caplog.text


def test_a_fault_of_a_timer_does_not_end_the_service(
    caplog: pytest.LogCaptureFixture, free_global: dstore.Global, node: MakeNode
) -> None:
    one = node()
    one.join()
    loop = free_global._loop
    assert loop is not None
    failed = threading.Event()

    def fail(now: float) -> None:
        loop.state.tick = tick  # type: ignore[method-assign]
        failed.set()
        raise RuntimeError("a fault")

    tick = loop.state.tick
    loop.state.tick = fail  # type: ignore[method-assign, assignment]
    loop.state.alarm.moment = 0.0
    while not failed.is_set():  # its thread may just have set another time
        loop.state.alarm.moment = 0.0
        one.global_stats()
    one.set("k", "v")  # answered by the same thread, after it has logged
    assert one.get("k") == "v"
    assert "Global goes on" in caplog.text


def test_close_in_the_serving_thread_returns() -> None:
    served = dstore.Global("tcp://127.0.0.1:0")
    served.bind()
    loop = served._loop
    assert loop is not None
    take = loop._take

    def closing(router: Router, *arrived: Any) -> None:
        take(router, *arrived)
        served.close()

    loop._take = closing  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=served.run)
    thread.start()
    with RawClient(served.address) as client:
        client.join()
    thread.join(PATIENCE)
    assert not thread.is_alive()

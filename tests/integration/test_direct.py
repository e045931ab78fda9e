"""The direct path of threads: the same steps as those of the core, and no trace of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

import dstore
from dstore.client.hosts import channels, threads
from dstore.client.hosts.core import Host
from dstore.core.local.operations import Delete, Direct, GetMany, GetOne, Store
from dstore.core.local.steps import Request, StepResult
from dstore.protocol import wire
from dstore.protocol.messages import Chunk, GetReply, SetItem, StatsReply, Stored
from dstore.runtime import clock
from dstore.transport.channel import Channel
from tests.integration.processes import PATIENCE

MakeNode = Callable[..., dstore.Node]
Ask = Callable[[Host, Channel, Request], StepResult]

CALLS: dict[str, Callable[[dstore.Node], Any]] = {
    "get": lambda node: node.lookup("k").value,
    "get_many": lambda node: node.get_many(["k", "l"]),
    "set": lambda node: node.set_many({"m": 1, "n": 2}, replace=True),
    "delete": lambda node: node.delete_many(["k", "l"]),
}
RESULTS = {"get": {1}, "get_many": {"k", "l"}, "set": set(), "delete": {"k", "l"}}
KINDS = {"get": GetOne, "get_many": GetMany, "set": Store, "delete": Delete}
ASK: Ask = channels.ask


def host_of(node: dstore.Node) -> Host:
    assert node._local is not None
    return node._local.host


def called(what: str, node: dstore.Node) -> set[Any]:
    """Make a call, and return the keys of its result, or the value of the one key."""
    result = CALLS[what](node)
    return {result} if what == "get" else set(result)


def left_by_calls(host: Host) -> list[object]:
    return [*host.state.in_flight, *host.state.writer.writing]


@pytest.fixture(params=CALLS)
def what(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def one(node: MakeNode) -> Iterator[dstore.Node]:
    """A Node that has joined; the keys ``k`` and ``l`` have values that it does not cache."""
    other = node()
    other.set_many({"k": 1, "l": 2})
    made = node(timeout=20)
    made.join()
    yield made
    host_of(made).stopping = False  # so that it can be closed


def test_a_call_that_was_answered_leaves_nothing(what: str, one: dstore.Node) -> None:
    assert called(what, one) == RESULTS[what]
    assert left_by_calls(host_of(one)) == []


@pytest.mark.parametrize("late", [False, True])
def test_threads_take_the_steps_of_an_operation_and_hold_the_lock_for_each(
    what: str, late: bool, one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first reply is late: then the call goes on, and ends after that."""
    host, steps = host_of(one), []

    def noted(name: str) -> None:
        method = getattr(KINDS[what], name)

        def noting(self: Direct[Any], *arguments: Any) -> Any:
            assert host.lock._is_owned()  # type: ignore[attr-defined]
            steps.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(KINDS[what], name, noting)

    for name in ("begin", "take", "rest", "end"):
        noted(name)
    if late:
        monkeypatch.setattr(threads, "ask", after(lambda: monkeypatch.setattr(threads, "ask", ASK)))
    CALLS[what](one)
    by_thread, steps[:] = list(steps), []
    made = KINDS[what](host.state, *arguments_of(what))
    with host.lock:
        operation = made.run(clock.now())
        request = next(operation)
        assert isinstance(request, Request)
        operation.close()
    assert steps == ["begin", "end"]
    assert by_thread == ["begin", "take", *(["rest"] if late else []), "end"]
    assert left_by_calls(host) == []


def arguments_of(what: str) -> tuple[Any, ...]:
    from dstore.core.local.operations import PLAIN, Reading

    deadline = clock.now() + 5
    if what == "get":
        return "unknown", deadline, PLAIN
    if what == "get_many":
        return Reading(["unknown", "other"], PLAIN, 5), deadline
    if what == "set":
        return [SetItem("unknown", Stored(bytes(16), "bytes", b""))], False, deadline
    return ["unknown"], True, deadline


def after(do: Callable[[], None], late: bool = True) -> Ask:
    """An ``ask`` that calls a function once there is a reply, which it loses if it is ``late``."""

    def asking(host: Host, channel: Channel, step: Request) -> StepResult:
        result = ASK(host, channel, step)
        assert result.reply is not None
        do()
        return StepResult(0, None, True) if late else result

    return asking


def test_a_request_that_is_repeated_is_not_over(
    what: str, one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Global may forget the outcome of a write below ``seen``, and refuses its repeats."""
    asked: list[Any] = []
    left: list[list[object]] = []

    def asking(host: Host, channel: Channel, step: Request) -> StepResult:
        message: Any = step.message
        asked.append(message)
        left.append(left_by_calls(host))
        assert host.state.writer.seen <= getattr(message, "write", host.state.writer.seen)
        return StepResult(0, None, True) if len(asked) == 1 else ASK(host, channel, step)

    monkeypatch.setattr(threads, "ask", asking)
    assert called(what, one) == RESULTS[what]
    assert asked[0] == asked[1], "a repeat is the same message"
    assert left[0] == left[1] != []
    assert left_by_calls(host_of(one)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, dstore.NodeClosed])
def test_a_call_that_fails_between_its_halves_leaves_nothing(
    what: str,
    error: type[BaseException],
    one: dstore.Node,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = host_of(one)

    def fail() -> None:
        raise error

    monkeypatch.setattr(threads, "ask", after(fail))
    with pytest.raises(error):
        CALLS[what](one)
    monkeypatch.undo()
    assert left_by_calls(host) == []
    assert not host.state.entries
    assert one.get_many(["k"]) == ({} if what == "delete" else {"k": 1})


def test_a_reply_that_comes_when_the_node_is_closed_is_not_taken(
    what: str, one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)

    def stop() -> None:
        host.stopping = True

    monkeypatch.setattr(threads, "ask", after(stop, late=False))
    with pytest.raises(dstore.NodeClosed):
        CALLS[what](one)
    assert left_by_calls(host) == []
    assert not host.state.entries


def test_a_reply_that_comes_after_the_session_is_returned_and_not_stored(
    what: str, one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)

    def rejoin() -> None:
        with host.lock:
            host.state._void(clock.now())
            host.notify()
        monkeypatch.setattr(threads, "ask", ASK)

    monkeypatch.setattr(threads, "ask", after(rejoin, late=False))
    assert called(what, one) == RESULTS[what]
    assert left_by_calls(host) == []
    assert not host.state.entries


def interrupted_at(number: int, patch: pytest.MonkeyPatch, what: str, host: Host) -> list[str]:
    """Raise KeyboardInterrupt at one of the points around the calls that a direct call makes.

    Returns the points that have been passed, as they are passed.
    """
    passed: list[str] = []

    for name in ("begin", "take", "end", "until"):
        around(KINDS[what], name, patch, passed, number)
    for name in ("ask_one", "begin_asking", "end_asking", "fill_small", "fill_many"):
        around(host.state, name, patch, passed, number)
    around(threads, "ask", patch, passed, number)
    around(host.link.channels, "take", patch, passed, number)
    return passed


def around(
    owner: Any, name: str, patch: pytest.MonkeyPatch, passed: list[str], number: int
) -> None:
    """Note the points before and after a function in ``passed``, and interrupt at the given one."""
    function = getattr(owner, name)

    def point(where: str) -> None:
        passed.append(where)
        if len(passed) == number:
            raise KeyboardInterrupt

    def wrapped(*arguments: Any) -> Any:
        point(f"before {name}")
        result = function(*arguments)
        point(f"after {name}")
        return result

    patch.setattr(owner, name, wrapped)


def test_an_interrupt_at_any_point_leaves_nothing(
    what: str, one: dstore.Node, node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, number = host_of(one), 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            passed = interrupted_at(number, patch, what, host)
            try:
                CALLS[what](one)
            except KeyboardInterrupt:
                ended = False
            else:
                ended = True
        assert left_by_calls(host) == [], passed
        if ended:
            break
        with host.lock:
            host.state.cache.clear()
    assert number > 10
    assert one.get_many(["k", "l"]) == ({} if what == "delete" else {"k": 1, "l": 2})


# ---- the plain function of a GET of one key --------------------------------------------------


def exchanging(do: Callable[[], None], arrived: bytes | None = None) -> Callable[..., Any]:
    """An ``exchange`` that calls a function once there is a reply, or returns another frame."""

    def exchange(channel: Channel, frame: bytes) -> bytes | None:
        reply = EXCHANGE(channel, frame)
        assert reply
        do()
        return reply if arrived is None else arrived

    return exchange


EXCHANGE = Channel.exchange


def nothing() -> None:
    """Do nothing."""


def test_a_plain_get_is_answered_and_leaves_nothing(one: dstore.Node) -> None:
    host = host_of(one)
    assert one.get("k") == 1
    assert left_by_calls(host) == []
    assert host.state.entries["k"].value == 1
    assert [each.user for each in host.link.channels._open] == [None]


@pytest.mark.parametrize("error", [KeyboardInterrupt, dstore.NodeClosed])
def test_a_plain_get_that_fails_between_its_halves_leaves_nothing(
    error: type[BaseException], one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)

    def fail() -> None:
        raise error

    monkeypatch.setattr(Channel, "exchange", exchanging(fail))
    with pytest.raises(error):
        one.get("k")
    monkeypatch.undo()
    assert left_by_calls(host) == []
    assert not host.state.entries
    assert not host.link.channels._open, "a reply may still come there"
    assert one.get("k") == 1


def test_the_reply_to_a_plain_get_that_comes_when_the_node_is_closed_is_not_taken(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)

    def stop() -> None:
        host.stopping = True

    monkeypatch.setattr(Channel, "exchange", exchanging(stop))
    with pytest.raises(dstore.NodeClosed):
        one.get("k")
    assert left_by_calls(host) == []
    assert not host.state.entries


def test_the_reply_to_a_plain_get_of_a_former_session_is_returned_and_not_stored(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)

    def rejoin() -> None:
        with host.lock:
            host.state._void(clock.now())
            host.notify()

    monkeypatch.setattr(Channel, "exchange", exchanging(rejoin))
    assert one.get("k") == 1
    assert left_by_calls(host) == []
    assert not host.state.entries


def test_a_plain_get_whose_reply_is_late_waits_for_it_and_asks_once(
    one: dstore.Node, node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sending(channel: Channel, frame: bytes) -> bytes | None:
        channel.send(frame, 1.0)
        return b""

    asked = one.global_stats()["gets"]
    monkeypatch.setattr(Channel, "exchange", sending)
    assert one.get("k") == 1
    assert one.get("k") == 1
    assert one.global_stats()["gets"] == asked + 1
    assert left_by_calls(host_of(one)) == []


def test_a_plain_get_whose_reply_is_lost_is_sent_again_with_its_number(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node(timeout=2.0)
    one.set("k", 1)
    one.delete("k")
    one.set_many({"l": 1})
    other = node()
    other.set("k", 2)
    numbers: list[int] = []

    def asking(host: Host, channel: Channel, step: Request) -> StepResult:
        numbers.append(step.message.request)
        monkeypatch.setattr(Channel, "exchange", EXCHANGE)
        return ASK(host, channel, step)

    monkeypatch.setattr(threads, "ask", asking)
    monkeypatch.setattr(Channel, "exchange", exchanging(nothing, b""))
    assert one.get("k") == 2
    assert numbers == [host_of(one).state.request]
    assert left_by_calls(host_of(one)) == []


def test_a_plain_get_takes_no_reply_of_another_request(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel may have a late reply to an earlier request on it."""
    host = host_of(one)
    old = wire.encode(GetReply(1, 1, 10**6, 0, ["bytes"], bytes(16), [b"old"], []))

    def other_first(channel: Channel, frame: bytes) -> bytes | None:
        channel.send(frame, 1.0)
        return old

    monkeypatch.setattr(Channel, "exchange", other_first)
    assert one.get("k") == 1
    assert left_by_calls(host) == []


def test_a_plain_get_skips_a_frame_that_is_not_a_message(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rubbish_first(channel: Channel, frame: bytes) -> bytes | None:
        channel.send(frame, 1.0)
        return b"rubbish"

    monkeypatch.setattr(Channel, "exchange", rubbish_first)
    assert one.get("k") == 1
    assert one.stats()["malformed"] == 1


def test_what_is_unusual_about_a_plain_get_ends_as_it_does_step_by_step(
    one: dstore.Node, node: MakeNode
) -> None:
    other = node()
    large, wide = bytes(100_000), "漢" * 100
    other.set_many({"large": large, "list": [1, 2], "wide": wide, "漢": 1, "empty": b""})
    assert one.get("missing", 7) == 7
    with pytest.raises(dstore.KeyMissing) as caught:
        one.get("missing")
    assert caught.value.__context__ is None
    assert one.get("large") == large
    assert one.get("list") == [1, 2] and one.get("list") is not one.get("list")
    assert (one.get("wide"), one.get("漢"), one.get("empty")) == (wide, 1, b"")
    key = other.put(b"content")
    assert one.get(key) == b"content"
    assert one.get(b"k") == 1
    assert left_by_calls(host_of(one)) == []
    stats = one.stats()
    assert (stats["hits"], stats["misses"]) == (2, 9)


def test_other_threads_wait_for_a_plain_get(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(one)
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(one.lookup("k")))

    def meanwhile() -> None:
        monkeypatch.setattr(Channel, "exchange", EXCHANGE)
        waiting.start()
        while not host.waiters:
            assert waiting.is_alive()

    monkeypatch.setattr(Channel, "exchange", exchanging(meanwhile))
    assert one.get("k") == 1
    waiting.join()
    assert results == [dstore.Lookup(1, from_local=True, cached=True)]


def test_an_interrupt_at_any_point_of_a_plain_get_leaves_nothing(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, number = host_of(one), 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            passed: list[str] = []
            for owner, name in (
                (host.state, "ask_one"),
                (host.state, "fill_small"),
                (host.link.channels, "take"),
                (host.link.channels, "give_back"),
                (wire, "get_frame"),
                (wire, "value_of"),
                (Channel, "exchange"),
            ):
                around(owner, name, patch, passed, number)
            try:
                assert one.get("k") == 1
            except KeyboardInterrupt:
                ended = False
            else:
                ended = True
        assert left_by_calls(host) == [], passed
        if passed[-1] != "after take":  # what that has left, the next call of the thread closes
            assert all(each.user is None for each in host.link.channels._open), passed
        if ended:
            break
        with host.lock:
            host.state.cache.clear()
    assert number == 15


def test_a_plain_get_stores_no_value_that_must_not_be_cached(
    one: dstore.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is about to be deleted, say; then it has no holders any more."""

    def refused(channel: Channel, frame: bytes) -> bytes | None:
        reply = wire.decode_to_local(EXCHANGE(channel, frame) or b"")
        assert isinstance(reply, GetReply)
        return wire.encode(reply._replace(uncacheable=[0]))

    monkeypatch.setattr(Channel, "exchange", refused)
    assert one.get("k") == 1
    assert not host_of(one).state.entries


def test_a_part_whose_bytes_come_late_is_not_taken_for_a_reply() -> None:
    """Its second frame comes when the channel is used for the next request."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with dstore.Node(f"tcp://127.0.0.1:{port}") as node:
            channel = host_of(node).link.channels.take()
            assert channel.send(b"first", PATIENCE)
            route = _sender_of(router, b"first")
            part, data = wire.encode(Chunk(1, 2, 3, bytes(16), 0, b"bytes")), b"bytes"
            router.send_multipart([route, part])
            while channel._first is None:
                assert channel.receive(0.1) is None
            router.send_multipart([route, data])
            assert channel.exchange(b"second") == b""
            assert _sender_of(router, b"second") == route
            router.send_multipart([route, wire.encode(StatsReply(1, 2, 4, {}))])
            arrived = channel.receive(PATIENCE)
            assert arrived is not None and arrived[1] is not None
            assert (arrived[0], bytes(arrived[1])) == (part, data)
            reply = channel.receive(PATIENCE)
            assert reply is not None and isinstance(wire.decode_to_local(*reply), StatsReply)
            host_of(node).link.channels.give_back(channel)


def _sender_of(router: zmq.Socket[bytes], frame: bytes) -> bytes:
    """Take messages until this one comes, and return who has sent it."""
    while True:
        route, *frames = router.recv_multipart()
        if frames == [frame]:
            return route

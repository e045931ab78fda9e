"""The promise, with real processes: a confirmed deletion is never read again anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.protocol.messages import Get, GetReply, Goodbye, Sync, Synced
from dstore.transport.router import Router
from tests.integration.processes import (
    PATIENCE,
    GlobalProcess,
    RawClient,
    Refusal,
    Worker,
    others_left,
)

pytestmark = pytest.mark.usefixtures("host_mode")
LEASE = 1.0


@pytest.fixture(params=["tcp", "ipc"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GlobalProcess]:
    address = "" if request.param == "tcp" else f"ipc://{tmp_path}/g"
    with GlobalProcess(address, LEASE) as running:
        yield running


@pytest.fixture
def over_tcp() -> Iterator[GlobalProcess]:
    with GlobalProcess(lease=LEASE) as running:
        yield running


@pytest.mark.private
def test_three_locals_a_deletion_in_one_is_read_as_missing_in_all(served: GlobalProcess) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(served.address)) for _ in range(3)]
        workers[0].call("set", "k", {"some": ["value"]})
        for worker in workers:
            assert worker.call("get", "k") == {"some": ["value"]}
            assert worker.call("lookup", "k").from_local
        deletion = workers[1].call("delete", "k")
        assert deletion == dstore.Deletion(confirmed=3, expired=0, pending=0)
        for worker in workers:
            assert worker.call("get", "k", None) is None
            with pytest.raises(Refusal, match="KeyMissing"):
                worker.call("delete", "k")
        workers[2].call("set", "k", "new")
        assert [worker.call("get", "k") for worker in workers] == ["new"] * 3
        workers[0].call("set", "k", "newer", replace=True)
        assert [worker.call("get", "k") for worker in workers] == ["newer"] * 3
        assert served.stop() == 0


@pytest.mark.private
def test_a_killed_worker_delays_only_what_it_held(over_tcp: GlobalProcess) -> None:
    with dstore.Node(over_tcp.address) as node, Worker(over_tcp.address) as worker:
        node.set_many({"held": 1, "never read": 2})
        assert worker.call("get", "held") == 1
        worker.signal(signal.SIGKILL)
        worker.process.join(PATIENCE)
        assert node.delete("never read") == dstore.Deletion(1, 0, 0)
        assert node.delete("held") == dstore.Deletion(1, 1, 0)
        assert node.get("held", None) is None


@pytest.mark.private
def test_a_stopped_worker_reads_nothing_stale_when_it_goes_on(over_tcp: GlobalProcess) -> None:
    with dstore.Node(over_tcp.address) as node, Worker(over_tcp.address) as worker:
        node.set_many({"k": "old", "kept": "value"})
        assert worker.call("get_many", ["k", "kept"]) == {"k": "old", "kept": "value"}
        worker.signal(signal.SIGSTOP)
        assert node.delete("k") == dstore.Deletion(1, 1, 0)
        worker.begin("get", "k", "missing")
        worker.signal(signal.SIGCONT)
        assert worker.end() == "missing"
        assert worker.call("lookup", "kept").from_local, "the cache survived"


@pytest.mark.private
def test_lost_publications_are_repaired_before_a_deletion_is_confirmed(
    free_global: dstore.Global,
    node: Callable[..., dstore.Node],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = node(), node()
    writer.set_many({f"k{number}": number for number in range(5)})
    reader.get_many([f"k{number}" for number in range(5)])
    monkeypatch.setattr(Router, "publish", lambda self, frame: None)
    for number in range(5):
        assert writer.delete(f"k{number}") == dstore.Deletion(2, 0, 0)
        assert reader.get(f"k{number}", None) is None
    assert writer.global_stats()["reminders"] >= 5
    assert writer.global_stats()["expired"] == 0


def test_a_local_that_renews_but_never_acknowledges_delays_a_deletion_by_one_lease(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    writer = node()
    writer.set("k", "v")
    with RawClient(free_global.address) as deaf:
        deaf.join()
        reply = deaf.ask(Get(deaf.epoch, deaf.session, 1, ["k"]))
        assert isinstance(reply, GetReply)
        done = threading.Event()
        answers = []

        def renew() -> None:
            serial = 0
            while not done.wait(0.2):
                serial += 1
                answers.append(deaf.ask(Sync(deaf.epoch, deaf.secret, serial, 0, 0)))

        renewing = threading.Thread(target=renew)
        renewing.start()
        try:
            deletion = writer.delete("k")
        finally:
            done.set()
            renewing.join()
    assert deletion == dstore.Deletion(confirmed=1, expired=1, pending=0)
    assert any(isinstance(answer, Synced) for answer in answers)


def test_global_killed_and_restarted(over_tcp: GlobalProcess) -> None:
    with dstore.Node(over_tcp.address, timeout=2) as node:
        node.set("k", "of the former life")
        first = node.stats()["epoch"]
        over_tcp.kill()
        with pytest.raises(dstore.GlobalUnavailable):
            node.get("not cached")
        with pytest.raises((dstore.GlobalUnavailable, dstore.OutcomeUnknown)):
            node.set("l", "v")
        over_tcp.start()
        node.join(PATIENCE)
        _until(lambda: node.stats()["epoch"] not in (first, f"{0:016x}"), node)
        assert node.get("k", None) is None, "a volatile Global comes back empty"
        node.set("k", "of this life")
        assert node.get("k") == "of this life"


def _until(condition: Callable[[], bool], node: dstore.Node) -> None:
    """Wait by asking Global, which is what makes a Node notice that it is another."""
    while not condition():
        with contextlib.suppress(dstore.GlobalUnavailable):
            node.get("anything", None)
        node.join(PATIENCE)


def test_a_lapsed_get_raises_while_global_is_down_unless_stale_is_good_enough(
    over_tcp: GlobalProcess,
) -> None:
    with (
        dstore.Node(over_tcp.address, timeout=0.3) as node,
        dstore.Node(over_tcp.address, timeout=0.3, stale_ok=True) as lax,
    ):
        node.set("k", "v")
        assert lax.get("k") == "v"
        over_tcp.signal(signal.SIGSTOP)
        with pytest.raises(dstore.GlobalUnavailable):
            _read_for_ever(node, "k", "v")
        while lax.stats()["lease_left"]:
            pass
        assert lax.get("k") == "v"
        assert lax.lookup("k").from_local
        assert asyncio.run(dstore.AsyncNode.sharing(lax).get("k")) == "v"
        over_tcp.signal(signal.SIGCONT)
        node.join(PATIENCE)
        assert node.get("k") == "v"


def _read_for_ever(node: dstore.Node, key: str, value: str) -> None:
    while True:
        assert node.get(key) == value


def test_a_write_that_global_may_have_seen_has_an_unknown_outcome(
    over_tcp: GlobalProcess,
) -> None:
    with dstore.Node(over_tcp.address, timeout=0.3) as node:
        node.set("first", "v")  # so that the connection stands, and the next request leaves
        over_tcp.signal(signal.SIGSTOP)
        with pytest.raises(dstore.OutcomeUnknown) as caught:
            node.set("k", "v")
        assert caught.value.keys == ["k"]
        over_tcp.signal(signal.SIGCONT)


@pytest.mark.private
def test_nodes_may_be_started_before_global(over_tcp: GlobalProcess) -> None:
    over_tcp.kill()
    with dstore.Node(over_tcp.address, timeout=0.2) as node:
        with pytest.raises(dstore.GlobalUnavailable):
            node.set("k", "v")
        over_tcp.start()
        node.join(PATIENCE)
        node.set("k", "v")
        assert node.get("k") == "v"


def test_joins_and_goodbyes_leave_no_session_behind(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    keeper = node()
    keeper.set("k", "v")
    for _ in range(20):
        with dstore.Node(free_global.address) as passing:
            assert passing.get("k") == "v"
    with RawClient(free_global.address) as raw:
        for _ in range(1000):
            raw.join()
            raw.ask(Goodbye(raw.epoch, raw.secret))
    assert others_left(keeper) == 0
    assert keeper.delete("k") == dstore.Deletion(1, 0, 0)


def test_readers_and_a_deleter_at_full_speed_never_see_what_was_deleted(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    """Each value is the number of its round; once round n is deleted nobody may read it."""
    deleted = [-1]
    faults: list[Any] = []
    done = threading.Event()
    writer, readers = node(), [node(), node()]

    def read(reader: dstore.Node) -> None:
        while not done.is_set():
            floor = deleted[0]
            value = reader.get("k", None)
            if value is not None and value <= floor:
                faults.append((value, floor))

    threads = [threading.Thread(target=read, args=(each,)) for each in readers for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(50):
            writer.set("k", number)
            if number % 3:
                writer.delete("k")
            else:
                writer.set("k", number + 0.5, replace=True)
                writer.delete("k")
            deleted[0] = number
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == []

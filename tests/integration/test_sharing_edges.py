"""Nodes of a shared membership: errors, interruptions and ends at inconvenient moments."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import dstore
from dstore.client.hosts import local as locals_of_nodes
from dstore.core.local.cache import Cache
from dstore.core.local.membership import Entry
from dstore.runtime import native
from dstore.transport.link import Link
from tests.integration.owners import HostProcess, until
from tests.integration.processes import PATIENCE, GlobalProcess
from tests.integration.sharing import LONG_LEASE, host_folder, wait_until

MakeNode = Callable[..., dstore.Node]
pytestmark = [pytest.mark.usefixtures("host_mode"), pytest.mark.shared]


def in_host_cache(node: dstore.Node, *keys: str) -> None:
    """Have the host cache hold these keys."""
    node.set_many({key: key.encode() for key in keys})
    assert len(node.get_many(keys)) == len(keys)


# ---- many keys ----------------------------------------------------------------------------------


def test_a_key_that_is_asked_for_twice(share: MakeNode) -> None:
    one, two = share(), share()
    in_host_cache(one, "k")
    for hits, host_hits in ((0, 1), (0, 2), (1, 2)):
        assert two.get_many(["k", "k"]) == {"k": b"k"}
        figures = two.stats()
        assert (figures["hits"], figures["host_hits"]) == (hits, host_hits)


def test_the_order_of_many_keys_from_both_caches(share: MakeNode) -> None:
    one, two = share(), share()
    in_host_cache(one, "a", "b", "c")
    assert [two.get("b"), two.get("b")] == [b"b"] * 2
    assert len(two._state.entries) == 1
    assert list(two.get_many(["a", "b", "c"])) == ["a", "b", "c"]


# ---- begin --------------------------------------------------------------------------------------


def test_a_node_that_gets_no_sockets_tries_again(
    share: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = share()

    def full(*_: object) -> Link:
        raise dstore.GlobalUnavailable("no descriptors are left")

    with monkeypatch.context() as patch:
        patch.setattr(locals_of_nodes, "Link", full)
        with pytest.raises(dstore.GlobalUnavailable, match="no descriptors"):
            node.set("k", 1)
    node.set("k", 1)
    assert node.get("k") == 1


def test_a_node_that_gets_no_thread_tries_again(
    share: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = share()
    before = len(os.listdir("/proc/self/fd"))

    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        with pytest.raises(dstore.GlobalUnavailable):
            node.set("k", 1)
    assert len(os.listdir("/proc/self/fd")) == before
    node.set("k", 1)
    assert node.get("k") == 1


def test_ctrl_c_at_the_first_request_does_not_end_the_node(
    share: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, start = share(), native.Thread.start

    def interrupted(thread: native.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(native.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            node.set("k", 1)
    node.set("k", 1)
    assert node.get("k") == 1


def test_a_call_within_the_first_call(share: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a signal handler: there is one background thread all the same."""
    node, blocked = share(), native.signals_blocked
    nested: list[object] = []

    def interrupted() -> Any:
        if not nested:
            nested.append(None)
            nested[0] = node.get("k", "missing")
        return blocked()

    monkeypatch.setattr(locals_of_nodes, "signals_blocked", interrupted)
    before = native_threads()
    node.set("k", 1)
    assert nested == ["missing"]
    assert native_threads() == before + 1


def native_threads() -> int:
    return sum(each.name == "dstore-local" for each in threading.enumerate())


# ---- within a change ----------------------------------------------------------------------------


def test_a_read_within_an_insertion_changes_nothing(
    share: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a destructor or a signal handler."""
    one, two = share(), share(cache_bytes=1000)
    names = [f"k{number}" for number in range(20)]
    in_host_cache(one, *names)
    insert = Cache._insert
    nested: list[Any] = []

    def interrupted(cache: Cache, key: str, entry: Entry) -> Entry | None:
        if cache is two._state.cache and not nested:
            nested.append(None)
            nested[0] = [two.get("k1"), two.get("k1"), two.get_many(["k2"]), two.get_many(["k2"])]
            assert cache.entries == {}
        return insert(cache, key, entry)

    monkeypatch.setattr(Cache, "_insert", interrupted)
    assert [two.get("k0"), two.get("k0")] == [b"k0"] * 2
    assert nested == [[b"k1", b"k1", {"k2": b"k2"}, {"k2": b"k2"}]]
    assert list(two._state.entries) == ["k0"]


# ---- end ----------------------------------------------------------------------------------------


def test_a_callback_and_a_thread_close_a_node_at_once(share: MakeNode) -> None:
    called, go, closed = threading.Event(), threading.Event(), threading.Event()

    def on_deletion(key: str | bytes) -> None:
        called.set()
        go.wait(PATIENCE)
        node.close()
        closed.set()

    node, writer = share(on_deletion=on_deletion), share()
    node.set("k", 1)
    assert node.get("k") == 1
    local = node._local
    assert local is not None
    writer.delete("k")
    assert called.wait(PATIENCE)
    stop = local.host.stop

    def stop_after_the_callback(wait_closed: Callable[[], None]) -> None:
        if native.get_ident() != local.host.background_thread:
            go.set()
            assert closed.wait(PATIENCE)
        stop(wait_closed)

    local.host.stop = stop_after_the_callback  # type: ignore[method-assign]
    node.close()
    assert closed.is_set()


def test_a_closed_node_without_sockets_leaves_nothing(share: MakeNode) -> None:
    one = share()
    in_host_cache(one, "k")
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        node = share()
        assert [node.get("k"), node.get("k"), node.get("k")] == [b"k"] * 3
        local = node._local
        assert local is not None
        assert not local._thread.started
        gone = weakref.ref(local)
        del local
        node.close()
        assert gone() is None
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


# ---- without an owner ---------------------------------------------------------------------------


def test_require_fails_without_an_owner_and_after_its_end(here: str) -> None:
    with (
        host_folder() as far,
        GlobalProcess(lease=LONG_LEASE, options=("--shm", far)) as server,
        dstore.Node(server.address, shm=here, host="require", timeout=0.3) as node,
    ):
        for _ in range(2):
            with pytest.raises(dstore.GlobalUnavailable, match="asks for a cache"):
                node.get("k", None)
            with HostProcess(server.address, here) as owner:
                wait_until(node, "shared")
                assert node.get("k", None) is None
                assert owner.stop()[0] == 0
        with pytest.raises(dstore.GlobalUnavailable, match="asks for a cache"):
            node.get("k", None)
        assert server.stop() == 0


def test_stale_reads_go_on_without_global(here: str) -> None:
    with (
        GlobalProcess(lease=LONG_LEASE, options=("--shm", here)) as server,
        dstore.Node(server.address, shm=here, host="auto", stale_ok=True, timeout=0.3) as node,
    ):
        node.set("k", 1)
        assert node.get("k") == 1
        assert server.stop() == 0

        def goes_on() -> bool:
            return bool(node.get("k") == 1 and node.stats()["membership"] != "shared")

        until(goes_on, "the end of the page")
        assert node.get("k") == 1


# ---- forks --------------------------------------------------------------------------------------


def test_stats_of_a_child_that_has_only_read(share: MakeNode) -> None:
    node = share()
    in_host_cache(node, "k")
    assert [node.get("k"), node.get("k")] == [b"k"] * 2
    owner = node.stats()["owner"]
    child = os.fork()
    if not child:
        code = 1
        try:
            figures = node.stats()
            good = (figures["membership"], figures["owner"], figures["keys"])
            node.close()
            code = good != ("shared", owner, 1) or bool(node._parents)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

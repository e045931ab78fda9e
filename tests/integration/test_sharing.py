"""Nodes that share the membership of their host: one copy, one session, one acknowledgement."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from tests.integration.owners import files, page_of, until
from tests.integration.processes import PATIENCE, GlobalProcess, Worker, other_sessions, others_left
from tests.integration.sharing import (
    LONG_LEASE,
    gets,
    host_hits,
    is_idle,
)

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
SMALL, LARGE = b"x" * 100, bytes(range(256)) * 1000
MakeNode = Callable[..., dstore.Node]


# ---- one copy -----------------------------------------------------------------------------------


def test_what_one_has_read_the_others_read_without_global(share: MakeNode) -> None:
    writer, nodes = share(), [share() for _ in range(8)]
    writer.set("k", SMALL)
    before = gets(writer)
    for node in nodes:
        assert node.get("k") == SMALL
        assert node.get("k") == SMALL
        assert node.get("k") == SMALL
        found = node.lookup("k")
        assert (found.from_local, found.cached) == (True, True)
    assert gets(writer) == before
    assert all(host_hits(node) == 2 for node in nodes), "from the third read on it has its own"


def test_what_one_has_fetched_the_others_have(share: MakeNode, served: GlobalProcess) -> None:
    with dstore.Node(served.address, host="off", shm="") as far:
        far.set_many({f"k{number}": number for number in range(300)})
        one, two = share(), share()
        before = gets(far)
        names = [f"k{number}" for number in range(300)]
        assert one.get_many(names) == {name: number for number, name in enumerate(names)}
        assert gets(far) == before + 300
        assert two.get_many(names) == one.get_many(names)
        assert [two.get(name) for name in names] == list(range(300))
        assert gets(far) == before + 300


def test_a_replacement_is_there_for_the_others_at_once(share: MakeNode) -> None:
    one, two = share(), share()
    for number in range(20):
        one.set("k", number, replace=True)
        before = gets(one)
        assert [two.get("k"), one.get("k"), two.get("k")] == [number] * 3
        assert gets(one) == before


def test_large_values_have_one_copy_too(share: MakeNode, here: str) -> None:
    one, two = share(), share()
    one.set("other", LARGE)
    one.delete("other")
    before = files(here)
    one.set("large", LARGE)
    assert len(files(here)) == len(before) + 1
    assert one.get("large") == two.get("large") == LARGE
    assert two.lookup("large").from_local
    assert one.delete("large").confirmed == 1
    assert one.get("large", None) is None
    assert two.get("large", None) is None
    until(lambda: files(here) == before, "the release of the copy")


def test_every_kind_of_value_and_key(share: MakeNode) -> None:
    one, two = share(), share()
    values: dict[Any, Any] = {
        "text": "grüße",
        "empty": b"",
        "list": [1, {"a": None}, 2.5],
        b"\xff\x00": b"bytes",
        "k" * 511: "long",
        "big": b"y" * 60_000,
    }
    one.set_many(values)
    for key, value in values.items():
        for _ in range(3):
            assert two.get(key) == one.get(key) == value
    assert two.get_many(values) == values
    assert "text" in two
    assert bytes(two.get_buffer("text")) == "grüße".encode()
    with pytest.raises(dstore.KeyOccupied) as refused:
        two.set("text", "other")
    assert refused.value.local
    with pytest.raises(dstore.KeyMissing):
        two.get("missing")
    with pytest.raises(dstore.InvalidKey):
        two.get("\ud800" * 3)


# ---- one session --------------------------------------------------------------------------------


def test_many_nodes_of_a_host_are_one_session(share: MakeNode) -> None:
    nodes = [share() for _ in range(64)]
    nodes[0].set("k", SMALL)
    assert {node.get("k") for node in nodes} == {SMALL}
    figures = nodes[0].global_stats()
    assert (figures["sessions"], figures["writers"], figures["observers"]) == (1, 1, 0)
    deletion = nodes[1].delete("k")
    assert deletion == dstore.Deletion(confirmed=1, expired=0, pending=0)
    assert {node.get("k", None) for node in nodes} == {None}
    after = nodes[0].global_stats()
    assert after["targeted_invalidations"] == after["reminders"] == after["syncs"] == 0


def test_a_node_that_only_reads_what_is_there_does_not_ask_global(share: MakeNode) -> None:
    one = share()
    one.set("k", SMALL)
    reader = share()
    for _ in range(3):
        assert reader.get("k") == SMALL
    local = reader._local
    assert local is not None
    assert not local._thread.started
    assert "link" not in vars(local.host), "it has no connection"
    assert others_left(one) == 0


def test_an_idle_node_has_no_session_and_nothing_that_wakes_up(share: MakeNode) -> None:
    one, two = share(), share()
    assert two.get("k", None) is None
    with two.watch() as watch:
        one.set("k", 1)
        assert others_left(one, 1) == 1, "an observer"
        next(watch)
        one.delete("k")
        assert next(watch).key == "k"
    until(lambda: other_sessions(one) == 0, "the end of the observer")
    until(lambda: is_idle(two), "a thread that sleeps")
    until(lambda: is_idle(one), "a thread that sleeps")
    syncs = one.global_stats()["syncs"]
    assert one.global_stats()["syncs"] == syncs


def test_closing_one_leaves_the_others(share: MakeNode) -> None:
    one, two = share(), share()
    one.set("k", SMALL)
    assert [two.get("k") for _ in range(3)] == [SMALL] * 3
    session = two.stats()["session"]
    before = gets(two)
    one.close()
    assert two.lookup("k").from_local
    assert gets(two) == before
    until(lambda: other_sessions(two) == 0, "the end of its writer")
    assert two.stats()["session"] == session
    assert two.delete("k").confirmed == 1
    three = share()
    three.set("k", 2)
    assert two.get("k") == 2
    with pytest.raises(dstore.NodeClosed):
        one.get("k")


def test_a_private_node_beside_them(share: MakeNode, served: GlobalProcess, here: str) -> None:
    one = share()
    with dstore.Node(served.address, host="off", shm=here) as private:
        private.set("k", 1)
        assert one.get("k") == 1
        assert private.stats()["membership"] == "private"
        assert one.delete("k").confirmed == 2
        assert private.get("k", None) is None
        one.set("k", 2)
        assert private.get("k") == 2
        assert private.delete("k").confirmed == 2
        assert one.get("k", None) is None


def test_by_other_names_of_the_address(served: GlobalProcess, here: str) -> None:
    port = served.address.rpartition(":")[2]
    with dstore.Node(f"tcp://localhost:{port}", host="require", shm=here) as node:
        node.set("k", 1)
        assert node.stats()["membership"] == "shared"


def test_what_stats_say(share: MakeNode) -> None:
    one, two = share(), share()
    one.set("k", SMALL)
    for _ in range(4):
        two.get("k")
    figures = two.stats()
    assert figures["membership"] == "shared"
    assert figures["owner"].startswith("Global at ")
    assert (figures["hits"], figures["host_hits"], figures["misses"]) == (2, 2, 0)
    assert figures["host_bytes_limit"] > 0
    assert 0 < figures["lease_left"] <= LONG_LEASE
    assert figures["session"] == one.stats()["session"] != 0
    assert one.global_stats()["host_membership"] == figures["owner"]


# ---- deletions are noticed ----------------------------------------------------------------------


def test_on_deletion_reports_what_this_node_has_cached(share: MakeNode) -> None:
    heard: list[str | bytes] = []
    come = threading.Event()

    def note(key: str | bytes) -> None:
        heard.append(key)
        come.set()

    one, two = share(), share(on_deletion=note)
    one.set_many({"k": 1, "other": 2})
    # It caches nothing before Global has its session: nothing would report the deletion.
    until(lambda: two.get("k") == 1 and two.stats()["keys"] == 1, "a read that was cached")
    one.delete_many(["other", "k"])
    assert come.wait(PATIENCE)
    assert heard == ["k"]
    come.clear()
    one.set("k", 2)
    assert two.get("k") == 2
    one.set("k", 3, replace=True)
    assert come.wait(PATIENCE)
    assert heard == ["k", "k"]


def test_a_watch_and_a_wait(share: MakeNode) -> None:
    one, two = share(), share()
    with two.watch("config/") as watch:
        assert next(watch).key is None
        one.set("config/a", 1)
        one.set("config/a", 2, replace=True)
        one.delete("config/a")
        assert [next(watch).key, next(watch).key] == ["config/a"] * 2
        assert two.get("config/a", None) is None

    found: list[Any] = []
    waiting = [
        threading.Thread(target=lambda node=node: found.append(node.wait("k", PATIENCE)))
        for node in (one, two, share())
    ]
    for thread in waiting:
        thread.start()
    until(lambda: one.global_stats()["waiting"] == 3, "three that wait")
    one.set("k", "now")
    for thread in waiting:
        thread.join(PATIENCE)
    assert found == ["now"] * 3
    with pytest.raises(dstore.WaitTimedOut):
        one.wait("never", 0.05)
    assert one.global_stats()["waiting"] == 0


def test_callers_in_different_processes(served: GlobalProcess, here: str) -> None:
    options = {"shm": here, "host": "require"}
    with Worker(served.address, **options) as one, Worker(served.address, **options) as two:
        for number in range(50):
            one.call("set", "k", number)
            assert two.call("get", "k") == one.call("get", "k") == number
            two.begin("delete", "k")
            assert two.end() == dstore.Deletion(1, 0, 0)
            assert one.call("get", "k", None) is None


# ---- threads, tasks and greenlets ---------------------------------------------------------------


class Turns:
    """A writer that replaces values by larger ones, and readers that check what they read."""

    def __init__(self, writer: dstore.Node) -> None:
        self._writer = writer
        self._replaced: dict[str, int] = dict.fromkeys((f"k{number}" for number in range(40)), 0)
        self.stale: list[str] = []
        self.over = threading.Event()

    def write(self) -> None:
        for turn in range(1, 16):
            for name in self._replaced:
                self._writer.set(name, turn, replace=True)
                self._replaced[name] = turn
        self.over.set()

    def _check(self, name: str, least: int, value: int | None) -> None:
        if (value or 0) < least:
            self.stale.append(f"{name} is {value}, and was {least} before")

    def read(self, node: dstore.Node) -> None:
        while not self.over.is_set():
            for name in list(self._replaced):
                least = self._replaced[name]
                self._check(name, least, node.get(name, None))

    async def read_in_task(self, node: dstore.AsyncNode) -> None:
        while not self.over.is_set():
            for name in list(self._replaced):
                least = self._replaced[name]
                self._check(name, least, await node.get(name, None))
            await asyncio.sleep(0)


def test_threads_and_tasks_of_one_host(share: MakeNode, served: GlobalProcess, here: str) -> None:
    node, turns = share(), Turns(share())

    async def read_in_tasks() -> None:
        async with dstore.AsyncNode(served.address, shm=here, host="require") as tasks:
            await asyncio.gather(*(turns.read_in_task(tasks) for _ in range(3)))

    threads = [threading.Thread(target=turns.write)]
    threads += [threading.Thread(target=turns.read, args=(node,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(asyncio.wait_for(read_in_tasks(), PATIENCE))
    for thread in threads:
        thread.join(PATIENCE)
    assert turns.over.is_set()
    assert turns.stale == []


# ---- a Global in this process -------------------------------------------------------------------


def test_nodes_in_the_process_of_global(here: str) -> None:
    with dstore.Global("tcp://127.0.0.1:0", shm=here) as server:
        with dstore.Node(server.address, host="require", shm=here) as node:
            node.set("k", SMALL)
            assert node.get("k") == SMALL
            assert node.delete("k").confirmed == 1
            assert node.get("k", None) is None
            node.set("k", 2)
        page = page_of(here, server.address)
        assert page is not None
    assert page.lease[0] == 0


def test_a_node_that_outlives_the_global_of_its_process(here: str) -> None:
    server = dstore.Global("tcp://127.0.0.1:0", shm=here)
    server.start()
    with dstore.Node(server.address, shm=here, host="auto", timeout=0.5) as node:
        node.set("k", SMALL)
        assert [node.get("k") for _ in range(3)] == [SMALL] * 3
        server.close()
        with pytest.raises(dstore.GlobalUnavailable):
            node.get("k")


# ---- forks --------------------------------------------------------------------------------------


def in_child(check: Callable[[], bool]) -> int:
    """Fork; the exit code of a child in which ``check`` is called: 0 if it returns True."""
    child = os.fork()
    if not child:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_has_what_its_parent_has_cached(share: MakeNode) -> None:
    node, writer = share(), share()
    writer.set_many({f"k{number}": number for number in range(100)})
    names = [f"k{number}" for number in range(100)]
    for name in names:
        assert node.get(name) == node.get(name)
    assert node.stats()["keys"] == 100
    before = gets(writer)

    def check() -> bool:
        first = [node.get(name) for name in names]
        figures = node.stats()
        counts = figures["hits"], figures["host_hits"], figures["misses"]
        return first == list(range(100)) and counts == (100, 0, 0)

    assert in_child(check) == 0
    assert gets(writer) == before


def test_a_deletion_is_seen_by_parent_and_child(share: MakeNode) -> None:
    node, writer = share(), share()
    writer.set_many({"k": 1, "l": 2})
    assert [node.get("k"), node.get("k"), node.get("l"), node.get("l")] == [1, 1, 2, 2]
    ready, go = os.pipe(), os.pipe()

    def check() -> bool:
        good = node.get("k") == 1
        os.write(ready[1], b"r")
        os.read(go[0], 1)
        good = good and node.get("k", None) is None and node.get("l") == 2
        return good and node.delete("l").confirmed == 1

    child = os.fork()
    if not child:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    assert os.read(ready[0], 1) == b"r"
    assert writer.delete("k").confirmed == 1
    os.write(go[1], b"g")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert node.get("l", None) is None
    for end in (*ready, *go):
        os.close(end)


def test_forks_in_the_middle_of_insertions(share: MakeNode) -> None:
    """What a thread of the parent was inserting when it forked is right or missing in the child."""
    node, writer = share(cache_bytes=200_000), share()
    names = [f"k{number}" for number in range(500)]
    writer.set_many({name: name for name in names})
    over = threading.Event()

    def insert() -> None:
        while not over.is_set():
            for name in names:
                node.get(name)
            node.set("mine", names, replace=True)

    threads = [threading.Thread(target=insert) for _ in range(2)]
    for thread in threads:
        thread.start()

    def check() -> bool:
        right = all(node.get(name) == name for name in names + names)
        node.set("child", 1, replace=True)
        right = right and node.get("child") == 1
        node.close()
        return right

    try:
        codes = [in_child(check) for _ in range(15)]
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert codes == [0] * 15
    assert others_left(writer, 1) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_child_that_drops_its_privileges(share: MakeNode, here: str) -> None:
    node = share(host="auto")
    node.set("k", SMALL)
    assert [node.get("k") for _ in range(3)] == [SMALL] * 3
    other = pwd.getpwnam("nobody")

    def check() -> bool:
        os.setgid(other.pw_gid)
        os.setuid(other.pw_uid)
        for number in range(20):
            node.set(f"child {number}", number)
            if node.get(f"child {number}") != number or node.get("k") != SMALL:
                return False
        maps = Path("/proc/self/maps").read_text().splitlines()
        writable = [line for line in maps if here in line and "w" in line.split()[1]]
        return node.stats()["membership"] == "private" and not writable

    assert in_child(check) == 0
    assert node.get("child 3") == 3
    assert node.stats()["membership"] == "shared"

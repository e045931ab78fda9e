"""Access from end to end: a key folder, a Global that asks for keys, and Nodes with connect files.

What the parts do alone is in the tests beside this one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import dstore
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.access.running import wait_applied
from dstore.config import HOST_VARIABLE
from dstore.core.authority.identity import Role
from dstore.testing import private_shared_memory, running_global
from tests.integration.owners import HostProcess
from tests.integration.processes import PATIENCE, free_port

LEASE = 0.5
LARGE = bytes(range(256)) * 1024


class Site:
    """A Global with keys in this process, its key folder, and the connect files of its clients."""

    def __init__(self, folder: Path, server: dstore.Global, keys: KeyFolder) -> None:
        self.folder, self.server, self.keys = folder, server, keys

    @classmethod
    @contextlib.contextmanager
    def at(cls, folder: Path, lease: float = LEASE) -> Iterator[Site]:
        keys = KeyFolder(folder / "keys")
        keys.create()
        address = f"tcp://127.0.0.1:{free_port()}"
        with running_global(address, keys=str(folder / "keys"), lease=lease) as server:
            yield cls(folder, server, keys)

    def file(self, name: str, role: Role, *prefixes: str) -> str:
        path = self.folder / f"{name}.json"
        self.keys.add(name, role, prefixes, self.server.address).save(path)
        assert not wait_applied(self.keys, self.keys.generation, PATIENCE).missing
        return str(path)

    def node(self, name: str, role: Role, *prefixes: str, **settings: Any) -> dstore.Node:
        """A Node that is a host by itself."""
        path = self.file(name, role, *prefixes)
        return dstore.Node.from_file(path, **{"host": "off", "timeout": PATIENCE, **settings})

    def access(self, *words: str) -> str:
        """Run ``dstore access``. Returns what it has said."""
        command = [sys.executable, "-m", "dstore", "access", *words, "--keys", os.fspath(self.keys)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert said.returncode == 0, said.stderr
        return said.stdout + said.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site.at(tmp_path) as made:
        yield made


class Caller:
    """Makes calls in a thread until it is stopped, and keeps when each began and how it ended."""

    def __init__(self, call: Callable[[int], object]) -> None:
        self.ended: list[tuple[float, str]] = []
        self._call = call
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            began, how = time.monotonic(), "done"
            try:
                self._call(number)
            except dstore.DstoreError as error:
                how = type(error).__name__
            self.ended.append((began, how))
            number += 1

    def went_on(self, count: int) -> None:
        """Wait until ``count`` more calls have ended."""
        wanted = len(self.ended) + count
        until = time.monotonic() + PATIENCE
        while len(self.ended) < wanted:
            assert time.monotonic() < until, self.ended[-3:]
            time.sleep(0.01)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def calling(*calls: Callable[[int], object]) -> Iterator[list[Caller]]:
    callers = [Caller(call) for call in calls]
    try:
        yield callers
    finally:
        for each in callers:
            each.stop()


# ---- revocation -------------------------------------------------------------------------------


def test_no_call_succeeds_that_begins_after_revoke_has_returned(site: Site) -> None:
    with (
        site.node("worker", Role.WRITE) as worker,
        site.node("other", Role.WRITE) as other,
    ):
        other.set_many({f"key{number}": number for number in range(10)})
        with calling(
            lambda number: worker.get(f"key{number % 10}"),  # from its cache, mostly
            lambda number: worker.set(f"worker{number}", number),
            lambda number: worker.delete(f"worker{number}"),
            lambda number: other.set("other", number, replace=True),
        ) as callers:
            for each in callers:
                each.went_on(20)
            site.access("revoke", "worker")
            returned = time.monotonic()
            for each in callers:
                each.went_on(2)
        *workers, honest = callers
        for each in workers:
            afterwards = {how for began, how in each.ended if began > returned}
            assert afterwards == {"AccessDenied"}
            assert {how for _, how in each.ended} <= {
                "done", "AccessDenied", "OutcomeUnknown", "KeyMissing", "KeyOccupied",
            }  # fmt: skip
        assert {how for _, how in honest.ended} == {"done"}


@pytest.mark.long
def test_a_deletion_waits_for_the_lease_of_a_revoked_cache(tmp_path: Path) -> None:
    """Its cache may answer until then, and nothing that it says is heard any more."""
    with Site.at(tmp_path, lease=PATIENCE / 4) as site:
        worker = site.node("worker", Role.READ)
        with worker, site.node("other", Role.WRITE) as other:
            other.set("key", 1)
            assert worker.get("key") == 1
            site.keys.revoke("worker")
            until = time.monotonic() + PATIENCE
            while _is_admitted(worker):
                assert time.monotonic() < until
            assert worker.get("key") == 1  # it has a lease
            deletion = other.delete("key", wait=False)
            assert deletion.pending == 2  # the other one acknowledges it
            assert worker.get("key") == 1
            worker.close()  # its goodbye is not heard either
            assert other.global_stats()["pending"] == 1


def _is_admitted(node: dstore.Node) -> bool:
    try:
        node.global_stats()
    except dstore.AccessDenied:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("years", [-30, 30])
def test_steps_of_the_wall_clock_admit_nobody_and_shut_nobody_out(
    site: Site, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    with site.node("before", Role.READ) as before, site.node("revoked", Role.READ) as revoked:
        before.global_stats()
        now = time.time() + years * 365 * 86_400
        monkeypatch.setattr(time, "time", lambda: now)
        monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
        monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1990, 1, 1) + 6 * (0,)))
        site.keys.revoke("revoked")
        with site.node("after", Role.WRITE) as after:
            after.set("key", 1)
            assert before.get("key") == 1
            until = time.monotonic() + PATIENCE
            while _is_admitted(revoked):
                assert time.monotonic() < until
            assert {each.name for each in site.keys.clients()} == {"before", "after"}


# ---- rotation ---------------------------------------------------------------------------------


@pytest.mark.long
def test_a_rotation_interrupts_nobody_whose_file_has_both_keys(site: Site) -> None:
    with site.node("worker", Role.WRITE) as worker, site.node("late", Role.READ) as late:
        former = Connect.load(site.folder / "late.json").text()
        with calling(
            lambda number: worker.set(f"key{number}", number),
            lambda number: worker.get(f"none{number}", None),
        ) as callers:
            for each in callers:
                each.went_on(5)
            site.access("rotate")
            site.access("update", str(site.folder / "worker.json"))
            for each in callers:
                each.went_on(5)
            site.access("rotate", "--finish")
            for each in callers:
                each.went_on(20)
        assert {how for each in callers for _, how in each.ended} == {"done"}
        with pytest.raises(dstore.WrongServer):
            late.get("key0")
        assert Connect.load(site.folder / "late.json").text() == former
        # The Node reads its file again by itself.
        site.access("update", str(site.folder / "late.json"))
        until = time.monotonic() + PATIENCE
        while True:
            try:
                assert late.get("key0") == 0
                break
            except dstore.WrongServer:
                assert time.monotonic() < until
                time.sleep(0.05)


# ---- prefixes ---------------------------------------------------------------------------------


def test_a_client_with_a_prefix_sees_and_changes_nothing_else(site: Site) -> None:
    with (
        site.node("one", Role.WRITE, "one/") as one,
        site.node("two", Role.WRITE, "two/") as two,
        site.node("admin", Role.ADMIN) as admin,
    ):
        two.set("two/small", "small")
        two.set("two/large", LARGE)
        address = two.put(b"value")
        assert str(address).startswith("two/b3:")
        one.set("one/small", 1)
        assert one.put(b"value") != address

        for call in (
            lambda: one.get("two/small"),
            lambda: one.get_many(["one/small", "two/small"]),
            lambda: one.get(address),
            lambda: one.set("two/new", 1),
            lambda: one.set("two/small", 2, replace=True),
            lambda: one.set("two/new", LARGE),
            lambda: one.delete("two/small"),
            lambda: one.expire("two/small", 0.001),
            lambda: one.ttl("two/small"),
            lambda: one.wait("two/new", timeout=0.1),
            lambda: one.get("one"),
        ):
            with pytest.raises(dstore.AccessDenied, match="one/"):
                call()
        assert sorted(map(str, one.keys())) == [one.put(b"value"), "one/small"]
        assert list(one.keys("two/")) == []
        assert sorted(map(str, admin.keys())) == sorted(
            [one.put(b"value"), "one/small", address, "two/small", "two/large"]
        )
        assert two.get("two/large") == LARGE


def test_nobody_hears_the_names_of_keys_that_another_prefix_has(site: Site) -> None:
    """A bare subscriber with keys hears no name at all, and a Node those below its prefix."""
    connect = Connect.load(site.file("ear", Role.READ, "ear/"))
    heard: list[str | bytes] = []
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as subscriber,
        site.node("one", Role.WRITE, "one/", on_deletion=heard.append) as one,
        site.node("two", Role.WRITE, "two/") as two,
        one.watch() as watched,
    ):
        assert next(watched).resync
        subscriber.linger = 0
        subscriber.rcvtimeo = int(PATIENCE * 1000)
        subscriber.curve_serverkey = connect.server_keys[0].encode()
        subscriber.curve_publickey = connect.public_key.encode()
        subscriber.curve_secretkey = connect.secret_key.encode()
        subscriber.subscribe(b"")
        subscriber.connect(site.server.publisher)
        two.set_many({f"two/{number}": LARGE for number in range(5)})
        two.delete_many([f"two/{number}" for number in range(5)])
        one.set("one/last", 1)
        one.get("one/last")
        one.delete("one/last")
        assert next(watched).key == "one/last"
        assert heard == ["one/last"]
        said = b"".join(_frames(subscriber))
        assert b"two/" not in said
        assert b"one/" not in said


def _frames(subscriber: zmq.Socket[bytes]) -> Iterator[bytes]:
    """All that is published until nothing has come for a moment."""
    yield subscriber.recv()
    subscriber.rcvtimeo = 200
    with contextlib.suppress(zmq.Again):
        while True:
            yield subscriber.recv()


# ---- roles, hosts -----------------------------------------------------------------------------


def test_a_reader_may_read_and_wait_and_watch_and_no_more(site: Site) -> None:
    with site.node("reader", Role.READ) as reader, site.node("writer", Role.WRITE) as writer:
        writer.set("key", 1)
        assert reader.get("key") == 1
        assert reader.wait("key", timeout=1) == 1
        assert reader.ttl("key") is None
        assert list(reader.keys()) == ["key"]
        assert reader.global_stats()["keys"] == 1
        for call in (
            lambda: reader.set("other", 1),
            lambda: reader.set("other", LARGE),
            lambda: reader.put(b"value"),
            lambda: reader.delete("key"),
            lambda: reader.expire("key", 1.0),
            lambda: reader.persist("key"),
        ):
            with pytest.raises(dstore.AccessDenied, match="write"):
                call()
        assert writer.get("key") == 1


def test_processes_of_a_host_share_what_its_owner_may_see(site: Site) -> None:
    """``dstore host`` has an identity of its own. What that does not see, nobody there caches."""
    with private_shared_memory() as shm, site.node("writer", Role.WRITE) as writer:
        writer.set_many({"shared/key": 1, "other/key": 2})
        host = site.file("host", Role.READ, "shared/")
        worker = site.file("worker", Role.READ)
        options: dict[str, Any] = {"shm": shm, "host": "require", "timeout": PATIENCE}
        with (
            HostProcess(site.server.address, shm, "--connect", host),
            dstore.Node.from_file(worker, **options) as node,
        ):
            for key, value in (("shared/key", 1), ("other/key", 2)):
                assert node.get(key) == value
                assert node.get(key) == value
            assert node.stats()["membership"] == "shared"
            writer.delete_many(["shared/key", "other/key"])
            assert node.get("shared/key", None) is None
            assert node.get("other/key", None) is None


def test_who_has_no_keys_does_not_use_the_cache_of_a_global_that_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "auto")
    with Site.at(tmp_path) as site, site.node("worker", Role.WRITE, host="require") as worker:
        worker.set("key", 1)
        assert worker.get("key") == 1
        with dstore.Node(site.server.address, timeout=PATIENCE) as plain:
            for _ in range(3):
                with pytest.raises(dstore.WrongServer, match="asks for keys"):
                    plain.get("key")
            assert plain.stats()["host_hits"] == 0
        with (
            dstore.Node(site.server.address, host="require", timeout=0.5) as plain,
            pytest.raises(dstore.DstoreError),
        ):
            plain.get("key")


def test_who_has_keys_does_not_use_the_cache_of_a_global_that_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "auto")
    address = f"tcp://127.0.0.1:{free_port()}"
    keys = KeyFolder(tmp_path / "keys")
    keys.create()
    keys.add("worker", Role.READ, (), address).save(tmp_path / "worker.json")
    with running_global(address) as server, dstore.Node(server.address) as plain:
        plain.set("key", "of another Global")
        assert plain.stats()["membership"] == "shared"
        with dstore.Node.from_file(tmp_path / "worker.json", timeout=PATIENCE) as node:
            with pytest.raises(dstore.WrongServer):
                node.get("key")
            assert node.stats()["host_hits"] == 0


def test_a_prefix_counts_in_the_cache_of_a_host_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of one host and user share a cache, and may have different identities."""
    monkeypatch.setenv(HOST_VARIABLE, "auto")
    with (
        Site.at(tmp_path) as site,
        site.node("all", Role.WRITE, host="require") as everybody,
        site.node("one", Role.READ, "one/", host="require") as one,
    ):
        everybody.set_many({"one/key": b"1", "two/key": b"2", "one/list": [1], "two/list": [2]})
        for _ in range(3):
            assert everybody.get_many(["two/key", "two/list"]) == {"two/key": b"2", "two/list": [2]}
        for _ in range(3):
            assert one.get("one/key") == b"1"
            assert one.get_many(["one/key", "one/list"]) == {"one/key": b"1", "one/list": [1]}
            for call in (
                lambda: one.get("two/key"),
                lambda: one.get("two/list"),
                lambda: one.get_many(["one/key", "two/key"]),
                lambda: one.lookup("two/key"),
            ):
                with pytest.raises(dstore.AccessDenied):
                    call()
        assert one.stats()["host_hits"] > 0

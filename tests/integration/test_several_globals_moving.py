"""Nodes of members that move their partitions by themselves, over a database that is a stand-in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest

import dstore
from tests.cluster_storage import FakeDatabase
from tests.ending import Beside
from tests.integration.owners import HostProcess, page_of, valid_page
from tests.integration.test_cluster_host import KEYS, Start, serves, shared, until
from tests.integration.test_cluster_host import database as database
from tests.integration.test_cluster_host import start as start
from tests.integration.test_global_host import here as here

SOON = 0.5
"""Seconds of an ownership lease, where its end is waited for."""


class Load(Beside):
    """A thread that calls a function again and again. ``failed`` has what it has raised."""

    def __init__(self, do: Callable[[int], object]) -> None:
        super().__init__()
        self.rounds = 0
        self.failed: list[BaseException] = []
        self._do = do

    def _run(self) -> None:
        for number in itertools.count():
            if self._over.is_set():
                return
            try:
                self._do(number)
            except BaseException as error:
                self.failed.append(error)
            self.rounds = number + 1

    def goes_on(self, rounds: int = 3) -> None:
        """Wait for some more rounds."""
        end = self.rounds + rounds
        until(lambda: self.rounds >= end)


@pytest.mark.long
def test_calls_go_on_while_members_come_and_go(start: Start) -> None:
    one = serves(start())
    with dstore.Node(one.address, timeout=20) as node:
        assert node.set_many(dict.fromkeys(KEYS, 0)) == []
        written = dict.fromkeys(KEYS, 0)
        addresses = [one.address]

        def read(number: int) -> None:
            with dstore.Node(addresses[0], timeout=20) as fresh:
                found = fresh.get_many(KEYS)
            assert set(found) == set(KEYS)
            assert list(node.keys()) == sorted(KEYS)

        def write(number: int) -> None:
            key = KEYS[number % len(KEYS)]
            node.set(key, number, replace=True)
            assert node.get(key) == number
            written[key] = number

        with Load(read) as reads, Load(write) as writes:
            reads.goes_on()
            two = start()
            shared(one, two)
            addresses[0] = f"{one.address},{two.address}"
            reads.goes_on()
            three = start()
            until(lambda: len(node.global_stats()["globals"]) == 3)
            writes.goes_on()
            three.close()
            until(lambda: len(node.global_stats()["globals"]) == 2)
            reads.goes_on()
            one.close()
            serves(two)
            reads.goes_on()
            writes.goes_on()
        assert reads.failed == []
        assert writes.failed == []
        with dstore.Node(two.address) as fresh:
            assert fresh.get_many(KEYS) == written


def test_reads_go_on_after_a_member_has_lost_its_database(
    start: Start, database: FakeDatabase
) -> None:
    one, two = serves(start(ownership_lease=SOON)), start(ownership_lease=SOON)
    shared(one, two)
    addresses = f"{one.address},{two.address}"
    with dstore.Node(addresses, timeout=20) as node, dstore.Node(addresses, timeout=20) as writer:
        assert writer.set_many(dict.fromkeys(KEYS, 1)) == []
        with node.watch() as watch:
            assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
            database.storages[1].cut = True
            assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
            serves(one)
            with dstore.Node(addresses, timeout=20) as fresh:
                assert fresh.get_many(KEYS) == dict.fromkeys(KEYS, 1)
                assert len(fresh.delete_many(KEYS)) == len(KEYS)
            assert node.get_many(KEYS) == {}
            seen: set[Any] = set()
            while len(seen) < len(KEYS):
                event = watch.take(10)
                assert event is not None
                seen.update(KEYS if event.resync else [event.key])


@pytest.mark.shared
@pytest.mark.usefixtures("host_mode")
def test_each_member_has_its_page_on_this_host(start: Start) -> None:
    one = serves(start(shm=None))
    two = start(shm=None)
    shared(one, two)
    with dstore.Node(one.address, host="auto") as node, dstore.Node(two.address) as other:
        node.set_many(dict.fromkeys(KEYS, b"v"))
        assert other.get_many(KEYS) == dict.fromkeys(KEYS, b"v")
        assert {row["membership"] for row in other.stats()["globals"].values()} == {"shared"}
        assert other.stats()["host_hits"] == len(KEYS)
        assert [other.get(key) for key in KEYS] == [b"v"] * len(KEYS)
        child = os.fork()
        if not child:  # it goes on with what the parent has cached, before it has any Local
            code = 1
            try:
                good = [other.get(key) for key in KEYS] == [b"v"] * len(KEYS)
                good &= not other._locals and other.stats()["hits"] == len(KEYS)
                good &= other.set_many(dict.fromkeys(KEYS, b"w")) == KEYS
                good &= other.get_many(KEYS) == dict.fromkeys(KEYS, b"v")
                good &= {row["membership"] for row in other.stats()["globals"].values()} == {
                    "shared"
                }
                code = not good
                other.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(node.delete_many(KEYS)) == len(KEYS)
        assert other.get_many(KEYS) == {}


@pytest.mark.shared
@pytest.mark.usefixtures("host_mode")
@pytest.mark.long
def test_dstore_host_owns_a_page_for_each_member(start: Start, here: str) -> None:
    one = serves(start())
    two = start()
    shared(one, two)
    with HostProcess(one.address, here) as host:
        for address in (one.address, two.address):
            valid_page(here, address).close()
        with dstore.Node(one.address, shm=here, host="require", timeout=20) as node:
            node.set_many(dict.fromkeys(KEYS, b"v"))
            rows = node.stats()["globals"]
            assert set(rows) == {one.address, two.address}
            assert {row["membership"] for row in rows.values()} == {"shared"}
            assert all(row["owner"].startswith("dstore host") for row in rows.values())
        two.close()
        until(lambda: page_of(here, two.address) is None)
        assert host.stop() == (0, "")

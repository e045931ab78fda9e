"""Large values whose processes die, stop or lose their connection on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

import dstore
from tests.faults.proxy import Proxy, Rule
from tests.integration.large_values import (
    LARGE,
    Hosts,
    Reader,
    content_of,
    digest,
    files_of,
    host,
    soon,
)
from tests.integration.processes import GlobalProcess, free_port, send_signal

__all__ = ["host"]


@pytest.fixture
def slow(host: Hosts) -> Iterator[tuple[GlobalProcess, Proxy]]:
    """A Global, and a relay in front of it, at 127.0.0.2, that can be made slow."""
    port = free_port()
    before = {"DSTORE_SHM": os.environ.get("DSTORE_SHM")}
    os.environ["DSTORE_SHM"] = host("global")
    try:
        with GlobalProcess(f"tcp://127.0.0.1:{port}") as place:
            with Proxy(port, ["127.0.0.2"]) as proxy:
                yield place, proxy
            place.stop()
    finally:
        os.environ.pop("DSTORE_SHM")
        if before["DSTORE_SHM"] is not None:
            os.environ["DSTORE_SHM"] = before["DSTORE_SHM"]


SIZE = 4 << 20
SLOW = Rule("throttle", 1 << 20, "both")


def begun(host_folder: str) -> None:
    """Wait until somebody has begun to write a file there."""
    soon(
        lambda: [
            path
            for path in files_of(host_folder)
            if path.suffix == ".part" and path.stat().st_blocks
        ]
    )


def test_when_the_one_who_fetches_is_killed_another_takes_over(
    slow: tuple[GlobalProcess, Proxy], host: Hosts
) -> None:
    place, proxy = slow
    with dstore.Node(place.address, shm=host("a")) as writer:
        writer.set("k", content_of(SIZE))
        proxy.disturb("127.0.0.2", "requests", SLOW)
        with (
            Reader(proxy.address("127.0.0.2"), shm=host("b")) as first,
            Reader(place.address, shm=host("b")) as second,
        ):
            first.begin("get", "k")
            begun(host("b"))
            second.begin("get", "k")
            first.kill()
            assert second.end() == (SIZE, digest(content_of(SIZE)))
            assert [path.suffix for path in files_of(host("b"))] == [""]


@pytest.mark.long
def test_one_who_fetches_and_is_stopped_does_not_hold_up_the_others(
    slow: tuple[GlobalProcess, Proxy], host: Hosts
) -> None:
    place, proxy = slow
    with dstore.Node(place.address, shm=host("a")) as writer:
        writer.set("k", content_of(SIZE))
        proxy.disturb("127.0.0.2", "requests", SLOW)
        with (
            Reader(proxy.address("127.0.0.2"), shm=host("b")) as first,
            dstore.Node(place.address, shm=host("b"), timeout=0.5) as second,
        ):
            first.begin("get", "k")
            begun(host("b"))
            assert first.process.pid is not None
            send_signal(first.process.pid, signal.SIGSTOP)
            assert second.get("k") == content_of(SIZE)
            proxy.restore("127.0.0.2", "requests")
            send_signal(first.process.pid, signal.SIGCONT)
            assert first.end() == (SIZE, digest(content_of(SIZE)))


@pytest.mark.long
def test_when_the_uploader_is_killed_nothing_of_it_is_seen_or_stays(
    slow: tuple[GlobalProcess, Proxy], host: Hosts
) -> None:
    place, proxy = slow
    proxy.disturb("127.0.0.2", "requests", SLOW)
    with dstore.Node(place.address, shm=host("b")) as other:
        with Reader(proxy.address("127.0.0.2"), shm=host("a")) as uploader:
            uploader.begin("set", "k", content_of(SIZE))
            while not other.global_stats()["uploads"]:
                pass
            uploader.kill()
        assert "k" not in other
        other.set("k", content_of(SIZE, 2))
        assert other.get("k") == content_of(SIZE, 2)
    with dstore.Node(place.address, shm=host("a")) as last:  # tidies up after the one that died
        assert last.get("k") == content_of(SIZE, 2)


@pytest.mark.long
def test_a_transfer_goes_on_after_its_connection_was_lost(
    slow: tuple[GlobalProcess, Proxy], host: Hosts
) -> None:
    place, proxy = slow
    with dstore.Node(place.address, shm=host("a")) as writer:
        writer.set("k", content_of(SIZE))
        proxy.disturb("127.0.0.2", "requests", SLOW)
        with Reader(proxy.address("127.0.0.2"), shm=host("b")) as reader:
            reader.begin("get", "k")
            while writer.global_stats()["bytes_out"] < SIZE // 2:
                pass
            proxy.disturb("127.0.0.2", "requests", Rule("cut"))
            proxy.restore("127.0.0.2", "requests")
            assert reader.end() == (SIZE, digest(content_of(SIZE)))
            assert writer.global_stats()["bytes_out"] < 3 * SIZE  # it did not begin again each time
            before = writer.global_stats()["bytes_in"]
            proxy.disturb("127.0.0.2", "requests", SLOW)
            reader.begin("set", "l", content_of(SIZE, 1))
            while writer.global_stats()["bytes_in"] < before + SIZE // 2:
                pass
            proxy.disturb("127.0.0.2", "requests", Rule("cut"))
            proxy.restore("127.0.0.2", "requests")
            assert reader.end() is None
            assert writer.get("l") == content_of(SIZE, 1)


def test_a_value_that_is_deleted_or_replaced_on_its_way_comes_whole_or_not_at_all(
    slow: tuple[GlobalProcess, Proxy], host: Hosts
) -> None:
    place, proxy = slow
    with (
        dstore.Node(place.address, shm=host("a")) as writer,
        Reader(proxy.address("127.0.0.2"), shm=host("b")) as reader,
    ):
        for replace in (True, False):
            writer.set("k", content_of(SIZE, 1), replace=True)
            before = writer.global_stats()["bytes_out"]
            proxy.disturb("127.0.0.2", "requests", SLOW)
            reader.begin("get", "k", None)
            while writer.global_stats()["bytes_out"] == before:
                pass
            if replace:
                writer.set("k", content_of(SIZE, 2), replace=True)
            else:
                writer.delete("k")
            proxy.restore("127.0.0.2", "requests")
            new = (SIZE, digest(content_of(SIZE, 2))) if replace else None
            assert reader.end() in ((SIZE, digest(content_of(SIZE, 1))), new)
            assert reader.call("get", "k", None) == new


@pytest.mark.long
def test_a_global_that_dies_on_the_way_leaves_a_clear_error(host: Hosts) -> None:
    port = free_port()
    with GlobalProcess(f"tcp://127.0.0.1:{port}") as place, Proxy(port, ["127.0.0.2"]) as proxy:
        with (
            dstore.Node(place.address, shm=host("a")) as writer,
            Reader(proxy.address("127.0.0.2"), shm=host("b"), timeout=1.0) as reader,
        ):
            writer.set("k", content_of(SIZE))
            proxy.disturb("127.0.0.2", "requests", SLOW)
            reader.begin("get", "k")
            begun(host("b"))
            place.kill()
            assert reader.end().startswith("GlobalUnavailable")
            proxy.restore("127.0.0.2", "requests")
            place.start()
            assert reader.call("get", "k", "gone") == "gone"
        place.stop()


def test_after_all_were_killed_the_next_node_tidies_up(host: Hosts) -> None:
    with GlobalProcess() as place:
        readers = [Reader(place.address, shm=host("a")) for _ in range(2)]
        readers[0].call("set", "k", content_of(SIZE))
        readers[1].call("get", "k")
        assert files_of(host("a"))
        for reader in readers:
            reader.kill()
            reader.close()
        place.kill()
        assert files_of(host("a"))
        place.start()
        with dstore.Node(place.address, shm=host("a")) as node:
            node.join()
            node.set("k", content_of(LARGE))
            assert [path.stat().st_size for path in files_of(host("a"))] == [LARGE]
        place.stop()

"""Large values between real processes: whole, shared by a host, and gone when they are gone.

A host is a folder in memory here: Nodes with the same folder share, others do not.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.client.hosts.local import EvictedFiles
from dstore.client.large import LargeValues, Upload
from dstore.codecs import Codecs
from dstore.config import BYTES_MAX, CHUNK_BYTES, LARGE_FROM_DEFAULT
from dstore.protocol import content
from dstore.runtime.background import janitor
from tests.faults.proxy import Proxy, Rule
from tests.integration.processes import PATIENCE, GlobalProcess, free_port, send_signal

LARGE, CHUNK = LARGE_FROM_DEFAULT, CHUNK_BYTES
SIZES = {
    0,
    1,
    LARGE - 1,
    LARGE,
    LARGE + 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    BYTES_MAX,
    BYTES_MAX + 1,
    10 * CHUNK + 7,
}

Hosts = Callable[[str], str]
FORKING = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")
"""For a script that forks although it has threads, of which Python warns from 3.12 on."""


def look_at_files(node: dstore.Node) -> None:
    """Have a Node look now whether the files of its values are still there."""
    assert node._local is not None
    host = node._local.host
    host.next_check = float("-inf")
    EvictedFiles(host).check(0.0)


def content_of(size: int, seed: int = 0) -> bytes:
    """Bytes in which every place shows."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(host: str) -> list[Path]:
    """The values that lie in the memory of a host, finished or not."""
    return sorted(path for path in Path(host).rglob("*") if path.is_file() and path.name != "lock")


def soon(seen: Callable[[], object]) -> None:
    """Wait until something can be seen."""
    for _ in range(int(PATIENCE / 0.005)):
        if seen():
            return
        signal.sigtimedwait([], 0.005)
    raise AssertionError("that does not come")


@pytest.fixture
def host() -> Iterator[Hosts]:
    """``host("a")`` is the folder of host a, in memory. Nothing may be left in any of them."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="hosts-of-dstore-", dir=base) as folder:

        def named(name: str) -> str:
            path = os.path.join(folder, name)
            os.makedirs(path, exist_ok=True)
            return path

        yield named
        left = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert left == []


@pytest.fixture
def running(host: Hosts) -> Iterator[dstore.Global]:
    """A Global on host ``global``."""
    with dstore.Global("tcp://127.0.0.1:0", lease=1.0, shm=host("global")) as each:
        yield each


def _follow(pipe: Connection, address: str, options: dict[str, Any]) -> None:
    """Call a Node as a pipe says, and say how long the result is, and what hash it has."""
    with dstore.Node(address, **options) as node:
        pipe.send("ready")
        kept = []
        while True:
            name, arguments, keywords = pipe.recv()
            if name == "end":
                return
            try:
                result = getattr(node, name)(*arguments, **keywords)
            except dstore.DstoreError as error:
                pipe.send(f"{type(error).__name__}: {error}")
                continue
            if isinstance(result, (bytes, memoryview)):
                kept.append(result)
                result = (len(result), digest(result))
            pipe.send(result)


class Reader:
    """A process with a Node. It keeps the values that it has read."""

    def __init__(self, address: str, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_follow, args=(theirs, address, options))
        self.process.start()
        theirs.close()
        assert self._hear() == "ready"

    def begin(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self._pipe.send((name, arguments, keywords))

    def end(self) -> Any:
        return self._hear()

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        self.begin(name, *arguments, **keywords)
        return self.end()

    def _hear(self) -> Any:
        assert self._pipe.poll(PATIENCE)
        return self._pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            assert self.process.pid is not None
            send_signal(self.process.pid, signal.SIGCONT)
            self._pipe.send(("end", (), {}))
            self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


# ---- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["global", "elsewhere", ""], ids=["same", "other", "no memory"])
def test_values_of_every_size_come_back(running: dstore.Global, host: Hosts, where: str) -> None:
    shm = host(where) if where else ""
    with (
        dstore.Node(running.address, shm=shm) as writer,
        dstore.Node(running.address, shm=shm) as reader,
    ):
        for size in sorted(SIZES):
            body = content_of(size, size)
            key = f"k{size}"
            writer.set(key, body)
            for node in (writer, reader, reader):
                value = node.get(key)
                assert value == body
                assert type(value) is (bytes if size <= BYTES_MAX else memoryview)
                buffer = node.get_buffer(key)
                assert buffer == body
                assert buffer.readonly
            assert reader.lookup(key).from_local
            assert reader.put(body) == writer.put(body)
        values = reader.get_many([f"k{size}" for size in SIZES])
        assert {len(value) for value in values.values()} == SIZES
        assert set(writer.delete_many(list(values))) == set(values)
        assert reader.get_many(list(values)) == {}


def test_text_and_lists_may_be_large_and_keep_their_types(
    running: dstore.Global, host: Hosts
) -> None:
    text, items = "grün" * 200_000, [("x", i, b"y") for i in range(50_000)]
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("a")) as reader,
    ):
        assert writer.set_many({"text": text, "items": items, "small": 1}) == []
        for _ in range(2):
            assert reader.get("text") == text
            assert reader.get("items") == items
        writer.set("text", "short", replace=True)
        assert reader.get("text") == "short"
        writer.set("text", items, replace=True)
        assert reader.get("text") == items


def test_an_array_is_read_without_a_copy_and_cannot_be_changed(
    running: dstore.Global, host: Hosts
) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(300_000, dtype="f8").reshape(300, 1000)
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("a")) as reader,
    ):
        writer.set("m", array)
        array[:] = 0  # what was stored is what it was when it was stored
        first, second = reader.get("m"), reader.get("m")
        assert (first == numpy.arange(300_000).reshape(300, 1000)).all()
        assert numpy.shares_memory(first, second)
        with pytest.raises(ValueError, match="read-only"):
            first[0, 0] = 1
        writer.delete("m")
    assert first.sum() == 299_999 * 150_000  # readable for ever


def test_whether_a_key_is_bound_is_known_without_its_bytes(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b")) as asker,
    ):
        uid = writer.put(content_of(LARGE))
        assert uid in asker
        assert asker.put(content_of(LARGE)) == uid
        assert asker.global_stats()["bytes_out"] == 0
        assert asker.global_stats()["bytes_in"] == LARGE
        writer.set("k", 1)
        with pytest.raises(dstore.KeyOccupied):
            asker.set("k", content_of(LARGE))
        assert asker.global_stats()["bytes_in"] == LARGE
        assert files_of(host("b")) == []


# ---- one copy per host ------------------------------------------------------------------------


def test_what_is_set_on_globals_own_host_goes_through_no_socket(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("global")) as writer,
        dstore.Node(running.address, shm=host("global")) as reader,
    ):
        writer.set("k", content_of(10 * CHUNK))
        assert reader.get("k") == content_of(10 * CHUNK)
        metrics = reader.global_stats()
        assert (metrics["bytes_in"], metrics["bytes_out"]) == (0, 0)
        assert len(files_of(host("global"))) == 1
        reader.delete("k")
        assert files_of(host("global")) == []


@pytest.mark.long
def test_eight_processes_fetch_once_and_have_one_file(running: dstore.Global, host: Hosts) -> None:
    size = 16 << 20
    with ExitStack() as stack:
        make = partial(Reader, running.address, shm=host("b"))
        readers = [stack.enter_context(make()) for _ in range(8)]
        writer = stack.enter_context(dstore.Node(running.address, shm=host("a")))
        writer.set("k", content_of(size))
        for reader in readers:
            reader.begin("get", "k")
        assert [reader.end() for reader in readers] == [(size, digest(content_of(size)))] * 8
        assert writer.global_stats()["bytes_out"] == size
        assert [path.stat().st_size for path in files_of(host("b"))] == [size]
        assert writer.delete("k").confirmed == 9
        assert files_of(host("b")) == []


def test_a_value_that_is_deleted_while_others_hold_it_stays_readable_for_them(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as one,
        dstore.Node(running.address, shm=host("a")) as two,
    ):
        one.set("k", content_of(2 * CHUNK, 1))
        held = two.get_buffer("k")
        one.set("k", content_of(2 * CHUNK, 2), replace=True)
        assert two.get_buffer("k") == content_of(2 * CHUNK, 2)
        assert held == content_of(2 * CHUNK, 1)
        one.delete("k")
        assert "k" not in two
        assert held == content_of(2 * CHUNK, 1)
    assert held == content_of(2 * CHUNK, 1)


def test_a_value_that_is_deleted_goes_also_where_nobody_has_it_cached(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b")) as bystander,
    ):
        writer.set("other", content_of(CHUNK))
        bystander.get("other")
        for key, change in (
            ("k", writer.delete),
            ("l", lambda key: writer.set(key, b"small", replace=True)),
        ):
            writer.set(key, content_of(CHUNK))
            with dstore.Node(running.address, shm=host("b")) as visitor:
                visitor.get(key)
            assert len(files_of(host("b"))) == 2
            change(key)
            soon(lambda: len(files_of(host("b"))) == 1)


def test_the_least_recently_read_files_go_when_the_host_is_full(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b"), shm_limit=4 * CHUNK) as reader,
    ):
        for number in range(6):
            writer.set(f"k{number}", content_of(CHUNK, number))
        views = [reader.get_buffer(f"k{number}") for number in range(6)]
        assert len(files_of(host("b"))) == 4
        assert all(view == content_of(CHUNK, n) for n, view in enumerate(views))
        # Larger than all that there may be: memory of its own.
        writer.set("huge", content_of(5 * CHUNK))
        assert reader.get("huge") == content_of(5 * CHUNK)
        assert reader.stats()["bytes"] > 5 * CHUNK


def test_evicted_values_are_given_up_by_those_who_cached_them(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b")) as reader,
    ):
        writer.set("k", content_of(CHUNK))
        reader.get("k")
        (file,) = files_of(host("b"))
        file.unlink()  # as it is done to make room
        look_at_files(reader)
        assert not reader.lookup("k").from_local
        assert len(files_of(host("b"))) == 1


@pytest.mark.parametrize("how", ["deleted", "evicted"])
def test_much_memory_is_given_back_by_no_thread_that_renews_a_lease(
    running: dstore.Global, host: Hosts, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[Callable[[], object]] = []
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b")) as reader,
    ):
        writer.set("k", content_of(CHUNK))
        reader.get("k")
        (file,) = files_of(host("b"))
        monkeypatch.setattr("dstore.client.large.BACKGROUND_BYTES", CHUNK)
        with monkeypatch.context() as patched:
            patched.setattr(janitor, "do", work.append)
            if how == "deleted":
                writer.delete("k")
                givers = 2  # the writer had cached it too
            else:
                file.unlink()
                look_at_files(reader)
                givers = 1
            soon(lambda: len(work) == givers)
        assert not reader._state.entries
        maps = Path("/proc/self/maps")
        assert maps.read_text().count(str(file)) == 1
        while work:
            work.pop()()
        assert maps.read_text().count(str(file)) == 0


def test_values_that_are_read_are_touched_and_stay_in_the_cache(
    running: dstore.Global, host: Hosts
) -> None:
    with dstore.Node(running.address, shm=host("b")) as node:
        node.set("k", content_of(CHUNK))
        node.get("k")
        (file,) = files_of(host("b"))
        for touched in (True, False):
            os.utime(file, (0, 0))
            look_at_files(node)
            assert (file.stat().st_mtime > 0) is touched
            assert node._state.entries["k"].visited, "else it would be evicted first"


def test_a_life_of_global_that_is_over_gets_no_folder(host: Hosts) -> None:
    large = LargeValues(host("a"), None)
    encoded = Codecs().encode(content_of(LARGE))
    assert os.listdir(host("a")) == []
    assert not large.keep(0, encoded).mapped.shared  # type: ignore[union-attr]
    assert large.keep(1, encoded).mapped.shared  # type: ignore[union-attr]
    large.joined(2)
    janitor.wait()
    assert len(files_of(host("a"))) == 1, "it may be taken into the next"
    assert large.has_former
    large.forget_former()
    janitor.wait()
    assert files_of(host("a")) == []
    for epoch, shared in ((1, False), (2, True), (1, False), (2, True)):
        assert large.keep(epoch, encoded).mapped.shared is shared  # type: ignore[union-attr]
    assert len(files_of(host("a"))) == 2
    large.close()


def test_a_value_that_changes_while_it_is_laid_down_is_what_was_laid_down(
    running: dstore.Global, host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = bytearray(content_of(2 * CHUNK))
    update = content.Hasher.update

    def changing(self: content.Hasher, data: Any) -> None:
        if mine[0] != 0xFF:
            mine[:CHUNK] = b"\xff" * CHUNK
        update(self, data)

    with (
        dstore.Node(running.address, shm=host("global")) as writer,
        dstore.Node(running.address, shm=host("b")) as reader,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(content.Hasher, "update", changing)
            writer.set("k", mine)
        assert mine[0] == 0xFF
        assert reader.get("k") == writer.get("k")


def test_a_node_that_is_closed_before_it_has_bound_a_value_leaves_no_file(
    running: dstore.Global, host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = LargeValues.keep

    def closed_then(self: LargeValues, *arguments: Any) -> Upload:
        source = keep(self, *arguments)
        assert len(files_of(host("a"))) == 2
        closing = threading.Thread(target=node.close)
        closing.start()
        closing.join()
        return source

    with dstore.Node(running.address, shm=host("a")) as other:
        other.set("k", content_of(LARGE))
        with dstore.Node(running.address, shm=host("a")) as node:
            node.join()
            monkeypatch.setattr(LargeValues, "keep", closed_then)
            with pytest.raises(dstore.NodeClosed):
                node.set("l", content_of(LARGE, 1))
        assert len(files_of(host("a"))) == 1


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_many_values_that_are_private_take_few_mappings() -> None:
    many = 300
    with (
        dstore.Global("tcp://127.0.0.1:0", shm="") as place,
        dstore.Node(place.address, shm="") as writer,
        dstore.Node(place.address, shm="") as reader,
    ):
        before = mappings()
        for number in range(many):
            writer.set(f"k{number}", bytearray(content_of(LARGE, number)))
            assert reader.get(f"k{number}") == content_of(LARGE, number)
        assert len(reader._state.entries) == len(writer._state.entries) == many
        assert mappings() - before < many // 2


def test_where_the_memory_is_full_each_process_has_its_own(
    running: dstore.Global, host: Hosts, small_memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=small_memory, shm_limit=1 << 30) as reader,
    ):
        writer.set("k", content_of(4 << 20))
        assert reader.get("k") == content_of(4 << 20)
        reader.set("l", content_of(4 << 20, 1))
        assert writer.get("l") == content_of(4 << 20, 1)
        assert "this process alone" in caplog.text
        assert files_of(small_memory) == []


def test_where_globals_memory_is_full_it_uses_its_own(small_memory: str, host: Hosts) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", shm=small_memory) as place,
        dstore.Node(place.address, shm=host("a")) as writer,
        dstore.Node(place.address, shm=host("b")) as reader,
    ):
        writer.set("k", content_of(4 << 20))
        assert reader.get("k") == content_of(4 << 20)


@pytest.fixture
def small_memory(host: Hosts) -> Iterator[str]:
    """A file system in memory of 1 MiB."""
    path = host("small")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


# ---- processes that die -----------------------------------------------------------------------


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
            assert writer.global_stats()["bytes_out"] < 3 * SIZE  # it did not begin anew each time
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
            reader.__exit__()
        place.kill()
        assert files_of(host("a"))
        place.start()
        with dstore.Node(place.address, shm=host("a")) as node:
            node.join()
            node.set("k", content_of(LARGE))
            assert [path.stat().st_size for path in files_of(host("a"))] == [LARGE]
        place.stop()


def test_two_clusters_on_one_host_are_kept_apart(host: Hosts) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", shm=host("a")) as one,
        dstore.Global("tcp://127.0.0.1:0", shm=host("a")) as two,
        dstore.Node(one.address, shm=host("a")) as of_one,
        dstore.Node(two.address, shm=host("a")) as of_two,
    ):
        of_one.set("k", content_of(LARGE, 1))
        of_two.set("k", content_of(LARGE, 2))
        assert of_one.get("k") == content_of(LARGE, 1)
        assert of_two.get("k") == content_of(LARGE, 2)
        one.close()
        assert of_two.get("k") == content_of(LARGE, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_two_users_on_one_host_share_values_but_no_files(host: Hosts) -> None:
    folder = host("a")
    os.chmod(os.path.dirname(folder), 0o711)
    os.chmod(folder, 0o1777)
    script = """
import os, sys
import dstore
shm, mine, theirs = sys.argv[1], b"m" * 300_000, b"t" * 300_000
with dstore.Global("tcp://127.0.0.1:0", shm=shm) as place:
    with dstore.Node(place.address, shm=shm) as node:
        node.set("k", mine)
        child = os.fork()
        if not child:
            os.setuid(12345)
            with dstore.Node(place.address, shm=shm) as other:
                assert other.get("k") == mine
                other.set("l", theirs)
                (epoch,) = os.listdir(f"{shm}/dstore-12345")
                copies = f"{shm}/dstore-12345/{epoch}/copies"
                assert len(os.listdir(copies)) == 2
                assert not os.access(f"{shm}/dstore-0", os.R_OK | os.X_OK)
                assert other.delete("k").confirmed == 2
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert "k" not in node and node.get("l") == theirs
print("well", os.listdir(shm))
"""
    ran = subprocess.run(
        [*FORKING, script, folder], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("well []\n", "", 0)


def test_a_child_that_is_forked_while_a_view_is_held_keeps_it(host: Hosts) -> None:
    script = """
import os, sys
import dstore
body = b"x" * 300_000
with dstore.Global("tcp://127.0.0.1:0", shm=sys.argv[1]) as place:
    with dstore.Node(place.address, shm=sys.argv[2]) as node:
        node.set("k", body)
        held = node.get_buffer("k")
        child = os.fork()
        if not child:
            assert held == body
            assert node.get_buffer("k") == body and not node.lookup("k").value is None
            node.set("l", body)
            node.close()
            assert held == body
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert node.lookup("k").from_local and node.get("l") == body
        node.delete("k")
        assert held == body
print("well")
"""
    ran = subprocess.run(
        [*FORKING, script, host("global"), host("a")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("well\n", "", 0)


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shm", ["a", ""], ids=["shared", "no memory"])
@pytest.mark.parametrize("size", [0, 10, LARGE, 3 * CHUNK + 1])
def test_a_file_goes_in_and_comes_out(
    running: dstore.Global, host: Hosts, tmp_path: Path, shm: str, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content_of(size))
    target.write_bytes(b"older")
    told: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    with (
        dstore.Node(running.address, shm=shm and host(shm)) as writer,
        dstore.Node(running.address, shm=shm and host("b")) as reader,
    ):
        writer.set_file("k", source, progress=progress)
        uid = writer.put_file(source)
        assert writer.put_file(source) == uid == reader.put(content_of(size))
        assert reader.get("k") == content_of(size)
        for key in ("k", uid):
            fetched = reader.get_file(key, target, progress=progress)
            assert (fetched.codec, fetched.size) == ("bytes", size)
            assert target.read_bytes() == content_of(size)
        with pytest.raises(dstore.KeyOccupied):
            writer.set_file("k", source)
        writer.set_file("k", source, replace=True)
        with pytest.raises(dstore.KeyMissing):
            reader.get_file("missing", tmp_path / "never")
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert all(0 <= done <= total for _, done, total in told)
    if size >= LARGE:
        assert {what for what, _, _ in told} >= {"reading", "sending"}


def test_what_is_wrong_with_a_file_is_said_and_leaves_nothing(
    running: dstore.Global, host: Hosts, tmp_path: Path
) -> None:
    with dstore.Node(running.address, shm=host("a")) as node:
        for wrong in (tmp_path / "missing", tmp_path):
            with pytest.raises(OSError, match=wrong.name):
                node.set_file("k", wrong)
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(TypeError):
            node.put_file(descriptor)  # type: ignore[arg-type]
        os.close(descriptor)  # it was not closed
        node.set("k", content_of(LARGE))
        with pytest.raises(OSError, match="directory"):
            node.get_file("k", tmp_path)
        with pytest.raises(OSError, match="nowhere"):
            node.get_file("k", tmp_path / "nowhere" / "file")
        full = Path("/dev/full")
        if full.exists():
            with pytest.raises(OSError, match=r".*"):
                node.get_file("k", full / "file")
    assert os.listdir(tmp_path) == []


def test_a_file_that_becomes_shorter_on_its_way_is_an_error(
    running: dstore.Global, tmp_path: Path
) -> None:
    path = tmp_path / "file"

    def cut(what: str, done: int, total: int) -> None:
        if what == "sending":
            os.truncate(path, done)

    path.write_bytes(content_of(20 * CHUNK))
    with dstore.Node(running.address, shm="") as node:
        with pytest.raises(ValueError, match="became shorter"):
            node.set_file("k", path, progress=cut)
        assert "k" not in node


@pytest.mark.parametrize("command", ["put_file", "set_file"])
def test_a_file_that_is_changed_while_it_is_stored_is_an_error_that_says_so(
    running: dstore.Global, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "file"

    def change(what: str, done: int, total: int) -> None:
        if (what, done) == ("reading", total):
            path.write_bytes(content_of(2 * CHUNK, 2))

    path.write_bytes(content_of(2 * CHUNK, 1))
    arguments = (path,) if command == "put_file" else ("k", path)
    with dstore.Node(running.address, shm="") as node:
        with pytest.raises(dstore.ValueCorrupt, match="was changed while it was read"):
            getattr(node, command)(*arguments, progress=change)
        assert list(node.keys()) == []


def test_devices_pipes_and_modes_of_files_are_respected(
    running: dstore.Global, host: Hosts, tmp_path: Path
) -> None:
    pipe, private, long = tmp_path / "pipe", tmp_path / "private", tmp_path / ("n" * 255)
    os.mkfifo(pipe)
    private.touch(0o600)
    with dstore.Node(running.address, shm=host("a")) as node:
        node.set("k", content_of(LARGE))
        for odd in (pipe, Path("/dev/null")):
            with pytest.raises(ValueError, match="regular file"):
                node.get_file("k", odd)
            assert not odd.is_file()
        with pytest.raises(ValueError, match="regular file"):
            node.set_file("l", "/dev/zero")
        with pytest.raises(OSError, match="directory"):
            node.get_file("k", f"{tmp_path}/new/")
        for path in (private, long):
            node.get_file("k", path)
            assert path.read_bytes() == content_of(LARGE)
        assert private.stat().st_mode & 0o777 == 0o600
        with pytest.raises(dstore.KeyOccupied):
            node.set_file("k", long)

"""Large values of a host: one copy for all its processes, which goes when it is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.client.hosts.local import EvictedFiles
from dstore.client.large import LargeValues, Upload
from dstore.codecs import Codecs
from dstore.protocol import content
from dstore.runtime.background import janitor
from tests.integration.large_values import (
    CHUNK,
    LARGE,
    Hosts,
    Reader,
    content_of,
    digest,
    files_of,
    host,
    running,
    soon,
)
from tests.integration.processes import PATIENCE

__all__ = ["host", "running"]

FORKING = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")
"""For a script that forks although it has threads, of which Python warns from 3.12 on."""


def look_at_files(node: dstore.Node) -> None:
    """Have a Node look now whether the files of its values are still there."""
    assert node._local is not None
    host = node._local.host
    host.next_check = float("-inf")
    EvictedFiles(host).check(0.0)


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


# ---- clusters, users and children of one host -------------------------------------------------


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

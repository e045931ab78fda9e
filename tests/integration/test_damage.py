"""Files of large values that another process of the same user cuts short or removes during use.

Global goes on in any case. Who reads gets the value or an error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import dstore
from dstore.codecs import Encoded
from dstore.config import CHUNK_BYTES
from tests.integration.large_values import Hosts, Reader, content_of, digest, files_of, host, soon
from tests.integration.processes import GlobalProcess, others_left

__all__ = ["host"]

SIZE = 5 * CHUNK_BYTES + 7
GOOD = (SIZE, digest(content_of(SIZE)))


@pytest.fixture
def global_() -> Iterator[GlobalProcess]:
    """A Global in its own process, on the host of this test."""
    with GlobalProcess() as global_:
        yield global_
        global_.stop()


def here() -> str:
    """The host of this test and of ``global_``."""
    return os.environ["DSTORE_SHM"]


def cut(path: Path) -> None:
    os.truncate(path, CHUNK_BYTES + 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def a_little(path: Path) -> None:
    os.truncate(path, SIZE - 1)


def gone(reader: Reader) -> bool:
    return str(reader.call("get", "k")).startswith("RequestRefused")


@pytest.mark.parametrize("damage", [cut, a_little])
def test_a_damaged_file_of_global_is_an_error_and_ends_no_process(
    global_: GlobalProcess, host: Hosts, damage: Callable[[Path], None]
) -> None:
    with (
        Reader(global_.address) as near,
        Reader(global_.address, shm=host("far")) as far,
        dstore.Node(global_.address) as node,
    ):
        node.set("other", content_of(SIZE))
        others = set(files_of(here()))
        near.call("set", "k", content_of(SIZE))
        (path,) = set(files_of(here())) - others
        damage(path)
        if damage is cut:
            assert near.call("get", "k").startswith("ValueCorrupt: the value of 'k' is damaged")
        for reader in (far, near):
            soon(partial(gone, reader))
        assert "its bytes are lost" in far.call("get", "k")
        assert far.call("get", "other") == near.call("get", "other") == GOOD
        near.call("set", "k", content_of(SIZE), replace=True)
        assert far.call("get", "k") == near.call("get", "k") == GOOD
        assert path not in files_of(here())


@pytest.mark.long
@pytest.mark.parametrize("damage", [cut, a_little])
def test_a_value_that_is_damaged_on_another_host_is_fetched_again(
    global_: GlobalProcess, host: Hosts, damage: Callable[[Path], None]
) -> None:
    with (
        dstore.Node(global_.address) as node,
        Reader(global_.address, shm=host("far")) as one,
        Reader(global_.address, shm=host("far")) as two,
    ):
        node.set("k", content_of(SIZE))
        assert one.call("get", "k") == GOOD
        (path,) = files_of(host("far"))
        damage(path)
        if damage is cut:
            assert one.call("get", "k").startswith("ValueCorrupt: the value of 'k' is damaged")
        assert two.call("get", "k") == GOOD, "it has not read the damaged one"
        soon(lambda: one.call("get", "k") == GOOD)
        one.call("set", "k", content_of(SIZE), replace=True)
        assert one.call("get", "k") == two.call("get", "k") == GOOD
        soon(lambda: [each.stat().st_size for each in files_of(host("far"))] == [SIZE])


def test_a_file_that_is_cut_short_while_it_is_sent_ends_no_process(
    global_: GlobalProcess, host: Hosts
) -> None:
    """A few chunks are being sent when the file is cut short; the reader asks for each again."""
    with dstore.Node(global_.address) as node:
        node.set("k", content_of(20 * CHUNK_BYTES))
        (path,) = files_of(here())
        readers = [Reader(global_.address, shm="") for _ in range(2)]
        for reader in readers:
            reader.begin("get", "k")
        before = node.global_stats()["bytes_out"]
        soon(lambda: node.global_stats()["bytes_out"] > before)
        os.truncate(path, 0)
        whole = (20 * CHUNK_BYTES, digest(content_of(20 * CHUNK_BYTES)))
        for reader in readers:
            said = reader.end()
            assert said == whole or said.startswith("RequestRefused")
            reader.__exit__()
        assert node.delete("k").confirmed


def test_a_value_that_is_cut_short_before_it_is_uploaded(
    global_: GlobalProcess, host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is on another host than Global; sending it from a mapping would end the process."""
    with dstore.Node(global_.address, shm=host("far")) as node:
        whole = node._local.large.keep  # type: ignore[union-attr]

        def damaged(epoch: int, encoded: Encoded) -> object:
            source = whole(epoch, encoded)
            (path,) = files_of(host("far"))
            empty(path)
            return source

        monkeypatch.setattr(node._local.large, "keep", damaged)  # type: ignore[union-attr]
        with pytest.raises(dstore.ValueCorrupt, match="another process has cut its file"):
            node.set("k", content_of(SIZE))
        monkeypatch.undo()
        assert files_of(host("far")) == []
        node.set("k", content_of(SIZE))
        assert node.get("k") == content_of(SIZE)


def test_a_folder_that_is_removed_during_use_is_replaced_and_all_values_stay(
    host: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(host("a"))
    with (
        dstore.Global("tcp://127.0.0.1:0", lease=1.0, shm=host("a")) as global_,
        dstore.Node(global_.address, shm=host("a")) as node,
        Reader(global_.address, shm=host("a")) as near,
        Reader(global_.address, shm=host("b")) as far,
    ):
        node.set("old", content_of(SIZE))
        view = node.get("old")
        for again in range(3):
            for each in folder.glob("dstore-*"):
                shutil.rmtree(each)
            for reader in (far, near):
                assert reader.call("get", "old") == GOOD
            assert node.get("old") == view
            key = f"new {again}"
            node.set(key, content_of(SIZE))
            assert near.call("get", key) == far.call("get", key) == GOOD
            assert files_of(host("a")), "they are shared again"
        assert others_left(node, 2) == 2
        said = [record.getMessage() for record in caplog.records]
        assert len(said) <= 2, "one line of Global's, one of the Node's"
        assert all("was removed by another program; a new one was created" in line for line in said)
        del view


@pytest.mark.long
def test_a_long_lease_does_not_hide_a_removed_file(host: Hosts) -> None:
    """Cached values whose files are gone are dropped soon, however rarely a lease is renewed."""
    with (
        dstore.Global("tcp://127.0.0.1:0", lease=600.0, shm="") as global_,
        dstore.Node(global_.address, shm=host("a")) as node,
    ):
        node.set("k", content_of(SIZE))
        assert node.lookup("k").from_local
        (path,) = files_of(host("a"))
        path.unlink()
        soon(lambda: not node.stats()["keys"])
        assert node.get("k") == content_of(SIZE)
        assert len(files_of(host("a"))) == 1

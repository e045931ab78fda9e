"""What an owner keeps on its host, and what its core writes to the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dstore.config import HOST_BUCKETS
from dstore.core.local.key_hash import KeyHash
from dstore.runtime import clock
from dstore.shm.directory import Unusable
from dstore.shm.finding import find
from dstore.shm.hosts import Owned
from dstore.shm.share import Share, WrittenPage
from tests.unit.shm.pages import _root as _root

ADDRESS = "tcp://127.0.0.1:50051"


def share_in(root: Path, cache_bytes: int | None = 0) -> Share:
    share = Share(str(root), [ADDRESS], "a test", cache_bytes)
    share.take()
    return share


def opened(share: Share, session: int = 7) -> WrittenPage:
    return share.open(
        epoch=3,
        session=session,
        lease=2.0,
        value_limit=1 << 20,
        large_from=1 << 10,
        publisher="tcp://*:2",
    )


def names(root: Path) -> list[str]:
    return sorted(path.suffix for path in root.rglob("*") if path.is_file())


def test_what_is_written_is_what_readers_see(root: Path) -> None:
    share = share_in(root)
    page = opened(share)
    found = find(str(root), ADDRESS)
    assert found is not None
    assert found.identity.session == 7
    bucket = KeyHash(found.identity.hash_key)("ключ") % HOST_BUCKETS
    page.note("ключ", 5)
    assert found.words[bucket] == 5
    end = clock.now() + 1.0
    page.renew(end)
    assert found.lease[0] == round(end * 1e9)
    page.void()
    assert found.lease[0] == 0
    share.close()


def test_a_word_never_becomes_smaller(root: Path) -> None:
    share = share_in(root)
    page = opened(share)
    page.note("k", 5)
    page.note("k", 4)
    found = find(str(root), ADDRESS)
    assert found is not None
    assert max(found.words) == 5
    share.close()


def test_a_void_page_is_not_renewed(root: Path) -> None:
    share = share_in(root)
    page = opened(share)
    page.void()
    with pytest.raises(Unusable, match="void"):
        page.renew(clock.now() + 1.0)
    share.close()


def test_nothing_is_written_to_a_closed_page_in_silence(root: Path) -> None:
    share = share_in(root)
    page = opened(share)
    page.close()
    with pytest.raises(IndexError):
        page.note("k", 1)
    with pytest.raises(IndexError):
        page.renew(clock.now())
    page.void()
    page.close()
    share.close()


def test_each_session_has_a_file_of_its_own(root: Path) -> None:
    share = share_in(root, 1 << 20)
    first = opened(share)
    former = find(str(root), ADDRESS)
    assert former is not None
    with pytest.raises(RuntimeError, match="former"):
        opened(share, 8)
    first.close()
    assert ".table" not in names(root)
    opened(share, 8)
    newest = find(str(root), ADDRESS)
    assert newest is not None
    assert newest.identity.session == 8
    assert newest.identity.hash_key != former.identity.hash_key
    assert newest.identity.table != former.identity.table
    assert former.lease[0] == 0
    share.close()
    assert names(root) == []


def test_figures(root: Path) -> None:
    share = share_in(root, 1 << 20)
    assert share.figures()["host_membership"] == "none"
    page = opened(share)
    figures = share.figures()
    assert figures["host_membership"] == f"a test, process {os.getpid()}"
    assert figures["host_cache_limit"] == 1 << 20
    page.close()
    assert share.figures()["host_membership"] == "none"
    assert share.figures()["host_cache_limit"] == 0
    share.close()


def test_the_names_are_taken_once_and_given_back(root: Path) -> None:
    share = share_in(root)
    share.take()
    other = Share(str(root), [ADDRESS], "another", 0)
    with pytest.raises(Owned, match="this process"):
        other.take(tries=1)
    with pytest.raises(Unusable, match="not taken"):
        opened(other)
    share.close()
    share.close()
    other.take()
    opened(other)
    other.close()
    assert names(root) == []


def test_a_host_cache_that_is_too_small_is_none_but_there_is_a_page(root: Path) -> None:
    share = share_in(root, 4096)
    opened(share)
    found = find(str(root), ADDRESS)
    assert found is not None
    assert found.identity.table == ""
    assert ".table" not in names(root)
    share.close()


def test_a_forked_child_leaves_all_to_its_parent(root: Path) -> None:
    share = share_in(root, 1 << 20)
    page = opened(share)
    page.renew(clock.now() + 1.0)
    child = os.fork()
    if not child:
        code = 1
        try:
            page.void()
            page.close()
            share.close()
            code = 0 if share.figures()["host_membership"] == "none" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    found = find(str(root), ADDRESS)
    assert found is not None
    assert found.lease[0] > clock.now() * 1e9
    page.note("k", 1)
    assert max(found.words) == 1
    share.close()
    assert names(root) == []

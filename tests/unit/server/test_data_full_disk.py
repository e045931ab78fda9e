"""A full disk: values are refused, deletions go on, and values fit again when there is room."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from dstore.core.engine import Kept
from dstore.protocol.messages import Large, Stored
from dstore.server.data import Data, database
from tests.disks import mounted_disk
from tests.unit.server.data_files import (
    DONE,
    FULL,
    RESERVE,
    bind,
    contents,
    expire,
    opened,
    remove,
    replace,
    token_of,
    value,
)

BODY = bytes(20_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, "8m") as disk:
        yield disk


def fill(data: Data) -> int:
    """Bind values until the disk is full. Returns how many were bound."""
    for number in range(10_000):
        (outcome,) = data.database.apply([bind(f"k{number}", value(number, BODY))])
        if outcome is not DONE:
            assert outcome is FULL
            return number
    raise AssertionError("the disk is not full")


def take_all(disk: Path) -> Path:
    """Fill the disk to its last page with a file. Returns that."""
    hog = disk / "hog"
    with hog.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    space = os.statvfs(disk)
    assert space.f_bavail * space.f_frsize < 1 << 12
    return hog


def kept_numbers(found: dict[str, Kept]) -> list[int]:
    assert all(kept.stored is not None for kept in found.values())
    return sorted(int(key[1:]) for key in found)


def test_deletions_go_on_and_then_values_fit_again(disk: Path) -> None:
    with opened(disk / "data") as data:
        count = fill(data)
        assert count > 20
        changes = [
            bind("new", value(1)),
            remove("k0", token_of(0)),
            replace("k1", token_of(1), value(100, BODY * 2)),
            expire("k2", token_of(2), 7.0),
        ]
        first = data.database.apply([bind("new", value(1, bytes(1 << 22))), *changes[1:]])
        assert first == [FULL, DONE, FULL, DONE]
        for number in range(3, count - 1):
            assert data.database.apply([remove(f"k{number}", token_of(number))]) == [DONE]
        assert data.figures()["reserve_bytes"] == RESERVE
        assert data.database.apply([bind("k500", value(500, BODY))]) == [DONE]
    found = contents(disk / "data")
    assert kept_numbers(found) == [1, 2, count - 1, 500]
    assert found["k2"].deadline == 7.0 and found["k1"].token == token_of(1)


def test_a_disk_that_others_have_filled(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "RETRY_EVERY", 0.0)
    with opened(disk / "data") as data:
        for number in range(100):
            data.database.apply([bind(f"k{number}", value(number, b"small"))])
        hog = take_all(disk)
        full = [bind("new", value(1, bytes(1 << 20))), remove("k0", token_of(0))]
        assert data.database.apply(full) == [FULL, DONE]
        for number in range(1, 99):
            assert data.database.apply([remove(f"k{number}", token_of(number))]) == [DONE]
        hog.unlink()
        assert data.database.apply([bind("k100", value(100, BODY))]) == [DONE]
        assert data.figures()["reserve_bytes"] == RESERVE
    assert kept_numbers(contents(disk / "data")) == [99, 100]


def test_a_log_that_does_not_fit_begins_empty(disk: Path) -> None:
    with opened(disk / "data", log_bytes=1 << 24) as data:
        assert data.figures()["log_bytes"] == 0
        assert data.figures()["reserve_bytes"] == RESERVE
        assert data.database.apply([bind("key", value(1, BODY))]) == [DONE]
        assert 0 < data.figures()["log_bytes"] < 1 << 16
    assert contents(disk / "data")["key"].stored == value(1, BODY)


def test_values_do_not_use_up_the_space_for_deletions(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion has taken a part of it, which a reader keeps in the log."""
    monkeypatch.setattr(database, "RETRY_EVERY", float("inf"))  # room is looked for at a deletion
    with opened(disk / "data") as data, ExitStack() as readers:
        data.database.apply([bind(f"k{number}", value(number)) for number in range(5)])
        reader = readers.enter_context(closing(sqlite3.connect(disk / "data" / "dstore.db")))
        reader.isolation_level = None
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        data.database.apply([bind("k8", value(8, bytes(1 << 18)))])  # the log has no more room
        hog = take_all(disk)
        for number in range(3):
            assert data.database.apply([remove(f"k{number}", token_of(number))]) == [DONE]
            assert data.figures()["reserve_bytes"] == 0
            assert data.database.apply([bind("new", value(9))]) == [FULL], "it would fit"
        reader.close()
        assert data.database.apply([remove("k3", token_of(3))]) == [DONE]
        assert data.figures()["reserve_bytes"] == RESERVE
        hog.unlink()
        assert data.database.apply([bind("k9", value(9))]) == [DONE]
    assert kept_numbers(contents(disk / "data")) == [4, 8, 9]


def test_many_deletions_at_once_are_done_in_parts(disk: Path) -> None:
    """Together they need more than the reserve: each page of the tree has one of them."""
    with opened(disk / "data", log_bytes=1 << 16) as data:
        count = 0
        while set(data.database.apply([bind(f"k{count + n}", value(1, bytes(900))) for n in
                  range(40)])) == {DONE}:  # fmt: skip
            count += 40
        assert count > 2000
        take_all(disk)
        changes = [remove(f"k{n}", token_of(1)) for n in range(0, count, 3)]
        assert set(data.database.apply(changes)) == {DONE}
        left = count - len(changes)
    assert len(contents(disk / "data")) == left


def test_it_starts_on_a_full_disk(disk: Path) -> None:
    with opened(disk / "data") as data:
        data.database.set_lease(3.0)
        data.database.apply([bind("k1", value(1)), bind("k2", value(2))])
    take_all(disk)
    with opened(disk / "data") as data:
        assert data.lease == 3.0
        data.database.set_lease(4.0)
        assert data.database.apply([bind("k3", value(3)), remove("k1", token_of(1))])[1] is DONE
    assert "k1" not in contents(disk / "data")


def test_room_for_a_large_value_is_asked_for_first(disk: Path) -> None:
    asked: list[Stored] = []
    with opened(disk / "data", asked.append) as data:
        large = value(1, Large(1 << 30, b"d" * 32))
        data.journal.begin(int)
        data.journal.commit(1, [bind("k1", large)])
        data.journal.close()
        assert data.journal.committed() == [(1, [DONE])]
    assert asked == [large]

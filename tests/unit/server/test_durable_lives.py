"""What a durable Global begins with, given how its former lives have ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dstore
from dstore.protocol.messages import DAMAGED, Stored
from dstore.runtime import clock
from dstore.server.data import Data, open_data
from dstore.server.durable import Durable
from dstore.server.engines.memory import MemoryEngine
from tests.unit.server.data_files import bind, edit, opened, token_of, value

LONG = 1_000.0
"""Seconds of a lease that does not end during a test."""
SHORT = 0.05


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def life(place: Path, lease: float, *, lease_out: bool = True) -> Iterator[Durable]:
    """One life of a Global, which gives this lease. At its end one may be out."""
    durable = Durable(str(place), lease)
    try:
        durable.load(MemoryEngine(1 << 20, journal=True))
        durable.begin(lambda: None)
        yield durable
    finally:
        durable.close(lease_out=lease_out)


def recorded(place: Path) -> float:
    """The longest lease that may be out, by what is on the disk."""
    with opened(place) as data:
        return data.lease


def wait_for(durable: Durable) -> None:
    """Wait until the quiet period is over, and let it be recorded."""
    while clock.now() < durable.check_at:
        pass
    durable.check()


def test_the_first_life_is_not_quiet(place: Path) -> None:
    with life(place, LONG) as first:
        assert (first.quiet_until, first.silent_until) == (0.0, 0.0)
    assert recorded(place) == LONG


def test_the_next_is_quiet_for_the_lease_of_the_former_from_when_it_has_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with life(place, LONG):
        pass
    opened_at: list[float] = []

    def opened_late(path: str, keep: Callable[[Stored], None]) -> Data:
        data = open_data(path, keep)
        opened_at.append(clock.now())
        return data

    monkeypatch.setattr("dstore.server.durable.open_data", opened_late)
    with life(place, SHORT) as second:
        assert second.quiet_until >= opened_at[0] + LONG
        assert second.silent_until == 0.0


def test_what_one_life_has_not_waited_for_the_next_one_waits_for(place: Path) -> None:
    with life(place, LONG):
        pass
    with life(place, SHORT):
        pass
    assert recorded(place) == LONG


def test_once_waited_for_a_lease_is_not_waited_for_again(place: Path) -> None:
    with life(place, 2 * SHORT):
        pass
    with life(place, SHORT) as second:
        wait_for(second)
    assert recorded(place) == SHORT


def test_a_clean_end_leaves_nothing_to_wait_for(place: Path) -> None:
    with life(place, LONG, lease_out=False):
        pass
    assert recorded(place) == 0.0


def test_an_end_in_the_quiet_period_is_not_clean(place: Path) -> None:
    with life(place, LONG):
        pass
    with life(place, SHORT, lease_out=False):
        pass
    assert recorded(place) == LONG


def test_the_end_of_a_global_is_clean_only_if_no_node_has_a_lease(place: Path) -> None:
    server = dstore.Global("tcp://127.0.0.1:0", data=place, lease=LONG)
    with server, dstore.Node(server.address) as node:
        node.set("k", 1)
        server.close()
        assert recorded(place) == LONG
    server = dstore.Global("tcp://127.0.0.1:0", data=place, lease=SHORT)
    with server:
        pass
    assert recorded(place) == LONG, "its quiet period was not over"


def test_a_copied_folder_is_silent_for_the_longest_lease(place: Path, tmp_path: Path) -> None:
    with life(place, SHORT):
        pass
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    before = clock.now()
    with life(copy, LONG) as second:
        assert second.silent_until == second.quiet_until >= before + LONG


def test_a_damaged_value_is_bound_and_large_files_without_a_key_stay(place: Path) -> None:
    with opened(place) as data:
        data.database.apply([bind("k", value(1)), bind("l", value(2))])
    edit(place, "update kept set body = x'00' where key = cast('k' as blob)")
    durable = Durable(str(place), SHORT)
    stray = place / "large" / f"{token_of(9).hex()}"
    stray.write_bytes(b"?")
    try:
        engine = MemoryEngine(1 << 20, journal=True)
        durable.load(engine)
        found = engine.read("k")
        assert found is not None
        assert (found.codec, found.token) == (DAMAGED, token_of(1))
        assert engine.read("l") == value(2)
        assert stray.exists()
    finally:
        durable.close(lease_out=True)

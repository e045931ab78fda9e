"""The journal: groups, order, large values, its end, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from dstore.core.engine import Change, Outcome
from dstore.errors import DataError, RequestRefused, StoreFull
from dstore.protocol.messages import Large, Stored
from dstore.server.data import DataJournal
from tests.unit.server.data_files import (
    DONE,
    FAILED,
    FULL,
    TIMEOUT,
    bind,
    contents,
    expire,
    opened,
    remove,
    token_of,
    value,
)

LARGE = Large(1 << 30, b"d" * 32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Caller:
    """Global's side: collects outcomes, and waits for them by the wake-ups of the journal."""

    def __init__(self, journal: DataJournal) -> None:
        self.journal = journal
        self.ended: list[tuple[int, list[Outcome]]] = []
        self._woken = threading.Semaphore(0)
        journal.begin(self._woken.release)

    def wait_for(self, count: int) -> None:
        while len(self.ended) < count:
            assert self._woken.acquire(timeout=TIMEOUT)
            self.ended += self.journal.committed()

    def failure(self) -> DataError:
        """Wait until it fails."""
        while True:
            assert self._woken.acquire(timeout=TIMEOUT)
            try:
                self.ended += self.journal.committed()
            except DataError as error:
                return error


class Gate:
    """Stops the committer within ``keep``, so that batches gather behind it."""

    def __init__(self) -> None:
        self.here, self.go_on = threading.Event(), threading.Event()

    def __call__(self, stored: Stored) -> None:
        self.here.set()
        assert self.go_on.wait(TIMEOUT)


def test_batches_end_in_their_order(place: Path) -> None:
    with opened(place) as data:
        caller = Caller(data.journal)
        data.journal.commit(7, [bind("a", value(1)), bind("b", value(2))])
        data.journal.commit(8, [expire("a", token_of(1), 5.0), remove("b", b"wrong")])
        data.journal.commit(9, [])
        data.journal.commit(10, [remove("a", token_of(1)), bind("c", value(3))])
        caller.wait_for(4)
        assert caller.ended == [(7, [DONE, DONE]), (8, [DONE, FAILED]), (9, []), (10, [DONE, DONE])]
        assert data.journal.committed() == []
    assert sorted(contents(place)) == ["b", "c"]


def test_there_is_news_until_it_is_taken(place: Path) -> None:
    with opened(place) as data:
        woken = threading.Semaphore(0)
        data.journal.begin(woken.release)
        assert not data.journal.news
        for number in range(2):
            data.journal.commit(number, [bind(f"k{number}", value(1))])
            assert woken.acquire(timeout=TIMEOUT) and data.journal.news
            assert data.journal.committed() == [(number, [DONE])]
            assert not data.journal.news


def test_batches_that_wait_share_a_commit(place: Path) -> None:
    gate = Gate()
    with opened(place, gate) as data:
        caller = Caller(data.journal)
        data.journal.commit(0, [bind("large", value(0, LARGE))])
        assert gate.here.wait(TIMEOUT)
        for number in range(1, 9):
            data.journal.commit(number, [bind(f"k{number}", value(number))])
        assert data.figures()["commits"] == 0
        gate.go_on.set()
        caller.wait_for(9)
        assert caller.ended == [(number, [DONE]) for number in range(9)]
        assert data.figures()["commits"] == 2
    assert len(contents(place)) == 9


def test_a_group_has_a_bound(place: Path) -> None:
    gate = Gate()
    with opened(place, gate) as data:
        caller = Caller(data.journal)
        data.journal.commit(0, [bind("large", value(0, LARGE))])
        assert gate.here.wait(TIMEOUT)
        for number in range(1, 7):
            data.journal.commit(number, [bind(f"k{number}", value(number, bytes(3 << 20)))])
        gate.go_on.set()
        caller.wait_for(7)
        assert data.figures()["commits"] == 3


def test_what_can_end_is_known_only_when_it_is_durable(place: Path) -> None:
    gate = Gate()
    with opened(place, gate) as data:
        Caller(data.journal)
        data.journal.commit(1, [bind("large", value(1, LARGE))])
        assert gate.here.wait(TIMEOUT)
        assert data.journal.committed() == []
        gate.go_on.set()


def test_the_bytes_of_a_large_value_are_kept_before_its_row(place: Path) -> None:
    errors = {
        token_of(1): StoreFull("no room"),
        token_of(2): RequestRefused("lost"),
        token_of(3): OSError(errno.ENOSPC, "no room"),
        token_of(4): None,
    }
    seen: list[float] = []

    def keep(stored: Stored) -> None:
        seen.append(data.figures()["commits"])
        if error := errors[stored.token]:
            raise error

    with opened(place, keep) as data:
        caller = Caller(data.journal)
        changes = [bind(f"k{n}", value(n, LARGE)) for n in range(1, 5)]
        data.journal.commit(1, [*changes, bind("small", value(5))])
        caller.wait_for(1)
        assert caller.ended == [(1, [FULL, FAILED, FULL, DONE, DONE])]
        assert seen == [0, 0, 0, 0]
    assert sorted(contents(place)) == ["k4", "small"]


def test_a_failure_ends_it_after_what_ended_before(place: Path) -> None:
    def keep(stored: Stored) -> None:
        if stored.token == token_of(1):
            gate(stored)
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    gate = Gate()
    with opened(place, keep) as data:
        caller = Caller(data.journal)
        data.journal.commit(1, [bind("a", value(1, LARGE))])
        assert gate.here.wait(TIMEOUT)
        data.journal.commit(2, [bind("b", value(2, LARGE))])
        data.journal.commit(3, [bind("c", value(3))])
        gate.go_on.set()
        error = caller.failure()
        assert "Input/output error" in str(error) and "Global ends" in str(error)
        assert caller.ended == [(1, [DONE])]
        data.journal.commit(4, [bind("d", value(4))])
        with pytest.raises(DataError):
            data.journal.committed()
    assert sorted(contents(place)) == ["a"]


def test_outcomes_that_were_not_fetched_come_before_the_failure(place: Path) -> None:
    woken = threading.Semaphore(0)
    with opened(place) as data:
        data.journal.begin(woken.release)
        data.journal.commit(1, [bind("a", value(1))])
        assert woken.acquire(timeout=TIMEOUT)
        data.journal.call(lambda: 1 // 0)
        assert woken.acquire(timeout=TIMEOUT)
        assert data.journal.news and data.journal.committed() == [(1, [DONE])]
        assert woken.acquire(timeout=TIMEOUT) and data.journal.news, "there is more to fetch"
        with pytest.raises(DataError, match="ZeroDivisionError"):
            data.journal.committed()


def test_a_close_commits_what_was_taken(place: Path) -> None:
    with opened(place) as data:
        data.journal.begin(int)
        for number in range(100):
            data.journal.commit(number, [bind(f"k{number}", value(number))])
        data.close()
        assert data.journal.committed() == [(number, [DONE]) for number in range(100)]
        data.close()
    assert not (place / "dstore.db-wal").exists()
    assert len(contents(place)) == 100


def test_the_lease_is_durable_before_the_start_and_later_in_order(place: Path) -> None:
    with opened(place) as data:
        data.journal.set_lease(5.0)
        assert data.database.lease == 5.0
        caller = Caller(data.journal)
        data.journal.commit(1, [bind("a", value(1))])
        data.journal.set_lease(2.0)
        data.journal.commit(2, [bind("b", value(2))])
        caller.wait_for(2)
        assert data.database.lease == 2.0
    with opened(place) as data:
        assert data.lease == 2.0


def test_a_copy_is_settled_when_its_quiet_period_is_over(place: Path) -> None:
    with opened(place) as data:
        data.database.apply([bind("a", value(1))])
        assert not data.moved
    copy = place.parent / "copy"
    shutil.copytree(place, copy)
    with opened(copy) as data:
        assert data.moved
    with opened(copy) as data:
        assert data.moved
        data.journal.begin(int)
        data.settle()
    with opened(copy) as data:
        assert not data.moved
    assert sorted(contents(copy)) == ["a"]


def test_a_change_is_not_seen_as_large_without_a_value(place: Path) -> None:
    with opened(place) as data:
        caller = Caller(data.journal)
        changes: list[Change] = [bind("a", value(1)), expire("a", token_of(1), 3.0)]
        data.journal.commit(1, changes)
        caller.wait_for(1)
        assert repr(data.journal).startswith("<DataJournal committing")

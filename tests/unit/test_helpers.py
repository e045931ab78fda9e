"""The helper threads of a Local: few, daemons, and ended when there is nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from dstore.client.hosts import helpers
from dstore.client.hosts.helpers import THREADS_MAX, Helpers
from dstore.errors import NodeClosed

PATIENCE = 30.0


@pytest.fixture
def some() -> Iterator[Helpers]:
    made = Helpers()
    yield made
    made.close()
    made.join(PATIENCE)


def test_there_are_few_and_one_that_has_time_is_used_again(some: Helpers) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    threads = []

    def job() -> None:
        threads.append(threading.current_thread())
        begun.release()
        go_on.wait(PATIENCE)

    for _ in range(3 * THREADS_MAX):
        some.submit(job)
    for _ in range(THREADS_MAX):
        assert begun.acquire(timeout=PATIENCE)
    assert len(set(threads)) == len(threads) == THREADS_MAX
    assert all(thread.daemon for thread in threads)
    go_on.set()
    for _ in range(2 * THREADS_MAX):
        assert begun.acquire(timeout=PATIENCE)
    assert len(set(threads)) == THREADS_MAX


def test_one_that_has_nothing_to_do_ends(some: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "IDLE_MAX", 0.01)
    for _ in range(3):
        threads: list[threading.Thread] = []
        done = threading.Event()
        some.submit(_noted(threads, done))
        assert done.wait(PATIENCE)
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive()
        assert not some._threads


def _noted(threads: list[threading.Thread], done: threading.Event) -> Callable[[], None]:
    def job() -> None:
        threads.append(threading.current_thread())
        done.set()

    return job


def test_what_was_taken_before_closing_is_done(some: Helpers) -> None:
    go_on = threading.Event()
    done = []
    some.submit(lambda: done.append(go_on.wait(PATIENCE)))
    for _ in range(2 * THREADS_MAX):
        some.submit(lambda: done.append(True))
    some.close()
    with pytest.raises(NodeClosed):
        some.submit(lambda: None)
    go_on.set()
    some.join(PATIENCE)
    assert len(done) == 2 * THREADS_MAX + 1
    assert not some._threads


def test_a_job_that_fails_harms_no_other(some: Helpers, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    some.submit(fail)
    some.submit(done.set)
    assert done.wait(PATIENCE)
    some.close()
    some.join(PATIENCE)
    assert "ZeroDivisionError" in caplog.text

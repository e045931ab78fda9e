"""The janitor runs functions in a thread that exists only while there is work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from dstore.runtime.background import Janitor, janitor

PATIENCE = 30.0
"""Seconds to wait; only a failing test waits that long."""


@pytest.fixture
def someone() -> Iterator[Janitor]:
    someone = Janitor()
    yield someone
    someone.wait()


def test_work_is_done_in_order_in_another_thread_that_ends(someone: Janitor) -> None:
    done: list[tuple[int, str]] = []
    go_on = threading.Event()

    def note(number: int) -> None:
        done.append((number, threading.current_thread().name))

    someone.do(lambda: go_on.wait(PATIENCE))
    for number in range(3):
        someone.do(partial(note, number))
    (thread,) = [each for each in threading.enumerate() if each.name == "dstore-janitor"]
    assert not done
    go_on.set()
    thread.join(PATIENCE)
    assert done == [(number, "dstore-janitor") for number in range(3)]
    assert not thread.is_alive()
    someone.do(partial(note, 3))
    someone.wait()
    assert len(done) == 4
    assert not someone.wait(), "there was nothing to wait for"


def test_who_waits_lends_a_hand_and_waits_for_what_is_under_way(someone: Janitor) -> None:
    begun, go_on = threading.Event(), threading.Event()
    done = []

    def slow() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        done.append("slow")

    someone.do(slow)
    assert begun.wait(PATIENCE)
    someone.do(lambda: done.append(threading.current_thread().name))
    someone.do(go_on.set)
    assert someone.wait()
    assert sorted(done) == sorted([threading.current_thread().name, "slow"])


def test_what_fails_is_logged_and_the_rest_is_done(
    someone: Janitor, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    someone.do(lambda: 1 // 0)
    someone.do(lambda: done.append(1))
    someone.wait()
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text


def test_it_takes_no_signals_and_is_no_daemon(someone: Janitor) -> None:
    """Even if a daemon thread starts it, from which it would inherit that it is one."""
    seen = []

    def look() -> None:
        seen.append(threading.current_thread().daemon)
        seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        looked.set()

    looked = threading.Event()
    starter = threading.Thread(target=someone.do, args=(look,), daemon=True)
    starter.start()
    starter.join()
    assert looked.wait(PATIENCE)
    assert seen == [False, True]


def test_without_a_thread_it_is_done_at_once(
    someone: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        someone.do(lambda: done.append(threading.current_thread().name))
    assert done == [threading.current_thread().name]
    someone.do(lambda: done.append(threading.current_thread().name))
    someone.wait()
    assert len(done) == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_nothing_to_do_and_waits_for_nobody() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def slow() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    janitor.do(slow)
    janitor.do(lambda: done.append(os.getpid()))
    assert begun.wait(PATIENCE)
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = not janitor.wait() and not done
            janitor.do(lambda: done.append(os.getpid()))
            janitor.wait()
            good = good and done == [os.getpid()]
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(pid, 0) == (pid, 0)
    go_on.set()
    janitor.wait()
    assert done == [os.getpid()]


def test_python_does_not_exit_before_all_is_done() -> None:
    program = (
        "import time\n"
        "from dstore.runtime.background import janitor\n"
        "janitor.do(lambda: time.sleep(0.1))\n"
        "janitor.do(lambda: print('done', flush=True))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE)
    assert (ended.stdout, ended.stderr, ended.returncode) == (b"done\n", b"", 0)

"""How helper processes and threads of tests end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.ending import Beside, Closing, end, join, kill, kill_group

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
Started = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def started() -> Iterator[Started]:
    """A function that starts Python with a script, which has then written a line and waits."""
    with ExitStack() as stack:

        def start(script: str = "", **how: Any) -> subprocess.Popen[bytes]:
            waiting = f"{script}print(flush=True); signal.pause()"
            process = subprocess.Popen(
                [sys.executable, "-c", f"import os, signal; {waiting}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                **how,
            )
            stack.callback(kill, process)
            assert process.stdout is not None
            assert process.stdout.readline()
            return process

        yield start


def pipes_closed(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin.closed and process.stdout.closed


def test_a_process_is_killed_and_its_pipes_are_closed(started: Started) -> None:
    process = started(DEAF)
    for _ in range(2):
        kill(process)
        assert process.returncode == -signal.SIGKILL
        assert pipes_closed(process)


def test_what_was_written_for_a_process_that_has_ended_is_no_error(started: Started) -> None:
    process = started()
    assert process.stdin is not None
    process.stdin.write(b"too late")
    process.kill()
    process.wait()
    kill(process)
    assert pipes_closed(process)


def test_a_whole_group_is_killed(started: Started) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as held:
        process = started("os.fork(); ", start_new_session=True, pass_fds=(writing,))
        os.close(writing)
        kill_group(process)
        assert held.read() == b"", "nobody holds its other end any more"


def test_a_process_that_is_stopped_ends_in_order(started: Started) -> None:
    process = started("signal.signal(signal.SIGTERM, lambda *_: os._exit(3)); ")
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert end(process) == 3
    assert pipes_closed(process)
    assert end(process) == 3


def test_a_process_that_does_not_end_when_asked_is_killed_and_an_error(started: Started) -> None:
    process = started(DEAF)
    with pytest.raises(subprocess.TimeoutExpired):
        end(process, 0.05)
    assert process.returncode == -signal.SIGKILL
    assert pipes_closed(process)


def test_a_child_that_does_not_end_by_itself_is_killed_and_has_no_exit_code() -> None:
    context = multiprocessing.get_context("fork")
    quick = context.Process(target=os._exit, args=(3,))
    slow = context.Process(target=signal.pause)
    for each in (quick, slow):
        each.start()
    assert join(quick) == 3
    assert join(slow, 0.05) is None


def test_a_helper_ends_with_its_block_whatever_happens_there() -> None:
    class Helper(Closing):
        closed = False

        def close(self) -> None:
            self.closed = True

    helper = Helper()
    with pytest.raises(KeyError), helper:
        raise KeyError
    assert helper.closed


def test_a_thread_runs_beside_its_block() -> None:
    class Helper(Beside):
        begun = threading.Event()

        def _run(self) -> None:
            self.begun.set()
            self._over.wait()

    helper = Helper()
    with helper as same:
        assert same is helper
        assert helper.begun.wait(30.0)
        assert helper._thread.is_alive()
    assert not helper._thread.is_alive()

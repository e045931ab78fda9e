"""The life of a Global: every call in every state, from any thread, in a signal handler, after a
fork; and what is left when it cannot begin, or fails.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import shm
from dstore.protocol import wire
from dstore.protocol.messages import Key, Set, SetItem, Stored
from dstore.server import epoch as server_epoch
from dstore.server.engines.memory import MemoryEngine
from dstore.server.server import Global
from tests.integration.processes import PATIENCE, ROOT, RawClient, free_port

Make = Callable[..., Global]

CALLS: dict[str, Callable[[Global], object]] = {
    "bind": Global.bind,
    "start": Global.start,
    "with": Global.__enter__,
    "run": Global.run,
    "stop": Global.stop,
    "close": Global.close,
}
GONE = "GlobalClosed"
UNSERVED = {"stop": "stopping", "close": "closed"}
SERVED = {"bind": "serving", "start": "serving", "with": "serving", "close": "closed"}
ENDED = {"bind": GONE, "start": GONE, "with": GONE, "run": GONE, "stop": "closed"}

TABLE: dict[str, dict[str, str]] = {
    # state: what each call raises, or else the state afterwards
    "new": {"bind": "bound", "start": "serving", "with": "serving", "run": "serving", **UNSERVED},
    "tried": {"bind": "bound", "start": "serving", "with": "serving", "run": "serving", **UNSERVED},
    "bound": {"bind": "bound", "start": "serving", "with": "serving", "run": "serving", **UNSERVED},
    "started": {**SERVED, "run": "GlobalServing", "stop": "closed"},
    "run": {**SERVED, "run": "GlobalServing", "stop": "closed"},
    "stopped": {**ENDED, "run": "closed", "stop": "stopping", "close": "closed"},
    "stopped, bound": {**ENDED, "run": "closed", "stop": "stopping", "close": "closed"},
    "finishing": {**ENDED, "stop": "stopping", "close": "closed"},
    "closed": {**ENDED, "close": "closed"},
    "closed, new": {**ENDED, "close": "closed"},
    "failed": {**ENDED, "close": "closed"},
}


class Failing(MemoryEngine):
    """Ends the service by what Global does not catch."""

    def bind(self, key: Key, stored: Stored) -> None:
        raise SystemExit("an engine has had enough")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes Globals, which are closed with the test."""
    with contextlib.ExitStack() as all_of_them:

        def made(**options: Any) -> Global:
            fresh = Global("tcp://127.0.0.1:0", lease=0.5, **options)
            all_of_them.callback(fresh.close)
            return fresh

        yield made


def state(served: Global) -> str:
    return repr(served).rstrip(">").split()[-1]


def serves(served: Global) -> None:
    """Prove it: a client gets an answer."""
    with RawClient(served.address) as client:
        client.join()


def ports_are_free(served: Global) -> None:
    with Global(served.address, publisher=served.publisher or None) as second:
        serves(second)


def reach(wanted: str, served: Global) -> None:
    end = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if state(served) == wanted:
            return
        end.wait(0.005)
    raise AssertionError(f"it is {state(served)}, and not {wanted}")


def in_state(wanted: str, make: Make, pool: ThreadPoolExecutor, gate: threading.Event) -> Global:
    """A Global in a state of the table; ``gate`` lets one that finishes come to its end."""
    if wanted == "failed":
        return failed(make(engine=Failing()))
    if wanted == "tried":
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            unlucky: Global = make(publisher=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(dstore.AddressError):
                unlucky.start()
        return unlucky
    served: Global = make()
    if wanted in ("bound", "stopped, bound"):
        served.bind()
    if wanted in ("stopped", "stopped, bound"):
        served.stop()
    if wanted in ("started", "closed", "finishing"):
        served.start()
    if wanted == "run":
        pool.submit(served.run)
        reach("serving", served)
    if wanted == "finishing":
        loop = served._loop
        assert loop is not None
        finish = loop.finish

        def held(*arguments: Any) -> None:
            assert gate.wait(PATIENCE)
            finish(*arguments)

        loop.finish = held  # type: ignore[method-assign]
        served.stop()
    if wanted in ("closed", "closed, new"):
        served.close()
    return served


def failed(served: Global) -> Global:
    served.start()
    thread = served._thread
    assert thread is not None
    with RawClient(served.address) as client:
        client.join()
        items = [SetItem("k", Stored(bytes(16), "bytes", b"v"))]
        client.socket.send(wire.encode(Set(client.epoch, client.session, 1, 1, 0, False, items)))
        reach("closed", served)
    thread.join()  # it logs after that
    return served


@pytest.mark.parametrize(
    ("before", "call", "outcome"),
    [(before, call, outcome) for before, row in TABLE.items() for call, outcome in row.items()],
)
def test_every_call_in_every_state(
    before: str, call: str, outcome: str, make: Make, pool: ThreadPoolExecutor
) -> None:
    gate = threading.Event()
    served = in_state(before, make, pool, gate)
    future = pool.submit(CALLS[call], served)
    try:
        if before == "finishing" and call == "close":
            assert not future.done(), "it is to wait until the ports are free"
            gate.set()
        if outcome in (GONE, "GlobalServing"):
            error = future.exception(PATIENCE)
            assert type(error).__name__ == outcome
            assert isinstance(error, RuntimeError)
            assert isinstance(error, dstore.DstoreError)
            assert served.address in str(error)
        else:
            if (call, outcome) != ("run", "serving"):
                assert future.exception(PATIENCE) is None
            reach(outcome, served)
        if outcome == "serving":
            serves(served)
    finally:
        gate.set()
        served.close()
    assert state(served) == "closed"
    assert future.exception(PATIENCE) is None or outcome in (GONE, "GlobalServing")
    ports_are_free(served)


def test_the_table_is_whole() -> None:
    assert all(set(row) == set(CALLS) for row in TABLE.values())


@pytest.mark.parametrize(
    ("before", "said"),
    [("closed", "was closed"), ("stopped", "was stopped"), ("failed", "SystemExit")],
)
def test_the_error_says_what_ended_it_and_what_to_do(
    before: str, said: str, make: Make, pool: ThreadPoolExecutor
) -> None:
    served = in_state(before, make, pool, threading.Event())
    with pytest.raises(dstore.GlobalClosed, match=rf"{said}.*make a new one"):
        served.start()


def test_a_block_within_a_block_closes_it(make: Make) -> None:
    served = make()
    with served:
        with served:
            serves(served)
        assert state(served) == "closed"
        with pytest.raises(dstore.GlobalClosed):
            served.start()


def test_a_started_one_may_be_entered(make: Make) -> None:
    served = make()
    served.start()
    with served:
        serves(served)
    assert state(served) == "closed"


def test_it_may_be_tried_again_when_the_port_is_free() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    second = Global(address)
    with Global(address):
        for begin in (second.bind, second.start, second.run, second.__enter__):
            with pytest.raises(dstore.AddressError, match="in use"):
                begin()
            assert state(second) == "new"
    with second:
        serves(second)


def test_another_free_port_is_sought_when_the_publisher_could_not_be_bound() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        publisher = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        served = Global("tcp://127.0.0.1:0", publisher=publisher)
        with pytest.raises(dstore.AddressError, match=publisher):
            served.bind()
        assert served.address == "tcp://127.0.0.1:0"
    with served:
        serves(served)


@pytest.fixture
def no_threads() -> Iterator[contextlib.ExitStack]:
    """The system gives no thread until this is closed: each would have a stack of 128 TiB."""
    with contextlib.ExitStack() as until:
        until.callback(threading.stack_size, threading.stack_size(1 << 47))
        yield until


@pytest.mark.parametrize("bound", [False, True])
def test_without_a_thread_it_is_as_before_and_may_be_tried_again(
    bound: bool, make: Make, no_threads: contextlib.ExitStack
) -> None:
    served = make()
    if bound:
        former = threading.stack_size(0)
        served.bind()
        threading.stack_size(former)
    address = served.address
    with pytest.raises(dstore.AddressError, match="thread"):
        served.start()
    assert state(served) == ("bound" if bound else "new")
    assert served.address == address
    no_threads.close()
    with served:
        serves(served)


def test_a_node_without_a_thread_says_so(
    free_global: Global, no_threads: contextlib.ExitStack
) -> None:
    with pytest.raises(dstore.GlobalUnavailable, match="thread"):
        dstore.Node(free_global.address)
    no_threads.close()
    with dstore.Node(free_global.address) as node:
        node.join()


def test_an_engine_that_cannot_be_closed_keeps_no_port_and_no_thread_waiting() -> None:
    class Stuck(MemoryEngine):
        def close(self) -> None:
            raise OSError("it does not close")

    served = Global(f"tcp://127.0.0.1:{free_port()}", engine=Stuck())
    served.bind()
    with pytest.raises(OSError, match="does not close"):
        served.close()
    served.close()
    ports_are_free(served)


# ---- many threads -----------------------------------------------------------------------------


def at_once(pool: ThreadPoolExecutor, calls: list[Callable[[], object]]) -> list[Future[object]]:
    together = threading.Barrier(len(calls))

    def call(do: Callable[[], object]) -> object:
        together.wait(PATIENCE)
        return do()

    return [pool.submit(call, do) for do in calls]


def test_many_threads_start_it_and_one_serves(make: Make, pool: ThreadPoolExecutor) -> None:
    served = make()
    for future in at_once(pool, [served.start] * 8):
        assert future.exception(PATIENCE) is None
    assert [thread.name for thread in threading.enumerate()].count("dstore-global") == 1
    serves(served)
    for future in at_once(pool, [served.close] * 8):
        assert future.exception(PATIENCE) is None
        assert state(served) == "closed"


def test_many_threads_run_it_and_one_serves(make: Make, pool: ThreadPoolExecutor) -> None:
    served = make()
    futures = at_once(pool, [served.run] * 8)
    reach("serving", served)
    serves(served)
    while sum(future.done() for future in futures) < 7:
        pass
    served.close()
    errors = [type(future.exception(PATIENCE)).__name__ for future in futures]
    assert sorted(errors) == ["GlobalServing"] * 7 + ["NoneType"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_threads_do_at_once_none_hangs_and_each_error_is_clear(
    seed: int, make: Make, pool: ThreadPoolExecutor
) -> None:
    dice = random.Random(seed)
    served = make()
    names = [dice.choice(list(CALLS)) for _ in range(8)]
    futures = at_once(pool, [lambda name=name: CALLS[name](served) for name in names])  # type: ignore[misc]
    if not {"stop", "close"} & set(names):
        wait(futures, 0.05)
        served.stop()
    served.close()
    for future in futures:
        error = future.exception(PATIENCE)
        assert error is None or isinstance(error, (dstore.GlobalClosed, dstore.GlobalServing))
    assert state(served) == "closed"
    ports_are_free(served)


# ---- in the middle of a call, as a signal handler is ------------------------------------------


@pytest.mark.parametrize("outer", ["bind", "start", "run"])
@pytest.mark.parametrize("inner", list(CALLS))
def test_what_a_signal_handler_does_in_the_middle_of_binding(
    outer: str, inner: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called where a handler would run: in the same thread, with the lock held."""
    served = make()
    handled: list[BaseException | None] = []
    bulk_for = shm.bulk_for

    def interrupted(*arguments: Any) -> Any:
        if not handled:
            handled.append(None)
            try:
                CALLS[inner](served)
            except BaseException as error:
                handled[0] = error
            if outer == "run" and inner not in ("stop", "close"):
                served.stop()
        return bulk_for(*arguments)

    monkeypatch.setattr(server_epoch, "bulk_for", interrupted)
    outcome = None
    try:
        CALLS[outer](served)
    except dstore.GlobalClosed as error:
        outcome = error
    if inner in ("stop", "close"):
        assert handled == [None]
    else:
        assert type(handled[0]) is RuntimeError
        assert "signal handler" in str(handled[0])
    if outer == "run":
        assert (outcome, state(served)) == (None, "closed")
    elif inner == "close" or (inner, outer) == ("stop", "start"):
        assert isinstance(outcome, dstore.GlobalClosed)
        assert state(served) == "closed"
    elif inner == "stop":
        assert (outcome, state(served)) == (None, "stopping")
    else:
        assert (outcome, state(served)) == (None, {"bind": "bound", "start": "serving"}[outer])


@pytest.mark.parametrize("call", list(CALLS))
def test_what_the_serving_thread_does_with_its_own_global(call: str, make: Make) -> None:
    served = make()
    done = threading.Event()
    raised: list[BaseException] = []
    served.bind()
    loop = served._loop
    assert loop is not None
    take = loop._take

    def from_within(*arguments: Any) -> None:
        take(*arguments)
        if not done.is_set():
            try:
                CALLS[call](served)
            except BaseException as error:
                raised.append(error)
            done.set()

    loop._take = from_within  # type: ignore[method-assign, assignment]
    with served:
        serves(served)
        assert done.wait(PATIENCE)
    assert [type(error) for error in raised] == ([dstore.GlobalServing] if call == "run" else [])


def test_ctrl_c_that_ends_run_gives_the_port_back(make: Make) -> None:
    served = make()
    served.bind()
    loop = served._loop
    assert loop is not None

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    loop._take = interrupted  # type: ignore[method-assign, assignment]
    with RawClient(served.address) as client:
        client.socket.send(b"anything")
        with pytest.raises(KeyboardInterrupt):
            served.run()
    assert state(served) == "closed"
    with pytest.raises(dstore.GlobalClosed, match="KeyboardInterrupt"):
        served.run()
    ports_are_free(served)


def test_the_end_by_an_error_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    served = failed(make(engine=Failing()))
    assert "answers no more requests" in caplog.text
    assert "an engine has had enough" in caplog.text
    ports_are_free(served)


# ---- forked children --------------------------------------------------------------------------


def in_child(do: Callable[[], None]) -> None:
    """Call a function in a forked child; AssertionError with what it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            do()
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        errors = said.read().decode()
    os.waitpid(child, 0)
    assert not errors


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.mark.parametrize("before", ["bound", "started"])
def test_a_child_has_no_part_in_what_its_parent_began(
    before: str, make: Make, pool: ThreadPoolExecutor
) -> None:
    served = in_state(before, make, pool, threading.Event())

    def child() -> None:
        assert state(served) == "closed"
        for name in ("bind", "start", "with", "run"):
            with pytest.raises(dstore.GlobalClosed, match="forked"):
                CALLS[name](served)
        served.stop()
        served.close()
        served.__exit__(None, None, None)
        with Global("tcp://127.0.0.1:0") as own, dstore.Node(own.address) as node:
            node.set("k", "v")

    in_child(child)
    served.start()
    serves(served)


def test_a_child_may_serve_what_its_parent_has_not_started(make: Make) -> None:
    served = make()

    def child() -> None:
        with served, dstore.Node(served.address) as node:
            node.set("k", "v")

    in_child(child)
    assert state(served) == "new"
    with served:
        serves(served)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_child_that_lives_on_does_not_keep_the_ports(scheme: str, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/g"
    served = Global(address)
    served.start()
    reading, writing = os.pipe()
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.write(there, b"x")  # it has closed its copies of the listening sockets
        os.read(reading, 1)
        os._exit(0)
    try:
        os.read(here, 1)
        served.close()
        ports_are_free(served)
    finally:
        for each in (reading, writing, here, there):
            os.close(each)
        os.waitpid(child, 0)


INTERRUPTED = """
import random, signal, sys, threading, time, dstore
class Interrupted(KeyboardInterrupt):
    pass
def handler(*_):
    raise Interrupted
signal.signal(signal.SIGALRM, handler)
dice, count = random.Random(SEED), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    served = dstore.Global("tcp://127.0.0.1:0")
    begin = dice.choice([served.bind, served.start, served.run])
    if begin == served.run:
        threading.Timer(0.002, served.stop).start()
    try:
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00005, 0.006))
        try:
            begin()
        finally:
            served.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    served.close()
    try:
        served.start()
    except dstore.GlobalClosed:
        continue
    print(served, "is not closed")
print("well" if count else "never interrupted")
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_ctrl_c_at_any_moment_is_no_reason_to_hang_or_abort(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"SEED = {seed}\n{INTERRUPTED}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # an interrupt within a destructor is told there
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n")

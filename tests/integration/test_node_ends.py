"""How a Node ends: closed, dropped, forked, interrupted by a signal, or left to its interpreter."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import dstore
from dstore import config
from dstore.client import lifecycle
from dstore.client.hosts.local import Local
from tests.integration.processes import PATIENCE, ROOT, other_sessions, others_left

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


def _raised_by(call: Callable[[], object]) -> Callable[[], BaseException | None]:
    """Begin a call in a thread; a function that waits and tells what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def ended() -> BaseException | None:
        thread.join(PATIENCE)
        return raised[0] if raised else None

    return ended


def test_close_wakes_whoever_waits_and_may_be_called_again() -> None:
    with dstore.Global("tcp://127.0.0.1:0") as gone:
        address = gone.address
    node = dstore.Node(address, timeout=PATIENCE)
    raised = _raised_by(lambda: node.get("k"))
    while not node._local or not node._local.host.waiters:
        pass
    node.close()
    assert isinstance(raised(), dstore.NodeClosed)
    node.close()
    with pytest.raises(dstore.NodeClosed):
        node.get("k")


def test_close_wakes_a_request_that_was_sent() -> None:
    from dstore.transport.router import Router

    router = Router("tcp://127.0.0.1:0", None)  # takes requests and never answers
    try:
        node = dstore.Node(router.address, timeout=PATIENCE)
        raised = _raised_by(node.join)
        while not router.receive(PATIENCE):
            pass
        node.close()
        assert isinstance(raised(), dstore.NodeClosed)
    finally:
        router.close()


def _script(body: str, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", body],
        env={**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.private
def test_a_forked_child_joins_anew_and_the_parent_is_undisturbed(
    free_global: dstore.Global,
) -> None:
    script = """
import os, dstore
node = dstore.Node()
node.set("k", "v")
session = node.stats()["session"]
if os.fork() == 0:
    assert node.stats()["keys"] == 0 and node.stats()["lease_left"] == 0
    assert not node.lookup("k").from_local
    assert node.stats()["session"] not in (0, session)
    assert node.delete("k").confirmed == 2
    node.close()
    os._exit(0)
assert os.wait()[1] == 0
assert node.get("k", None) is None
assert node.stats()["session"] == session
assert node.global_stats()["sessions"] == 1
"""
    process = _script(script, free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


def test_an_interpreter_that_never_closes_its_nodes_ends_and_says_goodbye(
    free_global: dstore.Global, node: MakeNode
) -> None:
    script = """
import dstore
kept = dstore.Node(); kept.join()
waiting = dstore.Node("tcp://127.0.0.1:1")
"""
    process = _script(script, free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    assert others_left(node()) == 0


@pytest.mark.parametrize("busy", [False, True])
def test_an_exit_at_which_no_thread_can_be_started_is_as_quiet(
    free_global: dstore.Global, node: MakeNode, busy: bool
) -> None:
    """Python 3.12 refuses to start one from the moment at which it calls what atexit knows."""
    script = """
import atexit, threading, dstore
def refuse(self):
    raise RuntimeError("can't create new thread at interpreter shutdown")
kept = dstore.Node(); kept.set("k", bytes(100_000)); kept.get("k")
waiting = dstore.Node("tcp://127.0.0.1:1")
def wait():
    try:
        kept.wait("l")
    except dstore.NodeClosed:
        pass
if BUSY:
    threading.Thread(target=wait, daemon=True).start()
    while not kept.global_stats()["waiting"]:
        pass
atexit.register(setattr, threading.Thread, "start", refuse)
"""
    process = _script(f"BUSY = {busy}\n{script}", free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    assert others_left(node()) == 0


def test_ctrl_c_interrupts_a_waiting_get_and_leaves_the_node_usable(
    free_global: dstore.Global,
) -> None:
    script = f"""
import os, signal, dstore
signal.signal(signal.SIGUSR1, lambda *_: None)
with dstore.Node("tcp://127.0.0.1:1", timeout={PATIENCE}) as lost, dstore.Node() as good:
    try:
        print("ready", flush=True)
        lost.get("k")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    lost.timeout = 0.01
    try:
        lost.get("k")
    except dstore.GlobalUnavailable:
        print("unavailable")
    good.set("k", 1)
    print(good.get("k"))
"""
    process = _script(script, free_global.address)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)  # any other signal does not interrupt the call
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "interrupted\nunavailable\n1\n", "")


def _line() -> int:
    return sys._getframe(1).f_lineno


def test_a_node_that_is_dropped_says_so_and_leaves(
    free_global: dstore.Global, node: MakeNode
) -> None:
    keeper = node()
    dropped, line = dstore.Node(free_global.address, on_deletion=print), _line()
    dropped.join()
    while other_sessions(keeper) != 1:  # in a shared membership it observes from now on
        pass
    with pytest.warns(ResourceWarning, match="was not closed") as caught:
        del dropped
    assert (caught[0].filename, caught[0].lineno) == (__file__, line), "where it was made"
    while other_sessions(keeper):
        pass


def test_a_signal_handler_may_close_the_node_in_the_middle_of_a_call(
    free_global: dstore.Global,
) -> None:
    script = f"""
import os, signal, dstore
signal.signal(signal.SIGTERM, lambda *_: node.close())
node = dstore.Node("tcp://127.0.0.1:1", timeout={PATIENCE})
try:
    print("ready", flush=True)
    node.get("k")
except dstore.NodeClosed:
    print("closed")
"""
    process = _script(script, free_global.address)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "closed\n", "")


@pytest.mark.long
def test_a_close_that_ctrl_c_cuts_short_may_be_called_again(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    one.join()
    watch = one.watch()
    with monkeypatch.context() as patched:
        patched.setattr(Local, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.close()
    one.close()
    with pytest.raises(dstore.NodeClosed):
        one.get("k")
    assert list(watch) == []
    assert others_left(node()) == 0


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.long
def test_a_signal_handler_may_close_a_node_that_is_about_to_begin(
    free_global: dstore.Global, node: MakeNode
) -> None:
    """As in a worker that has just been forked, and is stopped at its first request."""
    script = """
import os, signal, dstore
from dstore.client.hosts.local import Local
node = dstore.Node()
def start(self, *given):
    begin(self, *given)
    os.kill(os.getpid(), signal.SIGTERM)
begin, Local.start = Local.start, start
signal.signal(signal.SIGTERM, lambda *_: node.close())
if os.fork() == 0:
    signal.alarm(20)
    try:
        node.get("k")
    except dstore.NodeClosed:
        node.close()
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
node.close()
"""
    process = _script(script, free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    assert others_left(node()) == 0


IN_THE_MIDDLE = """
import os, signal, dstore
from dstore.shm import Writer
node, other = dstore.Node(ADDRESS), dstore.Node(ADDRESS)
here = dstore.Global("tcp://127.0.0.1:0")
here.start()
write = Writer.write
def interrupted(self, offset, data):
    with self._file.descriptor(), locks.process_lock:
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, offset, data)
def handler(*_):
    for each in HANDLED:
        try:
            each()
        except RuntimeError as error:
            print(type(error).__name__)
from dstore.shm import locks
signal.signal(signal.SIGTERM, handler)
Writer.write = interrupted
HANDLED = (lambda: node.set("l", bytes(100_000)), lambda: other.get("k"),
           other.close, here.close, node.close)
try:
    node.set("k", bytes(100_000))
except dstore.NodeClosed as error:
    print(type(error).__name__)
here.close()
print("well")
"""


def test_a_signal_handler_in_the_middle_of_laying_a_value_down_does_not_hang(
    free_global: dstore.Global,
) -> None:
    process = _script(f"ADDRESS = {free_global.address!r}\n{IN_THE_MIDDLE}", free_global.address)
    out, err = process.communicate(timeout=PATIENCE)
    said = ["RuntimeError", "RuntimeError", "NodeClosed", "well"]
    assert (process.returncode, out.split(), err) == (0, said, "")


@pytest.mark.private
def test_after_a_fork_nothing_of_the_parent_is_used(node: MakeNode) -> None:
    """What runs in the child after a fork, run here, so that it can be looked at."""
    one = node()
    one.set("k", "v")
    one.get("k")
    parents = one._local
    assert parents is not None
    try:
        lifecycle._after_fork_in_child()
        assert one._hit("k") is None
        assert (one.stats()["session"], one.stats()["hits"]) == (0, 0)
        assert not one.lookup("k").from_local
        assert one._local is not parents
    finally:
        parents.close()


INTERRUPTED = """
import os, random, signal, threading, time, dstore
from dstore.runtime import reentrancy
class Interrupted(KeyboardInterrupt):
    pass
def handler(*_):
    raise Interrupted
signal.signal(signal.SIGALRM, handler)
dice, count = random.Random(SEED), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    node = None
    try:
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00005, 0.006))
        node = dstore.Node()
        try:
            for number in range(100):
                node.get(f"k{number}", None)
        finally:
            node.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    if node is not None:
        node.close()
    assert not reentrancy.inside
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert count
while len(os.listdir("/proc/self/task")) > 2 or len(os.listdir("/proc/self/fd")) > 10:
    time.sleep(0.01)  # one thread of ZeroMQ may stay
print("well")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_at_any_moment_leaves_nothing_behind_and_close_does_not_hang(
    free_global: dstore.Global,
) -> None:
    seed = random.randrange(2**32)
    process = _script(f"SEED = {seed}\n{INTERRUPTED}", free_global.address)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "well\n"), f"seed {seed}: {err}"

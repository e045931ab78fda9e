"""``dstore.Node`` as a program embeds it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.client import lifecycle
from dstore.client.hosts.local import Local
from dstore.codecs import Codecs, Encoded
from dstore.protocol.messages import Get
from tests.integration.processes import PATIENCE, ROOT, RawClient, other_sessions, others_left

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


def test_values_come_back_as_they_were(node: MakeNode) -> None:
    writer, reader = node(), node()
    values: dict[Any, Any] = {
        "text": "v ä 漢",
        "bytes": b"\x00\xff",
        "none": None,
        "list": [1, 2.5, True, None, {"a": (1, "b")}],
        "empty": b"",
    }
    assert writer.set_many(values) == []
    assert reader.get_many(values) == values
    assert writer.get_many(values) == values
    assert reader.get("none", "default") is None
    assert "none" in reader
    assert "nothing" not in reader


def test_an_immutable_value_is_handed_out_as_one_object_a_mutable_one_afresh(
    node: MakeNode,
) -> None:
    one = node()
    one.set_many({"text": "some text", "list": [1, [2]]})
    assert one.get("text") is one.get("text")
    mine = one.get("list")
    mine[1].append("changed")
    assert one.get("list") == [1, [2]]


def test_keys_are_text_or_bytes_of_one_name_space(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("ä", 1)
    assert two.get("ä".encode()) == 1
    one.set(b"\xff\x00", 2)
    assert two.get(b"\xff\x00") == 2
    assert set(two.keys()) == {"ä", b"\xff\x00"}
    two.delete("ä".encode())
    assert one.get("ä", None) is None


@pytest.mark.parametrize("key", ["", b"", "x" * 512, "ä" * 256, "\ud800", 5, None, ("a",)])
def test_a_bad_key_is_refused(node: MakeNode, key: Any) -> None:
    one = node()
    for call in (one.get, one.delete, one.lookup, lambda key: one.set(key, 1)):
        with pytest.raises(dstore.InvalidKey):
            call(key)


@pytest.mark.private
def test_content_addresses(node: MakeNode) -> None:
    one, two = node(), node()
    uid = one.put(b"content")
    assert uid.startswith("b3:")
    assert two.put(b"content") == uid
    assert two.get(uid) == b"content"
    assert one.put("content") != uid
    with pytest.raises(dstore.InvalidKey, match="content addresses"):
        one.set(uid, b"other")
    assert two.delete(uid).confirmed == 2
    assert one.get(uid, None) is None


@pytest.mark.private
def test_occupied(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", "v")
    with pytest.raises(dstore.KeyOccupied) as known:
        one.set("k", "w")
    assert (known.value.local, known.value.updated) == (True, False)
    with pytest.raises(dstore.KeyOccupied) as asked:
        two.set("k", "w")
    assert (asked.value.local, asked.value.updated) == (False, True)
    assert two.lookup("k") == dstore.Lookup("v", from_local=True, cached=True)
    assert two.set_many({"k": 1, "l": 2}) == ["k"]
    assert one.get("l") == 2


def test_missing(node: MakeNode) -> None:
    one = node()
    with pytest.raises(KeyError) as caught:
        one.get("k")
    assert isinstance(caught.value, dstore.KeyMissing)
    assert str(caught.value) == "no value is bound to 'k'"
    with pytest.raises(dstore.KeyMissing):
        one.delete("k")
    assert one.delete_many(["k", "l"]) == {}
    assert one.get_many([]) == {}
    assert one.delete_many([]) == {}
    assert one.set_many({}) == []


def test_keys_come_page_by_page(node: MakeNode) -> None:
    one = node()
    many = 2 * config.KEYS_PAGE_DEFAULT + 5
    one.set_many({f"model/{number:05}": number for number in range(many)} | {"other": 0})
    assert list(one.keys("model/")) == [f"model/{number:05}" for number in range(many)]
    assert one.global_stats()["scans"] == 3
    assert len(list(one.keys())) == many + 1
    assert list(one.keys("none")) == []


@pytest.mark.private
def test_many_at_once(node: MakeNode) -> None:
    one, two = node(), node()
    values = {f"k{number}": bytes(1000) for number in range(12_000)}
    one.set_many(values)
    assert two.get_many(values) == values
    deletions = two.delete_many([*values, "missing"], wait=True)
    assert len(deletions) == len(values)
    assert set(deletions.values()) == {dstore.Deletion(2, 0, 0)}
    assert one.get_many(values) == {}


def test_many_large_values_are_split_over_messages(node: MakeNode) -> None:
    one, two = node(), node()
    values = {f"k{number}": bytes([number]) * (3 << 20) for number in range(9)}
    one.set_many(values)
    assert two.get_many(values) == values
    assert two.set_many(values) == list(values)


@pytest.mark.parametrize("limit", [10_000, 100_000])
def test_a_value_above_the_limit_names_the_limit(limit: int) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", value_limit=limit) as small,
        dstore.Node(small.address) as one,
    ):
        one.set("largest", bytes(limit))
        for write in (one.set, one.set_many):
            with pytest.raises(dstore.ValueTooLarge, match=f"{limit:,}"):
                write(
                    *(("k", bytes(limit + 1)) if write == one.set else ({"k": bytes(limit + 1)},))
                )
        with pytest.raises(dstore.ValueTooLarge, match=f"{limit:,}"):
            one.put(bytes(limit + 1))
        assert one.get("k", None) is None


def test_a_full_store_says_so_and_goes_on(request: pytest.FixtureRequest) -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", memory_limit=10_000) as small,
        dstore.Node(small.address) as one,
    ):
        one.set("k", bytes(5_000))
        with pytest.raises(dstore.StoreFull, match="memory-limit"):
            one.set("l", bytes(9_000))
        assert len(one.get("k")) == 5_000
        one.set("l", bytes(100))


@pytest.mark.private
def test_the_cache_is_bounded(node: MakeNode) -> None:
    writer, reader = node(), node(cache_bytes=10_000)
    writer.set_many({f"k{number}": bytes(500) for number in range(50)})
    for number in range(50):
        assert len(reader.get(f"k{number}")) == 500
    metrics = reader.stats()
    assert metrics["bytes"] <= 10_000
    assert metrics["evictions"] > 30
    assert writer.delete("k0").confirmed == 2


@pytest.mark.private
def test_wait_false(node: MakeNode) -> None:
    one, two = node(), node()
    one.set("k", "v")
    two.get("k")
    deletion = one.delete("k", wait=False)
    assert (deletion.confirmed, deletion.pending) == (0, 2)
    with pytest.raises(dstore.KeyMissing):
        one.delete("k")


@pytest.mark.private
def test_deletions_are_heard(node: MakeNode) -> None:
    heard: list[Any] = []
    one, two = node(on_deletion=heard.append), node()
    two.set_many({"held": 1, "not held": 2, b"\xff": 3})
    one.get_many(["held", b"\xff"])
    two.delete_many(["held", "not held", b"\xff"])
    one.close()  # a callback comes after the acknowledgement
    assert heard == ["held", b"\xff"]


@pytest.mark.private
def test_a_failing_callback_harms_nobody(node: MakeNode, caplog: pytest.LogCaptureFixture) -> None:
    def fail(key: Any) -> None:
        raise RuntimeError("callback")

    one = node(on_deletion=fail)
    one.set("k", "v")
    assert one.delete("k").confirmed == 1
    one.set("k", "w")
    assert one.get("k") == "w"
    one.close()
    assert "on_deletion" in caplog.text


@pytest.mark.private
def test_many_threads_that_miss_one_key_ask_once(node: MakeNode) -> None:
    writer, reader = node(), node()
    writer.set("k", "v")
    reader.join()
    together = threading.Barrier(16)
    got: list[Any] = []

    def ask() -> None:
        together.wait()
        got.append(reader.get("k"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["v"] * 16
    assert writer.global_stats()["gets"] == 1


def test_many_threads_with_keys_of_their_own(node: MakeNode) -> None:
    one = node()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                key = f"{number}/{turn}"
                one.set(key, turn)
                assert one.get(key) == turn
                assert one.delete(key).confirmed == 1
                assert one.get(key, None) is None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


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


@pytest.mark.parametrize(
    "address", ["", "nonsense", "tcp://host", "tcp://h:0", "tcp://h:70000", "ipc://", "tcp://*:5"]
)
def test_a_bad_address_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, "also nonsense")
    with pytest.raises(dstore.AddressError):
        dstore.Node(address)


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


def test_a_first_deletion_of_a_new_node_waits_for_a_lease_too() -> None:
    with (
        dstore.Global("tcp://127.0.0.1:0", lease=1.0) as running,
        dstore.Node(running.address) as one,
        RawClient(running.address) as silent,
    ):
        one.set("k", "v")
        silent.join()
        silent.ask(Get(silent.epoch, silent.session, 1, ["k"]))
        with dstore.Node(running.address, timeout=0.2) as two:
            assert two.delete("k") == dstore.Deletion(1, 1, 0)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_out_of_range_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        dstore.Node(timeout=timeout)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"shm": 5}, TypeError), ({"shm_limit": "1G"}, TypeError), ({"shm_limit": -1}, ValueError)],
)
def test_a_place_for_large_values_that_is_none_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        dstore.Node(**options)


def test_the_place_for_large_values_may_be_any_path(
    free_global: dstore.Global, tmp_path: Path
) -> None:
    for place in (tmp_path, os.fsencode(tmp_path)):
        with dstore.Node(free_global.address, shm=place) as node:  # type: ignore[arg-type]
            node.set("k", bytes(100_000), replace=True)
            assert len(os.listdir(tmp_path)) == 1


def test_the_same_key_as_text_and_as_bytes_at_once_is_refused(node: MakeNode) -> None:
    with pytest.raises(dstore.InvalidKey, match="twice"):
        node().set_many({"a": 1, b"a": 2})


@pytest.mark.private
def test_hits_and_misses_are_counted(node: MakeNode) -> None:
    one, two = node(), node()
    two.set_many({"k": 1, "l": 2})
    one.get("k")
    one.get("k")
    one.get("missing", None)
    one.get_many(["k", "l", "missing"])
    metrics = one.stats()
    assert (metrics["hits"], metrics["misses"]) == (2, 4)


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


@pytest.mark.private
def test_a_callback_that_uses_its_own_node_is_told_so(
    node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    def use(key: Any) -> None:
        one.get("other")

    one = node(on_deletion=use)
    one.set("k", "v")
    one.delete("k")
    one.set("k", "w")
    assert one.get("k") == "w"
    one.close()
    assert "note what is to be done" in caplog.text


def test_a_destructor_in_the_middle_of_a_call_is_told_so(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    one.join()
    assert one._local is not None
    host = one._local.host
    notify = host.notify
    raised: list[BaseException] = []

    def interrupted(*arguments: Any) -> Any:
        if not raised:
            try:
                one.get("from a destructor")
            except RuntimeError as error:
                raised.append(error)
        return notify(*arguments)

    monkeypatch.setattr(host, "notify", interrupted)
    assert one.get("k", None) is None
    assert "destructor" in str(raised[0])


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_whatever_a_callback_raises_the_node_goes_on(
    node: MakeNode, error: type[BaseException]
) -> None:
    def fail(key: Any) -> None:
        raise error

    one = node(on_deletion=fail)
    for number in range(3):
        one.set("k", number)
        assert one.delete("k").confirmed == 1


@pytest.mark.parametrize("label", ["x" * 257, "\udcff", "two\nlines"])
def test_a_label_that_cannot_be_shown_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        dstore.Node(label=label)


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


def test_what_a_hostile_writer_stored_hurts_no_reader(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = node(), node()
    lists = b"\xdd" + (2 << 20).to_bytes(4, "big") + b"\x90" * (2 << 20)
    keys = [(n & 1, *(-1 - (n >> bit & 1) for bit in range(9))) for n in range(512)]
    for key, body in (
        ("lists", lists),
        ("keys", Codecs().encode(dict.fromkeys(keys)).joined()),
        ("time", b"\xd6\xff" + bytes(4)),
    ):
        hostile = Encoded("msgpack", (body,), len(body))
        monkeypatch.setattr(writer._commands.codecs, "encode", lambda _, hostile=hostile: hostile)
        writer.set(key, None)
        for _ in range(2):  # from Global, and from the cache
            with pytest.raises(dstore.ValueCorrupt):
                reader.get(key)
        assert reader.get_buffer(key) == body

"""``Node.wait`` and ``Node.watch``: what others do is heard, and not asked for."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import dstore
from dstore.client.watch import Event
from dstore.config import BYTES_MAX
from tests.integration.async_calls import LONG_LEASE
from tests.integration.processes import PATIENCE, GlobalProcess, free_port, others_left

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


class Thread(threading.Thread):
    """Calls a function; :meth:`result` is what it gave, or raises what it raised."""

    def __init__(self, do: Callable[[], Any]) -> None:
        super().__init__()
        self._do = do
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._do()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


def waiting(node: dstore.Node, count: int) -> None:
    """Return once so many requests wait at Global."""
    while node.global_stats()["waiting"] != count:
        pass


# ---- wait -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", [1, 2], bytes(BYTES_MAX + 1)], ids=type)
def test_a_value_comes_when_it_is_set(node: MakeNode, value: Any) -> None:
    reader, writer = node(), node()
    waits = [Thread(lambda: reader.wait("k")) for _ in range(3)]
    waiting(writer, 3)
    asked = writer.global_stats()["waits"]
    writer.set("k", value)
    assert [each.result() for each in waits] == [value] * 3
    assert reader.lookup("k").from_local
    assert reader.wait("k") == value
    assert writer.global_stats()["waits"] == asked, "nobody asked again"
    writer.delete("k")
    assert reader.get("k", None) is None


def test_a_wait_ends_in_time_and_a_short_one_at_once(node: MakeNode) -> None:
    one = node()
    for timeout in (0.05, 0):
        with pytest.raises(dstore.WaitTimedOut, match="'k' was not set"):
            one.wait("k", timeout)
    with pytest.raises(TimeoutError):
        one.wait("k", 0)
    with pytest.raises(dstore.InvalidKey):
        one.wait("")


def test_other_calls_go_on_beside_a_wait_and_close_ends_it(node: MakeNode) -> None:
    one, other = node(), node()
    wait = Thread(lambda: one.wait("k"))
    waiting(other, 1)
    assert one.get("k", "nothing") == "nothing"
    one.set("l", 1)
    one.close()
    with pytest.raises(dstore.NodeClosed):
        wait.result()
    assert others_left(other) == 0
    other.set("k", 1)
    waiting(other, 0)


@pytest.mark.long
def test_a_wait_survives_a_restart_of_global() -> None:
    with (
        GlobalProcess(f"tcp://127.0.0.1:{free_port()}") as place,
        dstore.Node(place.address) as one,
        dstore.Node(place.address) as two,
    ):
        wait = Thread(lambda: one.wait("k"))
        waiting(two, 1)
        place.kill()
        place.start()
        two.join(PATIENCE)
        waiting(two, 1)
        two.set("k", "v")
        assert wait.result() == "v"


def test_ctrl_c_ends_a_wait_and_the_node_stays_usable(free_global: dstore.Global) -> None:
    script = f"""
import dstore
with dstore.Node({free_global.address!r}) as node:
    try:
        node.join(); print("ready", flush=True)
        node.wait("k")
    except KeyboardInterrupt:
        print("interrupted")
    node.set("k", 1)
    print(node.wait("k"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with dstore.Node(free_global.address) as other:
        waiting(other, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "interrupted\n1\n", "")


# ---- watch ------------------------------------------------------------------------------------


def test_a_watch_tells_of_deletions_and_replacements_once_they_have_taken_effect(
    node: MakeNode,
) -> None:
    watcher, writer = node(), node()
    writer.set_many({"config/a": 1, "config/b": 1, "other": 1})
    with watcher.watch("config/") as events:
        assert next(events) == Event(None)
        watcher.get("config/a")
        writer.delete("other")
        writer.set("config/a", 2, replace=True)
        assert next(events) == Event("config/a")
        assert watcher.get("config/a") == 2
        writer.delete("config/b")
        assert next(events) == Event("config/b")
        assert watcher.get("config/b", None) is None
        assert events.take(0) is None
        assert watcher.global_stats()["watching"] == 1
    assert events.take() is None
    assert list(events) == []


def test_keys_are_told_as_the_program_knows_them(node: MakeNode) -> None:
    one = node()
    with one.watch(b"\xff") as events:
        assert next(events).resync
        one.set(b"\xff\x00", 1)
        one.delete(b"\xff\x00")
        assert next(events).key == b"\xff\x00"


@LONG_LEASE  # the end of one is a resync
def test_what_is_not_taken_is_dropped_oldest_first_and_counted(node: MakeNode) -> None:
    one = node()
    with one.watch(limit=3) as events, one.watch() as all_events:
        assert next(events).resync
        assert next(all_events).resync
        for number in range(5):
            one.set(f"k{number}", 1)
            one.delete(f"k{number}")
        assert [next(all_events).key for _ in range(5)] == [f"k{number}" for number in range(5)]
        assert next(events) == Event(None, missed=2)
        assert [next(events).key for _ in range(3)] == ["k2", "k3", "k4"]
        assert events.missed == 2
    with pytest.raises(ValueError, match="limit"):
        one.watch(limit=0)


def test_a_callback_is_called_and_may_fail_and_close(
    node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = node()
    told: list[dstore.Event] = []
    ended = threading.Event()

    def callback(event: dstore.Event) -> None:
        told.append(event)
        if event.resync:
            raise ValueError("harmless")
        assert one.get("k", None) is None, "the Node may be used"
        events.close()
        ended.set()

    events = one.watch(callback=callback)
    one.set("k", 1)
    while not told:
        pass
    one.delete("k")
    assert ended.wait(PATIENCE)
    assert [event.key for event in told] == [None, "k"]
    assert "harmless" in caplog.text


def test_a_callback_that_finds_its_node_closed_is_no_failure(
    node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = node()
    begun, closed, over = threading.Event(), threading.Event(), threading.Event()

    def callback(_: dstore.Event) -> None:
        begun.set()
        closed.wait(PATIENCE)
        try:
            one.get("k", None)
        finally:
            over.set()

    one.watch(callback=callback)
    assert begun.wait(PATIENCE)
    one.close()
    closed.set()
    assert over.wait(PATIENCE)
    for thread in threading.enumerate():
        if thread.name == "dstore-watch":
            thread.join(PATIENCE)
    assert caplog.text == ""


def test_a_watch_ends_with_its_node(node: MakeNode) -> None:
    one = node()
    events = one.watch()
    assert next(events).resync
    taken = Thread(lambda: list(events))
    one.close()
    assert taken.result() == []
    with pytest.raises(dstore.NodeClosed):
        one.watch()


def test_a_watch_that_is_dropped_is_forgotten(node: MakeNode) -> None:
    one = node()
    events = one.watch()
    assert next(events).resync
    del events
    gc.collect()
    one.set("k", 1)
    one.delete("k")
    assert one._local is not None
    while one._local.state.watching.watchers:
        pass


def test_after_a_restart_of_global_everything_is_to_be_looked_at() -> None:
    with (
        GlobalProcess(f"tcp://127.0.0.1:{free_port()}") as place,
        dstore.Node(place.address) as one,
        one.watch() as events,
    ):
        assert next(events).resync
        place.kill()
        place.start()
        assert next(events) == Event(None)
        one.set("k", 1)
        one.delete("k")
        assert next(events) == Event("k")


def test_a_watch_ends_in_a_forked_child_and_goes_on_in_the_parent(node: MakeNode) -> None:
    one = node()
    with one.watch() as events:
        assert next(events).resync
        child = os.fork()
        if not child:
            os._exit(0 if list(events) == [] and one.get("k", 7) == 7 else 1)
        assert os.waitpid(child, 0)[1] == 0
        one.set("k", 1)
        one.delete("k")
        assert next(events).key == "k"

"""One Node in many processes: pickled, connected by address, forked in the middle of things."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import dstore
from tests.integration.processes import PATIENCE, GlobalProcess, free_port, others_left

pytestmark = pytest.mark.usefixtures("host_mode")
METHODS = multiprocessing.get_all_start_methods()
MakeNode = Callable[..., dstore.Node]


def announce(key: str | bytes) -> None:
    """A callback that can be pickled."""


@pytest.fixture
def connected(free_global: dstore.Global) -> Iterator[str]:
    """The address of a Global; what was connected to it is closed afterwards."""
    yield free_global.address
    dstore.connect(free_global.address).close()


def test_connect_gives_the_node_of_this_process(connected: str, node: MakeNode) -> None:
    one = dstore.connect(connected)
    assert dstore.connect(connected) is one
    assert node() is not one, "a Node that is made belongs to whoever made it"
    other = dstore.connect(connected, label="other")
    assert other is not one
    other.close()
    assert dstore.connect(connected) is one
    one.close()
    again = dstore.connect(connected)
    again.set("k", 1)
    assert one is not again
    with pytest.raises(TypeError):
        dstore.connect(connected, colour="red")  # type: ignore[call-arg]
    with pytest.raises(dstore.AddressError):
        dstore.connect("nowhere")


def test_connect_uses_the_address_of_the_environment(
    connected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTORE_GLOBAL", connected)
    assert dstore.connect() is dstore.connect(connected)


def test_many_threads_connect_to_one_node(connected: str) -> None:
    found: list[dstore.Node] = []
    together = threading.Barrier(8)

    def connect() -> None:
        together.wait()
        found.append(dstore.connect(connected))

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_node_is_pickled_as_its_settings(node: MakeNode) -> None:
    one = node(timeout=3.0, cache_bytes=1 << 20, label="one", on_deletion=announce)
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.deepcopy({"node": one})["node"] is one
    pickled = pickle.dumps(one)
    one.close()
    another = pickle.loads(pickled)
    try:
        assert another is not one
        assert (another.timeout, another.stats()["label"]) == (3.0, "one")
        assert pickle.loads(pickled) is another
        another.set("k", 1)
    finally:
        another.close()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(node(on_deletion=lambda key: None))


def _job(node: dstore.Node, number: int) -> tuple[int, int, Any]:
    return os.getpid(), node.stats()["joins"], node.get(f"k{number}")


@pytest.mark.parametrize("method", METHODS)
def test_a_node_can_be_handed_to_the_workers_of_a_pool(node: MakeNode, method: str) -> None:
    mine = node()
    mine.set_many({f"k{number}": number for number in range(8)})
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context) as pool:
        jobs = [pool.submit(_job, mine, number) for number in range(8)]
        told = [job.result(PATIENCE) for job in jobs]
    assert [value for _, _, value in told] == list(range(8))
    assert os.getpid() not in {pid for pid, _, _ in told}
    assert all(joins <= 1 for _, joins, _ in told), "a worker has one Node, for all its jobs"
    assert others_left(mine) == 0


def _child(node: dstore.Node, pipe: Any) -> None:
    pipe.send((node.get("k"), node.stats()["session"], dstore.connect(node.address) is node))


@pytest.mark.private
@pytest.mark.parametrize("method", METHODS)
def test_a_node_can_be_handed_to_a_process(connected: str, method: str) -> None:
    mine = dstore.connect(connected)
    mine.set("k", "v")
    context = multiprocessing.get_context(method)
    near, far = context.Pipe()
    child = context.Process(  # type: ignore[attr-defined]
        target=_child, args=(mine, far)
    )
    child.start()
    assert near.poll(PATIENCE)
    value, session, same = near.recv()
    assert value == "v"
    assert session not in (0, mine.stats()["session"])
    assert same
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert others_left(mine) == 0
    near.close()
    far.close()


@pytest.mark.private
def test_a_fork_while_a_thread_is_in_the_middle_of_a_miss() -> None:
    with (
        GlobalProcess(f"tcp://127.0.0.1:{free_port()}") as place,
        dstore.Node(place.address, timeout=PATIENCE) as one,
    ):
        one.set_many({"k": "v", "l": "w"})
        with dstore.Node(place.address, timeout=PATIENCE) as reader:
            reader.join()
            place.signal(signal.SIGSTOP)
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.append(reader.get("k")))
            thread.start()
            while not reader._state.in_flight:  # the request is under way
                pass
            child = os.fork()
            if not child:
                place.signal(signal.SIGCONT)
                right = reader.get("k") == "v" and reader.get_many(["k", "l"]) == {
                    "k": "v",
                    "l": "w",
                }
                reader.close()
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
            thread.join(PATIENCE)
            assert found == ["v"]
            assert reader.lookup("k").from_local
            reader.set("m", 1)


def test_forks_among_busy_threads(node: MakeNode) -> None:
    """Whatever lock a thread has at the moment of the fork, the child's Node works."""
    mine = node()
    mine.set_many({f"k{number}": bytes(number) for number in range(100)})
    over = threading.Event()

    def busy(first: int) -> None:
        while not over.is_set():
            for number in range(first, 100, 4):
                mine.get(f"k{number}")
            mine.set("large", bytes(100_000), replace=True)
            mine.delete(f"k{first}")
            mine.set(f"k{first}", bytes(first))

    threads = [threading.Thread(target=busy, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                right = mine.get("k50") == bytes(50)
                mine.put(bytes(70_000))
                mine.close()
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert others_left(mine) == 0

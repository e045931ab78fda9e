"""A short run of the crowd; ``python -m tests.faults.crowd`` is a long one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import dstore
from tests.faults import crowd

MakeNode = Callable[..., dstore.Node]


@pytest.mark.parametrize("switch", [None, 1e-6], ids=["as usual", "switching all the time"])
def test_no_thread_reads_what_another_process_has_deleted(switch: float | None) -> None:
    outcome = crowd.run(threads=16, gets=60_000, keys=20, batch=5, switch=switch)
    assert outcome.violations == ()
    assert outcome.gets >= 60_000
    assert 20 <= outcome.kept <= outcome.requests


def test_many_threads_that_miss_many_keys_ask_once_for_each(node: MakeNode) -> None:
    writer, reader = node(), node(timeout=30.0)
    names = [f"k{number}" for number in range(200)]
    writer.set_many(dict.fromkeys(names, "v"))
    reader.join()
    together = threading.Barrier(16)

    def ask() -> None:
        together.wait()
        for name in names:
            assert reader.get(name) == "v"

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.global_stats()["gets"] == len(names)
    assert reader.stats()["fills"] == len(names)

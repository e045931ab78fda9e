"""Ctrl-C at the worst moments of a call leaves nothing behind that later calls would notice."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.client.hosts import channels, threads
from dstore.client.hosts.core import Host
from dstore.config import KEYS_PER_MESSAGE_MAX
from tests.leaks import open_descriptors


def host_of(node: dstore.Node) -> Host:
    assert node._local is not None
    return node._local.host


TOO_MANY = [f"k{number}" for number in range(KEYS_PER_MESSAGE_MAX + 1)]
"""Keys that the direct path leaves to the steps; for itself see test_direct.py."""
CALLS: dict[str, Callable[[dstore.Node], object]] = {
    "get_many": lambda node: node.get_many(TOO_MANY),
    "set_many": lambda node: node.set_many(dict.fromkeys(TOO_MANY, 1)),
    "wait": lambda node: node.wait("k"),
    "delete_many": lambda node: node.delete_many(TOO_MANY, wait=False),
}


@pytest.mark.parametrize("what", CALLS)
def test_an_interrupt_after_the_first_step_ends_the_operation_at_once(
    what: str, node: Callable[..., dstore.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    one.join()
    host = host_of(one)
    advance = host.advance

    def interrupted(*arguments: Any) -> None:
        advance(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(host, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            CALLS[what](one)
    assert caught.value is not None  # as a prompt keeps it, with the frames of the call
    assert not host.state.in_flight
    assert not host.state.writer.writing
    assert one.get_many(["k", "l"]) == {}


def test_an_interrupt_within_notify_costs_event_loops_no_later_change(
    node: Callable[..., dstore.Node],
) -> None:
    one = node(timeout=10)
    one.set("k", 1)
    assert one.get("k") == 1
    host = host_of(one)

    def interrupted() -> None:
        raise KeyboardInterrupt

    async def read() -> object:
        shared = dstore.AsyncNode.sharing(one)
        reading = asyncio.create_task(shared.get("k"))
        while not host.loop_calls:  # a moment of another thread
            if reading.done():  # the lease was renewed before
                with host.lock:
                    host.state.lapse()
                reading = asyncio.create_task(shared.get("k"))
            await asyncio.sleep(0)
        with host.lock:
            host.waiters.append(interrupted)
            with pytest.raises(KeyboardInterrupt):
                host.notify()
        return await asyncio.wait_for(reading, 5)

    with host.lock:
        host.state.lapse()  # now a read waits until the lease has been renewed
    assert asyncio.run(read()) == 1


def test_a_channel_that_an_interrupt_has_left_is_closed_when_its_thread_opens_another(
    node: Callable[..., dstore.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    one.join()
    pool = host_of(one).link.channels

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for module in (threads, channels):
        monkeypatch.setattr(module, "release_channel", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.get_many(["k"])
    monkeypatch.undo()
    (left,) = pool._open
    assert one.get("k", None) is None
    assert left.closed
    assert len(pool._open) == 1


def test_an_interrupt_while_the_folder_of_shared_memory_is_checked_loses_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = os.open

    def interrupted(*arguments: Any, **named: Any) -> int:
        descriptor = opening(*arguments, **named)
        signal.raise_signal(signal.SIGINT)
        return descriptor

    before = open_descriptors()
    monkeypatch.setattr("dstore.shm.directory.os.open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dstore.Node("tcp://127.0.0.1:9", shm=str(tmp_path))
    monkeypatch.undo()
    assert open_descriptors() == before


def test_a_read_leaves_no_cycle_to_the_garbage_collector(node: Callable[..., dstore.Node]) -> None:
    command = node()._commands.get("k", None)
    gone = weakref.ref(command)
    gc.disable()
    try:
        del command
        assert gone() is None
    finally:
        gc.enable()

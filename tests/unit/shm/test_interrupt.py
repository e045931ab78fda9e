"""A KeyboardInterrupt before or after each system call."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstore.shm import (
    HostMemory,
    NoRoom,
    directory,
    folder,
    locks,
    memory,
    partial_files,
    room,
    root,
    writer,
)
from dstore.shm import files as shm_files
from tests.leaks import open_descriptors
from tests.unit.shm.children import (
    SIZE,
    Child,
    User,
    begun,
    cleaned,
    entered,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    value_of,
)

MODULES = [
    directory,
    shm_files,
    locks,
    partial_files,
    folder,
    writer,
    room,
    root,
    memory,
]
SYSTEM = [(os, "os"), (io, "io"), (fcntl, "fcntl")]

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # what was lost is closed


class Interrupting:
    """A substitute for a system module, in which call number ``at`` is interrupted.

    The call is interrupted before it is made, or when it has returned and its result is not stored.
    """

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after

    def calls(self, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.left -= 1
            now = self.left == 0
            if now and not self.after:
                raise KeyboardInterrupt
            try:
                return whole(*arguments, **keywords)
            finally:
                if now and self.after:
                    raise KeyboardInterrupt

        return call

    def module(self, whole: ModuleType) -> ModuleType:
        stand_in = ModuleType(whole.__name__)
        for name in dir(whole):
            what = getattr(whole, name)
            own = name in ("FileIO", "scandir") or type(what) is type(os.open)
            # A bare descriptor that is lost between two instructions cannot be helped. (Those of
            # folders are closed by finalizers.)
            wrapped = callable(what) and own and name not in ("open", "close", "geteuid")
            setattr(stand_in, name, self.calls(what) if wrapped else what)
        return stand_in

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for whole, name in SYSTEM:
            stand_in = self.module(whole)
            for module in MODULES:
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, stand_in)


def store(memory: HostMemory, token: bytes, for_global: bool = False) -> None:
    with begun(memory, token, for_global=for_global) as writer:
        writer.write(0, value_of(token))
        writer.seal()


def interrupted(use: Callable[[], object], at: int, after: bool) -> bool:
    with pytest.MonkeyPatch.context() as monkeypatch:
        Interrupting(at, after=after).install(monkeypatch)
        try:
            use()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("for_global", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_while_a_value_is_written(tmp_path: Path, after: bool, for_global: bool) -> None:
    before = open_descriptors()
    at = 1
    while True:
        with opened(tmp_path) as memory:
            token = new_token()
            if not interrupted(partial(store, memory, token, for_global), at, after):
                break
            if not holds(memory, token):
                store(memory, token, for_global)  # no other writer blocks it
            assert holds(memory, token)
            left = [name for name in files(folder_of(tmp_path)) if name.endswith(".part")]
            assert left == []
        assert files(tmp_path) == []
        assert open_descriptors() == before
        at += 1
    assert at > 12, "the calls to the system are counted"


@pytest.mark.parametrize("after", [False, True])
def test_others_may_write_what_was_interrupted(tmp_path: Path, after: bool) -> None:
    """As soon as the interrupted process makes room for something, or ends."""
    at = 1
    while True:
        token = new_token()
        with opened(tmp_path) as memory, User(tmp_path) as other:
            if not interrupted(partial(store, memory, token), at, after):
                break
            entered(memory).partial_files.sweep()
            if not memory.linked(token):
                assert other.call("begin", token, SIZE)
                other.call("seal")
            assert other.call("find", token, SIZE) is not None
            other.call("close")
        at += 1


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True])
def test_while_a_process_enters_and_leaves(tmp_path: Path, after: bool) -> None:
    def come_and_go() -> None:
        with opened(tmp_path) as memory:
            memory.find(new_token(), SIZE)

    def body(pipe: Connection) -> None:
        while (at := pipe.recv()) and interrupted(come_and_go, at, after):
            come_and_go()  # it works as before
            pipe.send(True)
            os._exit(0)
        pipe.send(False)

    at, more = 1, True
    while more:
        with User(tmp_path, 99) as dead:  # its folder has to be cleaned
            dead.kill()
        with Child(body) as child:
            child.tell(at)
            more = child.hear()
            child.end()
        assert cleaned(tmp_path) == [], f"after the call number {at}"
        at += 1
    assert at > 20


def test_a_lost_writer_does_not_block_others(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, opened(tmp_path) as second:
        token = new_token()
        assert memory.begin(token, SIZE) is not None
        store(second, token)
        assert memory.begin(new_token(), SIZE) is not None
        entered(memory).partial_files.sweep()
        assert files(folder_of(tmp_path) / "copies") == [token.hex()]


def test_an_interrupt_while_memory_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int, offset: int, count: int) -> None:
        raise KeyboardInterrupt

    with opened(tmp_path) as memory:
        before = open_descriptors()
        monkeypatch.setattr(os, "posix_fallocate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.begin(new_token(), SIZE)
        assert files(folder_of(tmp_path) / "copies") == []
        assert open_descriptors() == before


def test_a_signal_handler_may_close_the_memory(tmp_path: Path) -> None:
    """In the same thread, in the middle of a call: all that was begun comes to an end."""
    before = open_descriptors()
    at, more = 1, True
    while more:
        with opened(tmp_path) as memory, pytest.MonkeyPatch.context() as monkeypatch:
            more = closed_within(memory, at, monkeypatch)
        assert files(tmp_path) == []
        assert open_descriptors() == before
        at += 1
    assert at > 15


def closed_within(memory: HostMemory, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the memory was closed during call number ``at``."""

    class Closing(Interrupting):
        def calls(self, whole: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                self.left -= 1
                if self.left == 0:
                    memory.close()
                return whole(*arguments, **keywords)

            return call

    closing = Closing(at, after=False)
    closing.install(monkeypatch)
    try:
        store(memory, new_token())
    except (AssertionError, NoRoom):
        pass
    return closing.left <= 0

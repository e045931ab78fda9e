"""After a fork the child has no locks and does no harm; it can open memory of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.shm import NoRoom, clean, locks
from tests.leaks import open_descriptors
from tests.unit.shm.children import (
    SIZE,
    TIMEOUT,
    Child,
    begun,
    cleaned,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    stored,
    value_of,
)


def test_an_inherited_memory_is_empty_and_harmless(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token, own = stored(memory), stored(memory, for_global=True)

        def body(pipe: Connection) -> None:
            assert memory.find(token, SIZE) is None
            assert not memory.adopt(token, SIZE)
            assert not memory.linked(own)
            for call in (memory.drop, partial(memory.drop, for_global=True), memory.touch):
                call(token)
                call(own)
            for flag in (False, True):
                with pytest.raises(NoRoom):
                    memory.begin(new_token(), SIZE, for_global=flag)
            memory.close()
            memory.close()
            pipe.send("closed")

        before = files(tmp_path)
        with Child(body) as child:
            assert child.hear() == "closed"
            child.end()
        assert files(tmp_path) == before
        assert holds(memory, token) and holds(memory, own)
    assert files(tmp_path) == []


def test_a_child_that_only_ends_does_no_harm(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, begun(memory, new_token()) as writer:
        token = stored(memory)
        with Child(lambda pipe: None) as child:
            child.end()
        clean_in_a_child(tmp_path)
        assert holds(memory, token)
        writer.seal()


def clean_in_a_child(root: Path) -> None:
    """Another process cleans, which removes what is not locked."""

    def body(pipe: Connection) -> None:
        clean(str(root))
        with opened(root) as other:  # this sweeps
            pipe.send(other is not None)

    with Child(body) as child:
        assert child.hear() is True


def test_the_parents_lock_ends_with_the_parent_not_with_the_child(tmp_path: Path) -> None:
    """The child still runs, and yet the folder and the value are free."""

    def parent(pipe: Connection) -> None:
        with opened(tmp_path) as memory, begun(memory, new_token()) as writer:
            writer.write(0, b"half")
            if os.fork() == 0:
                try:
                    pipe.send("here")
                    pipe.recv()
                finally:
                    os._exit(0)
            os._exit(0)

    with Child(parent) as child:
        assert child.hear() == "here"
        assert child.process.pid is not None
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
        assert files(folder_of(tmp_path))
        assert cleaned(tmp_path) == []
        child.tell()


def test_views_stay_readable_in_the_child(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token = stored(memory)
        views = [memory.find(token, SIZE)]

        def body(pipe: Connection) -> None:
            memory.close()
            pipe.recv()  # by now the parent has closed and dropped everything
            (view,) = views
            pipe.send(view is not None and bytes(view))

        with Child(body) as child:
            memory.close()
            assert files(tmp_path) == []
            views.clear()
            child.tell()
            assert child.hear() == value_of(token)


def test_an_inherited_writer_neither_seals_nor_unlinks(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token = new_token()
        writer = begun(memory, token)
        writer.write(0, value_of(token)[:1000])

        def body(pipe: Connection) -> None:
            with pytest.raises(NoRoom):
                writer.write(0, b"x")
            with pytest.raises(NoRoom):
                writer.seal()
            with writer:
                pass
            writer.abandon()
            memory.close()
            pipe.send(open_descriptors() & held_by_parent)
            pipe.recv()

        here = str(tmp_path)
        held_by_parent = {each for each in open_descriptors() if each[1].startswith(here)}
        assert len(held_by_parent) == 4
        with Child(body) as child:
            assert child.hear() == set(), "its copies of the descriptors are closed"
            with Child(another_begins(tmp_path, token)) as other:
                assert other.hear() is None, "the parent still has its lock"
            writer.write(1000, value_of(token)[1000:])
            assert bytes(writer.seal()) == value_of(token)
            assert holds(memory, token)
            child.tell()


def another_begins(root: Path, token: bytes) -> Callable[[Connection], None]:
    def body(pipe: Connection) -> None:
        with opened(root) as memory:
            pipe.send(memory.begin(token, SIZE))

    return body


def test_the_child_opens_its_own_memory(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        token = stored(memory)
        taken = new_token()
        writer = begun(memory, taken)

        def body(pipe: Connection) -> None:
            with opened(tmp_path) as own:
                assert holds(own, token)
                assert own.begin(taken, SIZE) is None
                memory.close()
                fresh = stored(own)
                pipe.send(fresh)
                pipe.recv()  # the parent has left meanwhile
                clean_in_a_child(tmp_path)
                assert holds(own, fresh), "this one has a lock of its own"
                stored(own)
            pipe.send(files(tmp_path))

        with Child(body) as child:
            assert holds(memory, child.hear())
            writer.abandon()
            memory.close()
            child.tell()
            assert child.hear() == [], "the last one out"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_process_lock(tmp_path: Path) -> None:
    """The thread holds the process lock and does not exist in the child."""
    with opened(tmp_path) as memory:
        token = stored(memory)
        inside, leave = threading.Event(), threading.Event()

        def sit() -> None:
            with locks.process_lock:
                inside.set()
                leave.wait(TIMEOUT)

        thread = threading.Thread(target=sit)
        thread.start()
        assert inside.wait(TIMEOUT)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                memory.close()
                with opened(tmp_path) as own:
                    os.write(writer, b"found" if holds(own, token) else b"lost")
            finally:
                os._exit(0)
        said = os.read(reader, 5)
        assert os.waitpid(pid, 0) == (pid, 0)
        leave.set()
        thread.join()
        os.close(reader)
        os.close(writer)
        assert said == b"found"
        assert holds(memory, token)


def test_a_child_of_a_child(tmp_path: Path) -> None:
    """A child of a child, each with its own memory; the oldest process leaves first."""

    def generation(pipe: Connection, left: int) -> None:
        with opened(tmp_path) as memory:
            token = stored(memory)
            if not left:
                pipe.send("born")
                pipe.recv()
                pipe.send(holds(memory, token))
                return
            with Child(lambda inner: generation(inner, left - 1)) as child:
                pipe.send(child.hear())
                pipe.recv()
                memory.close()
                child.tell()
                pipe.send(child.hear())

    with Child(lambda pipe: generation(pipe, 3)) as child:
        assert child.hear() == "born"
        child.tell()
        assert child.hear() is True
        child.end()
    assert files(tmp_path) == []

"""Many processes and one value: exactly one writes it, whichever of them dies."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.shm import NoRoom, Writer, locks
from tests.unit.shm.children import (
    SIZE,
    Child,
    User,
    begun,
    entered,
    files,
    folder_of,
    holds,
    new_token,
    opened,
    value_of,
)

RACERS = 8


def test_eight_processes_write_it_once_and_map_the_same_file(tmp_path: Path) -> None:
    """Each process does what a reader does: look, begin, or wait a little and look again."""
    token = new_token()

    def body(pipe: Connection) -> None:
        wrote = 0
        with opened(tmp_path) as memory:
            pipe.send("ready")
            pipe.recv()
            while (view := memory.find(token, SIZE)) is None:
                writer = memory.begin(token, SIZE)
                if writer is None:
                    time.sleep(0.0005)
                    continue
                wrote += 1
                with writer:
                    for start in range(0, SIZE, 1000):
                        writer.write(start, value_of(token)[start : start + 1000])
                    writer.seal()
            pipe.send((wrote, bytes(view) == value_of(token), mapped_inodes()))
            pipe.recv()

    children = [Child(body) for _ in range(RACERS)]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.tell()
    wrote, right, inodes = zip(*[child.hear() for child in children])
    assert sorted(wrote) == [0] * (RACERS - 1) + [1]
    assert all(right)
    there = (folder_of(tmp_path) / "copies" / token.hex()).stat().st_ino
    assert set(inodes) == {(there,)}
    for child in children:
        child.tell()
        child.end()
    assert files(tmp_path) == []


def mapped_inodes() -> tuple[int, ...]:
    """The files under copies/ that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return tuple({int(line.split()[4]) for line in lines if "/copies/" in line})


def test_another_process_has_to_wait(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = new_token()
        with begun(memory, token) as writer:
            assert other.call("begin", token, SIZE) is None
            assert other.call("find", token, SIZE) is None
            assert other.call("progress", token) is not None
            writer.write(0, value_of(token))
            writer.seal()
        assert other.call("begin", token, SIZE) is None
        assert other.call("find", token, SIZE) == value_of(token)
        assert other.call("adopt", token, SIZE) is True
        assert holds(memory, token)
        memory.drop(token)
        assert other.call("linked", token)
        other.call("drop", token, for_global=True)
        assert not memory.linked(token)


def test_a_value_that_is_sealed_during_begin_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = new_token()
        assert other.call("begin", token, SIZE)
        other.call("write", 0, value_of(token))
        whole = memory.find

        def late(token: bytes, size: int) -> memoryview | None:
            found = whole(token, size)
            other.call("seal")
            return found

        monkeypatch.setattr(memory, "find", late)
        assert memory.begin(token, SIZE) is None


def test_an_abandoned_value_may_be_begun_again(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = new_token()
        assert other.call("begin", token, SIZE)
        assert memory.begin(token, SIZE) is None
        other.call("write", 0, b"garbage")
        other.call("abandon")
        with begun(memory, token) as writer:
            assert bytes(writer.seal()) == bytes(SIZE), "nothing of the other's is in it"


@pytest.mark.parametrize("for_global", [False, True])
def test_when_the_writer_is_killed_another_takes_over(tmp_path: Path, for_global: bool) -> None:
    with opened(tmp_path) as memory:
        token = new_token()
        for _ in range(2):
            with User(tmp_path) as other:
                assert other.call("begin", token, 2 * SIZE, for_global=for_global)
                other.call("write", 0, b"garbage")
                assert memory.begin(token, SIZE, for_global=for_global) is None
                other.kill()
        with begun(memory, token, for_global=for_global) as writer:
            with User(tmp_path) as other:
                assert other.call("begin", token, SIZE, for_global=for_global) is None, (
                    "it is taken already"
                )
                other.call("close")
            writer.write(7, value_of(token)[7:])
            assert bytes(writer.seal()) == bytes(7) + value_of(token)[7:]


def test_one_of_the_processes_that_wait_for_a_dead_writer_takes_over(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as one, User(tmp_path) as two:
        token = new_token()
        with User(tmp_path) as dead:
            assert dead.call("begin", token, SIZE)
            assert [user.call("begin", token, SIZE) for user in (one, two)] == [None, None]
            dead.kill()
        for user in (one, two):
            user.begin_call("begin", token, SIZE)
        took = [user.hear() for user in (one, two)]
        assert sorted(took, key=str) == [None, True]
        winner = (one, two)[took.index(True)]
        winner.call("write", 0, value_of(token))
        assert winner.call("seal") == value_of(token)
        assert holds(memory, token)


@pytest.mark.parametrize("end", ["seal", "abandon"])
def test_a_process_that_locks_a_sealed_file_looks_again(tmp_path: Path, end: str) -> None:
    """A process has opened the partial file and waits at the lock until its writer has ended."""
    token = new_token()

    def body(pipe: Connection) -> None:
        with opened(tmp_path) as memory:
            whole = locks.try_exclusive

            def late(file: object) -> bool:
                locks.try_exclusive = whole
                pipe.send("opened")
                pipe.recv()
                return whole(file)  # type: ignore[arg-type]

            locks.try_exclusive = late
            writer = memory.begin(token, SIZE)
            pipe.send(writer is not None)
            if writer is not None:
                writer.write(0, value_of(token))
                writer.seal()
            pipe.send(holds(memory, token))
            pipe.recv()

    with opened(tmp_path) as memory, begun(memory, token) as writer, Child(body) as child:
        assert child.hear() == "opened"
        writer.write(0, value_of(token))
        writer.seal() if end == "seal" else writer.abandon()
        child.tell()
        assert child.hear() is (end == "abandon")
        assert child.hear() is True
        assert files(folder_of(tmp_path) / "copies") == [token.hex()]


def test_a_sealed_file_is_never_replaced(tmp_path: Path) -> None:
    """One process finds nothing; before it begins, another has written everything."""
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = new_token()
        assert memory.find(token, SIZE) is None
        assert other.call("begin", token, SIZE)
        other.call("write", 0, value_of(token))
        assert other.call("seal") == value_of(token)
        inode = (folder_of(tmp_path) / "copies" / token.hex()).stat().st_ino
        assert memory.begin(token, SIZE) is None
        assert holds(memory, token)
        assert (folder_of(tmp_path) / "copies" / token.hex()).stat().st_ino == inode
        assert files(folder_of(tmp_path) / "copies") == [token.hex()]


def test_closing_another_descriptor_does_not_drop_a_lock(tmp_path: Path) -> None:
    """A process that writes a file must not open that file elsewhere, which would drop its lock."""
    with opened(tmp_path) as memory, opened(tmp_path) as second, User(tmp_path) as other:
        token = new_token()
        with begun(memory, token) as writer:
            writer.write(0, value_of(token))
            for each in (memory, second):
                assert each.find(token, SIZE) is None
                assert each.begin(token, SIZE) is None
                assert not each.adopt(token, SIZE)
                assert not each.linked(token)
                each.touch(token)
                each.drop(token)
                each.progress(token)
            with opened(tmp_path) as third:  # this sweeps
                assert third.begin(token, SIZE) is None
            entered(memory).partial_files.sweep()
            assert other.call("begin", token, SIZE) is None
            writer.seal()
        assert other.call("find", token, SIZE) == value_of(token)


def test_sixteen_threads_in_two_processes(tmp_path: Path) -> None:
    token = new_token()

    def race() -> list[int]:
        wrote: list[int] = []

        def one() -> None:
            while not holds(memory, token):
                writer: Writer | None = memory.begin(token, SIZE)
                if writer is None:
                    time.sleep(0.0005)
                    continue
                with writer:
                    wrote.append(os.getpid())
                    writer.write(0, value_of(token))
                    writer.seal()

        with opened(tmp_path) as memory:
            threads = [threading.Thread(target=one) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return wrote

    def body(pipe: Connection) -> None:
        with opened(tmp_path):
            pipe.send("ready")
            pipe.recv()
            pipe.send(race())
            pipe.recv()

    with Child(body) as child:
        assert child.hear() == "ready"
        child.tell()
        assert len(race() + child.hear()) == 1
        child.tell()
        child.end()
    assert files(tmp_path) == []


def test_a_value_of_another_size_is_not_waited_for(tmp_path: Path) -> None:
    with opened(tmp_path) as memory, User(tmp_path) as other:
        token = new_token()
        assert other.call("begin", token, SIZE)
        other.call("seal")
        with pytest.raises(NoRoom):
            memory.begin(token, SIZE + 1)
        with pytest.raises(NoRoom):
            other.call("begin", token, SIZE - 1)

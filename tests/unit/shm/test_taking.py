"""A file of a former epoch becomes one of the present epoch: linked, once, within the limit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from dstore.shm import HostMemory, open_memory, room
from tests.unit.shm.children import (
    EPOCH,
    ROOMY,
    SIZE,
    Child,
    begun,
    holds,
    new_token,
    stored,
    value_of,
)

NEXT = EPOCH + 1


class Two(NamedTuple):
    """The memories of two epochs."""

    former: HostMemory
    present: HostMemory

    def take(self, token: bytes, new: bytes | None = None, size: int = SIZE) -> memoryview | None:
        return self.present.take(self.former, token, token if new is None else new, size)


def memory_of(root: Path, epoch: int, limit: int = ROOMY) -> HostMemory:
    memory = open_memory(epoch, root=str(root), limit=limit)
    assert memory is not None
    return memory


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    two = Two(memory_of(tmp_path, EPOCH), memory_of(tmp_path, NEXT))
    yield two
    for memory in two:
        memory.close()


def path_of(memory: HostMemory, token: bytes, folder: str = "copies") -> Path:
    return Path(memory.path) / folder / token.hex()


def test_a_copy_is_taken_without_copying_it(two: Two) -> None:
    token = stored(two.former)
    before, held = path_of(two.former, token).stat(), two.former.find(token, SIZE)
    view = two.take(token)
    assert view is not None and bytes(view) == value_of(token)
    after = path_of(two.present, token).stat()
    assert after.st_ino == before.st_ino
    assert not two.former.linked(token), "to evict it would free nothing otherwise"
    two.former.close()
    assert bytes(view) == value_of(token)
    assert held is not None and bytes(held) == value_of(token)
    assert holds(two.present, token)


def test_it_may_get_another_token(two: Two) -> None:
    token, new = stored(two.former), new_token()
    view = two.take(token, new)
    assert view is not None and bytes(view) == value_of(token)
    assert two.present.linked(new) and not two.present.linked(token)


def test_a_file_of_globals_stays_where_it_is(two: Two) -> None:
    token = stored(two.former, for_global=True)
    assert two.take(token) is not None
    assert two.former.linked(token), "that Global may be alive"
    assert path_of(two.present, token).exists()


def test_what_is_not_sealed_is_not_taken(two: Two) -> None:
    token = new_token()
    with begun(two.former, token) as writer:
        writer.write(0, value_of(token))
        assert two.take(token) is None
    assert not two.present.linked(token)


def test_a_file_that_is_gone_or_was_cut_short_is_not_taken(two: Two) -> None:
    assert two.take(new_token()) is None
    token = stored(two.former)
    path_of(two.former, token).chmod(0o600)
    os.truncate(path_of(two.former, token), SIZE - 1)
    assert two.take(token) is None
    assert not two.present.linked(token)
    assert path_of(two.former, token).exists()


@pytest.mark.parametrize("planted", ["symbolic link", "writable for others", "folder"])
def test_what_another_program_planted_is_not_taken(two: Two, tmp_path: Path, planted: str) -> None:
    token = stored(two.former)
    place, elsewhere = path_of(two.former, token), tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(SIZE))
    if planted == "writable for others":
        place.chmod(0o622)
    else:
        place.unlink()
        if planted == "folder":
            place.mkdir()
        else:
            place.symlink_to(elsewhere)
    assert two.take(token) is None
    assert not path_of(two.present, token).is_symlink()
    assert not two.present.linked(token)


def test_a_file_that_takes_the_place_of_the_one_that_was_looked_at_is_not_taken(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = stored(two.former)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(SIZE))
    link = os.link

    def later(*arguments: object, **options: object) -> None:
        os.replace(elsewhere, path_of(two.former, token))
        link(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", later)
    assert two.take(token) is None
    assert not two.present.linked(token)


def test_a_value_that_is_here_stays_as_it_is(two: Two) -> None:
    token = stored(two.former)
    with begun(two.present, token) as writer:
        writer.write(0, value_of(token))
        writer.seal()
    before = path_of(two.present, token).stat().st_ino
    view = two.take(token)
    assert view is not None and bytes(view) == value_of(token)
    assert path_of(two.present, token).stat().st_ino == before


def test_a_damaged_file_that_is_here_is_not_replaced(two: Two) -> None:
    token = stored(two.former)
    path_of(two.present, token).write_bytes(b"short")
    assert two.take(token) is None
    assert path_of(two.present, token).read_bytes() == b"short"


def test_of_two_processes_that_take_it_both_have_it(two: Two, tmp_path: Path) -> None:
    tokens = [stored(two.former) for _ in range(100)]

    def body(pipe: Connection) -> None:
        mine = Two(memory_of(tmp_path, EPOCH), memory_of(tmp_path, NEXT))
        pipe.send("ready")
        pipe.recv()
        views = [mine.take(token) for token in tokens]
        pipe.send([None if view is None else bytes(view) for view in views])
        for memory in mine:
            memory.close()

    children = [Child(body) for _ in range(2)]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.tell()
    for child in children:
        assert child.hear() == [value_of(token) for token in tokens]
        child.end()
    assert all(two.present.linked(token) for token in tokens)


def test_a_value_that_another_process_is_writing_is_left_to_it(two: Two) -> None:
    token = stored(two.former)
    with begun(two.present, token) as writer:
        assert two.take(token) is None
        writer.write(0, value_of(token))
        writer.seal()
    assert holds(two.present, token)


def test_what_is_taken_counts_against_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "used", lambda here: float("inf"))
    two = Two(memory_of(tmp_path, EPOCH), memory_of(tmp_path, NEXT, 3 * SIZE))
    tokens = [stored(two.former) for _ in range(4)]
    for token in tokens:
        assert two.take(token) is not None
    assert [two.present.linked(token) for token in tokens] == [False, True, True, True]
    assert two.take(stored(two.former, size=4 * SIZE), size=4 * SIZE) is None
    for memory in two:
        memory.close()


def test_after_the_former_memory_was_left_nothing_is_taken(two: Two) -> None:
    token = stored(two.former)
    two.former.close()
    assert two.take(token) is None
    two.present.close()
    assert two.take(token) is None


@pytest.mark.parametrize("gone", ["former", "present"])
def test_a_folder_that_was_removed_costs_only_its_values(two: Two, gone: str) -> None:
    token = stored(two.former)
    shutil.rmtree(getattr(two, gone).path)
    assert two.take(token) is None

"""The host cache as a file: opening, sharing among processes, forks, a full file system."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.core.local.shared import Record
from dstore.shm import directory, locks, table, writable
from dstore.shm.directory import Directory, Unusable
from dstore.shm.layout import (
    HEADER_BYTES,
    MAIN,
    RESERVED,
    SIZE,
    SIZE_MIN,
    SMALL,
    UNIT,
    WORD_MAGIC,
    WORD_SIZE,
    Layout,
)
from dstore.shm.table import Table
from tests.leaks import open_descriptors
from tests.unit.shm.children import Child
from tests.unit.shm.tables import body_of, hash_of, is_right, kinds, token_of, twin

SIZE_BYTES = 2 << 20
NAME = "some.table"


@pytest.fixture(params=kinds(), autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with both twins."""
    found = twin(request.param)
    monkeypatch.setattr(table, "Reader", found.reader)
    monkeypatch.setattr(table, "Writer", found.writer)
    return found.name


@pytest.fixture
def here() -> Iterator[Directory]:
    """A folder in shared memory."""
    path = tempfile.mkdtemp(dir=os.environ["DSTORE_SHM"])
    found = directory.walk(path)
    yield found
    found.close()
    shutil.rmtree(path)


@pytest.fixture
def made(here: Directory) -> Iterator[Table]:
    found = Table.create(here, NAME, SIZE_BYTES)
    yield found
    found.close()


def put(some: Table, key: str, seq: int = 1, length: int = 100) -> bool:
    return some.put(key, hash_of(key), seq, token_of(key, seq), "bytes", body_of(key, seq, length))


def find(some: Table, key: str) -> Record | None:
    found = some.find(key, hash_of(key))
    assert found is None or is_right(key, found)
    return found


def fill(some: Table, count: int = 8000, length: int = 400) -> None:
    """Put more than the table has room for."""
    for number in range(count):
        assert put(some, f"fill{number}", 1, length)


# ---- create, open, close ----------------------------------------------------------------------


def test_what_one_opening_puts_another_finds(here: Directory, made: Table) -> None:
    other = Table.open(here, NAME)
    assert put(made, "k")
    assert find(other, "k") == (1, token_of("k", 1), "bytes", body_of("k", 1, 100))
    made.close()
    made.close()
    assert find(made, "k") is None and not put(made, "l") and made.stats() == {}
    assert put(other, "l") and find(other, "l")
    other.close()
    again = Table.open(here, NAME)
    assert find(again, "l")
    again.close()


def test_a_process_opens_the_file_once(here: Directory, made: Table) -> None:
    before = open_descriptors()
    others = [Table.open(here, NAME) for _ in range(5)]
    assert open_descriptors() == before
    for each in others:
        each.close()
    assert open_descriptors() == before
    assert put(made, "k") and find(made, "k")


def test_nothing_is_left_open(here: Directory) -> None:
    before = open_descriptors()
    some = Table.create(here, NAME, SIZE_BYTES)
    assert put(some, "k")
    assert NAME in Path("/proc/self/maps").read_text()
    some.close()
    assert open_descriptors() == before
    assert NAME not in Path("/proc/self/maps").read_text()


def test_put_many_counts_what_it_has_written(made: Table) -> None:
    items = [(key, hash_of(key), 5, token_of(key, 5), "bytes", b"") for key in "abc"]
    assert made.put_many(items) == 3
    assert not put(made, "b", 4)
    assert made.put_many([*items, ("x", hash_of("x"), 1, b"short", "bytes", b"")]) == 3
    assert made.put_many([]) == 0


def test_stats(made: Table) -> None:
    assert made.stats()["records"] == made.stats()["bytes"] == 0
    for key in "abc":
        put(made, key)
    put(made, "a", 2)
    stats = made.stats()
    assert (stats["records"], stats["puts"], stats["evictions"]) == (3, 4, 0)
    assert stats["bytes"] == 4 * 160
    fill(made)
    stats = made.stats()
    assert stats["evictions"] > 3000 and stats["records"] < 5000
    assert 0.88 * SIZE_BYTES < stats["bytes"] < stats["size"] == stats["reserved"] <= SIZE_BYTES


@pytest.mark.parametrize("size", [0, SIZE_MIN - 1, 1 << 60])
def test_a_size_that_is_no_size(here: Directory, size: int) -> None:
    with pytest.raises(Unusable, match="a host cache has"):
        Table.create(here, NAME, size)
    assert os.listdir(here.path) == []


def test_the_smallest_table(here: Directory) -> None:
    some = Table.create(here, NAME, SIZE_MIN)
    fill(some)
    assert some.stats()["resets"] == 0
    some.close()


def test_a_file_that_exists_is_not_touched(here: Directory, made: Table) -> None:
    put(made, "k")
    with pytest.raises(FileExistsError):
        Table.create(here, NAME, SIZE_BYTES)
    assert find(made, "k")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def changed(word: int, by: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        memoryview(raw).cast("Q")[word] += by
        path.write_bytes(raw)

    return change


def opened_to_others(path: Path) -> None:
    path.chmod(0o622)


def replaced_by_a_link(path: Path) -> None:
    path.rename(f"{path}.moved")
    path.symlink_to(f"{path}.moved")


def given_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    "damage",
    [
        cut, cut_to_nothing, opened_to_others, replaced_by_a_link, given_away,
        changed(WORD_MAGIC, 1), changed(WORD_SIZE, 8192), changed(WORD_SIZE, 1 << 50),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(here: Directory, damage: Callable[[Path], None]) -> None:
    Table.create(here, NAME, SIZE_BYTES).close()
    Table.open(here, NAME).close()
    damage(Path(here.path, NAME))
    before = open_descriptors()
    with pytest.raises((Unusable, OSError)):
        Table.open(here, NAME)
    assert open_descriptors() == before


def test_a_missing_table(here: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        Table.open(here, NAME)


def test_in_python_alone_it_needs_a_processor_that_keeps_the_order(
    here: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "compiled", None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Unusable, match="aarch64"):
        Table.create(here, NAME, SIZE_BYTES)
    with pytest.raises(Unusable, match="aarch64"):
        Table.open(here, NAME)


def test_private_memory() -> None:
    some = Table.over(bytearray(SIZE_BYTES), SIZE_BYTES)
    fill(some)
    assert put(some, "k") and find(some, "k") and some.stats()["records"]


# ---- writers exclude each other ---------------------------------------------------------------


def test_a_put_while_another_process_writes_is_skipped(here: Directory, made: Table) -> None:
    def body(pipe: Connection) -> None:
        mine = Table.open(here, NAME)
        storage = mine._storage
        assert storage is not None and storage.lock_file is not None
        assert locks.try_exclusive(storage.lock_file)
        pipe.send("locked")
        pipe.recv()

    assert put(made, "a")
    with Child(body) as child:
        assert child.hear() == "locked"
        assert not put(made, "k") and find(made, "a"), "readers need no lock"
        child.kill()
        assert put(made, "k")


def test_a_put_within_a_put_is_skipped(made: Table) -> None:
    """As a signal handler would do it; and another thread."""
    results: list[bool] = []

    def items() -> Iterator[tuple[str, int, int, bytes, str, bytes]]:
        results.append(put(made, "inner"))
        thread = threading.Thread(target=lambda: results.append(put(made, "thread")))
        thread.start()
        thread.join()
        yield "outer", hash_of("outer"), 1, token_of("outer", 1), "bytes", b""

    assert made.put_many(items()) == 1
    assert results == [False, False]
    assert put(made, "inner"), "the lock is free again"


def test_an_error_in_the_middle_frees_the_lock(here: Directory, made: Table) -> None:
    def items() -> Iterator[Any]:
        yield "a", hash_of("a"), 1, token_of("a", 1), "bytes", b""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.put_many(items())
    assert find(made, "a") and put(made, "b")
    with Child(lambda pipe: pipe.send(put(Table.open(here, NAME), "c"))) as child:
        assert child.hear() is True


# ---- forks ------------------------------------------------------------------------------------


def test_a_forked_child_does_not_have_the_table(here: Directory, made: Table) -> None:
    put(made, "k")
    second = Table.open(here, NAME)

    def body(pipe: Connection) -> None:
        assert find(made, "k") is None and find(second, "k") is None
        assert not put(made, "l") and made.stats() == {}
        assert NAME not in Path("/proc/self/maps").read_text()
        assert not any(NAME in target for _, target in open_descriptors())
        mine = Table.open(here, NAME)
        assert find(mine, "k") and put(mine, "child")
        made.close()
        pipe.send("done")
        pipe.recv()

    with Child(body) as child:
        assert child.hear() == "done"
        assert find(made, "child") and put(made, "parent") and find(second, "parent")
    second.close()


def test_other_hooks_find_nothing_on_both_sides(here: Directory, made: Table) -> None:
    """Whatever the order of the hooks, none touches the memory in the child."""
    program = f"""
import os, sys
from dstore.shm import directory
seen = []
def look():
    seen.append(some.find("k", {hash_of("k")}))
    seen.append(some.put("h", 1, 1, bytes(16), "bytes", b""))
os.register_at_fork(after_in_child=look)   # before that of the table
from dstore.shm.table import Table
os.register_at_fork(before=look, after_in_child=look)   # after it
some = Table.open(directory.walk({here.path!r}), {NAME!r})
assert some.find("k", {hash_of("k")})
child = os.fork()
if child == 0:
    os._exit(0 if seen[2:] == [None, False] * 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert some.find("k", {hash_of("k")})
"""
    put(made, "k")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class Forking:
    """Words that a reader loads; the process forks before one of the loads."""

    def __init__(self, words: memoryview, before: int) -> None:
        self._words = words
        self._left = before
        self.child: int | None = None

    def __getitem__(self, place: int) -> int:
        self._left -= 1
        if self._left == 0:
            self.child = os.fork()
        return self._words[place]


@pytest.mark.parametrize("before", range(1, 8))
def test_a_fork_in_the_middle_of_a_find(made: Table, kind: str, before: int) -> None:
    """A signal handler may fork there. The child goes on with memory of zeros."""
    if kind != "pure":
        pytest.skip("no handler runs in the middle of the compiled one")
    put(made, "a")
    storage = made._storage
    assert storage is not None
    reader: Any = storage.reader
    reader._words = forking = Forking(reader._words, before)
    found = reader.find("a", hash_of("a"))
    if forking.child == 0:
        right = found is None or is_right("a", found)  # it may have read it all before
        os._exit(0 if right and find(made, "a") is None and not put(made, "d") else 1)
    reader._words = storage.words
    assert found and find(made, "a")
    if forking.child is not None:
        assert os.waitpid(forking.child, 0)[1] == 0
    assert (forking.child is None) is (before == 7), "all loads were tried"


def test_a_fork_in_the_middle_of_a_put(here: Directory, made: Table) -> None:
    forked: list[int] = []

    def items() -> Iterator[Any]:
        yield "a", hash_of("a"), 1, token_of("a", 1), "bytes", b""
        forked.append(os.fork())
        yield "b", hash_of("b"), 1, token_of("b", 1), "bytes", b""

    count = made.put_many(items())
    if forked == [0]:
        mine = Table.open(here, NAME)
        os._exit(0 if count == 1 and find(mine, "a") else 1)
    assert os.waitpid(forked[0], 0)[1] == 0
    assert count == 2 and find(made, "b") and put(made, "c")


def test_a_child_of_a_fork_that_python_does_not_see(made: Table) -> None:
    """The system leaves the mapping out of it."""
    storage = made._storage
    assert storage is not None and storage.mapping is not None
    start = f"{storage.mapping._address:x}-"
    (mapped,) = (
        part for part in Path("/proc/self/smaps").read_text().split(start)[1:] if NAME in part
    )
    flags = next(line for line in mapped.splitlines() if line.startswith("VmFlags"))
    assert " dc" in flags, "dc: do not copy on fork"


# ---- memory -----------------------------------------------------------------------------------


def reserved(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_memory_is_reserved_as_it_is_needed(
    here: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESERVE_STEP", 64 << 10)
    path = Path(here.path, NAME)
    some = Table.create(here, NAME, 4 << 20)
    assert reserved(path) < 1 << 20
    steps = set()
    for number in range(12_000):
        assert put(some, f"fill{number}", 1, 400)
        steps.add(reserved(path))
        assert reserved(path) <= 4 << 20
    assert len(steps) > 50 and max(steps) > 0.98 * (4 << 20)
    assert some.stats()["resets"] == 0
    some.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Directory]:
    """A file system of 2 MiB; to mount it needs root."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    found = directory.walk(str(path))
    try:
        yield found
    finally:
        found.close()
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_file_system_ends_the_growth(
    disk: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rings end where the reserved memory ends; nothing beyond is touched (SIGBUS)."""
    monkeypatch.setattr(table, "RESERVE_STEP", 64 << 10)
    some = Table.create(disk, NAME, 8 << 20)
    other = Table.open(disk, NAME)
    for number in range(20_000):
        assert put(some, f"k{number}", 1, number % 900)
        assert find(other, f"k{number}")
        find(other, f"k{number // 2}")
    storage = some._storage
    assert storage is not None
    for ring in (SMALL, MAIN):
        words = storage.words
        assert words[ring + SIZE] == words[ring + RESERVED] < 8 << 20
    stats = some.stats()
    assert stats["resets"] == 0 and stats["moves"] and stats["evictions"]
    assert 1 << 20 < stats["reserved"] <= 2 << 20
    some.close()
    other.close()


def test_without_memory_for_the_index_there_is_no_table(disk: Directory) -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match="No space"):
        Table.create(disk, NAME, 64 << 20)
    assert os.listdir(disk.path) == [] and open_descriptors() == before


def test_a_reader_does_not_touch_what_is_not_reserved(made: Table) -> None:
    """As a damaged index word may ask it to."""
    storage = made._storage
    assert storage is not None
    put(made, "k")
    words, layout = storage.words, storage.layout
    begin = HEADER_BYTES // UNIT
    place = next(each for each in range(begin, begin + layout.index_words) if words[each])
    beyond = words[MAIN + RESERVED] = 16
    words[place] = beyond << 16 | words[place] & 0xFFFF
    at = layout.main + UNIT * beyond
    assert Layout.of(SIZE_BYTES) == layout
    words[at // UNIT] = 6
    assert find(made, "k") is None


def test_without_ctypes_there_is_no_table(here: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable, "AVAILABLE", False)
    with pytest.raises(Unusable, match="ctypes"):
        Table.create(here, NAME, SIZE_BYTES)

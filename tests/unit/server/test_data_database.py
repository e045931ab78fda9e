"""The database: what it returns after a restart, what of a damaged one, and when it gives up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sqlite3
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dstore.core.engine import NO_DEADLINE, ChangeKind, Kept
from dstore.errors import DataError
from dstore.protocol.keys import from_bytes
from dstore.protocol.messages import Large, Stored
from dstore.server.data import Database, database
from dstore.server.data.reserve import Reserve
from tests.unit.server.data_files import (
    DONE,
    FAILED,
    bind,
    contents,
    edit,
    expire,
    loaded,
    opened,
    remove,
    replace,
    run_python,
    token_of,
    value,
)
from tests.unit.shm.children import Child

NO_ADDRESS = (ctypes.c_char * 0).from_address(0)
SOON = 2_000_000_000.5


CRASH = """
import os, sys
from tests.unit.server.data_files import *
with opened(Path(sys.argv[1]), log_bytes=1 << 24) as data:
    data.database.apply([bind('in the log', value(2, bytes(1 << 20)))])
    os._exit(0)
"""
"""A program that leaves a log behind."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def one(place: Path) -> Path:
    """A folder with one key."""
    with opened(place) as data:
        assert data.database.apply([bind("key", value(1), SOON)]) == [DONE]
    return place


def test_each_change_is_there_after_a_restart(place: Path) -> None:
    with opened(place) as data:
        database = data.database
        assert loaded(database) == {}
        numbers = range(5)
        assert database.apply([bind(f"k{n}", value(n)) for n in numbers]) == [DONE] * 5
        assert database.apply([
            remove("k0", token_of(0)),
            replace("k1", token_of(1), value(11, b"other"), SOON),
            expire("k2", token_of(2), SOON),
            bind("k0", value(10), SOON),
            expire("k3", token_of(3), SOON),
            remove("k3", token_of(3)),
        ]) == [DONE] * 6  # fmt: skip
        assert database.apply([expire("k2", token_of(2), NO_DEADLINE)]) == [DONE]
    assert contents(place) == {
        "k0": Kept("k0", token_of(10), value(10), SOON),
        "k1": Kept("k1", token_of(11), value(11, b"other"), SOON),
        "k2": Kept("k2", token_of(2), value(2), NO_DEADLINE),
        "k4": Kept("k4", token_of(4), value(4), NO_DEADLINE),
    }


@pytest.mark.parametrize(
    "raw", [b"k", "é漢😀".encode(), b"\xff\xfe", b"\xc3", b"a\0b", bytes(range(1, 256)), b"'; --"]
)
def test_each_key_comes_back(place: Path, raw: bytes) -> None:
    key = from_bytes(raw)
    with opened(place) as data:
        assert data.database.apply([bind(key, value(1))]) == [DONE]
    assert contents(place) == {key: Kept(key, token_of(1), value(1), NO_DEADLINE)}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\0", bytes(3_000_000), memoryview(b"seen"), memoryview(b"")),
        *(memoryview(NO_ADDRESS).cast("B"), Large(1 << 40, b"d" * 32)),
    ],
    ids=["empty", "zero", "large", "view", "empty view", "no address", "elsewhere"],
)
def test_each_body_comes_back(place: Path, body: bytes | memoryview | Large) -> None:
    stored = Stored(token_of(1), "bytes", body)
    with opened(place) as data:
        assert data.database.apply([bind("key", stored)]) == [DONE]
    assert contents(place)["key"].stored == stored


def test_a_change_of_another_token_changes_nothing(one: Path) -> None:
    with opened(one) as data:
        assert data.database.apply([
            remove("key", token_of(2)),
            replace("key", b"", value(3)),
            expire("key", token_of(2), 0.0),
            bind("key", value(3)),
            remove("other", token_of(1)),
            bind("new", value(4)),
        ]) == [*[FAILED] * 5, DONE]  # fmt: skip
    found = contents(one)
    assert found["key"] == Kept("key", token_of(1), value(1), SOON)
    assert found["new"].stored == value(4)


def test_what_cannot_be_written_does_not_stop_the_rest(place: Path) -> None:
    odd = [
        bind("\ud800", value(1)),
        bind("codec", Stored(token_of(1), "ü", b"")),
        bind("token", Stored(b"short", "bytes", b"")),
        bind("body", Stored(token_of(1), "bytes", [7])),  # type: ignore[arg-type]
        bind("no number", value(1), deadline=float("nan")),
        bind("size", value(1, Large(1 << 70, b""))),
        bind("deadline", value(1), deadline="soon"),  # type: ignore[arg-type]
        bind("none", value(1))._replace(stored=None),
        bind("kind", value(1))._replace(kind=ChangeKind.REMOVE, token=7),  # type: ignore[arg-type]
    ]
    with opened(place) as data:
        for each in odd:
            changes = [bind("a", value(1)), each, remove("a", token_of(1))]
            assert data.database.apply(changes) == [DONE, FAILED, DONE], each


def test_a_value_that_sqlite_refuses_does_not_stop_the_rest(place: Path) -> None:
    with opened(place) as data:
        too_large = bind("b", value(2, bytes(1_000_000_001)))
        changes = [bind("a", value(1)), too_large, bind("c", value(3))]
        assert data.database.apply(changes) == [DONE, FAILED, DONE]
    assert sorted(contents(place)) == ["a", "c"]


@pytest.mark.parametrize("count", [2, 3, 70])
def test_a_key_that_is_taken_refuses_no_other_of_its_group(one: Path, count: int) -> None:
    with opened(one) as data:
        changes = [bind(f"k{n}", value(n)) for n in range(count - 1)]
        for place in {0, 1, count // 2, count - 1}:
            group = [*changes[:place], bind("key", value(9)), *changes[place:]]
            outcomes = [DONE if each.key != "key" else FAILED for each in group]
            assert data.database.apply(group) == outcomes
            assert data.database.apply([remove(each.key, each.stored.token) for each in changes
                                        if each.stored]) == [DONE] * (count - 1)  # fmt: skip
        assert data.database.apply(changes) == [DONE] * (count - 1)
    found = contents(one)
    assert found.pop("key").stored == value(1)
    assert found == {
        f"k{n}": Kept(f"k{n}", token_of(n), value(n), NO_DEADLINE) for n in range(count - 1)
    }


# ---- damage ---------------------------------------------------------------------------------


def flip(folder: Path, column: str) -> None:
    """Flip a bit in the last byte of a column of the only row."""
    with contextlib.closing(sqlite3.connect(folder / "dstore.db")) as connection, connection:
        (old,) = connection.execute(f"SELECT {column} FROM kept").fetchone()
        new: object = old
        if isinstance(old, bytes):
            new = old[:-1] + bytes([old[-1] ^ 1])
        elif isinstance(old, str):
            new = old[:-1] + chr(ord(old[-1]) ^ 1)
        else:
            new = old + 1
        connection.execute(f"UPDATE kept SET {column} = ?", (new,))


@pytest.mark.parametrize("column", ["body", "codec", "value_sum"])
def test_a_damaged_value_is_not_a_free_key(one: Path, column: str) -> None:
    flip(one, column)
    assert contents(one) == {"key": Kept("key", token_of(1), None, SOON)}
    with opened(one) as data:
        loaded(data.database)
        assert data.figures()["damaged"] == 1
        assert data.database.apply([bind("key", value(2))]) == [FAILED]
        assert data.database.apply([expire("key", token_of(1), 7.0)]) == [DONE]
    assert contents(one) == {"key": Kept("key", token_of(1), None, 7.0)}
    with opened(one) as data:
        loaded(data.database)
        assert data.database.apply([remove("key", token_of(1))]) == [DONE]
    assert contents(one) == {}


def test_damage_at_the_end_of_a_long_value_is_found(place: Path) -> None:
    with opened(place) as data:
        data.database.apply([bind("key", value(1, bytes(1_000_000)))])
    assert contents(place)["key"].stored == value(1, bytes(1_000_000))
    flip(place, "body")
    assert contents(place)["key"].stored is None


@pytest.mark.parametrize("column", ["token", "deadline", "head_sum"])
def test_a_damaged_token_is_unknown_and_the_key_can_be_freed(one: Path, column: str) -> None:
    flip(one, column)
    assert contents(one) == {"key": Kept("key", b"", None, NO_DEADLINE)}
    with opened(one) as data:
        loaded(data.database)
        assert data.database.apply([expire("key", b"", 6.0)]) == [DONE]
        assert data.database.apply([expire("key", b"", 7.0)]) == [DONE]
    assert contents(one) == {"key": Kept("key", b"", None, 7.0)}
    with opened(one) as data:
        loaded(data.database)
        assert data.database.apply([replace("key", b"", value(2))]) == [DONE]
        assert data.database.apply([remove("key", b"")]) == [FAILED]
    assert contents(one) == {"key": Kept("key", token_of(2), value(2), NO_DEADLINE)}


@pytest.mark.parametrize("wrong", [None, 7, 1.5, "text", b""])
@pytest.mark.parametrize("column", ["token", "codec", "size", "body", "value_sum"])
def test_a_column_of_a_wrong_type_is_damage(one: Path, column: str, wrong: object) -> None:
    if (column, wrong) == ("size", None):
        pytest.skip("that is what the column has")
    edit(one, f"UPDATE kept SET {column} = ?", wrong)
    assert contents(one)["key"].stored is None


def test_a_key_that_cannot_be_read_stops_the_start(one: Path) -> None:
    flip(one, "key")
    with pytest.raises(DataError, match=r"a key cannot be read.*restore the folder from a backup"):
        contents(one)


@pytest.fixture
def many(place: Path) -> Path:
    """A folder with a database of many pages."""
    with opened(place) as data:
        data.database.apply([bind(f"k{n}", value(n, bytes(500))) for n in range(1000)])
    return place


def test_a_database_cut_short_stops_the_start(many: Path) -> None:
    file = many / "dstore.db"
    for size in (file.stat().st_size // 2, 4096, 1000, 0):
        with file.open("r+b") as opened_file:
            opened_file.truncate(size)
        with pytest.raises(DataError, match=r"damaged.*restore the folder from a backup"):
            contents(many)


def test_a_missing_database_stops_the_start(many: Path) -> None:
    (many / "dstore.db").unlink()
    with pytest.raises(DataError, match=r"damaged \(dstore.db is missing or empty\)"):
        contents(many)
    assert not (many / "dstore.db").exists()


def test_overwritten_pages_stop_the_start(many: Path) -> None:
    file = many / "dstore.db"
    pages = file.stat().st_size // 4096
    for content in (bytes(4096), b"\xa5" * 4096):
        for page in (0, 1, pages // 2):
            was = file.read_bytes()
            with file.open("r+b") as opened_file:
                opened_file.seek(4096 * page)
                opened_file.write(content)
            with pytest.raises(DataError, match="damaged"):
                contents(many)
            file.write_bytes(was)
    assert len(contents(many)) == 1000


def test_a_row_that_a_page_has_lost_stops_the_start(many: Path) -> None:
    """It counts its rows. Without the check of the whole file the last one would be missing."""
    file = many / "dstore.db"
    content = bytearray(file.read_bytes())
    leaves = [at for at in range(0, len(content), 4096) if content[at] == 13]
    rows = max(leaves, key=lambda at: content[at + 4])
    assert content[rows + 4] > 2
    content[rows + 4] -= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        contents(many)


def test_a_newer_version_is_refused_and_left_as_it_is(one: Path) -> None:
    edit(one, "PRAGMA user_version = 2")
    before = (one / "dstore.db").read_bytes()
    with pytest.raises(DataError, match=r"newer dstore \(format 2; this one has 1\); install"):
        contents(one)
    assert (one / "dstore.db").read_bytes() == before


def test_a_database_of_another_program_is_refused(one: Path) -> None:
    edit(one, "PRAGMA application_id = 7")
    with pytest.raises(DataError, match="is a database of another program; choose another"):
        contents(one)


def test_a_start_that_did_not_end_is_repeated(one: Path) -> None:
    """Killed after the tables were created, and before the identity was recorded."""
    (one / "identity").unlink()
    with opened(one) as data:
        assert data.moved, "nothing is known of this folder"
        assert list(loaded(data.database)) == ["key"]
        data.settle()
    with opened(one) as data:
        assert not data.moved


# ---- meta -----------------------------------------------------------------------------------


def test_the_lease_is_recorded(place: Path) -> None:
    with opened(place) as data:
        assert data.lease == 0.0
        data.database.set_lease(3.5)
    with opened(place) as data:
        assert data.lease == 3.5
    edit(place, "UPDATE meta SET value = 0.5 WHERE name = 'lease'")
    with pytest.raises(DataError, match=r"damaged.*lease"):
        contents(place)


def plain(place: Path, **options: float) -> Database:
    """A database in a folder that has no lock."""
    place.mkdir(exist_ok=True)
    wall = options.pop("wall", 1000.0)
    return Database(
        str(place / "dstore.db"),
        new=True,
        synced=lambda: None,
        reserve=Reserve(str(place / "reserve"), 1 << 16),
        wall_clock=lambda: wall,
        **options,  # type: ignore[arg-type]
    )


def test_the_newest_time_of_the_wall_clock_is_recorded(place: Path) -> None:
    for wall, newest in ((1000.0, 1000.0), (900.0, 1000.0), (1001.5, 1001.5)):
        database = plain(place, wall=wall)
        database.apply([bind(f"at {wall}", value(1))])
        database.close()
        database = plain(place, wall=0.0)
        assert database.wall == newest
        database.close()


# ---- the log --------------------------------------------------------------------------------


def test_the_log_stays_within_its_bound(place: Path) -> None:
    bound = 1 << 18
    with opened(place, log_bytes=bound) as data:
        largest = 0.0
        for number in range(40):  # the log begins again some times meanwhile
            changes = [bind(f"- {number} {n}", value(n, bytes(1000))) for n in range(20)]
            assert data.database.apply(changes) == [DONE] * 20
            largest = max(largest, data.figures()["log_bytes"])
        assert bound <= largest < 1.75 * bound < data.figures()["database_bytes"]
        for number in range(160):
            changes = [bind(f"{number} {n}", value(n, bytes(1000))) for n in range(20)]
            assert data.database.apply(changes) == [DONE] * 20
            largest = max(largest, data.figures()["log_bytes"])
        figures = data.figures()
        assert bound <= largest < 3 * bound < figures["database_bytes"]
        assert figures["commits"] == 200 and figures["changes"] == 4000
        assert 0 < figures["commit_ms_mean"] <= figures["commit_ms_max"]
    assert not (place / "dstore.db-wal").exists()


def test_the_log_has_its_size_from_the_start(place: Path) -> None:
    """A commit that makes a file longer takes another write of the disk, for the new size."""
    bound = 1 << 18
    for number in range(2):
        with opened(place, log_bytes=bound) as data:
            log = place / "dstore.db-wal"
            assert log.stat().st_size == bound == 512 * log.stat().st_blocks
            for n in range(20):
                assert data.database.apply([bind(f"{number} {n}", value(n))]) == [DONE]
            assert log.stat().st_size == bound
            before = (place / "dstore.db").read_bytes()
            for n in range(20, 60):
                data.database.apply([bind(f"{number} {n}", value(n))])
            assert (place / "dstore.db").read_bytes() != before, "the log begins again"
        assert not log.exists()
    assert len(contents(place)) == 120


def test_a_crash_leaves_what_is_in_the_log_before_its_zeros(place: Path) -> None:
    run_python(CRASH.replace("1 << 20", "1 << 12"), str(place))
    log = (place / "dstore.db-wal").read_bytes()
    assert len(log) == 1 << 24 and not any(log[1 << 20 :])
    assert contents(place)["in the log"].stored == value(2, bytes(1 << 12))


def test_a_rest_writes_a_long_log_into_the_database(place: Path) -> None:
    with opened(place, log_bytes=1 << 24) as data:
        before = (place / "dstore.db").read_bytes()
        for count in (database.IDLE_CHANGES - 1, 1):
            data.database.tend()
            assert (place / "dstore.db").read_bytes() == before
            data.database.apply([bind(f"{count} {n}", value(n)) for n in range(count)])
        data.database.tend()
        assert (place / "dstore.db").read_bytes() != before


def test_a_reader_delays_the_checkpoint_and_stops_nothing(place: Path) -> None:
    """As a backup does. Its connection is one of this process, which SQLite knows."""
    with opened(place, log_bytes=1 << 16) as data:
        database = data.database
        database.apply([bind("first", value(1))])
        reader = sqlite3.connect(place / "dstore.db", isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM kept").fetchone() == (1,)
        for number in range(100):
            assert database.apply([bind(f"k{number}", value(1, bytes(4000)))]) == [DONE]
        grown = database.log_bytes
        assert grown > 2 << 16
        assert reader.execute("SELECT count(*) FROM kept").fetchone() == (1,)
        reader.close()
        for number in range(100):
            database.apply([remove(f"k{number}", token_of(1))])
        assert database.log_bytes < grown


# ---- failures -------------------------------------------------------------------------------


def failure(database: Database, pipe: Connection) -> None:
    """Send the errors of two changes and of a close, in a process that ends then."""
    for number in range(2):
        try:
            pipe.send(database.apply([bind(f"lost {number}", value(1, bytes(1 << 20)))]))
        except DataError as error:
            pipe.send(str(error))
    database.close()
    pipe.send(database._open is not None)


def fail_to_write(place: Path, pipe: Connection) -> None:
    database = plain(place)
    database.apply([bind("kept", value(1))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
    failure(database, pipe)


def fail_to_lock(place: Path, pipe: Connection) -> None:
    database = plain(place, busy_seconds=0.0)
    database.apply([bind("kept", value(1))])
    other = sqlite3.connect(place / "dstore.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failure(database, pipe)


@pytest.mark.parametrize("how", [fail_to_write, fail_to_lock])
def test_after_a_failed_write_nothing_more_is_written(place: Path, how: object) -> None:
    assert callable(how)
    with Child(partial(how, place)) as child:
        first = child.hear()
        assert "cannot be written" in first and "start Global again" in first
        assert child.hear() == first
        assert child.hear() is True, "the connection stays open: to close it is to write"
        child.end()
    database = plain(place)
    assert list(loaded(database)) == ["kept"]
    database.close()


def test_a_log_that_cannot_be_copied_is_left_as_it_is(one: Path) -> None:
    run_python(CRASH, str(one))
    log = (one / "dstore.db-wal").read_bytes()

    def start(pipe: Connection) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
        try:
            plain(one)
        except DataError as error:
            pipe.send(str(error))

    with Child(start) as child:
        assert "cannot be opened (disk I/O error)" in child.hear()
    assert (one / "dstore.db-wal").read_bytes() == log
    assert sorted(contents(one)) == ["in the log", "key"]


def test_a_start_does_not_wait_for_a_backup_that_reads(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log cannot begin again then. So it is synced where it is, and stays."""
    run_python(CRASH, str(one))
    log = (one / "dstore.db-wal").stat()
    assert log.st_size
    reader = sqlite3.connect(one / "dstore.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM kept").fetchone()
    synced = []

    def fsync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        database = plain(one)
    assert log.st_ino in synced
    assert sorted(loaded(database)) == ["in the log", "key"]
    assert database.apply([bind("later", value(3))]) == [DONE]
    database.close()
    assert (one / "dstore.db-wal").stat().st_ino == log.st_ino
    reader.close()
    assert sorted(contents(one)) == ["in the log", "key", "later"]

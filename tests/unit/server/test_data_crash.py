"""Killed processes and forked children: what was acknowledged is there, and nothing is removed."""

from __future__ import annotations

import os
import random
import threading
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.unit.server.data_files import (
    DONE,
    TIMEOUT,
    bind,
    contents,
    opened,
    replace,
    run_python,
    token_of,
    value,
)
from tests.unit.shm.children import Child

KILLS = 20
IN_FLIGHT = 4

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


def write(place: Path, start: int, pipe: Connection) -> None:
    """Bind keys for ever, and send the number of each when it is durable."""
    woken = threading.Event()
    with opened(place) as data:
        assert data.lease == 3.0 or start == 0
        data.journal.set_lease(3.0)
        data.journal.begin(woken.set)
        number = start
        while True:
            waiting = IN_FLIGHT
            for n in range(number, number + IN_FLIGHT):
                data.journal.commit(n, [bind(f"k{n}", value(n, bytes(n % 5000)))])
            number += IN_FLIGHT
            while waiting:
                assert woken.wait(TIMEOUT)
                woken.clear()
                for n, outcomes in data.journal.committed():
                    assert outcomes == [DONE]
                    pipe.send(n)
                    waiting -= 1


def test_what_was_acknowledged_survives_each_kill(place: Path) -> None:
    chance = random.Random(7)
    acknowledged: set[int] = set()
    start = 0
    for _ in range(KILLS):
        with Child(partial(write, place, start)) as child:
            for _ in range(chance.randrange(1, 40)):
                acknowledged.add(child.hear())
            child.kill()
        found = contents(place)
        numbers = {int(key[1:]) for key in found}
        assert acknowledged <= numbers
        for n in numbers:
            assert found[f"k{n}"].stored == value(n, bytes(n % 5000))
        start = max(numbers) + 1


def rewrite(place: Path, pipe: Connection) -> None:
    with opened(place) as data:
        for n in range(1, 1_000_000):
            assert data.database.apply([replace("k", token_of(n - 1), value(n))]) == [DONE]
            pipe.send(n)


def test_a_kill_takes_nothing_back(place: Path) -> None:
    with opened(place) as data:
        data.database.apply([bind("k", value(0))])
    with Child(partial(rewrite, place)) as child:
        last = max(child.hear() for _ in range(20))
        child.kill()
    stored = contents(place)["k"].stored
    assert stored is not None and int.from_bytes(stored.token, "big") >= last


FORK = """
import gc, os, sys
from pathlib import Path
from tests.unit.server.data_files import *

place = Path(sys.argv[1])
with opened(place) as data:
    data.journal.begin(int)
    data.journal.commit(1, [bind("before", value(1))])
    while not data.journal.committed():
        pass
    log = os.stat(place / "dstore.db-wal")
    assert log.st_size
    child = os.fork()
    if not child:
        data.forked()
        data.close()
        del data
        gc.collect()
        sys.exit(0)  # through the end of Python, which collects everything
    assert os.waitpid(child, 0)[1] == 0
    assert os.path.samestat(os.stat(place / "dstore.db-wal"), log)
    assert os.stat(place / "dstore.db-wal").st_size == log.st_size
    data.journal.commit(2, [bind("after", value(2))])
    while not data.journal.committed():
        pass
    os._exit(0)  # without a close
"""


def test_a_forked_child_that_ends_leaves_the_log(place: Path) -> None:
    run_python(FORK, str(place))
    assert sorted(contents(place)) == ["after", "before"]


ORPHAN = """
import os, sys
from tests.unit.server.data_files import *

place = Path(sys.argv[1])
with opened(place) as data:
    data.database.apply([bind("key", value(1))])
    if os.fork():
        os._exit(0)  # the parent ends first, without a close
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    end = open(place.parent / "end", "w")
    open(place.parent / "go on").read()
    data.forked()
    del data
    sys.exit(0)
"""


def test_a_forked_child_that_outlives_its_parent_leaves_the_log(place: Path) -> None:
    """No lock hinders it: to close the connection would copy the log and remove it."""
    for pipe in ("end", "go on"):
        os.mkfifo(place.parent / pipe)
    run_python(ORPHAN, str(place))
    with (place.parent / "end").open() as end:
        log = (place / "dstore.db-wal").read_bytes()
        assert log
        (place.parent / "go on").write_text("")
        assert end.read() == ""  # it has ended
    assert (place / "dstore.db-wal").read_bytes() == log
    assert list(contents(place)) == ["key"]


KEEP = """
import sqlite3, sys
from dstore.server.data.schema import keep_for_ever
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE some (thing)")
if sys.argv[2] == "keep":
    keep_for_ever(connection)
"""


@pytest.mark.parametrize("keep", ["keep", "leave"])
def test_the_end_of_python_closes_no_connection_that_is_kept(tmp_path: Path, keep: str) -> None:
    run_python(KEEP, str(tmp_path / "some.db"), keep)
    assert (tmp_path / "some.db-wal").exists() == (keep == "keep")

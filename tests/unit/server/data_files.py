"""Changes of keys, and data folders, for the tests of the journal."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dstore.core.engine import NO_DEADLINE, Change, ChangeKind, Kept, Outcome
from dstore.protocol.messages import Body, Large, Stored
from dstore.server.data import Data, Database, open_data

DONE, FULL, FAILED = Outcome.DONE, Outcome.FULL, Outcome.FAILED
RESERVE = 1 << 20
TIMEOUT = 30.0
"""Seconds that a test waits at most."""


def token_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def value(number: int, body: Body = b"body") -> Stored:
    return Stored(token_of(number), "pickle", body)


def bind(key: str, stored: Stored, deadline: float = NO_DEADLINE) -> Change:
    return Change(ChangeKind.BIND, key, b"", stored, deadline)


def replace(key: str, token: bytes, stored: Stored, deadline: float = NO_DEADLINE) -> Change:
    return Change(ChangeKind.REPLACE, key, token, stored, deadline)


def remove(key: str, token: bytes) -> Change:
    return Change(ChangeKind.REMOVE, key, token)


def expire(key: str, token: bytes, deadline: float) -> Change:
    return Change(ChangeKind.DEADLINE, key, token, None, deadline)


def keep_nothing(stored: Stored) -> None:
    assert type(stored.body) is Large


@contextlib.contextmanager
def opened(
    folder: Path, keep: Callable[[Stored], None] = keep_nothing, *, log_bytes: int = 1 << 18
) -> Iterator[Data]:
    """The data of a folder, with a small reserve. Closed at the end of the block."""
    data = open_data(folder, keep, log_bytes=log_bytes, reserve_bytes=RESERVE)
    try:
        yield data
    finally:
        data.close()


def loaded(database: Database) -> dict[str, Kept]:
    return {kept.key: kept for kept in database.load()}


def contents(folder: Path) -> dict[str, Kept]:
    """What a Global finds in the folder when it starts."""
    with opened(folder) as data:
        return loaded(data.database)


def edit(folder: Path, statement: str, *parameters: object) -> None:
    """Change the database of a closed folder as no Global would."""
    with contextlib.closing(sqlite3.connect(folder / "dstore.db")) as connection, connection:
        assert connection.execute(statement, parameters).rowcount != 0


def run_python(program: str, *arguments: str) -> str:
    """Run a program in a process of its own, which is no fork of this one. Returns its output."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout

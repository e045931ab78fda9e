"""A thread that reads the bytes of values from the database, for those who wait for them.

The bytes of a token never change. So they may be read at any time, from any server that has them,
and need no fence. A value that the database does not have any more has been removed or replaced;
Global has not heard of it yet, and will soon. Until then it is looked for again. (A large value
that is gone is asked for again by who wants it.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import psycopg

from dstore.core.engine import Loaded
from dstore.errors import DataError
from dstore.protocol.keys import to_bytes
from dstore.protocol.messages import Key
from dstore.protocol.partitions import partition_of
from dstore.runtime import clock, native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.postgres.connections import Link
from dstore.server.postgres.engine import Place, StoredEngine
from dstore.server.postgres.schema import Connection

log = Log("dstore.global")

RETRY_PAUSE, FAILED_PAUSE = 0.02, 0.2
"""Seconds until a value is looked for again that is not there, or that could not be read."""
RETRY_MAX = 30.0
"""Seconds after which a value that is not there cannot be loaded. A write of it may be in doubt."""
PIECE_BYTES = 1 << 20
"""Bytes of a large value in one row, fewer in the last one. A cluster has this for ever."""


class Load(NamedTuple):
    """A load that an engine has asked for, and until when values that are not there are awaited."""

    engine: StoredEngine
    number: int
    wanted: list[Place]
    until: float


class Part(NamedTuple):
    """A part of a large value that an engine has asked for."""

    engine: StoredEngine
    number: int
    partition: int
    token: bytes
    offset: int
    length: int


T = TypeVar("T")
Work: TypeAlias = Load | Part


class Values:
    """Reads values over a connection of its own.

    After :meth:`begin` it is safe from any thread.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._works: native.SimpleQueue[Work | None] = native.SimpleQueue()
        self._again: deque[Work] = deque()
        self._again_at = 0.0
        self._away = False  # the last attempt has failed; there is no other before ``_again_at``
        self._thread: native.Thread | None = None
        self._stopped = False
        self._log = RateLimitedLog(log)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        thread = native.Thread(self._run, "dstore-values")
        thread.start()
        self._thread = thread

    def load(self, engine: StoredEngine, number: int, wanted: list[Place]) -> None:
        """Load values for an engine, which is told the results."""
        self._works.put(Load(engine, number, wanted, clock.now() + RETRY_MAX))

    def load_part(
        self, engine: StoredEngine, number: int, key: Key, token: bytes, offset: int, length: int
    ) -> None:
        """Load a part of the large value of a key for an engine, which is told the result."""
        self._works.put(Part(engine, number, partition_of(key), token, offset, length))

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._stopped = True
        self._link.close()
        self._works.put(None)
        if self._thread is not None:
            self._thread.join()

    def forked(self) -> None:
        self._thread = None

    # ---- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._step()
            except Exception:  # those who wait for it give up by themselves
                log.exception("a value could not be read")
        self._link.drop()

    def _step(self) -> None:
        """Carry out the next work, after what has waited for long enough to be tried again."""
        pause = max(0.0, self._again_at - clock.now()) if self._again else None
        try:
            work = self._works.get(timeout=pause)
        except native.Empty:
            work = None
        if self._again and clock.now() >= self._again_at:
            again, self._again, self._away = self._again, deque(), False
            for each in again:
                self._carry_out(each)
        if work is not None:
            self._carry_out(work)

    def _carry_out(self, work: Work) -> None:
        """Read what an engine has asked for. If the database is away that is tried again later.

        Those who wait for it do so, or give up by themselves.
        """
        if work.engine.closed:
            return
        if self._away:  # one attempt in a while is enough
            self._again.append(work)
            return
        try:
            if isinstance(work, Part):
                self._part(work)
            else:
                self._load(work)
        except (DataError, psycopg.Error) as error:
            self._link.drop()
            self._away = True
            self._later(work, FAILED_PAUSE)
            if not self._stopped:
                self._log.warning("values cannot be read from the database: %s", str(error))

    def _later(self, work: Work, pause: float) -> None:
        self._again.append(work)
        self._again_at = clock.now() + pause

    def _part(self, part: Part) -> None:
        """Raises DataError and psycopg.Error."""
        body = self._attempt(lambda connection: read_part(connection, *part[2:]))
        gone = LookupError("the database does not have all pieces of the value")
        part.engine.ended(part.number, [gone if body is None else body])

    def _load(self, load: Load) -> None:
        """Raises DataError and psycopg.Error."""
        keys = list({to_bytes(key) for key, _ in load.wanted})
        found = self._attempt(lambda connection: read_bodies(connection, keys))
        results: list[Loaded] = []
        missing = False
        for place in load.wanted:
            token, body = found.get(to_bytes(place[0]), (None, None))
            if token == place[1] and body is not None:
                results.append(body)
            else:
                results.append(KeyError("the database has another value, or none"))
                missing = missing or load.engine.wants(place)
        if missing and clock.now() < load.until:
            self._later(load, RETRY_PAUSE)
        else:
            load.engine.ended(load.number, results)

    def _attempt(self, read: Callable[[Connection], T]) -> T:
        connection = self._link.open()
        with self._link.limited():
            return read(connection)


def read_bodies(
    connection: Connection, keys: list[bytes]
) -> dict[bytes, tuple[bytes, bytes | None]]:
    """Return tokens and bodies of small values, by key. Raises psycopg.Error."""
    query = "SELECT key, token, body FROM kept WHERE key = ANY (%b::bytea[])"
    rows = connection.execute(query, [keys], binary=True).fetchall()
    return {key: (token, body) for key, token, body in rows}


def read_part(
    connection: Connection, partition: int, token: bytes, offset: int, count: int
) -> bytes | None:
    """Return a part of a large value, or None unless all its pieces are there.

    Raises psycopg.Error.
    """
    end = offset + count
    first, last = offset // PIECE_BYTES, (end - 1) // PIECE_BYTES
    rows: list[tuple[Any, ...]] = connection.execute(
        """
        SELECT substring(body FROM greatest(1, %(offset)s - start + 1)::int
            FOR least(%(end)s - start, %(end)s - %(offset)s)::int)
        FROM (
            SELECT body, number, number * %(size)s::bigint AS start FROM piece
            WHERE partition = %(partition)s AND token = %(token)b
                AND number BETWEEN %(first)s AND %(last)s
        ) AS pieces ORDER BY number
        """,
        {
            "offset": offset,
            "end": end,
            "size": PIECE_BYTES,
            "first": first,
            "last": last,
            "partition": partition,
            "token": token,
        },
        binary=True,
    ).fetchall()
    return b"".join(part for (part,) in rows) if len(rows) == last - first + 1 else None

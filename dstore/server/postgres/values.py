"""A thread that reads the bytes of values from the database, for those who wait for them.

The bytes of a token never change. So they may be read at any time, from any server that has them,
and need no fence. A value that the database does not have any more has been removed or replaced;
Global has not heard of it yet, and will soon. Until then it is looked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import psycopg

from dstore.core.engine import Loaded, Unreadable
from dstore.errors import DataError
from dstore.protocol.keys import to_bytes
from dstore.runtime import clock, native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.postgres.connections import Link
from dstore.server.postgres.engine import Place, StoredEngine
from dstore.server.postgres.large import PIECE_BYTES
from dstore.server.postgres.schema import Connection

log = Log("dstore.global")

RETRY_PAUSE, FAILED_PAUSE = 0.02, 0.2
"""Seconds until a value is looked for again that is not there, or that could not be read."""
RETRY_MAX = 30.0
"""Seconds after which a value that is not there cannot be loaded. A write of it may be in doubt."""
READ_TIMEOUT = 0.5
"""Seconds that Global's thread waits for a piece of a large value."""
READ_PAUSE = 2.0
"""Seconds for which it asks for no other piece after it has waited in vain."""
AHEAD_MAX = 8
"""Parts of large values that are read ahead of those who may ask for them."""


class Load(NamedTuple):
    """A load that an engine has asked for, and until when values that are not there are awaited."""

    engine: StoredEngine
    number: int
    wanted: list[Place]
    until: float


class _Read:
    """A part of a large value that Global's thread waits for."""

    def __init__(self, partition: int, token: bytes, offset: int, count: int) -> None:
        self.parameters = partition, token, offset, count
        self.part: bytes | None = None
        self.failed = False
        self.done = native.ThreadEvent()


T = TypeVar("T")
Work: TypeAlias = "Load | _Read | None"


class Values:
    """Reads values over a connection of its own.

    After :meth:`begin` it is safe from any thread, except where said otherwise.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._works: native.SimpleQueue[Work] = native.SimpleQueue()
        self._again: deque[Load] = deque()
        self._thread: native.Thread | None = None
        self._stopped = False
        self._ahead: dict[tuple[bytes, int, int], _Read] = {}  # by token, offset and count
        self._pause = RETRY_PAUSE
        self._ask_from = 0.0  # when Global's thread may wait for a piece again
        self._log = RateLimitedLog(log)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        thread = native.Thread(self._run, "dstore-values")
        thread.start()
        self._thread = thread

    def load(self, engine: StoredEngine, number: int, wanted: list[Place]) -> None:
        """Load values for an engine, which is told the results."""
        self._works.put(Load(engine, number, wanted, clock.now() + RETRY_MAX))

    def read(
        self, partition: int, token: bytes, offset: int, count: int, more: bool
    ) -> bytes | None:
        """Return a part of a large value, or None if it is not there.

        Raises Unreadable if it cannot be read in time. With ``more`` the part after it is read
        ahead, as a Node asks for it next. For Global's thread alone, which waits here.
        """
        if clock.now() < self._ask_from:
            raise Unreadable("the database has not answered")
        read = self._ahead.pop((token, offset, count), None)
        if read is None:
            read = self._begin(partition, token, offset, count)
        next_one = token, offset + count, count
        if more and next_one not in self._ahead:
            self._ahead[next_one] = self._begin(partition, *next_one)
            if len(self._ahead) > AHEAD_MAX:
                del self._ahead[next(iter(self._ahead))]
        if not read.done.wait(READ_TIMEOUT):
            self._ask_from = clock.now() + READ_PAUSE
            raise Unreadable("the database does not answer")
        if read.failed:
            raise Unreadable("the database has failed")
        return read.part

    def _begin(self, partition: int, token: bytes, offset: int, count: int) -> _Read:
        read = _Read(partition, token, offset, count)
        self._works.put(read)
        return read

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
        try:
            work = self._works.get(timeout=self._pause if self._again else None)
        except native.Empty:
            self._pause = RETRY_PAUSE
            for _ in range(len(self._again)):
                self._load(self._again.popleft())
            return
        if isinstance(work, _Read):
            self._read(work)
        elif work is not None:
            self._load(work)

    def _read(self, read: _Read) -> None:
        try:
            read.part = self._attempt(lambda connection: read_part(connection, *read.parameters))
        except (DataError, psycopg.Error) as error:
            read.failed = True
            self._failed(error)
        read.done.set()

    def _load(self, load: Load) -> None:
        if load.engine.closed:
            return
        if self._pause == FAILED_PAUSE:  # the database is away; one look in a while is enough
            self._again.append(load)
            return
        keys = list({to_bytes(key) for key, _ in load.wanted})
        try:
            found = self._attempt(lambda connection: read_bodies(connection, keys))
        except (DataError, psycopg.Error) as error:
            self._failed(error)
            self._again.append(load)  # the readers wait, or give up by themselves
            return
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
            self._again.append(load)
        else:
            load.engine.ended(load.number, results)

    def _attempt(self, read: Callable[[Connection], T]) -> T:
        connection = self._link.open()
        with self._link.limited():
            return read(connection)

    def _failed(self, error: Exception) -> None:
        self._link.drop()
        self._pause = FAILED_PAUSE
        if not self._stopped:
            self._log.warning("values cannot be read from the database: %s", str(error))


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

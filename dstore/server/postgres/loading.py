"""Loads the rows of the partitions that a member has claimed, page by page.

What it reads counts because a barrier was committed before, with a synchronous standby, under the
fences that were claimed: all that is visible by then is replicated, and no former owner writes any
more. To compare the fences would not be enough. A server that was replaced may go on, and show the
same fence: raised by a doubt of before, or by a claim, that only this server has. So all is read
over the connection on which the barrier was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg

from dstore.core.engine import NO_DEADLINE, Away, Bound
from dstore.errors import DataError
from dstore.protocol.keys import from_bytes
from dstore.protocol.messages import DAMAGED, Large, Stored
from dstore.server.postgres import writing
from dstore.server.postgres.connections import Link
from dstore.server.postgres.engine import KeptRow
from dstore.server.postgres.schema import Connection
from dstore.server.postgres.writing import Fenced, Fences, NoStandby, Released

T = TypeVar("T")

PAGE_ROWS = 500
"""Rows of a page at most."""
SMALL_BYTES = 4 << 10
"""Bytes of the values that come with their rows, at most."""

_PAGE = """
SELECT key, token, codec, size, digest, deadline, CASE WHEN size <= %(small)s THEN body END
FROM kept WHERE partition = %(partition)s AND key > %(key)b ORDER BY key LIMIT %(limit)s
"""

Piece = tuple[int, bytes]
"""Partition and token of a large value."""


class Page(NamedTuple):
    """Some rows. The last page also has the orphans: large values that no row names."""

    rows: list[KeptRow]
    orphans: list[Piece]


class Loading:
    """Loads rows over a connection of its own. For one thread.

    ``room`` is how many bytes of values a load brings with it.
    """

    def __init__(self, link: Link, *, room: int) -> None:
        self._link = link
        self._room = room
        self._connection: Connection | None = None  # on which the barrier was committed

    def load(self, me: bytes, fences: Mapping[int, int]) -> Iterator[Page]:
        """Yield the rows of partitions, which belong to ``me`` and have these fences.

        The value of a row whose pieces are not all there is a marker: Nodes raise ValueCorrupt for
        it. Raises DataError.
        """
        self._connection = None
        self._link.warning()  # of before
        self._ask(partial(self._confirm, me, fences))
        sizes = self._ask(partial(_sizes, list(fences)))
        named: set[Piece] = set()
        room = self._room
        page: list[KeptRow] = []
        for number in fences:
            last: bytes | None = b""
            while last is not None:
                small = SMALL_BYTES if room > 0 else -1
                rows = self._ask(partial(_rows, number, last, small, PAGE_ROWS - len(page)))
                last = rows[-1][0] if len(page) + len(rows) == PAGE_ROWS else None
                for key, token, codec, size, digest, deadline, body in rows:
                    bound: Bound = Away(token, codec, size)
                    if digest is not None:
                        whole = sizes.get((number, token)) == size
                        named.add((number, token))
                        bound = Stored(token, codec, Large(size, digest))
                        bound = bound if whole else Stored(token, DAMAGED, b"")
                    elif body is not None:
                        bound = Stored(token, codec, body)
                        room -= size
                    until = NO_DEADLINE if deadline is None else deadline
                    page.append(KeptRow(from_bytes(key), bound, until))
                if last is not None:
                    yield Page(page, [])
                    page = []
        yield Page(page, [each for each in sizes if each not in named])

    def _ask(self, work: Callable[[Connection], T]) -> T:
        with self._link.in_use:
            connection = self._link.open()
            if self._connection not in (None, connection):
                raise self._link.target.refused("the connection was lost while rows were loaded")
            try:
                with self._link.limited():
                    return work(connection)
            except psycopg.Error as error:
                self._link.drop()
                raise self._link.target.error("has failed", error) from None
            except DataError:
                self._link.drop()
                raise

    def _confirm(self, me: bytes, fences: Mapping[int, int], connection: Connection) -> None:
        link = self._link
        try:
            writing.confirm(connection, Fences(me, fences, link.standby))
        except Fenced:
            raise link.target.refused(
                "it does not show what was claimed; it may have been replaced"
            ) from None
        except (NoStandby, Released):
            raise link.target.refused("synchronous_standby_names was emptied meanwhile") from None
        if warning := link.warning():
            raise link.target.error("warns, so that a commit is in doubt", warning)
        self._connection = connection


def _sizes(ids: list[int], connection: Connection) -> dict[Piece, int]:
    """Return the bytes that there are of each large value. Raises psycopg.Error."""
    rows = connection.execute(
        "SELECT partition, token, sum(octet_length(body))::bigint FROM piece"
        " WHERE partition = ANY (%s::smallint[]) GROUP BY partition, token",
        [ids],
    ).fetchall()
    return {(partition, token): size for partition, token, size in rows}


def _rows(
    partition: int, after: bytes, small: int, limit: int, connection: Connection
) -> list[tuple[Any, ...]]:
    """Return the next rows of one partition. Raises psycopg.Error."""
    parameters = {"partition": partition, "key": after, "small": small, "limit": limit}
    return connection.execute(_PAGE, parameters, binary=True).fetchall()

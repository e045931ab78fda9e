"""The pieces of large values, as a member of a simulated cluster reads them."""

from __future__ import annotations

from dstore.core.engine import Unreadable
from dstore.protocol.messages import Large, Stored
from dstore.server.postgres import large
from tests.simulation.cluster.servers import Client, Database
from tests.simulation.cluster.tables import PIECE, Rows

Place = tuple[int, bytes]
"""Partition and token of a large value."""


class PieceReader:
    """Reads parts of large values, at once, from any server that has them."""

    def __init__(self, database: Database, owner: Client) -> None:
        self._database = database
        self._owner = owner

    def read(
        self, partition: int, token: bytes, offset: int, count: int, more: bool
    ) -> bytes | None:
        """Return a part, or None if it is not there. Raises Unreadable."""
        loop, server = self._database.loop, self._database.pick()
        loop.counts["parts of large values read from the database"] += 1
        late = loop.dice.random() < self._database.scenario.late and not loop.quiet
        if server is None or late or loop.now < self._owner.cut_until:
            loop.counts["parts of large values that could not be read"] += 1
            raise Unreadable("the database does not answer")
        size, end = large.PIECE_BYTES, offset + count
        first, last = offset // size, (end - 1) // size
        places = [(PIECE, (partition, token, number)) for number in range(first, last + 1)]
        bodies = [server.visible[place] for place in places if place in server.visible]
        if len(bodies) < len(places):
            return None
        return b"".join(bodies)[offset - first * size : end - first * size]


def sizes_of(rows: Rows, numbers: set[int]) -> dict[Place, int]:
    """Return the bytes that there are of each large value of some partitions."""
    sizes: dict[Place, int] = {}
    for partition, token, number in rows.names(PIECE):
        if partition in numbers:
            body = rows.get((PIECE, (partition, token, number)))
            sizes[partition, token] = sizes.get((partition, token), 0) + len(body)
    return sizes


def is_large(stored: object) -> bool:
    """Whether a value is in pieces."""
    return isinstance(stored, Stored) and type(stored.body) is Large

"""The pieces of large values, as a member of a simulated cluster reads them."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.engine import Loaded
from dstore.protocol.messages import Large, Stored
from dstore.server.postgres import large
from tests.simulation.cluster.servers import Client, Database
from tests.simulation.cluster.tables import PIECE, Rows

Place = tuple[int, bytes]
"""Partition and token of a large value."""


class PieceReader:
    """Loads parts of large values, from any server that has them."""

    def __init__(self, database: Database, owner: Client) -> None:
        self._database = database
        self._owner = owner

    def load(self, place: Place, part: tuple[int, int], done: Callable[[Loaded], None]) -> None:
        """Load a part: offset and length. ``done`` is called later with what has come of it."""
        loop, scenario = self._database.loop, self._database.scenario
        loop.counts["parts of large values that are loaded"] += 1
        loop.later(loop.dice.random() * scenario.commit, self._read, place, part, done)

    def _read(self, place: Place, part: tuple[int, int], done: Callable[[Loaded], None]) -> None:
        loop, scenario = self._database.loop, self._database.scenario
        result = self._result(place, *part)
        if isinstance(result, Exception):
            loop.counts["parts of large values that could not be loaded"] += 1
        loop.later(loop.dice.random() * scenario.commit, done, result)

    def _result(self, place: Place, offset: int, length: int) -> Loaded:
        loop, server = self._database.loop, self._database.pick()
        late = loop.dice.random() < self._database.scenario.late and not loop.quiet
        if server is None or late or loop.now < self._owner.cut_until:
            return OSError("the database does not answer")
        size, end = large.PIECE_BYTES, offset + length
        first, last = offset // size, (end - 1) // size
        places = [(PIECE, (*place, number)) for number in range(first, last + 1)]
        bodies = [server.visible[each] for each in places if each in server.visible]
        if len(bodies) < len(places):
            return KeyError("not all of it is there")
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

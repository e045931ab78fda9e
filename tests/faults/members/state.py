"""What the database says about the Globals of a run: which own how many partitions."""

from __future__ import annotations

from typing import NamedTuple

from tests.postgres import Postgres

PARTITIONS = 256
_ROWS = (
    "SELECT member.id, member.address, member.beat, count(partition.id) FROM dstore.member"
    " LEFT JOIN dstore.partition ON partition.owner = member.id GROUP BY member.id"
)


class Row(NamedTuple):
    """A member, by its row. One that has died is there until another one has noticed that."""

    id: bytes
    address: str
    beat: int
    partitions: int


def rows(postgres: Postgres) -> list[Row]:
    """Return the rows of all members; none if the database cannot be asked."""
    import psycopg

    try:
        return [Row(*row) for row in postgres.primary.query(_ROWS)]
    except psycopg.Error:
        return []


class Settled:
    """Notices that the members at some addresses, and they alone, own all partitions, and live.

    A member lives if its beat has risen since this has first seen it.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._beats: dict[bytes, int] = {}
        self.seen: list[Row] = []

    def look(self, addresses: list[str]) -> bool:
        """Ask the database once."""
        self.seen = rows(self._postgres)
        for row in self.seen:
            self._beats.setdefault(row.id, row.beat)
        return (
            sorted(row.address for row in self.seen) == sorted(addresses)
            and sum(row.partitions for row in self.seen) == PARTITIONS
            and all(row.beat > self._beats[row.id] for row in self.seen)
        )

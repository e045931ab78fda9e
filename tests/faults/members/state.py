"""What the database says about the Globals of a run: which own how many partitions."""

from __future__ import annotations

from tests.postgres import Postgres

PARTITIONS = 256
_OWNED = (
    "SELECT member.address, count(partition.id) FROM dstore.member"
    " LEFT JOIN dstore.partition ON partition.owner = member.id GROUP BY member.id, member.address"
)


def owned(postgres: Postgres) -> list[tuple[str, int]]:
    """Return the address of each member and how many partitions it owns.

    A member that has died is there until another one has noticed that; its successor may have the
    same address. The list is empty if the database cannot be asked.
    """
    import psycopg

    try:
        return [(address, count) for address, count in postgres.primary.query(_OWNED)]
    except psycopg.Error:
        return []

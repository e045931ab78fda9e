"""What the database says about the Globals of a run: which own how many partitions."""

from __future__ import annotations

import contextlib

from tests.postgres import Postgres

PARTITIONS = 256
_OWNED = (
    "SELECT member.address, count(partition.id) FROM dstore.member"
    " LEFT JOIN dstore.partition ON partition.owner = member.id GROUP BY member.id, member.address"
)


def owned(postgres: Postgres) -> dict[str, int]:
    """Return how many partitions each member owns, by its address; {} if that cannot be asked.

    Of two members at one address, a dead one and its successor, those are summed.
    """
    import psycopg

    counts: dict[str, int] = {}
    with contextlib.suppress(psycopg.Error):
        for address, count in postgres.primary.query(_OWNED):
            counts[address] = counts.get(address, 0) + count
    return counts

"""What people do with the database of a cluster: create its tables, look at it, drain a member."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import psycopg

from dstore.core.cluster.messages import Member, Partition
from dstore.server.postgres import schema
from dstore.server.postgres.connections import Target
from dstore.server.postgres.directory import read_view
from dstore.server.postgres.schema import Connection

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds for each statement."""


class Standby(NamedTuple):
    """A standby that receives from the primary. ``lag`` is in bytes, or None if it is not known."""

    name: str
    state: str
    synchronous: bool
    lag: int | None


class Status(NamedTuple):
    """What the database says. ``where`` names it; ``cluster`` is the id of the cluster.

    ``needs_standby`` is a setting of the cluster.
    """

    where: str
    server: str
    cluster: bytes
    needs_standby: bool
    standbys: list[Standby]
    members: dict[bytes, Member]
    partitions: list[Partition]
    keys: int
    bytes: int


def init(url: str, *, standby: bool) -> bool:
    """See :func:`dstore.server.postgres.init`."""
    target = Target(url, PATIENCE)

    def work(connection: Connection) -> bool:
        target.check(connection, standby=standby)
        return schema.create(connection, target.where, standby=standby)

    return _with(target, work)


def status(url: str) -> Status:
    """See :func:`dstore.server.postgres.status`."""
    target = Target(url, PATIENCE)

    def work(connection: Connection) -> Status:
        cluster, needs = schema.check(connection, target.where)
        members, partitions, _ = read_view(connection)
        rows = connection.execute(
            "SELECT application_name, coalesce(state, ''),"
            " coalesce(sync_state IN ('sync', 'quorum'), false),"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint FROM pg_stat_replication"
        ).fetchall()
        found = connection.execute("SELECT count(*), coalesce(sum(size), 0)::bigint FROM kept")
        keys, size = found.fetchall()[0]
        server = str(connection.info.parameter_status("server_version"))
        standbys = [Standby(*row) for row in rows]
        return Status(
            target.where,
            server,
            cluster,
            needs,
            standbys,
            members,
            partitions,
            int(keys),
            int(size),
        )

    return _with(target, work)


def drain(url: str, member: bytes) -> bool:
    """See :func:`dstore.server.postgres.drain`."""
    target = Target(url, PATIENCE)

    def work(connection: Connection) -> bool:
        schema.check(connection, target.where)
        drained = connection.execute("UPDATE member SET draining = true WHERE id = %s", [member])
        return drained.rowcount > 0

    return _with(target, work)


def _with(target: Target, work: Callable[[Connection], T]) -> T:
    connection = target.connect()
    try:
        target.prepare(connection)
        return work(connection)
    except psycopg.Error as error:
        raise target.error("has failed", error) from None
    finally:
        connection.close()

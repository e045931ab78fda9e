"""The tables of a cluster. They are in the schema ``dstore``, or in the one that the URL names.

A URL names one with the option of libpq, ``?options=-c%20search_path%3DNAME``.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple, TypeAlias

import psycopg

from dstore.errors import DataError
from dstore.protocol.clusters import CLUSTER_BYTES
from dstore.protocol.partitions import PARTITIONS

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

SCHEMA = "dstore"
VERSION = 2
"""The version of the tables, which the setting ``version`` has. Since 2 there is ``cluster``."""

# Bodies are not compressed by the server: most are compressed or small, and parts are read.
TABLES = """
CREATE TABLE setting (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE member (
    id bytea PRIMARY KEY, address text NOT NULL, beat bigint NOT NULL, lease float8 NOT NULL,
    cache_lease float8 NOT NULL, draining boolean NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE partition (
    id int PRIMARY KEY, owner bytea, fence bigint NOT NULL, quiet float8 NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE kept (
    key bytea PRIMARY KEY, partition smallint NOT NULL, token bytea NOT NULL, codec text NOT NULL,
    size bigint NOT NULL, digest bytea, body bytea, deadline float8,
    CHECK ((digest IS NULL) <> (body IS NULL))
);
CREATE INDEX kept_by_partition ON kept (partition, key);
ALTER TABLE kept ALTER body SET STORAGE EXTERNAL;
CREATE TABLE piece (
    partition smallint, token bytea, number int, body bytea NOT NULL,
    PRIMARY KEY (partition, token, number)
);
ALTER TABLE piece ALTER body SET STORAGE EXTERNAL;
"""


class Settings(NamedTuple):
    """What the tables say about their cluster: its id, and whether it needs a synchronous standby.

    Tables that are restored from a backup have the id that they had.
    """

    cluster: bytes
    standby: bool


def create(connection: Connection, where: str, *, standby: bool) -> bool:
    """Create the tables, or bring those of a former version up to date, in one transaction.

    Returns False if there is nothing to do. Raises DataError if they are of another version, and
    psycopg.Error.
    """
    try:
        return _create(connection, where, standby)
    except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
        check(connection, where)  # another program has just created them
        return False


def _create(connection: Connection, where: str, standby: bool) -> bool:
    with connection.transaction():
        (schema,) = _row(connection, "SELECT current_setting('search_path')")
        name = str(schema).split(",")[0].strip().strip('"')
        found = connection.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = 'setting'", [name]
        ).fetchone()
        if found is not None:
            upgraded = _upgrade(connection)
            check(connection, where)
            return upgraded
        connection.execute(
            psycopg.sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(psycopg.sql.Identifier(name))
        )
        connection.execute(TABLES)
        connection.execute(
            "INSERT INTO partition SELECT id, NULL, 0, 0 FROM generate_series(0, %s) AS id",
            [PARTITIONS - 1],
        )
        connection.execute(
            "INSERT INTO setting VALUES ('version', %s), ('standby', %s), ('cluster', %s)",
            [str(VERSION), "synchronous" if standby else "none", _new_id()],
        )
    return True


def _upgrade(connection: Connection) -> bool:
    """Give tables of version 1 the id of a cluster. False if they are of another version."""
    found = connection.execute(
        "UPDATE setting SET value = %s WHERE name = 'version' AND value = '1'", [str(VERSION)]
    )
    if not found.rowcount:
        return False
    connection.execute("INSERT INTO setting VALUES ('cluster', %s)", [_new_id()])
    return True


def _new_id() -> str:
    return secrets.token_hex(CLUSTER_BYTES)


def check(connection: Connection, where: str) -> Settings:
    """Return what the tables say about their cluster. ``where`` names the database.

    Raises DataError if there are no tables, or those of another version, and psycopg.Error.
    """
    try:
        rows: dict[str, Any] = dict(
            connection.execute("SELECT name, value FROM setting").fetchall()
        )
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise DataError(
            f"the database {where} has no tables of dstore; `dstore cluster init URL` creates them"
        ) from None
    version = rows.get("version")
    if version == "1":
        raise DataError(
            f"the tables in the database {where} are those of a former dstore; end all members, "
            "then `dstore cluster init URL` brings the tables up to date, and keeps what is there"
        )
    if version != str(VERSION):
        raise DataError(
            f"the tables in the database {where} have the version {version}, and this "
            f"dstore knows {VERSION}; use the dstore that made them, or a newer one, for all "
            "members"
        )
    try:
        cluster = bytes.fromhex(str(rows.get("cluster")))
    except ValueError:
        cluster = b""
    if len(cluster) != CLUSTER_BYTES:
        raise DataError(
            f"the tables in the database {where} have no id of a cluster, or a damaged one: the "
            "row 'cluster' of the table setting has to be as `dstore cluster init` made it"
        )
    return Settings(cluster, bool(rows.get("standby") != "none"))


def _row(connection: Connection, query: str) -> tuple[Any, ...]:
    found = connection.execute(query).fetchone()
    assert found is not None
    return found

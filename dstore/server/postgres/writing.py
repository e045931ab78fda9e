"""The statements that write what a member owns, each under the fences of the partitions it touches.

Each is one statement, and so one transaction, in one round trip: a client that stands still in the
middle of something holds no lock in the database. It *locks* the rows of the partitions
(``FOR SHARE``), and does nothing unless each of them still has this owner and this fence. A change
of owner has to wait until the lock is released, or comes first: then the lock shows the new row. To
look at that row without a lock would not be enough: a writer that stalls between the look and its
commit would write although another member owns the partition by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dstore.core.engine import NO_DEADLINE, Change, ChangeKind, Outcome
from dstore.protocol.keys import to_bytes
from dstore.protocol.messages import Body, Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.runtime import clock
from dstore.server.postgres.schema import Connection

LOOK_FROM = 0.005
"""Seconds from which on a commit may have waited for its standby and been released instead. A look
costs a further round trip, so faster ones go without: when a standby stops to confirm, the first
commit waits for seconds before it is given up.
"""
_WAITS = "SELECT current_setting('synchronous_standby_names') <> ''"
LOCK = """
WITH mine AS MATERIALIZED (
    SELECT id, fence FROM partition WHERE id = ANY (%(ids)s::int[]) AND owner = %(me)s FOR SHARE
), whole AS MATERIALIZED (
    SELECT count(*) = cardinality(%(ids)s::int[])
        AND (NOT %(standby)s OR current_setting('synchronous_standby_names') <> '') AS ok
    FROM mine JOIN unnest(%(ids)s::int[], %(fences)s::bigint[]) AS wanted (id, fence)
        USING (id, fence)
)"""
_WHETHER = """
(SELECT ok FROM whole), NOT %(standby)s OR current_setting('synchronous_standby_names') <> ''"""

_APPLY = f"""{LOCK}, bound AS (
    INSERT INTO kept (key, partition, token, codec, size, digest, body, deadline)
    SELECT * FROM unnest(
        %(bind_key)b::bytea[], %(bind_partition)s::smallint[], %(bind_token)b::bytea[],
        %(bind_codec)s::text[], %(bind_size)s::bigint[], %(bind_digest)b::bytea[],
        %(bind_body)b::bytea[], %(bind_deadline)s::float8[])
    WHERE (SELECT ok FROM whole)
    ON CONFLICT (key) DO NOTHING RETURNING 1
), replaced AS (
    UPDATE kept SET token = new.token, codec = new.codec, size = new.size, digest = new.digest,
        body = new.body, deadline = new.deadline
    FROM unnest(
        %(replace_key)b::bytea[], %(replace_former)b::bytea[], %(replace_token)b::bytea[],
        %(replace_codec)s::text[], %(replace_size)s::bigint[], %(replace_digest)b::bytea[],
        %(replace_body)b::bytea[], %(replace_deadline)s::float8[]
    ) AS new (key, former, token, codec, size, digest, body, deadline)
    WHERE kept.key = new.key AND kept.token = new.former AND (SELECT ok FROM whole) RETURNING 1
), removed AS (
    DELETE FROM kept USING unnest(%(remove_key)b::bytea[], %(remove_token)b::bytea[])
        AS gone (key, token)
    WHERE kept.key = gone.key AND kept.token = gone.token AND (SELECT ok FROM whole) RETURNING 1
), dated AS (
    UPDATE kept SET deadline = new.deadline
    FROM unnest(%(date_key)b::bytea[], %(date_token)b::bytea[], %(date_deadline)s::float8[])
        AS new (key, token, deadline)
    WHERE kept.key = new.key AND kept.token = new.token AND (SELECT ok FROM whole) RETURNING 1
)
SELECT {_WHETHER}, (SELECT count(*) FROM bound) + (SELECT count(*) FROM replaced)
    + (SELECT count(*) FROM removed) + (SELECT count(*) FROM dated)"""

_PUT_PIECES = f"""{LOCK}, put AS (
    INSERT INTO piece (partition, token, number, body)
    SELECT %(partition)s, %(token)b, number, body
    FROM unnest(%(numbers)s::int[], %(bodies)b::bytea[]) AS new (number, body)
    WHERE (SELECT ok FROM whole)
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT {_WHETHER}, (SELECT count(*) FROM put)"""

_DROP_PIECES = f"""{LOCK}, dropped AS (
    DELETE FROM piece WHERE partition = %(partition)s AND token = ANY (%(tokens)b::bytea[])
        AND (SELECT ok FROM whole) RETURNING 1
)
SELECT {_WHETHER}, (SELECT count(*) FROM dropped)"""

_RAISE = """
UPDATE partition SET fence = wanted.fence + %(attempts)s + 1
FROM unnest(%(ids)s::int[], %(fences)s::bigint[]) AS wanted (id, fence)
WHERE partition.id = wanted.id AND owner = %(me)s
    AND partition.fence BETWEEN wanted.fence AND wanted.fence + %(attempts)s
RETURNING partition.id, partition.fence
"""


class Fenced(Exception):
    """Another member owns a partition that was to be written to, or has owned it meanwhile."""


class NoStandby(Exception):
    """The server does not wait for a standby any more."""


class Released(Exception):
    """A commit may have been acknowledged though no standby has it.

    When ``synchronous_standby_names`` is emptied the server releases all commits that wait, with
    success and without a warning.
    """


class Fences(NamedTuple):
    """In whose name a statement writes, and the fences of the partitions that it touches.

    With ``standby`` the server has to wait for a synchronous one.
    """

    me: bytes
    fences: Mapping[int, int]
    standby: bool

    def parameters(self) -> dict[str, Any]:
        ids = sorted(self.fences)
        fences = [self.fences[each] for each in ids]
        return {"me": self.me, "ids": ids, "fences": fences, "standby": self.standby}


def touched(changes: Iterable[Change]) -> set[int]:
    """Return the partitions of changes."""
    return {partition_of(change.key) for change in changes}


def apply(connection: Connection, fences: Fences, changes: Sequence[Change]) -> list[Outcome]:
    """Carry out changes of different keys in one transaction, and return what became of each.

    Raises Fenced and NoStandby, with nothing changed, Released, and psycopg.Error.
    """
    done = _execute(connection, _APPLY, fences, _columns(changes))
    if done == len(changes):
        return [Outcome.DONE] * len(changes)
    return took_effect(connection, changes)


def took_effect(connection: Connection, changes: Sequence[Change]) -> list[Outcome]:
    """Read which changes are in the database: DONE or FAILED for each. Raises psycopg.Error.

    A token names one write for ever, so what a key has tells what has happened to it.
    """
    keys = [to_bytes(change.key) for change in changes]
    rows = connection.execute(
        "SELECT key, token, deadline FROM kept WHERE key = ANY (%b::bytea[])", [keys]
    ).fetchall()
    found = {key: (token, deadline) for key, token, deadline in rows}
    return [_outcome(change, *found.get(key, (None, None))) for key, change in zip(keys, changes)]


def _outcome(change: Change, token: bytes | None, deadline: float | None) -> Outcome:
    if change.kind is ChangeKind.REMOVE:
        done = token is None
    elif change.kind is ChangeKind.DEADLINE:
        done = token == change.token and deadline == _column(change.deadline)
    else:
        assert change.stored is not None
        done = token == change.stored.token
    return Outcome.DONE if done else Outcome.FAILED


def put_pieces(
    connection: Connection,
    fences: Fences,
    partition: int,
    token: bytes,
    first: int,
    bodies: Sequence[bytes],
) -> None:
    """Write pieces of a large value, from number ``first`` on. Those that are there stay.

    Raises Fenced, NoStandby, Released, and psycopg.Error.
    """
    numbers = list(range(first, first + len(bodies)))
    values = {"partition": partition, "token": token, "numbers": numbers, "bodies": list(bodies)}
    _execute(connection, _PUT_PIECES, fences, values)


def drop_pieces(
    connection: Connection, fences: Fences, partition: int, tokens: Sequence[bytes]
) -> None:
    """Remove large values of one partition.

    Raises Fenced, NoStandby, Released, and psycopg.Error.
    """
    values = {"partition": partition, "tokens": list(tokens)}
    _execute(connection, _DROP_PIECES, fences, values)


def raise_fences(connection: Connection, fences: Fences, attempts: int) -> dict[int, int]:
    """Raise the fences of partitions, and return the new ones: the barrier after a doubt.

    ``attempts`` is how often this was tried before without an answer: each may have raised them, or
    may still come. It sets a fence to a value of its own, so one that comes late does nothing. When
    it has committed, no statement under a former fence is carried out any more. Raises Fenced
    if a partition is not owned any more, Released, and psycopg.Error.
    """
    parameters = {**fences.parameters(), "attempts": attempts}
    rows = connection.execute(_RAISE, parameters).fetchall()
    if len(rows) != len(fences.fences):
        raise Fenced
    if fences.standby:
        check_confirmed(connection)
    return dict(rows)


def check_confirmed(connection: Connection) -> None:
    """Raise Released if the commit before may not have waited. Raises psycopg.Error.

    The server tells its sessions of a change of its settings before it releases their commits.
    """
    row = connection.execute(_WAITS).fetchone()
    if row is None or not row[0]:
        raise Released


def _execute(connection: Connection, query: str, fences: Fences, values: dict[str, Any]) -> int:
    began = clock.now()
    row = connection.execute(query, {**fences.parameters(), **values}).fetchone()
    assert row is not None
    ok, waits, count = row
    if not waits:
        raise NoStandby
    if not ok:
        raise Fenced
    if fences.standby and clock.now() - began >= LOOK_FROM:
        check_confirmed(connection)
    return int(count)


def _columns(changes: Sequence[Change]) -> dict[str, Any]:
    """Return changes as the arrays of _APPLY."""
    by_kind: dict[ChangeKind, list[Change]] = {kind: [] for kind in ChangeKind}
    for change in changes:
        by_kind[change.kind].append(change)
    binds, replaces = by_kind[ChangeKind.BIND], by_kind[ChangeKind.REPLACE]
    removes, dates = by_kind[ChangeKind.REMOVE], by_kind[ChangeKind.DEADLINE]
    return {
        **_of_values("bind", binds),
        "bind_partition": [partition_of(change.key) for change in binds],
        **_of_values("replace", replaces),
        "replace_former": [change.token for change in replaces],
        "remove_key": [to_bytes(change.key) for change in removes],
        "remove_token": [change.token for change in removes],
        "date_key": [to_bytes(change.key) for change in dates],
        "date_token": [change.token for change in dates],
        "date_deadline": [_column(change.deadline) for change in dates],
    }


def _of_values(name: str, changes: Sequence[Change]) -> dict[str, Any]:
    values: list[Stored] = [change.stored for change in changes if change.stored is not None]
    large = [each.body if type(each.body) is Large else None for each in values]
    return {
        f"{name}_key": [to_bytes(change.key) for change in changes],
        f"{name}_token": [each.token for each in values],
        f"{name}_codec": [each.codec for each in values],
        f"{name}_size": [each.size for each in values],
        f"{name}_digest": [None if each is None else each.digest for each in large],
        f"{name}_body": [_bytes_of(each.body) for each in values],
        f"{name}_deadline": [_column(change.deadline) for change in changes],
    }


def _bytes_of(body: Body) -> bytes | None:
    """Return the bytes of a small value, None for a large one."""
    if isinstance(body, Large):
        return None
    return body if type(body) is bytes else bytes(body)


def _column(deadline: float) -> float | None:
    return None if deadline == NO_DEADLINE else float(deadline)

"""Who is a member and who owns what: carries out what :mod:`dstore.core.cluster` asks for.

Each ask is one transaction, as :class:`~dstore.core.cluster.messages.Beat` says. Rows that another
transaction has locked are left out, so that a member that stands still holds up no other one; and
the server ends a transaction that does nothing for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from dstore.core.cluster.messages import Ask, Beat, Fenced, Leave, Member, Partition, View
from dstore.errors import DataError
from dstore.server.postgres.connections import Link
from dstore.server.postgres.schema import Connection
from dstore.server.postgres.writing import Released, check_confirmed

_JOIN = """
INSERT INTO member AS old (id, address, beat, lease, cache_lease, draining)
VALUES (%(me)s, %(address)s, %(beat)s, %(lease)s, %(cache_lease)s, %(draining)s)
ON CONFLICT (id) DO UPDATE SET address = excluded.address, beat = excluded.beat,
    lease = excluded.lease, cache_lease = excluded.cache_lease,
    draining = old.draining OR excluded.draining
WHERE old.beat < excluded.beat
"""
_BEAT = """
UPDATE member SET beat = %(beat)s, draining = draining OR %(draining)s
WHERE id = %(me)s AND beat < %(beat)s
"""
_LEAVE = "DELETE FROM member WHERE id = %(me)s AND beat < %(beat)s"
_BURY = """
WITH dead AS (
    SELECT member.id FROM member
        JOIN unnest(%(ids)s::bytea[], %(beats)s::bigint[]) AS seen (id, beat)
        ON member.id = seen.id AND member.beat = seen.beat
    FOR UPDATE OF member SKIP LOCKED
)
DELETE FROM member USING dead WHERE member.id = dead.id
"""
_FREE = """
WITH free AS (
    SELECT partition.id FROM partition
        JOIN unnest(%(ids)s::int[], %(fences)s::bigint[]) AS seen (id, fence)
        ON partition.id = seen.id AND partition.fence = seen.fence
    WHERE {whose} FOR UPDATE OF partition SKIP LOCKED
)
UPDATE partition SET {what} FROM free WHERE partition.id = free.id
"""
_RELEASE = _FREE.format(whose="owner = %(me)s", what="owner = NULL, fence = fence + 1")
_CLAIM = _FREE.format(
    whose="owner IS NULL OR owner = %(me)s"
    " OR NOT EXISTS (SELECT FROM member WHERE member.id = partition.owner)",
    what="owner = %(me)s, fence = fence + 1, quiet = greatest(quiet,"
    " (SELECT cache_lease FROM member WHERE member.id = %(me)s))",
)
_QUIETED = _FREE.format(
    whose="owner = %(me)s",
    what="quiet = (SELECT cache_lease FROM member WHERE member.id = %(me)s)",
)
_VIEW = """
SELECT -1 AS number, id, address, beat, lease, cache_lease, draining,
    current_setting('synchronous_standby_names') <> '' FROM member
UNION ALL SELECT id, owner, NULL, fence, quiet, NULL, NULL, NULL FROM partition
ORDER BY number
"""


class Directory:
    """Carries out asks over a connection of its own. For one thread."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def carry_out(self, ask: Ask) -> View | None:
        """Carry out an ask. Returns its answer, or None if it is not known what became of it.

        Raises DataError if it failed, or if that is not known; the text says why.
        """
        link = self._link
        with link.in_use:
            connection = link.open()
            link.warning()  # of before
            try:
                with link.limited():
                    view = self._transact(connection, ask)
                    if link.standby:
                        check_confirmed(connection)
            except psycopg.Error as error:
                link.drop()
                raise link.target.error("has failed", error) from None
            except DataError:
                link.drop()
                raise
            except Released:
                link.drop()
                names = "synchronous_standby_names was emptied"
                raise link.target.error("does not wait", f"{names}; a commit is in doubt") from None
            if warning := link.warning():
                raise link.target.error("warns, so that a commit is in doubt", warning)
            return view

    def _transact(self, connection: Connection, ask: Ask) -> View:
        with connection.transaction():
            done = self._execute(connection, ask)
            view = self._view(connection)
        if not done:
            view.members.pop(ask.me, None)
        return view

    def _execute(self, connection: Connection, ask: Ask) -> bool:
        """Do what is asked for. Returns False if a later ask was carried out before."""
        base: dict[str, Any] = {"me": ask.me, "beat": ask.beat}
        if isinstance(ask, Leave):
            return connection.execute(_LEAVE, base).rowcount > 0
        if ask.join is not None:
            row = ask.join._asdict() | base
            done = connection.execute(_JOIN, row).rowcount > 0
        else:
            done = connection.execute(_BEAT, base | {"draining": ask.draining}).rowcount > 0
        if done:
            self._work(connection, ask)
        return done

    def _work(self, connection: Connection, ask: Beat) -> None:
        if ask.dead:
            ids, beats = zip(*ask.dead)
            connection.execute(_BURY, {"ids": list(ids), "beats": list(beats)})
        steps: tuple[tuple[str, Sequence[Fenced]], ...] = (
            (_RELEASE, ask.release),
            (_CLAIM, ask.claim),
            (_QUIETED, ask.quieted),
        )
        for statement, fenced in steps:
            if fenced:
                ids, fences = zip(*fenced)
                values = {"me": ask.me, "ids": list(ids), "fences": list(fences)}
                connection.execute(statement, values)

    def _view(self, connection: Connection) -> View:
        members, partitions, waits = read_view(connection)
        if self._link.standby and not waits:
            raise self._link.target.refused("synchronous_standby_names was emptied meanwhile")
        return View(members, partitions)


def read_view(connection: Connection) -> tuple[dict[bytes, Member], list[Partition], bool]:
    """Return members, partitions, and whether commits wait for a standby. Raises psycopg.Error."""
    members: dict[bytes, Member] = {}
    partitions: list[Partition] = []
    waits = True
    for number, name, address, beat, lease, cache_lease, draining, standby in connection.execute(
        _VIEW
    ):
        if number < 0:
            members[name] = Member(address, beat, lease, cache_lease, draining)
            waits = standby
        else:
            partitions.append(Partition(name, beat, lease))
    return members, partitions, waits

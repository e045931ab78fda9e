"""What the transactions of a cluster do to the tables of its database, as plain Python.

This is the meaning of :class:`~dstore.core.cluster.messages.Beat` and
:class:`~dstore.core.cluster.messages.Leave`, which SQL has to have as well. A transaction reads and
locks rows of :class:`Rows`; whether it commits, and when others see that, is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dstore.core.cluster.messages import Ask, Beat, Leave, Member, Partition, View

RowName = tuple[str, Any]
"""A table and the primary key of a row in it."""
MEMBER, PARTITION, KEPT, PIECE = "member", "partition", "kept", "piece"


class Rows(Protocol):
    """The database as one transaction sees it. Rows that are not there are None."""

    def get(self, name: RowName) -> Any: ...

    def put(self, name: RowName, row: Any) -> None: ...

    def names(self, table: str) -> Iterable[Any]:
        """Return the primary keys of the rows of a table, in order."""

    def lock(self, name: RowName) -> None:
        """Lock a row for a change, and wait for it if necessary."""

    def lock_at_once(self, name: RowName) -> bool:
        """Lock a row for a change if it can be locked now. Returns whether that was so."""


class Plain:
    """Rows of which there is one version, and nobody else has locked one."""

    def __init__(self, partitions: int = 256) -> None:
        self.rows: dict[RowName, Any] = {
            (PARTITION, number): Partition(None, 0, 0.0) for number in range(partitions)
        }

    def get(self, name: RowName) -> Any:
        return self.rows.get(name)

    def put(self, name: RowName, row: Any) -> None:
        if row is None:
            self.rows.pop(name, None)
        else:
            self.rows[name] = row

    def names(self, table: str) -> Iterable[Any]:
        return sorted(name for each, name in self.rows if each == table)

    def lock(self, name: RowName) -> None:
        pass

    def lock_at_once(self, name: RowName) -> bool:
        return True


def carry_out(ask: Ask, rows: Rows) -> View:
    """Do what an ask says. Returns what it reads at the end."""
    mine = (MEMBER, ask.me)
    if isinstance(ask, Leave):
        rows.lock(mine)
        row = rows.get(mine)
        if row is not None and row.beat < ask.beat:
            rows.put(mine, None)
    elif _beat(ask, rows):
        _bury(ask, rows)
        _release(ask, rows)
        _claim(ask, rows)
        _quieted(ask, rows)
    return view_of(rows)


def view_of(rows: Rows) -> View:
    members = {name: rows.get((MEMBER, name)) for name in rows.names(MEMBER)}
    return View(members, [rows.get((PARTITION, each)) for each in rows.names(PARTITION)])


def _beat(ask: Beat, rows: Rows) -> bool:
    """Raise the beat. Returns whether that changed a row."""
    mine = (MEMBER, ask.me)
    rows.lock(mine)
    row: Member | None = rows.get(mine)
    if row is None and ask.join is None:
        return False
    if row is not None and row.beat >= ask.beat:
        return False
    draining = ask.draining or (row is not None and row.draining)
    row = ask.join or row
    assert row is not None
    rows.put(mine, row._replace(beat=ask.beat, draining=draining))
    return True


def _bury(ask: Beat, rows: Rows) -> None:
    for name, beat in ask.dead:
        other = (MEMBER, name)
        if rows.lock_at_once(other):
            row = rows.get(other)
            if row is not None and row.beat == beat:
                rows.put(other, None)


def _release(ask: Beat, rows: Rows) -> None:
    for number, fence in ask.release:
        row = _locked(number, fence, rows)
        if row is not None and row.owner == ask.me:
            rows.put((PARTITION, number), row._replace(owner=None, fence=fence + 1))


def _claim(ask: Beat, rows: Rows) -> None:
    cache_lease = rows.get((MEMBER, ask.me)).cache_lease
    for number, fence in ask.claim:
        row = _locked(number, fence, rows)
        if row is None:
            continue
        if row.owner in (None, ask.me) or rows.get((MEMBER, row.owner)) is None:
            quiet = max(row.quiet, cache_lease)
            rows.put((PARTITION, number), Partition(ask.me, fence + 1, quiet))


def _quieted(ask: Beat, rows: Rows) -> None:
    cache_lease = rows.get((MEMBER, ask.me)).cache_lease
    for number, fence in ask.quieted:
        row = _locked(number, fence, rows)
        if row is not None and row.owner == ask.me:
            rows.put((PARTITION, number), row._replace(quiet=cache_lease))


def _locked(number: int, fence: int, rows: Rows) -> Partition | None:
    """Lock a partition and return it, if it can be locked now and has that fence."""
    name = (PARTITION, number)
    if not rows.lock_at_once(name):
        return None
    row: Partition = rows.get(name)
    return row if row.fence == fence else None

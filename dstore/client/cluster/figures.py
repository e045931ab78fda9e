"""Metrics of several Globals, and of several Locals, as one table: sums where these make sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_SUMS = {
    *("session", "applied", "epoch", "lease", "lease_left", "seq"),
    *("value_limit", "large_from", "max_clients"),
}
"""Metrics whose sum means nothing."""
SHORTEST = ("lease", "lease_left")


def total_of_locals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row for those of several Locals, with the same names.

    A text is that of all rows if they have the same, else all of them.
    """
    total = _sums(rows)
    for name, value in rows[0].items():
        if name in SHORTEST:
            total[name] = min(row[name] for row in rows)
        elif isinstance(value, str):
            total[name] = ", ".join(dict.fromkeys(row[name] for row in rows if row[name]))
        else:
            total.setdefault(name, 0)
    return {name: total[name] for name in rows[0]}


def total_of_globals(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums of the metrics of several Globals, and ``members`` with those of each.

    ``found`` has them by address, or the error with which a Global has answered.
    """
    failed = {each: str(rows) for each, rows in found.items() if isinstance(rows, Exception)}
    rows = {each: row for each, row in found.items() if each not in failed}
    members = {each: {"error": failed[each]} if each in failed else rows[each] for each in found}
    return {**_sums(list(rows.values())), "members": members}


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if type(value) is int and name not in NO_SUMS:
                sums[name] = sums.get(name, 0) + value
    return sums

"""Metrics of several Globals, and of several Locals, as one table: sums where these make sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_SUMS = {
    *("session", "applied", "epoch", "seq"),
    *("value_limit", "large_from", "max_clients"),
}
"""Metrics whose sum means nothing."""
SHORTEST = ("lease", "lease_left", "ownership_left")
"""Of these the least counts."""
LATEST = ("members", "map_version")
"""Of these the greatest counts: a Global may know of less than others."""


def total_of_locals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row for those of several Locals, with the same names.

    A text is that of all rows if they have the same, else all of them.
    """
    total = _sums(rows)
    for name, value in rows[0].items():
        if name in total:
            continue
        if isinstance(value, str):
            total[name] = ", ".join(dict.fromkeys(row[name] for row in rows if row[name]))
        else:
            total.setdefault(name, 0)
    return {name: total[name] for name in rows[0]}


def total_of_globals(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums of the metrics of several Globals, and ``globals`` with those of each.

    ``found`` has them by address, or the error with which a Global has answered.
    """
    failed = {each: str(rows) for each, rows in found.items() if isinstance(rows, Exception)}
    rows = {each: row for each, row in found.items() if each not in failed}
    table = {each: {"error": failed[each]} if each in failed else rows[each] for each in found}
    return {**_sums(list(rows.values())), "globals": table}


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if name in SHORTEST:
                sums[name] = min(sums.get(name, value), value)
            elif name in LATEST:
                sums[name] = max(sums.get(name, value), value)
            elif value is None or sums.get(name, 0) is None:  # no limit
                sums[name] = None
            elif type(value) is int and name not in NO_SUMS:
                sums[name] = sums.get(name, 0) + value
    return sums

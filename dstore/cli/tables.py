"""Counters and tables as lines for people, with the text of others escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dstore.cli.console import plain
from dstore.quoting import quoted

NAME_WIDTH = 26
"""The width of the names of counters, if none of a table is longer."""
GLOBALS = "globals"
"""The name of the table that has a row for each of several Globals."""
COLUMNS = (
    *("partitions", "membership", "keys", "bytes", "gets", "sets", "dels", "pending", "sessions"),
    *("host_hits", "fills", "lease_left", "ownership_left"),
)
"""The metrics of each of several Globals, or of the Local of each, that people see."""


def stats_lines(counters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the counters of a Global, or sums and a table with one row for each of several."""
    globals_ = counters.get(GLOBALS)
    if not globals_:
        yield from counter_lines(counters)
        return
    yield from counter_lines({name: each for name, each in counters.items() if name != GLOBALS})
    names = [name for name in COLUMNS if any(name in row for row in globals_.values())]
    rows = [["GLOBAL", *(name.replace("_", " ").upper() for name in names)]]
    failed = []
    for address, row in globals_.items():
        shown = quoted(plain(address))
        if "error" in row:
            failed.append(f"{shown}: {quoted(str(row['error']))}")
        else:
            rows.append([shown, *(_number(row.get(name, "")) for name in names)])
    if len(rows) > 1:
        yield from table_lines(rows, left=1)
    yield from failed


def counter_lines(counters: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield counters, one on each line, also those of tables within the table."""
    names = {key: f"{within}{quoted(str(key))}" for key in counters}
    lengths = [len(names[key]) for key, each in counters.items() if not isinstance(each, Mapping)]
    width = max([NAME_WIDTH, *lengths])
    for key, value in counters.items():
        if isinstance(value, Mapping):
            yield from counter_lines(value, f"{names[key]}.")
        else:
            yield f"{names[key]:<{width}} {_number(value)}"


def table_lines(rows: Sequence[Sequence[str]], *, left: int | None = None) -> Iterator[str]:
    """Yield rows of equal length as lines of a table.

    All columns are flush left, or only the first ``left`` ones and the others flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = len(widths) if left is None else left
    for row in rows:
        cells = [
            each.ljust(width) if place < left else each.rjust(width)
            for place, (each, width) in enumerate(zip(row, widths))
        ]
        yield "  ".join(cells).rstrip()


def _number(value: Any) -> str:
    if value is None:  # as a limit
        return "no limit"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return quoted(str(value))

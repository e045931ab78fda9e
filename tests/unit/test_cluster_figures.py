"""How the metrics of several Globals, and of the Local of each, become one, and are shown."""

from __future__ import annotations

import pytest

from dstore.cli import tables
from dstore.client.cluster.figures import total_of_globals
from dstore.core.engine import UNLIMITED
from dstore.quoting import is_plain
from tests.unit.core.world import World


def test_a_limit_that_bounds_nothing_is_none() -> None:
    assert World(limit=1_000).state.metrics(0.0)["bytes_limit"] == 1_000
    assert World(limit=UNLIMITED).state.metrics(0.0)["bytes_limit"] is None


@pytest.mark.parametrize("limits", [(None, 5), (5, None), (None, None)])
def test_a_sum_with_a_part_that_has_no_limit_has_none(limits: tuple[int | None, ...]) -> None:
    rows = {f"tcp://h:{n}": {"bytes_limit": each, "keys": 2} for n, each in enumerate(limits)}
    total = total_of_globals(rows)
    assert (total["bytes_limit"], total["keys"]) == (None, 4)
    assert f"{'bytes_limit':<{tables.NAME_WIDTH}} no limit" in tables.counter_lines(total)


def test_several_globals_are_shown_as_sums_and_a_table_with_a_row_for_each() -> None:
    row = {"epoch": "e", "keys": 1_234, "gets": 7, "seq": 1, "locals": {"1": {"label": "x"}}}
    silent = OSError("it is\x1b[2J away\nkeys 0")
    found = {"tcp://one:1": row, "tcp://two:22": {**row, "gets": 8}, "tcp://\x1b:3": silent}
    lines = list(tables.stats_lines({**total_of_globals(found), "compiled": True}))
    assert all(is_plain(line) for line in lines)
    assert [line.split() for line in lines[:3]] == [
        ["keys", "2,468"],
        ["gets", "15"],
        ["compiled", "True"],
    ]
    assert lines[3:6] == [
        "GLOBAL   KEYS  GETS",
        "one:1   1,234     7",
        "two:22  1,234     8",
    ]
    assert [line.partition(": ")[2] for line in lines[6:]] == ["'it is\\x1b[2J away\\nkeys 0'"]


def test_one_global_is_shown_with_all_that_it_counts() -> None:
    row = {"keys": 1, "locals": {"1": {"label": "x"}}}
    assert list(tables.stats_lines(row)) == list(tables.counter_lines(row))


def test_globals_that_do_not_answer_are_shown_without_a_table() -> None:
    total = total_of_globals({"tcp://one:1": OSError("away"), "tcp://two:2": OSError("gone")})
    assert list(tables.stats_lines(total)) == ["one:1: away", "two:2: gone"]

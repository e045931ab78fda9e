"""How the metrics of several Globals, and those of several Locals, become one table."""

from __future__ import annotations

import pytest

from dstore.cli import console
from dstore.client.cluster.figures import total_of_globals
from dstore.core.engine import UNLIMITED
from tests.unit.core.world import World


def test_a_limit_that_bounds_nothing_is_none() -> None:
    assert World(limit=1_000).state.metrics(0.0)["bytes_limit"] == 1_000
    assert World(limit=UNLIMITED).state.metrics(0.0)["bytes_limit"] is None


@pytest.mark.parametrize("limits", [(None, 5), (5, None), (None, None)])
def test_a_sum_with_a_part_that_has_no_limit_has_none(limits: tuple[int | None, ...]) -> None:
    rows = {f"tcp://h:{n}": {"bytes_limit": each, "keys": 2} for n, each in enumerate(limits)}
    total = total_of_globals(rows)
    assert (total["bytes_limit"], total["keys"]) == (None, 4)
    assert f"{'bytes_limit':<{console.NAME_WIDTH}} no limit" in console.counter_lines(total)

"""Short runs of the attacks and of the growth test; ``python -m tests.faults.hostile`` is long."""

from __future__ import annotations

import pytest

from tests.faults import growth, hostile
from tests.faults.honest import NOTHING

SHORT = 0.02
"""The part of each attack that is run."""


@pytest.mark.timeout(300)
def test_honest_nodes_are_served_and_memory_is_bounded_while_others_attack() -> None:
    rows = hostile.Run(seed=1, scale=SHORT, names=[]).run(say=lambda _: None)
    assert [f"{row.attack.name}: {wrong}" for row in rows for wrong in row.wrong] == []
    assert len(rows) == len(hostile.ATTACKS)
    told = sum((row.told for row in rows), NOTHING)
    assert told.reads > 0
    assert told.calls > told.reads


@pytest.mark.timeout(120)
@pytest.mark.parametrize("deletes", [False, True], ids=["without deletions", "with deletions"])
def test_global_does_not_grow_with_joins_and_leaves(deletes: bool) -> None:
    assert growth.measure(400, deletes, say=lambda _: None) < growth.GROWTH_MAX

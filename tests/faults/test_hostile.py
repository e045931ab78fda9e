"""Short runs of the attacks and of the growth test; ``python -m tests.faults.hostile`` is long."""

from __future__ import annotations

import pytest

from tests.faults import growth, hostile
from tests.faults.attack import ATTACKS
from tests.faults.honest import NOTHING

SHORT = 0.02
"""The part of each attack that is run."""


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", hostile.WHO)
def test_honest_nodes_are_served_and_memory_is_bounded_while_others_attack(who: str) -> None:
    results = hostile.Run(seed=1, scale=SHORT, names=[], who=who).run(say=lambda _: None)
    assert [f"{result.attack.name}: {wrong}" for result in results for wrong in result.wrong] == []
    assert len(results) == len(ATTACKS)
    seen = sum((result.honest for result in results), NOTHING)
    assert seen.reads > 0
    assert seen.calls > seen.reads


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("deletes", [False, True], ids=["without deletions", "with deletions"])
def test_global_does_not_grow_with_joins_and_leaves(deletes: bool) -> None:
    assert growth.measure(400, deletes, say=lambda _: None) < growth.GROWTH_MAX

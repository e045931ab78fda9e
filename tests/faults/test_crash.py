"""A durable Global that is killed at random moments keeps its promises over all its lives."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import pytest

from tests.faults.broken_global import BROKEN
from tests.faults.crash import AT_START, IN_SERVICE, Plan, Run
from tests.leaks import Footprint, left_behind

KILLS = 30

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8"),
    pytest.mark.timeout(180),
]


def test_nothing_acknowledged_is_lost_over_many_kills(tmp_path: Path) -> None:
    before = Footprint()
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    plan = Plan(
        KILLS, seed, workers=2, readers=2, life_seconds=0.4, long_leases=6, round_seconds=600.0
    )
    report = Run(plan, tmp_path).run()
    print(*report.lines(), sep="\n")
    assert report.wrong == [], f"seed {seed}, histories in {tmp_path}"
    assert report.kills >= KILLS
    assert report.ends[IN_SERVICE] and report.ends[AT_START]
    assert report.verdict.deletions
    assert report.verdict.counts["acknowledged"]
    assert left_behind(before) == []


@pytest.mark.long
def test_a_global_that_forgets_is_noticed(tmp_path: Path) -> None:
    """The other ways to break it need more kills: ``scripts/crash --broken``."""
    assert "forget-large-values" in BROKEN
    report = Run(Plan(5, workers=2, readers=1, broken="forget-large-values"), tmp_path).run()
    assert any("damaged on Global's disk" in each for each in report.wrong)

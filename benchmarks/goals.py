"""The goals: what is measured against what, and the limit of the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.measure import summarise
from benchmarks.results import GoalResult


class Goal(NamedTuple):
    """A goal. ``shown`` formats the measured ratio, or the number itself without a reference."""

    name: str
    what: str
    reference: str
    words: str
    limit: float
    at_most: bool = True
    shown: str = "{:.2f} times"


GOALS = (
    Goal("hit", "hit, 100 B, lease checked", "`dict.get`", "at most 5 times", 5.0),
    Goal(
        "hit-redis", "hit", "redis-py with its client-side cache", "at least 200 times faster",
        200.0, at_most=False, shown="{:.0f} times faster",
    ),
    Goal(
        "miss", "miss, 100 B, one client", "bare echo between two processes",
        "at most 1.2 times", 1.2,
    ),
    Goal(
        "clients", "Global, 8 clients in a closed loop", "the same bare echo with 8 clients",
        "at least 0.85 times its rate", 0.85, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "get_many", "`get_many` of 100 cold keys", "redis-py `mget` of 100",
        "at least as many keys a second", 1.0, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "large", "64 MiB value, first read on a host", "the same bytes as one bare pyzmq frame",
        "at least 0.8 times its rate", 0.8, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "large-second", "64 MiB value, second process on that host", "",
        "under 3 ms", 0.003, shown="{:.4f} s",
    ),
    Goal(
        "delete", "DEL confirmed by 8 Locals", "bare echo round trip",
        "at most 4 times its median", 4.0,
    ),
    Goal(
        "moving", "small requests while a 1 GiB value is moving, p99", "the same without it",
        "at most 5 times", 5.0,
    ),
    Goal(
        "entry", "cache overhead per entry", "",
        "at most 200 bytes beyond key and value", 200.0, shown="{:.0f} bytes",
    ),
)  # fmt: skip
BY_NAME = {goal.name: goal for goal in GOALS}


def judged(
    name: str,
    ratios: Sequence[float],
    ours: Sequence[float],
    theirs: Sequence[float] = (),
    unit: str = "s",
) -> GoalResult:
    """Return how far a goal was reached: its median ratio decides."""
    goal = BY_NAME[name]
    ratio = summarise(ratios)
    reached = ratio.median <= goal.limit if goal.at_most else ratio.median >= goal.limit
    return GoalResult(
        name, ratio, summarise(ours), summarise(theirs) if theirs else None, unit, reached
    )

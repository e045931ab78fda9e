"""The goals: what is measured against what, and the limit of the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.measure import summarise
from benchmarks.results import GoalResult


class Goal(NamedTuple):
    """A goal. ``shown`` formats the measured ratio, or the number itself without a reference.

    Without a ``limit`` the ratio is shown, and not judged.
    """

    name: str
    what: str
    reference: str
    words: str
    limit: float | None
    at_most: bool = True
    shown: str = "{:.2f} times"


GOALS = (
    *(
        goal
        for prefix, keys in (("hot", "500 keys"), ("hit", "10,000 keys"))
        for goal in (
            Goal(prefix, f"hit, compiled, {keys}", "`dict.get`", "at most 2.2 times", 2.2),
            Goal(
                f"{prefix}-lru", f"hit, compiled, {keys}", "`functools.lru_cache`",
                "at most 1.5 times", 1.5,
            ),
            Goal(f"{prefix}-pure", f"hit, pure, {keys}", "`dict.get`", "at most 5 times", 5.0),
            Goal(
                f"{prefix}-redis", f"hit, {keys}", "redis-py with its client-side cache",
                "at least 300 times faster", 300.0, at_most=False, shown="{:.0f} times faster",
            ),
        )
    ),
    Goal(
        "miss", "miss, 100 B, one client", "bare echo between two processes",
        "at most 1.3 times", 1.3,
    ),
    Goal(
        "clients", "8 clients that miss, in a closed loop", "the same bare echo with 8 clients",
        "at least 0.8 times its rate", 0.8, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "get_many", "`get_many` of 100 cold keys", "redis-py `mget` of 100",
        "at least 0.8 times as many keys a second", 0.8, at_most=False,
        shown="{:.2f} times its rate",
    ),
    *(
        Goal(
            f"host-first{suffix}", f"first read of what another process has read, {hit}",
            "redis-py `GET`", f"at least {least:g} times faster", least, at_most=False,
            shown="{:.2f} times faster",
        )
        for suffix, hit, least in (("", "compiled", 20.0), ("-pure", "pure", 8.0))
    ),
    *(
        Goal(
            f"host-many{suffix}", f"`get_many` of 100 keys that the host has, {hit}",
            "redis-py `mget` of 100", f"at least {least:g} times as many keys a second", least,
            at_most=False, shown="{:.2f} times its rate",
        )
        for suffix, hit, least in (("", "compiled", 3.0), ("-pure", "pure", 1.2))
    ),
    *(
        Goal(
            f"host-delete{suffix}", f"DEL held by {held} of one host", "DEL of a key not held",
            "at most 1.3 times", 1.3,
        )
        for suffix, held in (("", "8 processes"), ("-many", "64 Nodes in 8 processes"))
    ),
    *(
        Goal(
            f"mixed-{suffix}", "Zipf reads and deletions, worst of all cells", reference,
            "at least its rate", 1.0, at_most=False, shown="{:.2f} times its rate",
        )
        for suffix, reference in (
            ("redis", "redis-py"), ("cache", "redis-py with its client-side cache"),
            ("manager", "`multiprocessing.Manager`"),
        )
    ),
    Goal(
        "answer", "first answer of a new Node, key in the host cache",
        "redis-py, connect and `GET`", "at least 5 times faster", 5.0, at_most=False,
        shown="{:.2f} times faster",
    ),
    Goal(
        "answer-asked", "first answer of a new Node, Global asked", "redis-py, connect and `GET`",
        "not slower", 1.0, at_most=False, shown="{:.2f} times faster",
    ),
    *(
        Goal(
            name, f"first hit of a forked child, {keys} keys cached", "", "under 50 µs", 50e-6,
            shown="{:.6f} s",
        )
        for name, keys in (("fork", "500"), ("fork-many", "10,000"))
    ),
    Goal(
        "host-memory", "memory of 8 processes that read the same 100,000 values", "one process",
        "at most 2 times", 2.0,
    ),
    Goal("delete", "DEL that nobody holds", "bare echo round trip", "shown", None),
    Goal(
        "large", "64 MiB value, first read on a host", "the same bytes as one bare pyzmq frame",
        "at least 0.8 times its rate", 0.8, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "large-second", "64 MiB value, second process on that host", "",
        "under 3 ms", 0.003, shown="{:.4f} s",
    ),
    Goal(
        "moving", "small requests while a 1 GiB value is moving, p99", "the same without it",
        "at most 5 times", 5.0,
    ),
    Goal(
        "durable-set", "durable SET, one writer, p50 beyond that of one in memory",
        "one fdatasync of the same disk", "at most 1.5 times", 1.5,
    ),
    Goal(
        "durable-writers", "durable SETs of 8 processes", "the same in memory",
        "at least 0.7 times its rate", 0.7, at_most=False, shown="{:.2f} times its rate",
    ),
    Goal(
        "durable-reads", "reads of other keys while 8 processes set durably, p99",
        "the same while nobody writes", "at most 2 times", 2.0,
    ),
    Goal(
        "durable-reads-writing", "reads of other keys while 8 processes set durably, p99",
        "the same while they set in memory", "shown", None,
    ),
    Goal(
        "durable-start", "start with 1,000,000 durable keys, until the first answer", "",
        "at most 5 s", 5.0, shown="{:.1f} s",
    ),
    Goal("keyed-hit", "hit, 500 keys, with keys", "the same without", "shown", None),
    Goal("keyed-miss", "miss with keys", "the same without", "at most 1.15 times", 1.15),
    Goal(
        "keyed-large", "64 MiB value with keys, first read on another host", "the same without",
        "at least 0.4 times its rate", 0.4, at_most=False, shown="{:.2f} times its rate",
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
    fastest: float | None = None,
) -> GoalResult:
    """Return how far a goal was reached: its median ratio decides."""
    goal = BY_NAME[name]
    ratio = summarise(ratios)
    reached = None
    if goal.limit is not None:
        reached = ratio.median <= goal.limit if goal.at_most else ratio.median >= goal.limit
    return GoalResult(
        name, ratio, summarise(ours), summarise(theirs) if theirs else None, unit, reached, fastest
    )

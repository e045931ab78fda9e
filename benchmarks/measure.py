"""How contenders are measured: in turns, in blocks, as medians with quartiles, as paired ratios.

Contenders for one workload take turns: in each round every one of them does one block of work, and
the order is rotated from round to round, so that a machine that drifts or is busy for a while
disturbs all of them alike. The first round warms up and is not counted. A ratio is computed round
by round, of what was measured a moment apart.

Before each block the garbage collector runs, so that no contender pays for the garbage of another
one; during the block it is on, as in a user's program. Objects from before the first round are
frozen: the collector looks at them neither before a block nor within it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks import interrupt

Block = list[float]
"""The samples that one contender took in one round."""


class Summary(NamedTuple):
    """The summary of many samples. ``p99`` is there only if each operation was timed by itself."""

    n: int
    median: float
    p25: float
    p75: float
    p99: float | None = None


class Contender(NamedTuple):
    """A contender that takes turns. ``block`` is given the number of the round."""

    name: str
    block: Callable[[int], Block]


class Turns(NamedTuple):
    """The blocks of each contender, and why others failed."""

    blocks: dict[str, list[Block]]
    failed: dict[str, str]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the sample below which ``share`` of the samples are; they are in ascending order."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def summarise(samples: Iterable[float], tail: bool = False) -> Summary:
    """Return the summary of some samples. Raises ValueError if there are none."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("nothing was measured")
    return Summary(
        len(ordered),
        median(ordered),
        percentile(ordered, 0.25),
        percentile(ordered, 0.75),
        percentile(ordered, 0.99) if tail else None,
    )


def flat(blocks: Iterable[Block]) -> Block:
    return [sample for block in blocks for sample in block]


def p99(block: Sequence[float]) -> float:
    return percentile(sorted(block), 0.99)


def paired(
    ours: Sequence[Block],
    theirs: Sequence[Block],
    of: Callable[[Sequence[float]], float] = median,
) -> list[float]:
    """Return for each round the ratio of our block to theirs, each reduced by ``of``."""
    return [of(one) / of(other) for one, other in zip(ours, theirs)]


def fastest(blocks: Sequence[Block], rates: bool = False) -> float:
    """Return the median of that block which only a tenth of the blocks are faster than.

    Where the system has put two processes, on one core or on two, decides how long a message takes
    between them, and is not the same for all contenders of a round. The fastest blocks of any two
    contenders were measured with processes that were placed alike.
    """
    return percentile(sorted((median(block) for block in blocks), reverse=rates), 0.1)


def take_turns(contenders: Sequence[Contender], rounds: int) -> Turns:
    """Run a warm-up and ``rounds`` rounds. A contender that fails leaves, with all its samples."""
    found = Turns({each.name: [] for each in contenders}, {})
    here = list(contenders)
    gc.collect()
    gc.freeze()
    try:
        _go_round(here, found, rounds)
    finally:
        gc.unfreeze()
    return found


def _go_round(here: list[Contender], found: Turns, rounds: int) -> None:
    for number in range(rounds + 1):
        start = number % len(here) if here else 0
        for contender in here[start:] + here[:start]:
            interrupt.check()
            gc.collect()
            try:
                samples = contender.block(number)
            except Exception as error:
                here.remove(contender)
                del found.blocks[contender.name]
                found.failed[contender.name] = describe(error)
                continue
            if number:
                found.blocks[contender.name].append(samples)


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def timed(operation: Callable[[Any], object], keys: Iterable[Any]) -> Block:
    """Return the seconds that each operation takes."""
    times = []
    clock = time.perf_counter
    for key in keys:
        start = clock()
        operation(key)
        times.append(clock() - start)
    return times


def mean_time(operation: Callable[[Any], object], keys: Sequence[Any]) -> float:
    """Return the mean seconds of operations that are too short to be timed one by one.

    The time of the bare loop is subtracted.
    """
    start = time.perf_counter()
    for key in keys:
        operation(key)
    called = time.perf_counter()
    for key in keys:  # noqa: B007  # the bare loop
        pass
    end = time.perf_counter()
    return ((called - start) - (end - called)) / len(keys)

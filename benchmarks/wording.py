"""Numbers, comparisons and tables, as people read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.measure import Summary
from benchmarks.results import Figure
from benchmarks.settings import MIB

OURS = "dstore"
LIMITS = frozenset({"bare echo", "one bare frame", "dict.get"})
"""Not peers, but what the machine can do."""
CPU, RESTED_DEL = "DEL, CPU of Global", "DEL after a rest"
"""Figures of the workloads of growth."""
SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def quantity(value: float, unit: str) -> str:
    """``quantity(0.0000123, "s") == "12.3 µs"``."""
    if unit == "s":
        size = abs(value)
        factor, name = next((pair for pair in SCALES if size >= pair[0]), SCALES[-1])
        return f"{digits(value / factor)} {name}"
    if unit == "1/s":
        return f"{digits(value)} /s"
    return f"{digits(value / MIB)} MiB" if abs(value) >= MIB else f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Three digits that count."""
    if abs(value) < 100:
        return f"{value:.3g}"
    places = len(str(int(abs(value)))) - 3
    return f"{round(value, -places):,.0f}"


def spread(summary: Summary, unit: str) -> str:
    """The median, and the quarter points if there is more than one sample."""
    if summary.n == 1:
        return quantity(summary.median, unit)
    low, high = quantity(summary.p25, unit), quantity(summary.p75, unit)
    return f"{quantity(summary.median, unit)} ({low} … {high})"


def count(number: float | str, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def better(one: Figure, other: Figure) -> bool:
    """Whether ``one`` is the faster, or the smaller."""
    if one.unit == "1/s":
        return one.summary.median > other.summary.median
    return one.summary.median < other.summary.median


def against(figure: Figure, ours: Figure | None) -> str:
    """How a contender compares with dstore; empty if there is nothing to be said."""
    if ours is None or figure is ours:
        return ""
    values = figure.summary.median, ours.summary.median
    if min(values) <= 0:
        return ""
    ratio = values[0] / values[1] if figure.unit != "1/s" else values[1] / values[0]
    less, more = ("smaller", "larger") if figure.unit == "bytes" else ("faster", "slower")
    return f"{digits(ratio)} times {more}" if ratio > 1 else f"{digits(1 / ratio)} times {less}"


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first column is text, the others are numbers."""
    yield "| " + " | ".join(heading) + " |"
    yield "|---" + "|---:" * (len(heading) - 1) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def ranking(figures: Sequence[Figure]) -> Iterator[str]:
    """A table of the contenders, the best first."""
    ours = next((each for each in figures if each.who == OURS), None)
    rate = figures[0].unit == "1/s"
    tails = any(each.summary.p99 is not None for each in figures)
    lines = []
    for each in sorted(figures, key=lambda each: each.summary.median, reverse=rate):
        line = [f"**{each.who}**" if each is ours else each.who, spread(each.summary, each.unit)]
        if tails:
            tail = each.summary.p99
            line.append("" if tail is None else quantity(tail, each.unit))
        if ours:
            line.append(against(each, ours))
        lines.append(line)
    heading = ["", "median", *(["p99"] if tails else []), *(["against dstore"] if ours else [])]
    yield from table(heading, lines)


def grid(figures: Sequence[Figure], column: Callable[[Figure], str]) -> Iterator[str]:
    """A table of medians: contenders down, places across."""
    columns = list(dict.fromkeys(column(each) for each in figures))
    names = list(dict.fromkeys(each.who for each in figures))
    cells = {(each.who, column(each)): quantity(each.summary.median, each.unit) for each in figures}
    lines = ([name, *(cells.get((name, each), "") for each in columns)] for name in names)
    yield from table(["", *columns], lines)


def picture_of(name: str, words: str) -> str:
    return f"![{words}]({name}.svg)\n"


def heading(text: str, *paragraphs: str, level: int = 2) -> Iterator[str]:
    yield "#" * level + f" {text}\n"
    for paragraph in paragraphs:
        if paragraph:
            yield paragraph + "\n"

"""The report: what a run has found, as Markdown. Pictures are :mod:`benchmarks.plots`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.goals import GOALS
from benchmarks.measure import Summary
from benchmarks.results import Figure, Results, Row

OURS = "dstore"
SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
WORDS = {
    "hit": "A key that this process has read before",
    "miss": "A key that this process has never read",
    "get_many": "A hundred cold keys in one call",
    "clients": "Misses of 8 processes at once",
}
REMARKS = {
    "hit": "dict, lru_cache and cachetools know of no other process. redis-py, the Manager and NATS "
    "have no cache and ask their server each time. ProxyStore's cache hears of no deletion.",
    "miss": "ProxyStore and Ray read what cannot change.",
    "get_many": "",
    "clients": "",
}
HOW = """\
All contenders of a workload take turns in one run, in an order that is rotated from round to round;
the first round warms up. A ratio is computed round by round, and its median is what counts. Given are
medians, with the quarter and three-quarter points in brackets. Values have 100 bytes unless something
else is said; servers and clients are processes of one machine, connected over TCP on loopback.
dstore is asked with its checks: every hit looks at the lease, every DEL waits for its holders. NATS'
client is for asyncio, and entering its loop is part of a single call here.
"""


# Numbers --------------------------------------------------------------------------------------


def quantity(value: float, unit: str) -> str:
    """A number as people read it: ``quantity(0.0000123, "s") == "12.3 µs"``."""
    if unit == "s":
        size = abs(value)
        factor, name = next((pair for pair in SCALES if size >= pair[0]), SCALES[-1])
        return f"{_three(value / factor)} {name}"
    if unit == "1/s":
        return f"{_three(value)} /s"
    return f"{_three(value)} {unit}"


def _three(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def spread(summary: Summary, unit: str) -> str:
    if summary.n == 1:
        return quantity(summary.median, unit)
    low, high = quantity(summary.p25, unit), quantity(summary.p75, unit)
    return f"{quantity(summary.median, unit)} ({low} … {high})"


def better(one: Figure, other: Figure) -> bool:
    """Whether ``one`` is the faster, or smaller."""
    if one.unit == "1/s":
        return one.summary.median > other.summary.median
    return one.summary.median < other.summary.median


def against_ours(figure: Figure, ours: Figure | None) -> str:
    """How much faster or slower than dstore, in words."""
    if ours is None or figure is ours or not ours.summary.median or not figure.summary.median:
        return ""
    ratio = figure.summary.median / ours.summary.median
    if figure.unit == "1/s":
        ratio = 1 / ratio
    words = ("smaller", "larger") if figure.unit == "bytes" else ("faster", "slower")
    if ratio <= 0:
        return ""
    return f"{_three(1 / ratio)} times {words[0]}" if ratio < 1 else f"{_three(ratio)} times {words[1]}"


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heading) + " |"
    yield "|---" + "|---:" * (len(heading) - 1) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


# The report, part by part -----------------------------------------------------------------------


def render(results: Results, plots: Sequence[str] = ()) -> str:
    """The whole report. ``plots`` are the names of pictures beside it."""
    parts: list[Callable[[Results], Iterator[str]]] = [
        _head, _speed, _faster, _side_by_side, _mixed, _deletions, _large, _moving, _joins,
        _memory, _growth, _left_out,
    ]  # fmt: skip
    lines: list[str] = []
    for part in parts:
        for line in part(results):
            if line.startswith("!["):
                if line.rpartition("(")[2].rstrip(")") in plots:
                    lines += [line, ""]
            else:
                lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _head(results: Results) -> Iterator[str]:
    about = results.about
    machine, versions = about["machine"], about["versions"]
    yield "# Measured speed"
    yield ""
    yield (
        f"Written by `scripts/bench` ({results.scale}) on {about['date']}, at revision "
        f"{about['revision'] or 'unknown'}, in {results.seconds / 60:.0f} minutes. All figures, with "
        "what they were made of, are in [results.json](results.json)."
    )
    yield ""
    yield (
        f"- **Machine:** {machine['cpu'] or machine['architecture']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['kernel']}; load before the run "
        f"{machine['load_before']}"
    )
    yield "- **Versions:** " + ", ".join(f"{name} {value}" for name, value in versions.items())
    yield ""
    yield HOW


def _speed(results: Results) -> Iterator[str]:
    yield "## Goals"
    yield ""
    rows = {row.name: row for row in results.rows}
    heading = ("what", "reference in the same run", "goal", "measured", "ours", "reference", "")
    lines = []
    for goal in GOALS:
        row = rows.get(goal.name)
        lines.append(
            (goal.what, goal.reference, goal.words, *_measured(row, goal.shown))
            if row
            else (goal.what, goal.reference, goal.words, "not measured", "", "", "")
        )
    yield from table(heading, lines)


def _measured(row: Row, shown: str) -> tuple[str, str, str, str]:
    alone = row.theirs is None
    value = quantity(row.ratio.median, row.unit) if alone else shown.format(row.ratio.median)
    if row.ratio.n > 1:
        low, high = row.ratio.p25, row.ratio.p75
        ends = [quantity(end, row.unit) if alone else _three(end) for end in (low, high)]
        value += f" ({ends[0]} … {ends[1]})"
    theirs = quantity(row.theirs.median, row.unit) if row.theirs else ""
    reached = "reached" if row.reached else "**not reached**"
    return value, quantity(row.ours.median, row.unit), theirs, reached


def _faster(results: Results) -> Iterator[str]:
    """Where somebody else would be the better choice for speed."""
    lines = []
    for workload in dict.fromkeys(figure.workload for figure in results.figures):
        if workload.startswith(("growth", "moving")):
            continue
        figures = results.of(workload)
        for at in _places(figures):
            here = [each for each in figures if each.at == at]
            ours = next((each for each in here if each.who.startswith(OURS)), None)
            ahead = [each for each in here if ours and better(each, ours) and each.who != "bare echo"]
            if ours and ahead:
                said = ", ".join(
                    f"{each.who} ({against_ours(each, ours)})"
                    for each in ahead
                    if not each.who.startswith(OURS)
                )
                if said:
                    lines.append(f"- {_where(workload, at)}: {said}")
    yield "## Where others are ahead of dstore"
    yield ""
    yield from lines or ["Nowhere in this run."]
    yield ""


def _places(figures: Iterable[Figure]) -> list[dict[str, float | str]]:
    found: list[dict[str, float | str]] = []
    for figure in figures:
        if dict(figure.at) not in found:
            found.append(dict(figure.at))
    return found


def _where(workload: str, at: dict[str, float | str]) -> str:
    if not at:
        return workload
    shown = (f"{name} {value:g}" if isinstance(value, float | int) else value for name, value in at.items() if name != "bytes")
    return f"{workload}, " + ", ".join(shown)


def _side_by_side(results: Results) -> Iterator[str]:
    yield "## Peers side by side"
    yield ""
    yield "![Medians of all contenders, in logarithmic bars](peers.svg)"
    for workload, words in WORDS.items():
        figures = results.of(workload)
        if not figures:
            continue
        yield f"### {words}"
        yield ""
        if REMARKS[workload]:
            yield REMARKS[workload]
            yield ""
        yield from _contenders(figures)


def _contenders(figures: Sequence[Figure]) -> Iterator[str]:
    """The best first."""
    ours = next((each for each in figures if each.who == OURS), None)
    fast = figures[0].unit == "1/s"
    ordered = sorted(figures, key=lambda each: each.summary.median, reverse=fast)
    tails = any(each.summary.p99 is not None for each in figures)
    heading = ["", "median", *(["p99"] if tails else []), "against dstore"]
    lines = []
    for each in ordered:
        p99 = [] if not tails else ["" if each.summary.p99 is None else quantity(each.summary.p99, each.unit)]
        name = f"**{each.who}**" if each is ours else each.who
        lines.append([name, spread(each.summary, each.unit), *p99, against_ours(each, ours)])
    yield from table(heading, lines)


def _grid(
    figures: Sequence[Figure], column: Callable[[Figure], str], unit: str | None = None
) -> Iterator[str]:
    """Contenders down, places across, medians within."""
    columns = list(dict.fromkeys(column(each) for each in figures))
    names = list(dict.fromkeys(each.who for each in figures))
    cells = {(each.who, column(each)): quantity(each.summary.median, each.unit) for each in figures}
    yield from table(
        ["", *columns], ([name, *(cells.get((name, each), "") for each in columns)] for name in names)
    )


def _mixed(results: Results) -> Iterator[str]:
    figures = results.of("mixed")
    if not figures:
        return
    yield "## Zipf reads with deletions"
    yield ""
    yield (
        "Operations a second, of all processes together. Each reads keys by Zipf's law; the given "
        "share of operations deletes a key and binds it anew. ProxyStore takes no part in deletions, "
        "of which its caches do not hear."
    )
    yield ""
    yield "![Operations a second over the number of processes](mixed.svg)"
    for share in sorted({float(each.at["deletions"]) for each in figures}):
        yield f"### {share:.0%} deletions"
        yield ""
        here = [each for each in figures if each.at["deletions"] == share]
        yield from _grid(here, lambda each: _count(each.at["processes"], "process", "processes"))


def _count(number: float | str, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _deletions(results: Results) -> Iterator[str]:
    figures = results.of("delete")
    if not figures:
        return
    yield "## DEL"
    yield ""
    yield (
        "dstore's DEL returns when none of the holders can answer with the value any more. Redis tells "
        "the caches of its clients, but its DEL does not wait for them; the others have no caches."
    )
    yield ""
    yield "![Time of a DEL over the number of holders](delete.svg)"
    yield from _grid(figures, _holders)


def _holders(figure: Figure) -> str:
    holders, bystanders = figure.at["holders"], figure.at["bystanders"]
    text = "nobody holds it" if not holders else _count(holders, "holder", "holders")
    return text + (f", {bystanders} bystanders" if bystanders else "")


def _large(results: Results) -> Iterator[str]:
    figures = results.of("large")
    if not figures:
        return
    yield "## Large values"
    yield ""
    size = int(float(figures[0].at["bytes"])) >> 20
    yield (
        f"Bytes of {size} MiB. dstore and Ray hand out memory that is mapped, whose pages are entered "
        "when they are used; the others hand out bytes of the process's own. Ray's reader is on the "
        "writer's host."
    )
    yield ""
    yield from _grid(figures, lambda each: str(each.at["step"]))


def _moving(results: Results) -> Iterator[str]:
    figures = results.of("moving")
    if not figures:
        return
    size = int(float(figures[0].at["bytes"])) >> 20
    yield "## Small requests while a large value moves"
    yield ""
    yield f"A GET of 100 bytes that Global answers, while {size} MiB move to or from another Node."
    yield ""
    yield from _contenders(figures)


def _joins(results: Results) -> Iterator[str]:
    figures = results.of("join")
    if not figures:
        return
    yield "## Joining"
    yield ""
    yield "From the making of a client to its first answer; of many at once, until the last one has it."
    yield ""
    yield from _grid(figures, lambda each: _count(each.at["newcomers"], "newcomer", "newcomers"))


def _memory(results: Results) -> Iterator[str]:
    figures, servers = results.of("memory"), results.of("memory_server")
    if figures:
        yield "## Memory"
        yield ""
        yield (
            "For each cached key, beyond its key and value as Python objects (162 bytes here, of which "
            "113 are their characters and bytes). By Python: what it has allocated, exactly. By the "
            "system: growth of private memory, with all that allocators keep."
        )
        yield ""
        yield from _grid(figures, lambda each: str(each.at["counted"]))
    if servers:
        yield "For each key in the server, beyond the bytes of key and value, by the system:"
        yield ""
        yield from _contenders(servers)


def _growth(results: Results) -> Iterator[str]:
    for workload, axis, remark in (
        ("growth_keys", "keys", "Global and the Node's cache both have so many keys."),
        ("growth_locals", "Locals", "So many Locals have joined; all but one hold nothing."),
    ):
        figures = results.of(workload)
        if not figures:
            continue
        yield f"## Growth over {axis}"
        yield ""
        yield remark
        yield ""
        yield f"![Time of each operation over the number of {axis}]({workload}.svg)"
        yield from _grid(figures, lambda each: f"{each.at[axis.lower()]:,} {axis}")  # noqa: B023


def _left_out(results: Results) -> Iterator[str]:
    yield "## Left out"
    yield ""
    if not results.skips:
        yield "Nothing."
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in results.skips:
        reasons.setdefault((skip.who, skip.why), []).append(skip.workload)
    for (who, why), workloads in reasons.items():
        yield f"- {who} ({', '.join(dict.fromkeys(workloads))}): {why}"

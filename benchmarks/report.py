"""The report: what a run has found, as Markdown. Pictures are :mod:`benchmarks.plots`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from benchmarks import sections
from benchmarks.goals import GOALS, Goal
from benchmarks.measure import Summary
from benchmarks.results import At, Figure, Results, Row
from benchmarks.settings import FULL
from benchmarks.wording import LIMITS, OURS, against, better, digits, heading, quantity, table

HOW = """\
All contenders of a workload take turns in one run, in an order that is rotated from round to
round; the first round warms up. A ratio is computed round by round, and its median is what counts.
For single reads all servers and clients are started anew a few times on the way.
Given are medians, with the quarter points in brackets. Values have 100 bytes unless something else
is said. Servers and clients are processes of one machine and talk over TCP on the loopback
interface; `multiprocessing.Manager` alone has a Unix socket, as it has by default. The bare echo is
a ROUTER and a DEALER in Python, with messages as long as those of dstore's GET: the least that an
answer of another process costs with pyzmq."""


def render(results: Results, pictures: Collection[str] = ()) -> str:
    """The whole report. ``pictures`` are the names of those that lie beside it."""
    parts = (
        _head, _goals, _ahead, sections.rankings, sections.mixed, sections.deletions,
        sections.large, sections.sharing, sections.moving, sections.joins, sections.memory,
        sections.growth, _left_out,
    )  # fmt: skip
    lines = [line for part in parts for line in part(results)]
    shown = [line for line in lines if not _is_missing(line, pictures)]
    return "\n".join(shown).rstrip() + "\n"


def _is_missing(line: str, pictures: Collection[str]) -> bool:
    return line.startswith("![") and line.strip().rpartition("(")[2].rstrip(")") not in pictures


def _head(results: Results) -> Iterator[str]:
    about, machine = results.about, results.about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield from heading(
        "Measured speed",
        f"Written by `scripts/bench` ({results.scale} run, {results.seconds:,.0f} s) on "
        f"{about['date']}, at revision {about['revision'] or 'unknown'}. "
        "[results.json](results.json) has all figures.",
        f"- **Machine:** {machine['cpu'] or machine['architecture']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['kernel']}; load before the run: "
        f"{machine['load_before']}\n- **Versions:** {versions}",
        HOW,
        level=1,
    )


# Goals ------------------------------------------------------------------------------------------


def _goals(results: Results) -> Iterator[str]:
    hasty = f"This was a {results.scale} run, with fewer rounds and a smaller value that moves."
    yield from heading("Goals", "" if results.scale == FULL.name else hasty)
    rows = {row.name: row for row in results.rows}
    titles = ("what", "reference in the same run", "goal", "measured", "dstore", "reference", "")
    yield from table(titles, (_goal(goal, rows.get(goal.name)) for goal in GOALS))


def _goal(goal: Goal, row: Row | None) -> tuple[str, ...]:
    start = (goal.what, goal.reference or "—", goal.words)
    if row is None:
        return (*start, "not measured", "", "", "")
    alone = row.theirs is None
    measured = _ratio(row.ratio, row.unit if alone else "", goal.shown)
    ours = "" if alone else quantity(row.ours.median, row.unit)
    theirs = quantity(row.theirs.median, row.unit) if row.theirs else ""
    return (*start, measured, ours, theirs, "reached" if row.reached else "**not reached**")


def _ratio(ratio: Summary, unit: str, shown: str) -> str:
    text = quantity(ratio.median, unit) if unit else shown.format(ratio.median)
    if ratio.n == 1:
        return text
    low, high = (quantity(end, unit) if unit else digits(end) for end in (ratio.p25, ratio.p75))
    return f"{text} ({low} … {high})"


# Peers ------------------------------------------------------------------------------------------


def _ahead(results: Results) -> Iterator[str]:
    """Where somebody else is the better choice, for speed."""
    lines = []
    for workload in dict.fromkeys(figure.workload for figure in results.figures):
        if workload.startswith(("growth", "moving", "peak")):
            continue
        figures = results.of(workload)
        for at in _places(figures):
            said = _said_ahead([each for each in figures if each.at == at])
            if said:
                lines.append(f"- {_where(workload, at)}: {said}")
    yield from heading("Where others are ahead of dstore")
    yield from lines or ["Nowhere in this run."]
    yield ""


def _said_ahead(figures: list[Figure]) -> str:
    mine = [each for each in figures if each.who.startswith(OURS)]
    ours = next((each for each in mine if not any(better(other, each) for other in mine)), None)
    others = [each for each in figures if not each.who.startswith(OURS) and each.who not in LIMITS]
    ahead = [(each, against(each, ours)) for each in others if ours and better(each, ours)]
    return ", ".join(f"{each.who} ({words})" if words else each.who for each, words in ahead)


def _places(figures: Iterable[Figure]) -> list[At]:
    found: list[At] = []
    for figure in figures:
        if figure.at not in found:
            found.append(figure.at)
    return found


def _where(workload: str, at: At) -> str:
    """``mixed, processes 8, deletions 0.1``."""
    words = [
        each if isinstance(each, str) else f"{name} {each:g}"
        for name, each in at.items()
        if name != "bytes"
    ]
    return ", ".join([f"`{workload}`", *words])


def _left_out(results: Results) -> Iterator[str]:
    yield from heading("Left out")
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in results.skips:
        reasons.setdefault((skip.who, skip.why), []).append(f"`{skip.workload}`")
    for (who, why), workloads in reasons.items():
        yield f"- {who}, in {', '.join(dict.fromkeys(workloads))}: {why}"
    if not reasons:
        yield "Nothing."

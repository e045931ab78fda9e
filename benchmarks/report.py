"""The report: what a run has found, as Markdown. Pictures are :mod:`benchmarks.plots`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from benchmarks.goals import GOALS, Goal
from benchmarks.measure import Summary
from benchmarks.results import At, Figure, Results, Row
from benchmarks.wording import (
    CPU,
    LIMITS,
    OURS,
    against,
    better,
    count,
    digits,
    grid,
    quantity,
    ranking,
    table,
)

HOW = """\
All contenders of a workload take turns in one run, in an order that is rotated from round to
round; the first round warms up. A ratio is computed round by round, and its median is what counts.
For single reads all servers and clients are started anew a few times on the way.
Given are medians, with the quarter points in brackets. Values have 100 bytes unless something else
is said. Servers and clients are processes of one machine and talk over TCP on the loopback
interface; `multiprocessing.Manager` alone has a Unix socket, as it has by default. The bare echo is
a ROUTER and a DEALER in Python, with messages as long as those of dstore's GET: the least that an
answer of another process costs with pyzmq."""

RANKINGS = {
    "hit": (
        "A key that this process has read before",
        "dict, lru_cache and cachetools know of no other process. redis-py without its cache, the "
        "Manager and NATS ask their server each time. ProxyStore's cache hears of no deletion, and "
        "is for few, large objects: it looks through a list, of some thousand entries here.",
    ),
    "miss": (
        "A key that this process has never read",
        "One client, one request at a time. What ProxyStore and Ray read can never change.",
    ),
    "get_many": ("A hundred cold keys in one call", "Keys a second."),
    "clients": ("Misses of several processes at once", "Of all processes together, a second."),
}
"""The workloads in which every contender has one figure: heading and remark."""


def render(results: Results, pictures: Collection[str] = ()) -> str:
    """The whole report. ``pictures`` are the names of those that lie beside it."""
    parts = (
        _head, _goals, _ahead, _rankings, _mixed, _deletions, _large, _sharing, _moving, _joins,
        _memory, _growth, _left_out,
    )  # fmt: skip
    lines = [line for part in parts for line in part(results)]
    shown = [line for line in lines if not _is_missing(line, pictures)]
    return "\n".join(shown).rstrip() + "\n"


def _is_missing(line: str, pictures: Collection[str]) -> bool:
    return line.startswith("![") and line.strip().rpartition("(")[2].rstrip(")") not in pictures


def _picture(name: str, words: str) -> str:
    return f"![{words}]({name}.svg)\n"


def _heading(text: str, *paragraphs: str, level: int = 2) -> Iterator[str]:
    yield "#" * level + f" {text}\n"
    for paragraph in paragraphs:
        if paragraph:
            yield paragraph + "\n"


def _head(results: Results) -> Iterator[str]:
    about, machine = results.about, results.about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield from _heading(
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
    yield from _heading("Goals")
    rows = {row.name: row for row in results.rows}
    heading = ("what", "reference in the same run", "goal", "measured", "dstore", "reference", "")
    yield from table(heading, (_goal(goal, rows.get(goal.name)) for goal in GOALS))


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
    yield from _heading("Where others are ahead of dstore")
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


def _rankings(results: Results) -> Iterator[str]:
    yield from _heading(
        "Peers side by side", _picture("peers", "Medians of all contenders, as bars").rstrip()
    )
    for workload, (words, remark) in RANKINGS.items():
        figures = results.of(workload)
        if figures:
            yield from _heading(words, remark, level=3)
            yield from ranking(figures)


def _mixed(results: Results) -> Iterator[str]:
    figures = results.of("mixed")
    if not figures:
        return
    yield from _heading(
        "Zipf reads with deletions",
        "Operations a second, of all processes together. Each process reads keys by Zipf's law; "
        "the given share of its operations deletes a key and binds it anew. ProxyStore is there "
        "without deletions only: the caches of other processes do not hear of them. NATS' client "
        "is for asyncio, and enters its event loop for each operation here. redis-py's cache looks "
        "through all its entries for each key that it is told of.",
        _picture("mixed", "Operations a second over the number of processes").rstrip(),
    )
    for share in sorted({float(each.at["deletions"]) for each in figures}):
        yield from _heading(f"{share:.0%} deletions", level=3)
        here = [each for each in figures if each.at["deletions"] == share]
        yield from grid(here, lambda each: count(each.at["processes"], "process", "processes"))


def _deletions(results: Results) -> Iterator[str]:
    figures = results.of("delete")
    if not figures:
        return
    yield from _heading(
        "DEL",
        "dstore's DEL returns when none of the holders can answer with the value any more. Redis "
        "tells the caches of its clients, but its DEL does not wait for them; the others have no "
        f"caches. All processes share {_cores(results)} here, so that holders and bystanders, who "
        "hear of each deletion, take turns at them with the one that deletes.",
        _picture("delete", "Time of a DEL over the number of holders").rstrip(),
    )
    yield from grid(figures, _holders)


def _cores(results: Results) -> str:
    return count(results.about["machine"]["cores"], "core", "cores")


def _holders(figure: Figure) -> str:
    holders, bystanders = figure.at["holders"], figure.at["bystanders"]
    text = count(holders, "holder", "holders") if holders else "no holder"
    return text + (f", {bystanders} bystanders" if bystanders else "")


def _large(results: Results) -> Iterator[str]:
    figures = results.of("large")
    if not figures:
        return
    yield from _heading(
        "Large values",
        f"Bytes, {_mib(figures)} of them. dstore and Ray hand out memory that is mapped, whose "
        "pages are entered as they are used; the others hand out bytes of the process's own. "
        "Ray has them as a NumPy array, and its readers are on the writer's host.",
    )
    yield from grid(figures, lambda each: str(each.at["step"]))


def _sharing(results: Results) -> Iterator[str]:
    figures, peaks = results.of("sharing"), results.of("peak")
    if figures:
        processes = count(figures[0].at["processes"], "process", "processes")
        yield from _heading(
            "One copy per host",
            f"{processes} read {_mib(figures)} at once; dstore's are on one host, and Global is on "
            "another.",
        )
        yield from grid(figures, lambda each: str(each.at["what"]))
    if peaks:
        yield f"Private memory at its peak, while a file of {_mib(peaks)} is uploaded and read:\n"
        yield from ranking(peaks)


def _moving(results: Results) -> Iterator[str]:
    figures = results.of("moving")
    if not figures:
        return
    yield from _heading(
        "Small requests while a large value moves",
        f"A GET of 100 bytes that Global answers, while {_mib(figures)} move to or from another "
        "Node. The goal counts the worse of the two directions.",
    )
    yield from ranking(figures)


def _mib(figures: list[Figure]) -> str:
    return f"{int(float(figures[0].at['bytes'])) >> 20:,} MiB"


def _joins(results: Results) -> Iterator[str]:
    figures = results.of("join")
    if not figures:
        return
    yield from _heading(
        "Joining",
        "From the making of a client to its first answer; of many at once, until the last one has "
        "its answer.",
    )
    yield from grid(figures, lambda each: count(each.at["newcomers"], "newcomer", "newcomers"))


# The store as a whole ---------------------------------------------------------------------------


def _memory(results: Results) -> Iterator[str]:
    figures, servers = results.of("memory"), results.of("memory_server")
    if figures:
        yield from _heading(
            "Memory",
            "For each cached key, beyond its key and value as Python objects, which a plain dict "
            "holds as well. By Python: what it has allocated, exactly. By the system: how much the "
            "private memory of the process has grown, with all that allocators keep in reserve.",
        )
        yield from grid(figures, lambda each: str(each.at["counted"]))
    if servers:
        yield "For each key in the server, beyond the bytes of key and value, by the system:\n"
        yield from ranking(servers)


def _growth(results: Results) -> Iterator[str]:
    for workload, axis, remark in (
        ("growth_keys", "keys", "Global has so many keys, and the Node's cache all of them."),
        (
            "growth_locals",
            "Locals",
            "So many Locals have joined, each a process; all but one hold nothing. They hear of "
            f"each deletion, and share {_cores(results)} with all that is measured.",
        ),
    ):
        figures = results.of(workload)
        if figures:
            picture = _picture(workload, f"Time of each operation over the number of {axis}")
            words = (
                "Operations follow each other without a pause, but for those after a rest: when "
                "they come, nothing of the one before is still on its way to the other Locals. "
                f'"{CPU}" is the time for which its process has run, for each DEL without a pause.'
            )
            yield from _heading(f"Growth over {axis}", f"{remark} {words}", picture.rstrip())
            name = axis.lower()
            yield from grid(figures, lambda each: f"{each.at[name]:,}")  # noqa: B023


def _left_out(results: Results) -> Iterator[str]:
    yield from _heading("Left out")
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in results.skips:
        reasons.setdefault((skip.who, skip.why), []).append(f"`{skip.workload}`")
    for (who, why), workloads in reasons.items():
        yield f"- {who}, in {', '.join(dict.fromkeys(workloads))}: {why}"
    if not reasons:
        yield "Nothing."

"""The report of a run as Markdown: the goals, a table for each workload, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.goals import GOALS, Goal
from benchmarks.measure import Summary
from benchmarks.results import At, GoalResult, Measurement, Results
from benchmarks.settings import FULL, MIB

OURS = "dstore"
LIMITS = frozenset({
    "bare echo", "one bare frame", "dict.get", "one fdatasync", "Global in memory",
})  # fmt: skip
"""Contenders that are no peers: they show what the machine can do."""
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
VERDICTS = {True: "reached", False: "**not reached**", None: ""}
HOW = """\
All contenders of a workload take turns in one run, in an order that rotates from round to round;
the first round warms up and is not counted. A ratio is computed for each round, and the median of
these ratios counts. For single reads all servers and clients are started again a few times on the
way. *Fastest* is the ratio of the fastest tenth of each side's rounds: a message takes twice as
long or more where the system has put the two processes on two cores, and the fastest rounds of both
were placed alike. The tables have medians, with the quartiles in brackets. Values have 100 bytes
unless something else is said. Servers and clients are processes of one machine and talk over TCP on
the loopback interface; `multiprocessing.Manager` alone has a Unix socket, which is its default. The
bare echo is a ROUTER and a DEALER in Python, with messages as long as those of dstore's GET: the
least that an answer of another process costs with pyzmq."""

SECTIONS = {
    "hit": (
        "A key that this process has read before",
        "`dstore, pure` is a process with DSTORE_PURE=1, measured if the other one is compiled. "
        "dict, lru_cache and cachetools know of no other process. redis-py without its cache, the "
        "Manager and NATS ask their server each time. ProxyStore's cache learns of no deletion and "
        "is made for a few large objects: it searches a list, of some thousand entries here. 500 "
        "keys stay in the caches of the processor, and of 10,000 most do not; those who are slow "
        "have fewer keys. The time of the bare loop is subtracted.",
    ),
    "miss": (
        "A key that this process has never read",
        "One client, one request at a time. What ProxyStore and Ray read can never change.",
    ),
    "clients": ("Misses of several processes at once", "Of all processes together, per second."),
    "get_many": ("A hundred cold keys in one call", "Keys per second."),
    "host_first": (
        "First read in a process of what another process of the host has read",
        "The other process stays, and has read each key twice. The mean of a block is one sample.",
    ),
    "host_many": (
        "A hundred keys in one call, on a host that has them",
        "Keys per second. They are new to the process that asks.",
    ),
    "host_requests": (
        "How many keys Global was asked for",
        "For each key that was read in the workload, or for each fork.",
    ),
    "mixed": (
        "Zipf reads with deletions",
        "Operations per second, of all processes of one host together. Each reads keys by Zipf's "
        "law; the given share of its operations deletes a key and binds it again. ProxyStore takes "
        "part without deletions only, since the caches of other processes do not learn of them. "
        "NATS' client is for asyncio and enters its event loop for each operation here. redis-py's "
        "cache searches all its entries for each key that is invalidated.",
    ),
    "delete": (
        "DEL",
        "dstore's DEL returns when no holder can answer with the value any more. Redis invalidates "
        "the caches of its clients, but its DEL does not wait for them; the others have no caches. "
        "All processes share the cores of one machine, so that holders and bystanders, which "
        "receive each invalidation, compete with the process that deletes.",
    ),
    "host_delete": (
        "DEL of what the Nodes of one host hold",
        "Global and the program that deletes are on the same host. Each process has equally many "
        "Nodes, and there are at most as many processes as in other workloads: 64 Nodes are in 8.",
    ),
    "host_sessions": (
        "Sessions and confirmations on one host",
        "With the Nodes of the workload before. The program that deletes is a Node, too.",
    ),
    "large": (
        "Large values",
        "dstore and Ray hand out mapped memory, whose pages are entered as they are used; the "
        "others hand out bytes of the process's own. Ray has them as a NumPy array, and its "
        "readers are on the writer's host.",
    ),
    "sharing": (
        "One copy per host",
        "Several processes read one value at once. dstore's are on one host, and Global is on "
        "another one.",
    ),
    "peak": (
        "Private memory at its peak",
        "While a file is uploaded and read.",
    ),
    "moving": (
        "Small requests while a large value moves",
        "A GET of 100 bytes that Global answers, while the value moves to or from another Node. "
        "The goal counts the worse of the two directions.",
    ),
    "durable_set": (
        "SET that survives a crash",
        "One writer. Each is on the disk when it is confirmed; diskcache syncs with this "
        "setting alone. A Global in memory, which a crash empties, and the bare write of a page "
        "with one fdatasync are no peers.",
    ),
    "durable_writers": (
        "SETs of several processes that survive a crash",
        "Of all processes together, per second.",
    ),
    "durable_reads": (
        "Reads while others write",
        "A Node without a cache reads keys that nobody writes. All processes share the cores of "
        "one machine, so writers delay reads also where nothing is on a disk.",
    ),
    "durable_start": (
        "The start of a server that has data",
        "From the start of its process to the first answer of a client. The system still has the "
        "files in memory. NATS takes no part, since it syncs each key, and diskcache "
        "reads from the disk and has no start.",
    ),
    "keyed_hit": (
        "Hits with keys",
        "A hit sends nothing, so that nothing is encrypted.",
    ),
    "keyed_miss": (
        "Misses with keys",
        "All that travels is encrypted, with keys (CURVE).",
    ),
    "keyed_large": (
        "A large value with keys",
        "First read on another host than Global's, with keys and without.",
    ),
    "join": (
        "Joining",
        "From the creation of a client to its first answer; of many at once, until the last one "
        "has its answer.",
    ),
    "answer": (
        "The first answer of a new process",
        "From the creation of a client, on Global's host, in a process that has imported the "
        "library and has made no client before.",
    ),
    "fork": (
        "The first hit of a forked child",
        "The parent has this number of keys in its cache.",
    ),
    "host_memory": (
        "Memory of the processes of one host",
        "By how much the proportional set size of all of them together grows while each reads the "
        "same 100,000 values twice; in a short run, fewer.",
    ),
    "memory": (
        "Memory of a cached key",
        "Beyond its key and value as Python objects, which a plain dict holds as well. By Python: "
        "what it has allocated, exactly. By the system: how much the private memory of the process "
        "has grown, with all that allocators keep in reserve.",
    ),
    "memory_server": (
        "Memory of a key in the server",
        "Beyond the bytes of key and value, by the system.",
    ),
    "growth_keys": (
        "Growth over keys",
        "Global has this number of keys, and the Node's cache has all of them. Operations follow "
        "each other without a pause. A DEL after a rest comes when no message of the DEL before is "
        "still on its way. The CPU of Global is its process's time for each DEL without a pause.",
    ),
    "growth_locals": (
        "Growth over Locals",
        "This number of Locals have joined, each in a process; all but one hold nothing. They "
        "receive each invalidation, and share the cores with all that is measured.",
    ),
}
"""Heading and remark of each workload."""
NO_RANKING = (
    "growth", "moving", "durable_reads", "peak", "fork", "host_requests", "host_sessions",
    "keyed_hit", "keyed_miss", "keyed_large",
)  # fmt: skip
"""Workloads whose contenders are operations of dstore, and not peers."""


def render(results: Results) -> str:
    """Return the whole report."""
    parts = [*_head(results), *_goals(results), *_ahead(results)]
    for name, (title, remark) in SECTIONS.items():
        if found := results.of(name):
            parts += [f"## {title}", remark, _table_of(found)]
    return "\n\n".join([*parts, *_left_out(results)]) + "\n"


def _head(results: Results) -> Iterator[str]:
    about, machine = results.about, results.about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield "# Measured speed"
    yield (
        f"Written by `scripts/bench` ({results.scale} run, {results.seconds:,.0f} s) on "
        f"{about['date']}, at revision {about['revision'] or 'unknown'}. "
        "[results.json](results.json) has all numbers."
    )
    yield (
        f"- **Machine:** {machine['cpu'] or machine['architecture']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['kernel']}; load before the run: "
        f"{machine['load_before']}\n- **Versions:** {versions}\n"
        f"- **Hit of `dstore`:** {about.get('hit', 'pure Python')}"
    )
    yield HOW


def _goals(results: Results) -> Iterator[str]:
    yield "## Goals"
    if results.scale != FULL.name:
        yield f"A {results.scale} run measures less than a full one."
    reached = {each.name: each for each in results.goals}
    titles = "what", "reference in the same run", "goal", "measured", "fastest"
    lines = (_goal_line(goal, reached.get(goal.name)) for goal in GOALS)
    yield table([*titles, "dstore", "reference", ""], lines)


def _goal_line(goal: Goal, result: GoalResult | None) -> tuple[str, ...]:
    start = (goal.what, goal.reference or "—", goal.words)
    if result is None:
        return (*start, "not measured", "", "", "", "")
    verdict = VERDICTS[result.reached]
    if result.theirs is None:
        return (*start, spread(result.ratio, result.unit), "", "", "", verdict)
    measured = goal.shown.format(result.ratio.median)
    if result.ratio.n > 1:
        measured += f" ({digits(result.ratio.p25)} … {digits(result.ratio.p75)})"
    pair = (quantity(each.median, result.unit) for each in (result.ours, result.theirs))
    if result.where:
        measured += f" at {result.where}"
    fastest = "" if result.fastest is None else digits(result.fastest)
    return (*start, measured, fastest, *pair, verdict)


def _ahead(results: Results) -> Iterator[str]:
    """Where a peer is the better choice, as far as speed and memory go."""
    lines = []
    for name in SECTIONS:
        if name.startswith(NO_RANKING):
            continue
        for at, found in _by_place(results.of(name)).items():
            mine = [each for each in found if each.who.startswith(OURS)]
            ours = next((one for one in mine if not any(better(two, one) for two in mine)), None)
            peers = [each for each in found if each not in mine and each.who not in LIMITS]
            ahead = [each for each in peers if ours and better(each, ours)]
            if ahead:
                words = ", ".join(f"{each.who} ({against(each, ours)})" for each in ahead)
                lines.append(f"- `{name}`{at and ', '}{at}: {words}")
    yield "## Where others are ahead of dstore"
    yield "\n".join(lines) or "Nowhere in this run."


def _table_of(found: Sequence[Measurement]) -> str:
    """Return a ranking of the contenders, or, with several places, a grid of medians."""
    places = _by_place(found)
    if len(places) == 1:
        return "\n\n".join([*filter(None, places), ranking(found)])
    names = list(dict.fromkeys(each.who for each in found))
    lines = []
    for at, here in places.items():
        cells = {each.who: quantity(each.summary.median, each.unit) for each in here}
        lines.append([at, *(cells.get(name, "") for name in names)])
    return table(["", *names], lines)


def ranking(found: Sequence[Measurement]) -> str:
    """Return a table of the contenders, the best first."""
    ours = next((each for each in found if each.who == OURS), None)
    tails = any(each.summary.p99 is not None for each in found)
    lines = []
    for each in sorted(found, key=lambda each: each.summary.median, reverse=found[0].unit == "1/s"):
        line = [f"**{each.who}**" if each is ours else each.who, spread(each.summary, each.unit)]
        if tails:
            line.append("" if each.summary.p99 is None else quantity(each.summary.p99, each.unit))
        lines.append([*line, against(each, ours)] if ours else line)
    return table(
        ["", "median", *(["p99"] if tails else []), *(["against dstore"] if ours else [])], lines
    )


def _by_place(found: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    places: dict[str, list[Measurement]] = {}
    for each in found:
        places.setdefault(_place(each.at), []).append(each)
    return places


def _place(at: At) -> str:
    """``processes 8, deletions 0.1``."""
    words = []
    for name, each in at.items():
        if isinstance(each, str):
            words.append(each)
        else:
            words.append(f"{int(each) >> 20:,} MiB" if name == "bytes" else f"{name} {each:,}")
    return ", ".join(words)


def _left_out(results: Results) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in results.skips:
        reasons.setdefault((skip.who, skip.why), []).append(f"`{skip.workload}`")
    yield "## Left out"
    yield (
        "\n".join(
            f"- {who}, in {', '.join(dict.fromkeys(workloads))}: {why}"
            for (who, why), workloads in reasons.items()
        )
        or "Nothing."
    )


# Numbers as people read them ----------------------------------------------------------------


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose other columns are numbers."""
    rule = "|---" + "|---:" * (len(heading) - 1) + "|"
    cells = [" | ".join(line) for line in (heading, *lines)]
    return "\n".join([f"| {cells[0]} |", rule, *(f"| {line} |" for line in cells[1:])])


def quantity(value: float, unit: str) -> str:
    """``quantity(0.0000123, "s") == "12.3 µs"``."""
    if unit == "s":
        size = abs(value)
        factor, name = next((pair for pair in UNITS if size >= pair[0]), UNITS[-1])
        return f"{digits(value / factor)} {name}"
    if unit == "1/s":
        return f"{digits(value)} /s"
    return f"{digits(value / MIB)} MiB" if abs(value) >= MIB else f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Return a number with three significant digits."""
    if abs(value) < 100:
        return f"{value:.3g}"
    places = len(str(int(abs(value)))) - 3
    return f"{round(value, -places):,.0f}"


def spread(summary: Summary, unit: str) -> str:
    """Return the median, and the quartiles if there is more than one sample."""
    if summary.n == 1:
        return quantity(summary.median, unit)
    low, high = quantity(summary.p25, unit), quantity(summary.p75, unit)
    return f"{quantity(summary.median, unit)} ({low} … {high})"


def better(one: Measurement, other: Measurement) -> bool:
    """Return whether ``one`` is faster or smaller than ``other``."""
    if one.unit == "1/s":
        return one.summary.median > other.summary.median
    return one.summary.median < other.summary.median


def against(measurement: Measurement, ours: Measurement | None) -> str:
    """Return how a contender compares with dstore, or nothing if the two cannot be compared."""
    if ours is None or measurement is ours:
        return ""
    values = measurement.summary.median, ours.summary.median
    if min(values) <= 0:
        return ""
    ratio = values[0] / values[1] if measurement.unit != "1/s" else values[1] / values[0]
    less, more = ("smaller", "larger") if measurement.unit == "bytes" else ("faster", "slower")
    return f"{digits(ratio)} times {more}" if ratio > 1 else f"{digits(1 / ratio)} times {less}"

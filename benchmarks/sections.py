"""The sections of the report, one for each workload or group of them; empty if it did not run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.results import Figure, Results
from benchmarks.wording import CPU, count, grid, heading, picture_of, ranking

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


def rankings(results: Results) -> Iterator[str]:
    yield from heading(
        "Peers side by side", picture_of("peers", "Medians of all contenders, as bars").rstrip()
    )
    for workload, (words, remark) in RANKINGS.items():
        figures = results.of(workload)
        if figures:
            yield from heading(words, remark, level=3)
            yield from ranking(figures)


def mixed(results: Results) -> Iterator[str]:
    figures = results.of("mixed")
    if not figures:
        return
    yield from heading(
        "Zipf reads with deletions",
        "Operations a second, of all processes together. Each process reads keys by Zipf's law; "
        "the given share of its operations deletes a key and binds it anew. ProxyStore is there "
        "without deletions only: the caches of other processes do not hear of them. NATS' client "
        "is for asyncio, and enters its event loop for each operation here. redis-py's cache looks "
        "through all its entries for each key that it is told of.",
        picture_of("mixed", "Operations a second over the number of processes").rstrip(),
    )
    for share in sorted({float(each.at["deletions"]) for each in figures}):
        yield from heading(f"{share:.0%} deletions", level=3)
        here = [each for each in figures if each.at["deletions"] == share]
        yield from grid(here, lambda each: count(each.at["processes"], "process", "processes"))


def deletions(results: Results) -> Iterator[str]:
    figures = results.of("delete")
    if not figures:
        return
    yield from heading(
        "DEL",
        "dstore's DEL returns when none of the holders can answer with the value any more. Redis "
        "tells the caches of its clients, but its DEL does not wait for them; the others have no "
        f"caches. All processes share {_cores(results)} here, so that holders and bystanders, who "
        "hear of each deletion, take turns at them with the one that deletes.",
        picture_of("delete", "Time of a DEL over the number of holders").rstrip(),
    )
    yield from grid(figures, _holders)


def _cores(results: Results) -> str:
    return count(results.about["machine"]["cores"], "core", "cores")


def _holders(figure: Figure) -> str:
    holders, bystanders = figure.at["holders"], figure.at["bystanders"]
    text = count(holders, "holder", "holders") if holders else "no holder"
    return text + (f", {bystanders} bystanders" if bystanders else "")


def large(results: Results) -> Iterator[str]:
    figures = results.of("large")
    if not figures:
        return
    yield from heading(
        "Large values",
        f"Bytes, {_mib(figures)} of them. dstore and Ray hand out memory that is mapped, whose "
        "pages are entered as they are used; the others hand out bytes of the process's own. "
        "Ray has them as a NumPy array, and its readers are on the writer's host.",
    )
    yield from grid(figures, lambda each: str(each.at["step"]))


def sharing(results: Results) -> Iterator[str]:
    figures, peaks = results.of("sharing"), results.of("peak")
    if figures:
        processes = count(figures[0].at["processes"], "process", "processes")
        yield from heading(
            "One copy per host",
            f"{processes} read {_mib(figures)} at once; dstore's are on one host, and Global is on "
            "another.",
        )
        yield from grid(figures, lambda each: str(each.at["what"]))
    if peaks:
        yield f"Private memory at its peak, while a file of {_mib(peaks)} is uploaded and read:\n"
        yield from ranking(peaks)


def moving(results: Results) -> Iterator[str]:
    figures = results.of("moving")
    if not figures:
        return
    yield from heading(
        "Small requests while a large value moves",
        f"A GET of 100 bytes that Global answers, while {_mib(figures)} move to or from another "
        "Node. The goal counts the worse of the two directions.",
    )
    yield from ranking(figures)


def _mib(figures: list[Figure]) -> str:
    return f"{int(float(figures[0].at['bytes'])) >> 20:,} MiB"


def joins(results: Results) -> Iterator[str]:
    figures = results.of("join")
    if not figures:
        return
    yield from heading(
        "Joining",
        "From the making of a client to its first answer; of many at once, until the last one has "
        "its answer.",
    )
    yield from grid(figures, lambda each: count(each.at["newcomers"], "newcomer", "newcomers"))


def memory(results: Results) -> Iterator[str]:
    figures, servers = results.of("memory"), results.of("memory_server")
    if figures:
        yield from heading(
            "Memory",
            "For each cached key, beyond its key and value as Python objects, which a plain dict "
            "holds as well. By Python: what it has allocated, exactly. By the system: how much the "
            "private memory of the process has grown, with all that allocators keep in reserve.",
        )
        yield from grid(figures, lambda each: str(each.at["counted"]))
    if servers:
        yield "For each key in the server, beyond the bytes of key and value, by the system:\n"
        yield from ranking(servers)


def growth(results: Results) -> Iterator[str]:
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
            picture = picture_of(workload, f"Time of each operation over the number of {axis}")
            words = (
                "Operations follow each other without a pause, but for those after a rest: when "
                "they come, nothing of the one before is still on its way to the other Locals. "
                f'"{CPU}" is the time for which its process has run, for each DEL without a pause.'
            )
            yield from heading(f"Growth over {axis}", f"{remark} {words}", picture.rstrip())
            name = axis.lower()
            yield from grid(figures, lambda each: f"{each.at[name]:,}")  # noqa: B023

"""The results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

KINDS = ("Del", "Synced", "Broadcast", "Ack", "DelReply")


def number(value: float | str) -> str:
    """Return a number with three significant digits, and commas between thousands."""
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"\n{title}\n"
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(number(cell) for cell in row)} |"


def per_message(results: Mapping[str, Any]) -> Iterator[str]:
    core = results["core"]["us_by_sessions"]
    sizes = list(core)
    requests = results["conclusions"]["requests"]
    largest = requests[next(reversed(requests))]
    yield from table(
        "Global's own work, us per message, by open sessions; how many a second, sockets included",
        ["message", *(f"{int(size):,}" for size in sizes), "per second"],
        [
            [kind, *(core[size][kind] for size in sizes), largest[kind]["per_second"]]
            for kind in core[sizes[0]]
        ],
    )


def sockets(results: Mapping[str, Any]) -> Iterator[str]:
    found = results["sockets"]
    yield from table(
        "Sockets, us (a broadcast: a fixed part, and one for each subscriber)",
        ["what", "Global's thread", "I/O thread"],
        [[name, own * 1e6, io * 1e6] for name, own, io in _priced(found["prices"])]
        + [
            ["ping and answer", 0, found["ping_io_us"]],
            ["a broadcast in a burst, each subscriber", 0, _each(found["burst"])],
            [
                "1,000 bytes more of a broadcast, each subscriber",
                0,
                found["prices"]["io_byte"] * 1e9,
            ],
        ],
    )


def _priced(prices: Mapping[str, float]) -> list[tuple[str, float, float]]:
    return [
        ("receive", prices["receive"], prices["io_receive"]),
        ("send", prices["send"], prices["io_send"]),
        ("broadcast, fixed", prices["publish"], 0.0),
        ("broadcast, each subscriber", prices["publish_each"], prices["io_publish_each"]),
    ]


def _each(found: Mapping[str, float]) -> float:
    return found["io_us"] / found["subscribers"]


def counted(results: Mapping[str, Any]) -> Iterator[str]:
    yield from table(
        "What one miss says and costs",
        ["Locals", "messages", "bytes", "Global us", "I/O thread us"],
        [
            [
                int(size),
                sum(results["counts"][size]["misses"]["messages"].values())
                / results["counts"][size]["misses"]["count"],
                sum(each["bytes"].values()) / each["count"],
                *(each[name] / each["count"] * 1e6 for name in ("busy_s", "io_s")),
            ]
            for size, each in ((size, each["misses"]) for size, each in results["costs"].items())
        ],
    )
    yield from table(
        "What the leases say in one period (a third of a lease)",
        ["Locals", "SYNC", "SYNCED", "bytes"],
        [
            [
                int(size),
                *(each["messages"][kind] for kind in ("Sync", "Synced")),
                sum(each["bytes"].values()),
            ]
            for size, each in ((size, each["leases"]) for size, each in results["counts"].items())
        ],
    )
    yield from table(
        "What one DEL says (counted, the same in every run)",
        ["Locals", "holders", "DEL", "targeted", "broadcast", "ACK", "reply", "bytes"],
        [
            [
                each["locals"],
                each["holding"],
                *(each["messages"].get(kind, 0) for kind in KINDS),
                sum(each["bytes"].values()),
            ]
            for found in results["counts"].values()
            for each in found["dels"]
        ],
    )


def deletions(results: Mapping[str, Any]) -> Iterator[str]:
    yield from table(
        "The broadcast that follows, of any number of deletions",
        ["Locals", "not more often than each ms", "bytes", "Global ms", "I/O thread ms"],
        [
            [
                *(each["locals"], each["pause"] * 1e3, sum(each["later"]["bytes"].values())),
                *(each["later"]["busy_s"] * 1e3, each["later"]["io_s"] * 1e3),
            ]
            for found in results["costs"].values()
            for each in found["dels_alone"][:1]
        ],
    )
    yield from table(
        "One DEL alone, and where Global is saturated",
        ["Locals", "holders", "Global ms", "I/O thread ms", "a second", "by Global's thread alone"],
        [
            [
                *(each["locals"], each["holding"], each["own_us"] / 1e3, each["io_us"] / 1e3),
                *(each["per_second"], each["per_second_own"]),
            ]
            for each in results["conclusions"]["dels"]
        ],
    )
    yield from table(
        "One DEL while leases are renewed",
        ["Locals", "holders", "answered after ms", "confirmed", "expired", "targeted"],
        [
            [
                *(each["locals"], each["holding"], each["seconds"] * 1e3),
                *(each["confirmed"], each["expired"], each["reminders"]),
            ]
            for found in results["costs"].values()
            for each in found["dels"]
        ],
    )


def leases(results: Mapping[str, Any]) -> Iterator[str]:
    yield from table(
        "Leases",
        ["Locals", "lease s", "SYNCs a second", "of Global's thread", "of the I/O thread"],
        [
            [
                *(each["locals"], each["lease_s"], each["syncs_per_second"]),
                *(share(each["own_share"]), share(each["io_share"])),
            ]
            for each in results["conclusions"]["renewals"]
        ],
    )


def checked(results: Mapping[str, Any]) -> Iterator[str]:
    found = results["reality"]
    yield from table(
        f"CPU time of a real Global with {found['nodes']} Nodes that all hold the key, us",
        ["", "real", "derived"],
        [
            ["miss", found["real"]["miss_us"], found["derived"]["miss_us"]],
            ["DEL", found["real"]["del_us"], found["derived"]["del_us"]],
        ],
    )


def memory(results: Mapping[str, Any]) -> Iterator[str]:
    found = results["memory"]
    yield from table(
        "Memory at Global, MB",
        ["Locals", "sessions", "connections", "bits of a million keys", "full log"],
        [
            [
                each["locals"],
                *(
                    each[name] / 1e6
                    for name in ("sessions", "connections", "bits_of_a_million_keys", "log")
                ),
            ]
            for each in results["conclusions"]["memory"]
        ],
    )
    yield from table(
        "Bytes of each",
        ["what", "bytes"],
        [
            *([f"session, of {size}", value] for size, value in found["session_bytes"].items()),
            ["connection", found["connection_bytes"]],
            ["deletion in the log", found["log_entry_bytes"]],
            *(
                [f"bits of a key, {each['holding']:,} of {each['locals']:,}", each["bytes"]]
                for each in found["holder_bits"]
            ),
        ],
    )


def report(results: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    for part in (per_message, sockets, counted, deletions, leases, memory, checked):
        yield from part(results)

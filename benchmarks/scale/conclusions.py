"""Where one Global is saturated: rates and shares, derived from measurements and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scale.cluster import Prices
from dstore.core.local.state import RENEW

LEASES = (0.5, 2.0, 5.0, 10.0, 30.0)
CONNECTIONS = 3
"""The connections of a Local: control, invalidations, and the requests of one thread."""
PINGS = CONNECTIONS
"""Each connection is pinged once a second."""
SHARE = 0.5
"""The share of its time that Global should have left for requests."""
KEYS = 1_000_000


def requests(core_us: Mapping[str, float], prices: Prices) -> dict[str, Any]:
    """Return how many requests of each kind Global answers in a second, if it does nothing else.

    ``io_per_second`` is what the I/O thread can do if no two come from one connection at a time.
    """
    io = prices.io_receive + prices.io_send
    found = {}
    for kind, us in core_us.items():
        own = us * 1e-6 + prices.receive + (prices.send if kind != "ACK" else 0.0)
        found[kind] = {"own_us": own * 1e6, "per_second": 1 / own, "io_per_second": 1 / io}
    return found


def renewals(size: int, sync_us: float, ping_us: float, prices: Prices) -> list[dict[str, Any]]:
    """Return what leases of each length cost: shares of the time of Global's two threads."""
    own = sync_us * 1e-6 + prices.receive + prices.send
    io = prices.io_receive + prices.io_send
    pings = size * PINGS * ping_us * 1e-6
    found = []
    for lease in LEASES:
        rate = size / (RENEW * lease)
        io_share = rate * io + pings
        found.append(
            {
                "locals": size,
                "lease_s": lease,
                "syncs_per_second": rate,
                "own_share": rate * own,
                "io_share": io_share,
                "locals_at_half": SHARE * size / max(rate * own, io_share),
            }
        )
    return found


def deletions(alone: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how many DELs per second there can be, if Global does nothing else.

    It broadcasts them with pauses. The I/O thread can do more than that: of broadcasts that wait
    for it, it writes many to a connection at a time. Global's thread has no such reserve.
    """

    def per_second(each: Mapping[str, Any], name: str) -> float:
        rate: float = (1 - each["later"][name] / each["pause"]) / each[name]
        return rate

    return [
        {
            "locals": each["locals"],
            "holding": each["holding"],
            "own_us": each["busy_s"] * 1e6,
            "io_us": each["io_s"] * 1e6,
            "bytes": sum(each["bytes"].values()),
            "per_second": min(per_second(each, "busy_s"), per_second(each, "io_s")),
            "per_second_own": per_second(each, "busy_s"),
        }
        for each in alone
    ]


def memory(size: int, weighed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bytes that this number of Locals take at Global."""
    widest = [each for each in weighed["holder_bits"] if each["locals"] == size]
    return {
        "locals": size,
        "sessions": size * weighed["session_bytes"][str(size)],
        "connections": size * CONNECTIONS * weighed["connection_bytes"],
        "bits_of_a_million_keys": KEYS * max(each["bytes"] for each in widest),
        "log": weighed["log_length"] * weighed["log_entry_bytes"],
    }


def derive(results: Mapping[str, Any], prices: Prices) -> dict[str, Any]:
    core = results["core"]["us_by_sessions"]
    ping_us = results["sockets"]["ping_io_us"]
    sizes = [int(size) for size in core]
    return {
        "requests": {size: requests(core[str(size)], prices) for size in sizes},
        "renewals": [
            each
            for size in sizes
            for each in renewals(size, core[str(size)]["SYNC"], ping_us, prices)
        ],
        "dels": [
            each for size in sizes for each in deletions(results["costs"][str(size)]["dels_alone"])
        ],
        "memory": [memory(size, results["memory"]) for size in sizes],
    }

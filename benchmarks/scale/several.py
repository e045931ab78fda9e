"""How several Globals carry 10,000 Locals, by their real core and measured costs.

``python -m benchmarks.scale.several [--quick] [--locals N] [--out docs/scale-globals]`` prints
tables and writes what is in them to ``docs/scale-globals.json``; ``docs/scale.md`` says what
follows from them. The database is a parameter (see :class:`~benchmarks.scale.member.Database`).

With 16, 8, 4, 2 and 1 Globals each of them is simulated with a session of each Local (see
``member``). As members leave, those that are left gain their partitions: what rendezvous hashing
gives them among 16 is a part of what it gives them among 8. What they can do in a second is derived
from the medians of the costs, and from the share of the busiest one.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean, median, quantiles
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.scale import socket_costs
from benchmarks.scale.cluster import Prices, without_collector
from benchmarks.scale.conclusions import CONNECTIONS, PINGS
from benchmarks.scale.experiments import Laboratory, said
from benchmarks.scale.member import Database, Member, members, owned
from benchmarks.scale.tables import share, table
from dstore.config import LEASE_DEFAULT, OWNERSHIP_LEASE_DEFAULT
from dstore.core.local.state import RENEW
from dstore.protocol.partitions import PARTITIONS, partition_of

GLOBALS = (1, 2, 4, 8, 16)
LOCALS, LOCALS_QUICK = 10_000, 500
LEASES = (2.0, 10.0)
KINDS = ("leases", "misses", "sets", "del_1", "del_tenth")
THREADS = ("busy_s", "io_s")
"""Global's own thread, and its I/O thread."""
KEYS_OF_A_LOCAL = (1, 10, 100)
MANY = tuple(f"many/{number:03}" for number in range(100))
"""The keys of one ``delete_many``."""
LOAD = 0.8
"""The share of the misses that one Global can answer beside its leases, at which they are timed."""
LOAD_SECONDS, LOAD_SECONDS_QUICK = 0.2, 0.02
PING_EVERY = 1e-3
"""Seconds between two moments at which the I/O thread is charged for pings."""
BEATS_PER_LEASE = 3
DRAWS = 200
"""How often ids of members are drawn, to see how even rendezvous hashing is."""
OUT = "docs/scale-globals"


class MemberLaboratory(Laboratory):
    """A member for experiments."""

    cluster: Member

    def __init__(self, member: Member, prices: Prices | None) -> None:
        super().__init__(member, prices)

    def key(self) -> str:
        key = self.cluster.next_key()
        self.cluster.bind(key)
        return key

    def sets(self, count: int) -> dict[str, Any]:
        """Return the traffic of ``count`` SETs, one after the other, and how long each took.

        The time of Global's thread is that of the median, since they take so long that what Global
        does once in a lease falls among those of some members.
        """
        member = self.cluster
        took, busy = [], []
        keys = [member.next_key() for _ in range(count)]
        traffic = self.begin()
        member.renewing = False
        for number, key in enumerate(keys):
            worker = member.workers[number * len(member.workers) // count]
            began, before = member.now, traffic.core + traffic.sockets
            worker.set(key, began)
            member.run_until(lambda worker=worker: len(worker.written) > 0)  # type: ignore[misc]
            worker.written.clear()
            took.append(member.now - began)
            busy.append(traffic.core + traffic.sockets - before)
        member.renewing = True
        own = median(busy) * count
        return {**traffic.totals(), "count": count, "seconds": median(took), "busy_s": own}

    def delete_many(self, holding: int, *, alone: bool) -> dict[str, Any]:
        """Return the traffic of the part of one ``delete_many`` that concerns this member."""
        keys = [key for key in MANY if partition_of(key) in self.cluster.owned]
        for key in keys:
            self.cluster.bind(key)
        if not keys:
            return {"keys": 0, "seconds": 0.0, "messages": {}, "busy_s": 0.0, "io_s": 0.0}
        return {"keys": len(keys), **self.deletion(holding, alone=alone, keys=keys)}

    def load(self, rate: float, seconds: float, ping: float) -> dict[str, Any]:
        """Return how long misses at this rate, from all Locals, waited while leases are renewed.

        ``ping`` is the price of one, in seconds of the I/O thread.
        """
        member, random = self.cluster, Random(1)
        self.begin()
        for worker in member.workers:
            worker.waited.clear()
        begun = member.now
        pings = PINGS * len(member.workers) * PING_EVERY * ping
        for number in range(round(seconds / PING_EVERY)):
            member.at(begun + number * PING_EVERY, lambda now: void(member._io(now, pings)))
        due = begun + random.expovariate(rate)
        while due < begun + seconds:
            worker = random.choice(member.workers)
            member.at(due, partial(worker.get, [self.key()]))
            due += random.expovariate(rate)
        member.run(seconds)
        member.run_until(lambda: not any(each.asked for each in member.workers))
        waited = [each for worker in member.workers for each in worker.waited]
        return {"misses": len(waited), "waited_s": waited}


def void(_: object) -> None:
    """Ignore a result."""


# ---- what is simulated ------------------------------------------------------------------------


class Load(NamedTuple):
    """Misses a second, of all members together, and for how long; the price of a ping."""

    rate: float
    seconds: float
    ping: float


def one(laboratory: MemberLaboratory, load: Load | None, times: int) -> dict[str, Any]:
    """Measure a member, without a load only what it says."""
    member = laboratory.cluster
    tenth = max(1, len(member.workers) // 10)
    found: dict[str, Any] = {
        "partitions": len(member.owned),
        "sessions": len(member.state._sessions),
        "leases": laboratory.leases(),
        "misses": {"count": times, **laboratory.misses(times)},
        "sets": laboratory.sets(times),
        "del_1": laboratory.deletion(1, alone=True),
        "del_tenth": laboratory.deletion(tenth, alone=True),
        "delete_many": laboratory.delete_many(tenth, alone=True),
    }
    if load is None:
        return said(found)
    found["del_tenth_busy"] = laboratory.deletion(tenth, alone=False)
    rate = load.rate * len(member.owned) / PARTITIONS
    found["load"] = laboratory.load(rate, load.seconds, load.ping)
    return found


def simulate(
    size: int,
    counts: Sequence[int],
    database: Database,
    times: int,
    prices: Prices | None = None,
    load: Load | None = None,
) -> dict[int, list[dict[str, Any]]]:
    """Measure each member of these numbers of Globals. Without prices only messages are counted."""
    parts = {count: owned(members(count)) for count in sorted(counts, reverse=True)}
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in sorted(counts)}

    def measure(index: int) -> None:
        member = Member(size, (), database, at_once=prices is None)
        laboratory = MemberLaboratory(member, prices)
        for count, each in parts.items():
            if index < count:
                member.gain(each[index])
                found[count].append(one(laboratory, load, times))

    for index in range(max(counts)):
        measure(index)
        gc.collect()  # it is off while a member is measured
    return found


def load_for(size: int, prices: Prices, ping: float, quick: bool) -> Load:
    """Return a share of the misses that the I/O thread of one Global has room for."""
    io = prices.io_receive + prices.io_send
    left = 1 - size / (RENEW * LEASE_DEFAULT) * io - PINGS * size * ping
    seconds = LOAD_SECONDS_QUICK if quick else LOAD_SECONDS
    return Load(max(1.0, LOAD * left / io), seconds, ping)


# ---- what follows -----------------------------------------------------------------------------


def busiest(count: int) -> dict[str, float]:
    """Return the greatest share of the partitions that a member has, for ids that are drawn."""
    random = Random(count)
    found = [
        max(map(len, owned(tuple(random.randbytes(16) for _ in range(count))))) / PARTITIONS
        for _ in range(DRAWS if count > 1 else 1)
    ]
    return {"median": median(found), "most": max(found)}


def owners_needed(keys: int, parts: Sequence[Sequence[int]]) -> float:
    """Return of how many members a Local needs a session for that many keys, on average."""
    return sum(1 - (1 - len(each) / PARTITIONS) ** keys for each in parts)


def total(found: Sequence[Mapping[str, Any]], name: str) -> Counter[str]:
    """Return the messages of all members together."""
    messages: Counter[str] = Counter()
    for each in found:
        messages.update(each[name]["messages"])
    return messages


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured of all members of a number of Globals: medians, sums, extremes."""
    count = len(found)
    parts = owned(members(count))

    def cost(name: str, thread: str) -> float:
        return float(median(each[name][thread] / each[name].get("count", 1) for each in found))

    def later(thread: str) -> float:
        shares = [each["del_1"]["later"][thread] / each["del_1"]["pause"] for each in found]
        return float(median(shares))

    waited = sorted(each for one in found for each in one["load"]["waited_s"])
    return {
        "globals": count,
        "partitions": [each["partitions"] for each in found],
        "busiest": busiest(count),
        "sessions": sum(each["sessions"] for each in found),
        "connections_of_a_local": CONNECTIONS * count,
        "sessions_of_a_local": {str(keys): owners_needed(keys, parts) for keys in KEYS_OF_A_LOCAL},
        "beats_per_second": count * BEATS_PER_LEASE / OWNERSHIP_LEASE_DEFAULT,
        "cost_us": {
            name: {thread: cost(name, thread) * 1e6 for thread in THREADS} for name in KINDS
        },
        "broadcast_share": {thread: later(thread) for thread in THREADS},
        "set_seconds": median(each["sets"]["seconds"] for each in found),
        "del_1_seconds": median(each["del_1"]["seconds"] for each in found),
        "del_tenth_seconds": median(each["del_tenth_busy"]["seconds"] for each in found),
        "load": {
            "misses": sum(each["load"]["misses"] for each in found),
            "mean_s": mean(waited),
            "median_s": median(waited),
            "99_s": quantiles(waited, n=100)[98],
        },
        "delete_many": {
            "members": sum(each["delete_many"]["keys"] > 0 for each in found),
            "messages": dict(total(found, "delete_many")),
            "seconds": max(each["delete_many"]["seconds"] for each in found),
            "busy_s": sum(each["delete_many"]["busy_s"] for each in found),
            "io_s": sum(each["delete_many"]["io_s"] for each in found),
        },
    }


def derive(
    rows: Sequence[Mapping[str, Any]], size: int, ping: float, database: Database
) -> list[dict[str, Any]]:
    """Return for each number of Globals what leases of each length cost, and leave room for.

    What a message costs its Global does not depend on how many there are. So it is the median over
    all these numbers: what differs between them is the work of other programs, and what a Global
    does once in a lease.
    """
    period = RENEW * LEASE_DEFAULT
    cost = {
        (name, thread): median(each["cost_us"][name][thread] for each in rows) * 1e-6
        for name in KINDS
        for thread in THREADS
    }
    later = {thread: median(each["broadcast_share"][thread] for each in rows) for thread in THREADS}

    def per_second(name: str, used: Mapping[str, float], broadcasts: bool = False) -> float:
        """Return how many a Global can do beside its leases."""
        rates = []
        for thread in THREADS:
            left = 1 - used[thread] - (later[thread] if broadcasts else 0.0)
            rates.append(max(0.0, left) / cost[name, thread])
        return float(min(rates))

    def of(each: Mapping[str, Any], lease: float) -> dict[str, Any]:
        count, even = each["globals"], each["busiest"]["median"]
        used = {
            "busy_s": cost["leases", "busy_s"] / period * LEASE_DEFAULT / lease,
            "io_s": cost["leases", "io_s"] / period * LEASE_DEFAULT / lease + PINGS * size * ping,
        }
        sets = per_second("sets", used) / even
        return {
            "own_share": used["busy_s"],
            "io_share": used["io_s"],
            "renewals_each": size / (RENEW * lease),
            "renewals": count * size / (RENEW * lease),
            "cores": count * sum(used.values()),
            "misses": per_second("misses", used) / even,
            "sets_by_globals": sets,
            "sets": min(sets, 1 / database.row),
            "dels_1": min(per_second("del_1", used, True) / even, 1 / database.row),
            "dels_tenth": min(per_second("del_tenth", used, True) / even, 1 / database.row),
        }

    return [{**each, "leases": {str(lease): of(each, lease) for lease in LEASES}} for each in rows]


# ---- tables -----------------------------------------------------------------------------------


def report(results: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    rows = results["globals"]
    yield from table(
        f"{results['locals']:,} Locals: sessions, and what leases cost",
        [
            *("Globals", "busiest share", "sessions", "a Local of 1 key", "10", "100"),
            *("beats a second", "lease s", "renewals a second", "each", "thread", "I/O", "cores"),
        ],
        [
            [
                *(each["globals"], share(each["busiest"]["median"]), each["sessions"]),
                *each["sessions_of_a_local"].values(),
                *(each["beats_per_second"], float(lease), of["renewals"], of["renewals_each"]),
                *(share(of["own_share"]), share(of["io_share"]), of["cores"]),
            ]
            for each in rows
            for lease, of in each["leases"].items()
        ],
    )
    yield from table(
        "A second, all together, beside the leases",
        [
            *("Globals", "lease s", "misses", "SETs", "by Globals alone"),
            *("DELs, 1 holder", "a tenth hold"),
        ],
        [
            [
                *(each["globals"], float(lease), of["misses"], of["sets"], of["sets_by_globals"]),
                *(of["dels_1"], of["dels_tenth"]),
            ]
            for each in rows
            for lease, of in each["leases"].items()
        ],
    )
    yield from table(
        f"Answered after ms; misses: {results['load']['rate']:,.0f} a second of all Locals",
        ["Globals", "miss, median", "99 %", "SET", "DEL, 1 holder", "a tenth, leases renewed"],
        [
            [
                *(each["globals"], each["load"]["median_s"] * 1e3, each["load"]["99_s"] * 1e3),
                *(each[name] * 1e3 for name in ("set_seconds", "del_1_seconds")),
                each["del_tenth_seconds"] * 1e3,
            ]
            for each in rows
        ],
    )
    yield from table(
        f"One delete_many of {len(MANY)} keys that a tenth holds",
        ["Globals", "asked", "messages", "answered after ms", "Globals' threads ms", "I/O ms"],
        [
            [
                *(each["globals"], found["members"], sum(found["messages"].values())),
                *(found[name] * 1e3 for name in ("seconds", "busy_s", "io_s")),
            ]
            for each in rows
            for found in [each["delete_many"]]
        ],
    )
    yield from table(
        "Us for each, medians over the members: of Global's thread, of its I/O thread",
        ["Globals", *(f"{name}, {of}" for name in rows[0]["cost_us"] for of in ("own", "I/O"))],
        [
            [each["globals"], *(us for of in each["cost_us"].values() for us in of.values())]
            for each in rows
        ],
    )


def measured(size: int, database: Database, quick: bool) -> dict[str, Any]:
    sockets = socket_costs.measure(quick)
    prices, ping = sockets["prices"], sockets["ping_io_us"] * 1e-6
    times = 20 if quick else 200
    about = machine.about()
    load = load_for(size, prices, ping, quick)
    found = without_collector(lambda: simulate(size, GLOBALS, database, times, prices, load))
    return {
        "machine": {**about["machine"], **about["versions"]},
        "quick": quick,
        "locals": size,
        "database": database._asdict(),
        "load": load._asdict(),
        "sockets": {**sockets, "prices": prices._asdict()},
        "globals": derive([summary(each) for each in found.values()], size, ping, database),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="several", description="How several Globals scale.")
    parser.add_argument("--quick", action="store_true", help="fewer Locals, less exactly")
    parser.add_argument("--locals", type=int, metavar="N", help="the number of Locals")
    parser.add_argument(
        "--round-trip",
        type=float,
        default=Database().round_trip,
        metavar="SECONDS",
        help="until the database has committed a group (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path(OUT), help="write the numbers to OUT.json")
    options = parser.parse_args()
    size = options.locals or (LOCALS_QUICK if options.quick else LOCALS)
    results = measured(size, Database(round_trip=options.round_trip), options.quick)
    print("\n".join(report(results)))
    out = options.out.with_name(options.out.name + ".json")
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Counts, and how long Global is busy: one period of renewals, misses, one DEL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scale.cluster import (
    LATENCY,
    Cluster,
    Prices,
    SimulatedLocal,
    Traffic,
    without_collector,
)
from dstore.protocol.messages import DelStatus


def shares(size: int) -> list[int]:
    """Return how many Locals hold the key in the experiments: none, one, a tenth, all."""
    return sorted({0, 1, max(1, size // 10), size})


class Laboratory:
    """A cluster for experiments. Without ``prices`` it says how often, and not how long."""

    def __init__(self, cluster: Cluster, prices: Prices | None) -> None:
        self.cluster = cluster
        self.prices = prices
        self._keys = 0

    def begin(self) -> Traffic:
        """Start to count from zero."""
        self.cluster.prices = self.prices
        self.cluster.traffic = Traffic()
        return self.cluster.traffic

    def key(self) -> str:
        self._keys += 1
        key = f"config/{self._keys:06}"
        self.cluster.bind(key)
        return key

    # ---- leases ---------------------------------------------------------------------------

    def leases(self) -> dict[str, Any]:
        """Return the traffic of one period of renewals, while nothing else happens."""
        traffic = self.begin()
        self.cluster.run(self.cluster.period)
        return traffic.totals()

    # ---- misses ---------------------------------------------------------------------------

    def misses(self, count: int) -> dict[str, Any]:
        """Return the traffic of ``count`` misses, one after the other."""
        keys = [self.key() for _ in range(count)]
        traffic = self.begin()
        self.cluster.renewing = False
        workers = self.cluster.workers
        for number, key in enumerate(keys):
            worker = workers[number * len(workers) // count]
            worker.get([key], self.cluster.now)
            self.cluster.run_until(lambda worker=worker: not worker.asked)  # type: ignore[misc]
        self.cluster.renewing = True
        return traffic.totals()

    # ---- deletions ------------------------------------------------------------------------

    def deletion(self, holding: int, *, alone: bool, keys: Sequence[str] = ()) -> dict[str, Any]:
        """Return the traffic of one DEL of a key that ``holding`` Locals hold; the last Local asks.

        It may have several ``keys``, which are bound. Then the answer is that of the first one.

        With ``alone`` all have just renewed and none does so meanwhile, so that only the DEL is
        counted. Otherwise renewals go on, for one more period, to count what is still queued.
        ``later`` is the broadcast that comes after a ``pause``; the DEL does not wait for it.
        """
        cluster = self.cluster
        keys = list(keys) or [self.key()]
        self._hold(cluster.workers[:holding], keys)
        if alone:
            cluster.renew_all()
        else:
            self.leases()
        traffic = self.begin()
        cluster.renewing = not alone
        reminders, invalidations = cluster.state.counters["reminders"], cluster.state._invalidations
        deleter, began = cluster.workers[-1], cluster.now
        deleter.delete(keys, began)
        cluster.run_until(lambda: len(deleter.deleted) > 0)
        results = deleter.deleted.pop().items
        assert all(each.status is DelStatus.DELETED for each in results)
        took = cluster.now - began
        cluster.renewing = True
        if not alone:
            cluster.run(cluster.period)
        totals = traffic.totals()
        later = self.broadcast()
        return {
            "locals": len(cluster.workers),
            "holding": holding,
            "confirmed": results[0].confirmed,
            "expired": results[0].expired,
            "seconds": took,
            "reminders": cluster.state.counters["reminders"] - reminders,
            "pause": invalidations.broadcasts.pause,
            "later": later,
            **totals,
        }

    def broadcast(self) -> dict[str, Any]:
        """Return the traffic of the broadcast that is still due, if there is one."""
        cluster, renewing = self.cluster, self.cluster.renewing
        traffic = self.begin()
        cluster.renewing = False
        cluster.run_until(lambda: cluster.state.idle)
        cluster.run(4 * LATENCY)
        cluster.renewing = renewing
        return traffic.totals()

    def _hold(self, holders: Sequence[SimulatedLocal], keys: list[str]) -> None:
        """Let these Locals read these keys."""
        self.cluster.prices, self.cluster.renewing = None, False
        for holder in holders:
            holder.get(keys, self.cluster.now)
        self.cluster.run_until(lambda: not any(each.asked for each in holders))
        self.cluster.renewing = True

    def behind(self) -> int:
        """Return how many Locals have not acknowledged every invalidation."""
        state = self.cluster.state
        recipients = map(state._invalidations.recipient, state._sessions)
        return sum(each.acknowledged < state._log.seq for each in recipients)


def said(totals: dict[str, Any]) -> dict[str, Any]:
    """Return the totals without times, since Global took none."""
    return {
        name: said(value) if isinstance(value, dict) else value
        for name, value in totals.items()
        if not name.endswith(("_s", "seconds"))
    }


def counts(size: int) -> dict[str, Any]:
    """Return the counts of messages alone, which are the same in every run."""
    laboratory = Laboratory(Cluster(size, at_once=True), None)
    found: dict[str, Any] = {"leases": said(laboratory.leases()), "dels": []}
    misses = min(size, 100)
    found["misses"] = {"count": misses, **said(laboratory.misses(misses))}
    for holding in shares(size):
        totals = said(laboratory.deletion(holding, alone=True))
        totals["behind"] = laboratory.behind()
        totals["renewals"] = laboratory.leases()["messages"]
        totals["behind_after_renewal"] = laboratory.behind()
        found["dels"].append(totals)
    return found


def costs(size: int, prices: Prices, repeats: int) -> dict[str, Any]:
    """Return the same with costs, while renewals go on."""

    def run() -> dict[str, Any]:
        laboratory = Laboratory(Cluster(size), prices)
        laboratory.leases()
        leases = laboratory.leases()
        misses = laboratory.misses(100 * repeats)

        def median(holding: int, alone: bool) -> dict[str, Any]:
            tries = [laboratory.deletion(holding, alone=alone) for _ in range(repeats)]
            return sorted(tries, key=lambda each: each["seconds"])[repeats // 2]

        return {
            "leases": leases,
            "misses": {"count": 100 * repeats, **misses},
            "dels_alone": [median(holding, True) for holding in shares(size)],
            "dels": [median(holding, False) for holding in shares(size)],
        }

    found: dict[str, Any] = without_collector(run)
    return found

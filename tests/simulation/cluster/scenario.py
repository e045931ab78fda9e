"""The parameters of a simulated cluster: its members, its database, and their faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dstore.core.local.operations.exchange import RESEND_MAX
from tests.simulation.scenario import KINDS as KINDS_OF_ONE
from tests.simulation.scenario import Scenario, sometimes_of

KINDS = (*(kind for kind in KINDS_OF_ONE if kind != "wait"), "keys")
LARGE, SHARED = 0.4, 0.4
"""The parts of the scenarios with large values, and with processes that share memberships."""
PATIENT = 20
"""Ownership leases within which a write ends for certain, if nothing goes wrong."""
CALM = 0.15
"""The part of the scenarios in which nothing goes wrong, and members come and leave by will."""


@dataclass(frozen=True)
class ClusterScenario(Scenario):
    """The parameters. Times are in seconds of true time, rates in events per second.

    ``locals`` is the number of clients; each has one Local for each member.
    """

    operations: int = 15
    keys: int = 4
    weights: tuple[int, ...] = (8, 2, 3, 1, 2, 3, 1, 1, 1, 1, 1)  # of KINDS
    think: float = 0.2
    timeout: float = 3.0
    attempt: float = 0.5  # seconds for which a client waits for one member
    members: int = 3
    members_max: int = 4  # at one time
    partitions: int = 4
    ownership: float = 1.0  # the ownership lease
    leases: tuple[float, ...] = (0.5,)  # cache leases of members, one after the other
    member_drift: float = 0.0
    member_pauses: float = 0.0
    member_pause: float = 2.0  # at most
    member_crashes: float = 0.0
    strangers: float = 0.0  # fraction of the crashes after which another Global has the address
    isolations: float = 0.0  # the database is slow for a member, then it cannot be reached
    joins: float = 0.0  # of members that are added
    drains: float = 0.0  # of members that leave
    linger: float = 0.0  # seconds for which they stay when they have handed over all
    database_faults: float = 0.0
    outage: float = 0.5  # seconds for which the database is away, at most
    late: float = 0.0  # fraction of the transactions that arrive late
    lateness: float = 1.0  # at most
    patience: float = 0.4  # seconds until a member gives up a transaction
    idle_timeout: float = 1.0  # seconds until the database gives up one
    large_memory: int = 1 << 20  # bytes that large values take in the memory of a member, at most

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong, and there is time: no write may have an unknown outcome."""
        of_members = (self.member_pauses, self.member_crashes, self.isolations)
        of_messages = (self.database_faults, self.late, self.cuts, self.pauses, self.slow)
        of_pages = (self.owner_faults, self.page_faults, self.deaths, self.freezes)
        faults = (*of_members, *of_messages, *of_pages)
        return self.timeout >= PATIENT * self.ownership and not any(faults)

    @classmethod
    def draw(cls, seed: int) -> ClusterScenario:
        """The scenario of a seed. Most have few kinds of faults."""
        dice = random.Random(f"cluster {seed}")

        sometimes = partial(sometimes_of, dice)
        ownership = dice.choice((0.5, 1.0, 1.0, 2.0))
        leases: tuple[float, ...] = (dice.choice((0.2, 0.5, 1.0, 3.0)) * ownership,)
        moves = sometimes(0.5) / ownership
        if dice.random() < 0.3:
            leases = (4 * ownership, 0.2 * ownership, 0.3 * ownership)
            moves = 1 / ownership
        drawn = cls(
            seed=seed,
            locals=dice.choice((1, 2, 2, 3)),
            threads=dice.choice((1, 2, 2)),
            operations=dice.choice((15, 25, 50)),
            keys=dice.choice((1, 1, 2, 4)),
            many=dice.choice((2, 4)),
            weights=tuple(
                dice.choice((0, 1, 1, 2, 4)) + (kind == "get") * dice.choice((4, 15))
                for kind in KINDS
            ),
            ttl=dice.choice((0.0, 0.0, 0.3)),
            think=dice.choice((0.02, 0.1, 0.3)) * ownership,
            timeout=dice.choice((1.0, 4.0)) * ownership,
            attempt=dice.choice((0.3, 0.6)) * ownership,
            lease=max(leases),
            log_length=dice.choice((2, 30)),
            latency=dice.choice((0.0005, 0.005, 0.02)),
            members=dice.choice((1, 2, 2, 3)),
            members_max=dice.choice((3, 4)),
            partitions=dice.choice((1, 2, 4)),
            ownership=ownership,
            leases=leases,
            commit=dice.choice((0.002, 0.01, 0.03)),
            joins=moves,
            drains=moves,
            linger=dice.choice((0.0, 1.0)) * ownership,
            outage=dice.choice((0.2, 1.0)) * ownership,
            patience=dice.choice((0.2, 0.4)) * ownership,
            idle_timeout=dice.choice((0.5, 1.0, 4.0)) * ownership,
        )
        if dice.random() < CALM:
            drawn = replace(drawn, timeout=PATIENT * ownership, linger=RESEND_MAX + ownership)
        else:
            drawn = replace(drawn, **cls._faults(dice, ownership))
        drawn = replace(drawn, **cls._large(random.Random(f"cluster large {seed}")))
        return replace(drawn, **cls._sharing(random.Random(f"cluster hosts {seed}"), drawn))

    @classmethod
    def _large(cls, dice: random.Random) -> dict[str, Any]:
        """Let values be large, in some scenarios. The others are as they were without."""
        if dice.random() >= LARGE:
            return {}
        return {"large": dice.choice((0.5, 1.0)), "large_memory": dice.choice((24, 1 << 20))}

    @classmethod
    def _sharing(cls, dice: random.Random, drawn: ClusterScenario) -> dict[str, Any]:
        """Let processes share the memberships of their host, in some scenarios."""
        if dice.random() >= SHARED:
            return {}
        sometimes = partial(sometimes_of, dice)
        shared = {
            "hosts": dice.choice((1, 1, 2, 2)),
            "sharing": dice.choice((0.5, 1.0, 1.0)),
            "global_page": dice.random() < 0.8,
            "owners": dice.random() < 0.8,
            "table": dice.choice(("none", "twin", "twin", "real")),
            "buckets": dice.choice((1, 3, 64)),
            "private_after": dice.choice((0.2, 1.0)) * drawn.lease,
        }
        if drawn.calm:
            return shared
        return {
            **shared,
            "owner_faults": sometimes(1.0) / drawn.ownership,
            "page_faults": dice.choice((0.0, 0.0, 0.02, 0.3)),
            "deaths": sometimes(0.01, 0.3),
            "freezes": sometimes(0.1, 0.5),
        }

    @classmethod
    def _faults(cls, dice: random.Random, ownership: float) -> dict[str, Any]:
        sometimes = partial(sometimes_of, dice)
        return {
            "member_drift": dice.choice((0.0, 0.02)),
            "drift": dice.choice((0.0, 0.02)),
            "member_pauses": sometimes(1.0, 0.6) / ownership,
            "member_pause": dice.choice((0.5, 2.0, 4.0)) * ownership,
            "member_crashes": sometimes(0.3, 0.4) / ownership,
            "isolations": sometimes(1.0, 0.4) / ownership,
            "database_faults": sometimes(1.0, 0.6) / ownership,
            "late": sometimes(0.2, 0.5),
            "lateness": dice.choice((0.5, 2.0, 4.0)) * ownership,
            "slow": sometimes(0.3, 0.4),
            "slowness": dice.choice((0.1, 0.5)) * ownership,
            "lost_broadcasts": dice.choice((0.0, 0.0, 0.3, 1.0)),
            "cuts": sometimes(0.5, 0.3) / ownership,
            "pauses": sometimes(0.5, 0.4) / ownership,
            "pause": dice.choice((0.3, 1.0)) * ownership,
            "strangers": sometimes(1.0, 0.5),
        }

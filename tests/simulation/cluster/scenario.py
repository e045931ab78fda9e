"""The parameters of a simulated cluster: its members, its database, and their faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from dstore.core.local.operations.exchange import RESEND_MAX
from tests.simulation.scenario import Scenario

KINDS = (
    "get",
    "get_many",
    "set",
    "set_many",
    "replace",
    "delete",
    "delete_many",
    "delete_soon",
    "expire",
    "persist",
    "keys",
)
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

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong: no write may have an unknown outcome."""
        faults = (self.member_pauses, self.member_crashes, self.isolations, self.database_faults)
        return not any((*faults, self.late, self.cuts, self.pauses, self.slow))

    @classmethod
    def draw(cls, seed: int) -> ClusterScenario:
        """The scenario of a seed. Most have few kinds of faults."""
        dice = random.Random(f"cluster {seed}")

        def sometimes(most: float, odds: float = 0.5) -> float:
            return most * dice.random() if dice.random() < odds else 0.0

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
            return replace(drawn, timeout=20 * ownership, linger=RESEND_MAX + ownership)
        return replace(drawn, **cls._faults(dice, ownership))

    @classmethod
    def _faults(cls, dice: random.Random, ownership: float) -> dict[str, Any]:
        def sometimes(most: float, odds: float = 0.5) -> float:
            return most * dice.random() if dice.random() < odds else 0.0

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

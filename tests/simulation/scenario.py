"""The parameters of a simulated run: sizes, speeds, and the rates of faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

KINDS = (
    "get",
    "get_many",
    "set",
    "set_many",
    "replace",
    "delete",
    "delete_many",
    "delete_soon",
    "wait",
    "expire",
    "persist",
)
EXPIRY = ("expire", "persist")


SHARED = 0.6
"""The part of the scenarios in which processes may share the membership of their host."""


CRASHING = 0.4
"""The part of the other scenarios with a durable Global in which it crashes, too."""


LOADED = 0.25
"""The part of the scenarios in which the engine has to load values."""


KEYED = 0.4
"""The part of the scenarios in which Locals have identities."""
KEYED_SESSIONS = 30
"""Sessions that there may be in these, at least: one identity has a part of them."""


def sometimes_of(dice: random.Random, most: float, odds: float = 0.5) -> float:
    """Draw a rate: one below ``most`` in a part of the scenarios, 0.0 in the others."""
    return most * dice.random() if dice.random() < odds else 0.0


@dataclass(frozen=True)
class Scenario:
    """The parameters. Times are in seconds of true time, rates in events per second and Local."""

    seed: int
    locals: int = 3
    threads: int = 2
    operations: int = 12  # of each thread
    keys: int = 3
    many: int = 2  # keys of one many-operation, at most
    weights: tuple[int, ...] = (8, 1, 3, 1, 2, 3, 1, 1, 1, 1, 1)  # of KINDS
    ttl: float = 0.3  # fraction of the writes that let their keys expire
    think: float = 0.05  # mean pause between two operations of a thread
    timeout: float = 2.0
    give_up: float = 0.0  # fraction of operations that are cancelled
    lease: float = 0.5
    log_length: int = 8
    cache_entries: int = 8
    reorder_keys: int = 1000  # invalidations in the reorder buffer, at most
    sessions: int = 1000  # at most
    latency: float = 0.002
    slow: float = 0.0  # fraction of messages that are slow
    slowness: float = 0.3  # their delay, at most
    lost_broadcasts: float = 0.0  # fraction
    cuts: float = 0.0  # a connection is cut, and what was under way on it is lost
    pauses: float = 0.0
    pause: float = 1.0  # at most
    crashes: float = 0.0  # of Locals; they return with a new identity
    goodbyes: float = 0.0
    global_pauses: float = 0.0
    global_crashes: float = 0.0
    durable: bool = False
    commit: float = 0.01  # seconds until a batch of a durable Global is on its disk, at most
    failing: float = 0.0  # fraction of the changes that its disk refuses
    away: float = 0.0  # fraction of the reads of an engine that find the bytes away
    loading: float = 0.01  # seconds until they are read, at most, and until that is reported
    load_failures: float = 0.0  # fraction of the values that cannot be loaded
    large: float = 0.0  # fraction of values that are sent in chunks
    hosts: int = 3  # with shared memory; the third is Global's
    evictions: float = 0.0  # a file is dropped to make room
    watchers: float = 0.0  # fraction of Locals that watch deletions
    strangers: float = 0.0  # messages with guessed session ids
    scarce: bool = False  # Global has little memory for writes, waits and holders
    words: float = 0.0  # fraction of Locals whose hits compare words, and that drop no entry
    buckets: int = 1024  # of the invalidation vector
    drift: float = 0.0  # clocks of Locals are slower or faster by at most this fraction
    sharing: float = 0.0  # fraction of Locals that use the membership of their host
    global_page: bool = False  # Global owns that of its own host
    owners: bool = False  # other hosts have an owner
    table: str = "none"  # the kind of host cache
    owner_faults: float = 0.0  # an owner is stopped, killed, paused or cut, or its page removed
    page_faults: float = 0.0  # fraction of the calls of a page that raise
    deaths: float = 0.0  # fraction of the calls of a page in which its owner dies
    freezes: float = 0.0  # fraction of the steps within a call before which its process is paused
    forks: float = 0.0
    private_after: float = 0.2  # seconds without a page; also between two looks for one, nearly
    keyed: bool = False  # Locals have identities: one writes all keys, one reads, one has prefixes
    revocations: float = 0.0  # an identity is revoked, and its Locals end some time later

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        """The scenario of a seed. Most have few kinds of faults."""
        dice = random.Random(f"scenario {seed}")

        sometimes = partial(sometimes_of, dice)
        private = cls(
            seed=seed,
            locals=dice.choice((2, 2, 3, 4)),
            threads=dice.choice((1, 2, 3)),
            operations=dice.choice((6, 12, 20)),
            keys=dice.choice((1, 2, 3, 6)),
            many=dice.choice((2, 3)),
            weights=tuple(
                dice.choice((0, 1, 1, 2, 4)) + (kind == "get") * 4
                for kind in KINDS
                if kind not in EXPIRY
            ),
            think=dice.choice((0.002, 0.02, 0.1)),
            timeout=dice.choice((0.5, 2.0)),
            give_up=sometimes(0.3, 0.3),
            lease=dice.choice((0.1, 0.3, 1.0)),
            log_length=dice.choice((1, 2, 4, 30)),
            cache_entries=dice.choice((1, 2, 8, 8)),
            reorder_keys=dice.choice((1, 2, 1000)),
            sessions=dice.choice((4, 1000, 1000)),
            latency=dice.choice((0.0005, 0.005, 0.02)),
            slow=sometimes(0.4),
            slowness=dice.choice((0.05, 0.3, 1.0)),
            lost_broadcasts=dice.choice((0.0, 0.0, 0.1, 0.5, 1.0)),
            cuts=sometimes(1.0, 0.4),
            pauses=sometimes(1.0, 0.5),
            pause=dice.choice((0.1, 0.5, 2.0)),
            crashes=sometimes(0.3, 0.2),
            goodbyes=sometimes(0.3, 0.2),
            global_pauses=sometimes(0.5, 0.2),
            global_crashes=sometimes(1.0, 0.25),
            durable=dice.random() < 0.5,
            drift=dice.choice((0.0, 0.02, 0.045)),
            large=dice.choice((0.0, 0.0, 0.5, 1.0)),
            hosts=dice.choice((1, 2, 3)),
            evictions=sometimes(1.0, 0.3),
            watchers=dice.choice((0.0, 0.5, 1.0)),
            strangers=sometimes(3.0, 0.3),
            scarce=dice.random() < 0.2,
            words=dice.choice((0.0, 0.5, 1.0)),
            buckets=dice.choice((1, 3, 1024, 1024)),
            commit=dice.choice((0.0005, 0.01, 0.1)),
            failing=dice.choice((0.0, 0.0, 0.0, 0.1)),
        )
        if private.durable and not private.global_crashes and dice.random() < CRASHING:
            private = replace(private, global_crashes=dice.random())
        loading = cls._loading(random.Random(f"loaded {seed}"), private)
        expiring = cls._expiring(random.Random(f"expiry {seed}"), loading)
        expiring = cls._keyed(random.Random(f"access {seed}"), expiring)
        if dice.random() >= SHARED:
            return expiring
        reading = dice.choice((0, 8))
        weights = (expiring.weights[0] + reading, expiring.weights[1] + reading // 2)
        return replace(expiring, weights=(*weights, *expiring.weights[2:]), **cls._shared(dice))

    @classmethod
    def _loading(cls, dice: random.Random, scenario: Scenario) -> Scenario:
        """Let the engine load values, in some scenarios. The others are as they were without."""
        if dice.random() >= LOADED:
            return scenario
        return replace(
            scenario,
            away=dice.choice((0.3, 1.0, 1.0)),
            loading=dice.choice((0.001, 0.02, 0.2)),
            load_failures=dice.choice((0.0, 0.0, 0.1, 0.3)),
        )

    @classmethod
    def _expiring(cls, dice: random.Random, scenario: Scenario) -> Scenario:
        """Add keys that expire, in half of the scenarios. The others are as they were without."""
        if dice.random() < 0.5:
            return replace(scenario, weights=(*scenario.weights, 0, 0), ttl=0.0)
        changes = dice.choice((0, 1, 4)), dice.choice((0, 1, 2))
        return replace(
            scenario, weights=(*scenario.weights, *changes), ttl=dice.choice((0.3, 0.7, 1.0))
        )

    @classmethod
    def _keyed(cls, dice: random.Random, scenario: Scenario) -> Scenario:
        """Give Locals identities, in some scenarios. The others are as they were without."""
        if dice.random() >= KEYED:
            return scenario
        revocations = dice.random() * 0.3 if dice.random() < 0.5 else 0.0
        return replace(
            scenario,
            keyed=True,
            revocations=revocations,
            sessions=max(scenario.sessions, KEYED_SESSIONS),
            keys=max(scenario.keys, 2),  # one that all see, and one that some do not see
        )

    @classmethod
    def _shared(cls, dice: random.Random) -> dict[str, Any]:
        """Draw what hosts with shared memberships are like."""

        sometimes = partial(sometimes_of, dice)
        return {
            "sessions": dice.choice((30, 1000)),  # a process may have three
            "sharing": dice.choice((0.5, 1.0, 1.0)),
            "global_page": dice.random() < 0.8,
            "owners": dice.random() < 0.8,
            "table": dice.choice(("none", "real", "twin", "twin")),
            "owner_faults": sometimes(1.0, 0.5),
            "page_faults": dice.choice((0.0, 0.0, 0.02, 0.3)),
            "deaths": sometimes(0.02, 0.3),
            "freezes": sometimes(0.1, 0.6),
            "forks": sometimes(0.5, 0.3),
            "private_after": dice.choice((0.05, 0.2, 1.0)),
        }

    def __str__(self) -> str:
        """The parameters that differ from the defaults."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Scenario({', '.join(shown)})"

"""How much is measured: in full, quickly, the goals of small values, or just enough to run."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1 << 20
HOT_KEYS = 500
VALUE = bytes(range(100))
"""The small value of all workloads, for all contenders."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: counts, sizes in bytes, times in seconds."""

    name: str
    rounds: int
    """The number of rounds after one warm-up."""
    sittings: int
    """The number of times that servers and clients are started again for single reads."""
    hits: int
    """Hits in one round."""
    hit_keys: tuple[int, ...]
    """The numbers of different keys that are hit: some that stay in the processor's caches, and
    some that do not. Goals are judged for both."""
    block: int
    """Operations of one contender in one round, if each goes to a server."""
    batches: int
    """Calls of ``get_many`` in one round."""
    settle: float
    """Pause between two workloads, in which processes that have ended leave."""
    window: float
    """How long a closed loop of several processes is measured."""
    window_rounds: int
    clients: int
    processes: tuple[int, ...]
    shares: tuple[float, ...]
    """The shares of deletions among the operations of the mixed workload."""
    mixed_keys: int
    mixed_window: float
    mixed_rounds: int
    first_reads: int
    """Keys in one round that another process of the host has read."""
    host_nodes: tuple[int, int]
    """Nodes of one host that hold a key which is deleted: few, and many."""
    host_rounds: int
    """Rounds of deletions on one host, and of forks."""
    answers: int
    """Rounds of newcomers that wait for their first answer."""
    forks: int
    """Forks in one round."""
    shared_keys: int
    """Values that all processes of a host read while their memory is measured."""
    holders: tuple[int, ...]
    bystanders: int
    deletions: int
    """DELs in one round."""
    large: int
    large_rounds: int
    moving: int
    """Bytes of the value that moves while small requests are timed."""
    moving_rounds: int
    least_requests: int
    """Small requests in one block while nothing moves."""
    durable_sets: int
    """SETs of one writer in one round."""
    durable_keys: int
    """Keys that a Global has on the disk when it is started."""
    starts: int
    joins: int
    crowds: tuple[int, ...]
    memory_keys: int
    growth_keys: tuple[int, ...]
    growth_locals: tuple[int, ...]
    growth_rounds: int
    only: tuple[str, ...] = ()
    """The workloads of this scale; none: all."""
    without: tuple[str, ...] = ()
    """The peers that it leaves out."""
    besides: tuple[tuple[str, str], ...] = ()
    """Workloads and peers that it does not leave out: those in which a goal refers to them."""

    def leaves_out(self, workload: str, peer: str) -> bool:
        return peer in self.without and (workload, peer) not in self.besides


FULL = Scale(
    name="full",
    rounds=25,
    sittings=3,
    hits=10_000,
    hit_keys=(HOT_KEYS, 10_000),
    block=400,
    batches=10,
    settle=2.0,
    window=0.5,
    window_rounds=9,
    clients=8,
    processes=(1, 2, 4, 8),
    shares=(0.0, 0.01, 0.1),
    mixed_keys=10_000,
    mixed_window=0.5,
    mixed_rounds=9,
    first_reads=200,
    host_nodes=(8, 64),
    host_rounds=15,
    answers=40,
    forks=10,
    shared_keys=100_000,
    holders=(1, 2, 4, 8, 16),
    bystanders=64,
    deletions=100,
    large=64 * MIB,
    large_rounds=15,
    moving=1024 * MIB,
    moving_rounds=5,
    least_requests=4000,
    durable_sets=100,
    durable_keys=1_000_000,
    starts=3,
    joins=20,
    crowds=(1, 8, 32, 64),
    memory_keys=100_000,
    growth_keys=(1_000, 10_000, 100_000, 1_000_000),
    growth_locals=(1, 4, 16, 64),
    growth_rounds=7,
)
QUICK = replace(
    FULL,
    name="quick",
    rounds=5,
    sittings=2,
    block=200,
    batches=5,
    settle=0.2,
    window=0.2,
    window_rounds=3,
    processes=(1, 4),
    shares=(0.0, 0.1),
    mixed_window=0.2,
    mixed_rounds=3,
    host_rounds=5,
    answers=10,
    holders=(1, 8),
    bystanders=16,
    deletions=40,
    large_rounds=4,
    moving=256 * MIB,
    moving_rounds=2,
    least_requests=1000,
    durable_sets=50,
    durable_keys=100_000,
    joins=5,
    crowds=(1, 8),
    memory_keys=20_000,
    growth_keys=(1_000, 10_000, 100_000),
    growth_locals=(1, 16),
    growth_rounds=3,
)
GOALS = replace(
    FULL,
    name="goals",
    only=(
        "hit", "miss", "clients", "get_many", "delete", "memory",
        "host_first", "host_many", "host_delete", "mixed", "answer", "fork", "host_memory",
        "durable_set", "durable_writers", "durable_reads", "durable_start",
        "keyed_hit", "keyed_miss", "keyed_large",
    ),
    without=(
        "redis-py, pipelined", "ProxyStore over Redis", "multiprocessing.Manager", "NATS KV",
        "Ray's object store",
    ),
    besides=(("mixed", "multiprocessing.Manager"),),
    rounds=54,
    sittings=9,
    block=100,
    batches=5,
    settle=0.2,
    window=0.3,
    window_rounds=18,
    mixed_window=0.2,
    mixed_rounds=4,
    answers=24,
    holders=(),
    bystanders=0,
    deletions=50,
    durable_sets=25,
    memory_keys=20_000,
)  # fmt: skip
"""Small values, and the processes of one host, against their references, in short rounds."""
TINY = Scale(
    name="tiny",
    rounds=1,
    sittings=1,
    hits=100,
    hit_keys=(HOT_KEYS, 1_000),
    block=10,
    batches=1,
    settle=0.0,
    window=0.05,
    window_rounds=1,
    clients=2,
    processes=(1,),
    shares=(0.0, 0.1),
    mixed_keys=100,
    mixed_window=0.05,
    mixed_rounds=1,
    first_reads=10,
    host_nodes=(2, 4),
    host_rounds=1,
    answers=1,
    forks=2,
    shared_keys=1_000,
    holders=(1, 2),
    bystanders=1,
    deletions=3,
    large=1 * MIB,
    large_rounds=1,
    moving=4 * MIB,
    moving_rounds=1,
    least_requests=20,
    durable_sets=5,
    durable_keys=1_000,
    starts=1,
    joins=1,
    crowds=(2,),
    memory_keys=1_000,
    growth_keys=(100, 200),
    growth_locals=(1, 2),
    growth_rounds=1,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK, GOALS, TINY)}

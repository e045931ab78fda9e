"""The workloads, by the names that ``--only`` takes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.run import Run
from benchmarks.workloads.deletions import deletions
from benchmarks.workloads.growth import growth_of_keys, growth_of_locals
from benchmarks.workloads.joins import joins
from benchmarks.workloads.large import large
from benchmarks.workloads.loops import clients, mixed
from benchmarks.workloads.memory import memory
from benchmarks.workloads.moving import moving
from benchmarks.workloads.reads import batches, hits, misses
from benchmarks.workloads.sharing import sharing


class Workload(NamedTuple):
    name: str
    what: str
    measure: Callable[[Run], None]


WORKLOADS = (
    Workload("hit", "a key that this process has read before", hits),
    Workload("miss", "a key that this process has never read", misses),
    Workload("clients", "misses of 8 processes in a closed loop", clients),
    Workload("get_many", "100 cold keys in one call", batches),
    Workload("mixed", "Zipf reads with 0, 1 and 10 % deletions in 1 to 8 processes", mixed),
    Workload("delete", "DEL confirmed by 0 to 16 holders, and with bystanders", deletions),
    Workload("large", "64 MiB: first read, again, second process", large),
    Workload("sharing", "64 MiB in 8 processes of a host: time, memory, bytes sent", sharing),
    Workload("moving", "small requests while a large value moves", moving),
    Workload("join", "from nothing to the first answer", joins),
    Workload("memory", "bytes for each cached key, and for each key in the server", memory),
    Workload("growth_keys", "costs at 10^3 to 10^6 keys", growth_of_keys),
    Workload("growth_locals", "costs with 1 to 64 Locals", growth_of_locals),
)
NAMES = [workload.name for workload in WORKLOADS]

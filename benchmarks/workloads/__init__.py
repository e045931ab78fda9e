"""The workloads, by the names that ``--only`` takes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.run import Run
from benchmarks.workloads.access import keyed_hits, keyed_large, keyed_misses
from benchmarks.workloads.deletions import deletions
from benchmarks.workloads.durable import reads as durable_reads
from benchmarks.workloads.durable import sets, starts, writers
from benchmarks.workloads.forks import forks
from benchmarks.workloads.growth import growth_of_keys, growth_of_locals
from benchmarks.workloads.host_deletions import host_deletions
from benchmarks.workloads.host_memory import host_memory
from benchmarks.workloads.host_reads import first_reads, many_first_reads
from benchmarks.workloads.joins import joins
from benchmarks.workloads.large import large
from benchmarks.workloads.loops import clients, mixed
from benchmarks.workloads.memory import memory
from benchmarks.workloads.moving import moving
from benchmarks.workloads.newcomers import first_answers
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
    Workload("host_first", "first read of what another process of the host has read", first_reads),
    Workload("host_many", "100 keys new to the process, on a host that has them", many_first_reads),
    Workload("mixed", "Zipf reads with 0, 1 and 10 % deletions in 1 to 8 processes", mixed),
    Workload("delete", "DEL confirmed by 0 to 16 holders, and with bystanders", deletions),
    Workload("host_delete", "DEL of a key held by 8 and 64 Nodes of one host", host_deletions),
    Workload("large", "64 MiB: first read, again, second process", large),
    Workload("sharing", "64 MiB in 8 processes of a host: time, memory, bytes sent", sharing),
    Workload("moving", "small requests while a large value moves", moving),
    Workload("durable_set", "SET that is on the disk when it is confirmed, one writer", sets),
    Workload("durable_writers", "the same of 8 processes in a closed loop", writers),
    Workload("durable_reads", "reads of other keys while 8 processes set durably", durable_reads),
    Workload("durable_start", "from the start of a server with data to an answer", starts),
    Workload("keyed_hit", "a hit of a Node with keys, and of one without", keyed_hits),
    Workload("keyed_miss", "a miss with keys, and without", keyed_misses),
    Workload(
        "keyed_large", "64 MiB, first read on another host with keys, and without", keyed_large
    ),
    Workload("join", "from nothing to the first answer", joins),
    Workload(
        "answer", "a Node's first answer on a host that has the key, or has not", first_answers
    ),
    Workload("fork", "first hit of a forked child", forks),
    Workload("host_memory", "memory of 8 processes of a host with the same values", host_memory),
    Workload("memory", "bytes for each cached key, and for each key in the server", memory),
    Workload("growth_keys", "costs at 10^3 to 10^6 keys", growth_of_keys),
    Workload("growth_locals", "costs with 1 to 64 Locals", growth_of_locals),
)
NAMES = [workload.name for workload in WORKLOADS]

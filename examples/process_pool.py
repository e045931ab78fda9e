"""A pool of processes that share one table, with any start method.

The initializer of the pool makes one Node for each worker. The table has the smallest prime factor
of each number up to four million and takes 16 MiB; a job uses it to factorise one number. The first
``get`` of a worker maps the one copy that this machine has, all others are look-ups in the worker's
own memory. Each worker reports the file in which its table lies: it is the same one for all. Where
the host shares one cache, as that of Global does, the workers have one session at Global.

    python examples/process_pool.py [--address tcp://HOST:PORT] [--workers 4]
                                    [--start-method fork|spawn|forkserver]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any, NamedTuple

import dstore

try:
    import numpy as np
except ImportError:
    raise SystemExit("this example needs NumPy: pip install 'dstore[numpy]'") from None

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

TABLE_LENGTH = 1 << 22
NUMBERS = range(TABLE_LENGTH - 1, 0, -2003)
WAIT_SECONDS_MAX = 60.0
MAPS = "/proc/self/maps"

node: dstore.Node
"""The Node of this worker."""
table_key: str
together: Barrier


class Report(NamedTuple):
    """What a worker reports of itself."""

    pid: int
    session: int
    hits: int
    place: str


def smallest_factors(length: int) -> Array:
    """Return the smallest prime factor of each number. Smaller factors overwrite larger ones."""
    table = np.arange(length, dtype=np.int32)
    for factor in range(math.isqrt(length), 1, -1):
        table[factor * factor :: factor] = factor
    return table


# In the workers ------------------------------------------------------------------------------


def begin(address: str, key: str, barrier: Barrier) -> None:
    """Make the Node of this worker. With any start method, it says goodbye at the end."""
    global node, table_key, together
    node, table_key, together = dstore.Node(address, label="pool worker"), key, barrier


def factorise(number: int) -> list[int]:
    """Factorise one number: the job."""
    table = node.get(table_key)
    factors = []
    while number > 1:
        factors.append(int(table[number]))
        number //= factors[-1]
    return factors


def report() -> Report:
    """Report on this worker. The barrier makes each worker take this job once."""
    together.wait(WAIT_SECONDS_MAX)
    hits = node.stats()["hits"]
    place = place_of(node.get(table_key))
    return Report(os.getpid(), node.stats()["session"], hits, place)


def place_of(array: Array) -> str:
    """Return the file that is mapped where the array lies, if the system reports it."""
    try:
        with open(MAPS) as file:
            for line in file:
                addresses, _, _, device, inode, *_ = line.split()
                first, end = (int(each, 16) for each in addresses.split("-"))
                if first <= array.ctypes.data < end and inode != "0":
                    return f"file {inode} of device {device}"
    except OSError:
        pass
    return f"memory of process {os.getpid()}"


# In the parent -------------------------------------------------------------------------------


def reports(pool: ProcessPoolExecutor, workers: int) -> list[Report]:
    return sorted(future.result() for future in [pool.submit(report) for _ in range(workers)])


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    methods = multiprocessing.get_all_start_methods()
    parser = argparse.ArgumentParser(description="share a table among the workers of a pool")
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--start-method", choices=methods, default="spawn")
    args = parser.parse_args()

    key = f"process-pool/{uuid.uuid4().hex}"
    context = multiprocessing.get_context(args.start_method)
    with some_global(args.address) as address, dstore.Node(address, label="pool") as own:
        own.set(key, smallest_factors(TABLE_LENGTH))
        table = own.get(key)
        arguments = (address, key, context.Barrier(args.workers))
        with ProcessPoolExecutor(args.workers, context, begin, arguments) as pool:
            before = reports(pool, args.workers)  # all workers have started now
            results = list(pool.map(factorise, NUMBERS, chunksize=20))
            after = reports(pool, args.workers)
        own.delete(key)

    for worker in after:
        print(f"worker {worker.pid}: {worker.hits:,} tables from own memory")
    for number, factors in zip(NUMBERS, results):
        if math.prod(factors) != number or any(table[each] != each for each in factors):
            raise SystemExit(f"{number} was factorised wrongly: {factors}")
    sessions = len({worker.session for worker in before + after})
    print(f"sessions at Global for {args.workers} workers: {sessions}")
    copies = len({worker.place for worker in after})
    print(f"copies of the table, {table.nbytes >> 20} MiB, for {args.workers} workers: {copies}")
    if copies > 1:
        print("(is there shared memory, and room in it? df /dev/shm)")
    print(f"{len(results):,} numbers factorised, all of them correctly")


if __name__ == "__main__":
    main()

"""Several processes work on one large matrix, of which the whole machine has one copy.

A worker's ``get`` returns an array over memory that all processes of the machine share, so that it
takes hardly any time and memory, even for a large matrix. Each worker reports its memory before and
after: its *private* memory, the memory that it *shares*, and its *proportional* share, in which a
page that is shared by four processes counts as a quarter. The proportional shares can be added up.

    python examples/shared_matrix.py [--address tcp://HOST:PORT] [--workers 4] [--mebibytes 256]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import dstore

try:
    import numpy as np
except ImportError:
    raise SystemExit("this example needs NumPy: pip install 'dstore[numpy]'") from None

MIB = 1 << 20
COLUMNS = 1024
ROWS_PER_MIB = MIB // (8 * COLUMNS)
WAIT_SECONDS_MAX = 60.0
SMAPS = "/proc/self/smaps_rollup"
SMAPS_LINES = ("Private_Clean", "Private_Dirty", "Shared_Clean", "Shared_Dirty", "Pss")


class Memory(NamedTuple):
    """The memory of a process, in MiB."""

    private: float
    shared: float
    proportional: float

    def __str__(self) -> str:
        return (
            f"private {self.private:6.1f}, shared {self.shared:6.1f}, "
            f"proportional {self.proportional:6.1f} MiB"
        )


def own_memory() -> Memory | None:
    """Return the memory of this process, or None if the system does not report it."""
    sizes = dict.fromkeys(SMAPS_LINES, 0.0)
    try:
        with open(SMAPS) as file:
            for line in file:
                name, _, size = line.partition(":")
                if name in sizes:
                    sizes[name] = int(size.split()[0]) / 1024
    except OSError:
        return None
    private_clean, private_dirty, shared_clean, shared_dirty, proportional = sizes.values()
    return Memory(private_clean + private_dirty, shared_clean + shared_dirty, proportional)


def work(address: str, key: str, number: int, together: Barrier, pipe: Connection) -> None:
    """One worker: read the whole matrix, and report the memory that this took."""
    with dstore.Node(address, label="matrix worker") as node:
        node.join()
        together.wait(WAIT_SECONDS_MAX)
        before = own_memory()
        together.wait(WAIT_SECONDS_MAX)
        start = time.perf_counter()
        matrix = node.get(key)
        seconds = time.perf_counter() - start
        column_sums = matrix.sum(axis=0)
        together.wait(WAIT_SECONDS_MAX)  # until all workers have read all of it
        after = own_memory()
        together.wait(WAIT_SECONDS_MAX)  # no worker releases it before all have measured
        lines = [f"got {matrix.nbytes / MIB:g} MiB in {1000 * seconds:.1f} ms"]
        if before and after:
            lines += [f"before: {before}", f"after:  {after}"]
        print("".join(f"worker {number}: {line}\n" for line in lines), end="", flush=True)
        pipe.send((column_sums, matrix.flags.writeable, before, after))


def judge(mebibytes: int, measured: list[tuple[Memory | None, Memory | None]]) -> str:
    """Compare the growth of all workers together with the size of one copy."""
    grown = [
        after.proportional - before.proportional for before, after in measured if before and after
    ]
    if not grown:
        return f"there is no {SMAPS} here, so the memory that this took is not known"
    said = f"{len(grown)} workers together: {sum(grown):.1f} MiB more; one copy is {mebibytes} MiB"
    if sum(grown) > 1.5 * mebibytes:
        return f"{said} (each has its own: is there shared memory, and room in it? df /dev/shm)"
    return f"{said}, and copies for all would be {mebibytes * len(grown)} MiB"


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    parser = argparse.ArgumentParser(description="share one large matrix among processes")
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mebibytes", type=int, default=256)
    args = parser.parse_args()

    key, context = f"shared-matrix/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    together = context.Barrier(args.workers)
    pipes: list[Connection] = []
    with some_global(args.address) as address, dstore.Node(address, label="matrix") as node:
        matrix = np.random.default_rng(0).random((args.mebibytes * ROWS_PER_MIB, COLUMNS))
        expected = matrix.sum(axis=0)
        node.set(key, matrix)
        del matrix  # the copy in dstore is enough
        for number in range(args.workers):
            ours, theirs = context.Pipe()
            arguments = (address, key, number, together, theirs)
            context.Process(target=work, args=arguments, daemon=True).start()
            theirs.close()  # so that a worker that dies ends its pipe
            pipes.append(ours)
        reports = [pipe.recv() for pipe in pipes]
        for process in multiprocessing.active_children():
            process.join()
        node.delete(key)

    print(judge(args.mebibytes, [(before, after) for _, _, before, after in reports]))
    if not all(np.allclose(sums, expected) for sums, *_ in reports):
        raise SystemExit("a worker has computed other sums")
    if any(writeable for _, writeable, *_ in reports):
        raise SystemExit("a worker could change what the others read")
    print(f"all {len(reports)} workers have read the same matrix, and none can change it")


if __name__ == "__main__":
    main()

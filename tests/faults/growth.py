"""Measures whether Global grows as Locals join and leave.

``python -m tests.faults.growth --joins 20000``. Honest Nodes join and leave, first without
deletions, then while each of them holds a key that is deleted. The resident memory of Global is
measured after a warm-up and at the end. The exit code is 1 if it has grown by more than
``GROWTH_MAX`` in either part.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import dstore
from tests.integration.processes import GlobalProcess, others_left

GROWTH_MAX = 2 << 20
"""Bytes by which Global may grow."""
THREADS = 4
"""Nodes that exist at a time."""
WARM_UP = 0.25
"""The part of the joins before the first measurement, for memory that Global keeps and reuses."""


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def come_and_go(address: str, count: int, deletes: bool) -> None:
    """Have ``count`` Nodes, some at a time, join, read something and leave."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(count // THREADS):
                with dstore.Node(address, shm="", timeout=30.0) as node:
                    node.get("there")
                    if deletes:
                        node.set(f"{number}.{turn}", "v")
                        node.delete(f"{number}.{turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def measure(joins: int, deletes: bool, say: Callable[[str], None] = print) -> int:
    """Return by how many bytes a Global grows over ``joins`` joins, after a warm-up."""
    with GlobalProcess() as place, dstore.Node(place.address, timeout=30.0) as node:
        node.set("there", "v")
        come_and_go(place.address, int(joins * WARM_UP), deletes)
        others_left(node)
        before = resident(place.process.pid)
        come_and_go(place.address, joins, deletes)
        others_left(node)
        grown = resident(place.process.pid) - before
        what = "with deletions" if deletes else "without deletions"
        say(f"{joins:,} joins and leaves {what}: {before >> 10:,} KiB, {grown >> 10:+,} KiB")
        return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--joins", type=int, default=20_000)
    options = parser.parse_args()
    grown = [measure(options.joins, deletes) for deletes in (False, True)]
    return 1 if max(grown) > GROWTH_MAX else 0


if __name__ == "__main__":
    sys.exit(main())

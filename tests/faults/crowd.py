"""Many threads read through one Node while another process deletes and sets; all is judged.

python -m tests.faults.crowd --threads 64 --gets 1000000 --switch 1e-6
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import threading
import time
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from typing import NamedTuple

import dstore
from tests.history.linearizability import check_linearizable
from tests.history.operations import Kind, Operation, Result
from tests.integration.processes import GlobalProcess

PAUSE = 0.002
"""Seconds between two rounds of deletions."""
MISSING = object()


class Outcome(NamedTuple):
    """The outcome of a run.

    ``requests`` counts the GETs at Global, ``misses`` those that the Local counts. ``kept`` counts
    the values that filled the cache, ``distinct`` the different values that the threads have read.
    The other requests found no value, or one that was about to be deleted. A value is kept twice if
    the invalidation of the former one arrives only after it.
    """

    gets: int
    deletions: int
    requests: int
    misses: int
    kept: int
    distinct: int
    seconds: float
    violations: tuple[str, ...]


def _delete(
    address: str,
    keys: list[str],
    batch: int,
    over: Event,
    results: multiprocessing.Queue,  # type: ignore[type-arg]
) -> None:
    """Delete some keys and set them again, then others, and record it.

    The threads of the reader leave its background thread little time to acknowledge. So each call
    deletes many keys.
    """
    done: list[Operation] = []
    dice = random.Random(1)
    with dstore.Node(address) as node:
        turn = 0
        while not over.is_set():
            turn += 1
            some, value = dice.sample(keys, batch), f"turn {turn}"
            start = time.monotonic()
            node.delete_many(some)
            done += [_deleted(key, start) for key in some]
            start = time.monotonic()
            node.set_many(dict.fromkeys(some, value))
            done += [_stored(key, value, start) for key in some]
            time.sleep(PAUSE)
    results.put(done)


def _deleted(key: str, start: float) -> Operation:
    return Operation("writer", key, Kind.DELETE, start, time.monotonic(), Result.DELETED)


def _stored(key: str, value: str, start: float) -> Operation:
    end = time.monotonic()
    return Operation("writer", key, Kind.SET, start, end, Result.STORED, value)


def _read(node: dstore.Node, name: int, keys: list[str], count: int, into: list[Operation]) -> None:
    dice, now = random.Random(name), time.monotonic
    done = []
    for _ in range(count):
        key = keys[int(dice.random() * len(keys))]
        start = now()
        value = node.get(key, MISSING)
        done.append((key, start, now(), value))
    into += [
        Operation(name, key, Kind.GET, start, end, Result.MISSING)
        if value is MISSING
        else Operation(name, key, Kind.GET, start, end, Result.VALUE, None, value)
        for key, start, end, value in done
    ]


def run(threads: int, gets: int, keys: int, batch: int, switch: float | None) -> Outcome:
    """Run ``gets`` reads in all by ``threads`` threads, while ``batch`` keys are deleted at a time.

    ``switch`` is Python's switch interval in seconds.
    """
    names = [f"k{number}" for number in range(keys)]
    history: list[Operation] = []
    former = sys.getswitchinterval()
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        place = stack.enter_context(GlobalProcess())
        node = stack.enter_context(dstore.Node(place.address, timeout=30.0))
        for name in names:
            start = time.monotonic()
            node.set(name, "first")
            history.append(_stored(name, "first", start))
        reader = stack.enter_context(dstore.Node(place.address, timeout=30.0))
        reader.join()
        over, results = context.Event(), context.Queue()
        writer = context.Process(target=_delete, args=(place.address, names, batch, over, results))
        writer.start()
        parts: list[list[Operation]] = [[] for _ in range(threads)]
        count = -(-gets // threads)
        crowd = [
            threading.Thread(target=_read, args=(reader, number, names, count, parts[number]))
            for number in range(threads)
        ]
        began = time.monotonic()
        sys.setswitchinterval(switch or former)
        try:
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
        finally:
            sys.setswitchinterval(former)
            over.set()
        seconds = time.monotonic() - began
        written = results.get(timeout=60)
        writer.join()
        for part in (*parts, written):
            history += part
        metrics = reader.stats()
        requests = node.global_stats()["gets"]
    verdict = check_linearizable(history)
    return Outcome(
        gets=sum(len(part) for part in parts),
        deletions=len(written) // 2,
        requests=requests,
        misses=metrics["misses"],
        kept=metrics["fills"],
        distinct=len({(o.key, o.seen) for part in parts for o in part if o.seen is not None}),
        seconds=seconds,
        violations=tuple(map(str, verdict.violations)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--gets", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--switch", type=float)
    options = parser.parse_args()
    outcome = run(options.threads, options.gets, options.keys, options.batch, options.switch)
    for violation in outcome.violations:
        print(violation)
    print(
        f"{outcome.gets:,} gets by {options.threads} threads in {outcome.seconds:.1f} s, "
        f"{outcome.deletions:,} deletions; {outcome.requests:,} requests at Global for "
        f"{outcome.misses:,} misses, of which {outcome.kept:,} filled the cache, with "
        f"{outcome.distinct:,} different values; {len(outcome.violations)} violations"
    )
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())

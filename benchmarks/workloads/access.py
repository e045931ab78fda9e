"""What keys cost: the same reads of a Global that asks for keys and of one that does not.

With keys all that travels is encrypted, by libsodium within ZeroMQ. Hits send nothing.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.measure import Block, Contender
from benchmarks.peers import KEYED, OURS
from benchmarks.peers.ours import serve, serve_keyed
from benchmarks.processes import Worker, hosts
from benchmarks.run import Run
from benchmarks.settings import HOT_KEYS
from benchmarks.workloads.large import delete, our_client, seconds_of_get, seconds_of_set
from benchmarks.workloads.reads import hits_of, misses_of


def keyed_hits(run: Run) -> None:
    """Measure hits of few keys."""
    blocks = hits_of(run, "keyed_hit", run.peers("keyed_hit"), HOT_KEYS)
    run.compare("keyed-hit", blocks, OURS.name, who=KEYED.name)


def keyed_misses(run: Run) -> None:
    """Measure reads of keys that were never read."""
    run.compare("keyed-miss", misses_of(run, "keyed_miss"), OURS.name, who=KEYED.name)


def keyed_large(run: Run) -> None:
    """Measure the first read of a large value on another host than Global's."""
    size = run.scale.large
    with ExitStack() as stack:
        contenders = [_reading(stack, each, size) for each in (OURS.name, KEYED.name)]
        blocks = run.turns("keyed_large", contenders, run.scale.large_rounds)
    for who, found in blocks.items():
        times = [seconds for block in found for seconds in block]
        run.record("keyed_large", who, "s", times, {"bytes": size})
    run.compare("keyed-large", blocks, OURS.name, who=KEYED.name)


def _reading(stack: ExitStack, name: str, size: int) -> Contender:
    host = stack.enter_context(hosts())
    serving = serve_keyed if name == KEYED.name else serve
    place = stack.enter_context(serving(host("one")))
    writer, reader = (
        stack.enter_context(Worker(our_client, place, host(each))).ready()
        for each in ("one", "two")
    )

    def block(number: int) -> Block:
        key = f"large/{number}"
        writer.call(seconds_of_set, key, size)
        seconds = reader.call(seconds_of_get, key)
        writer.call(delete, key)
        return [seconds]

    return Contender(name, block)

"""DEL of keys that many Nodes of one host hold, against one of keys that none holds.

The program that deletes is on the same host, as is Global. The keys were bound from another host;
each Node has read each of them twice. Also reported is how many sessions Global has then, and by
how many memberships a DEL was confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.measure import Contender, flat, timed
from benchmarks.peers import BY_NAME, OURS, Client, connected
from benchmarks.peers.ours import OurClient
from benchmarks.processes import Crew, Place
from benchmarks.run import Run
from benchmarks.workloads.host_reads import elsewhere, hold_twice
from benchmarks.workloads.reads import load, names

SESSIONS = "host_sessions"
"""The measurement of sessions at Global, and of memberships that confirm a DEL."""


@contextmanager
def several(name: str, place: Place, counts: Sequence[int], number: int) -> Iterator[list[Client]]:
    """Yield as many clients as ``counts`` has for this process."""
    with ExitStack() as stack:
        peer = BY_NAME[name]
        yield [stack.enter_context(connected(peer, place)) for _ in range(counts[number])]


def hold_in_each(clients: list[Client], keys: list[str]) -> None:
    for client in clients:
        hold_twice(client, keys)


def shares(nodes: int, processes: int) -> list[int]:
    """Return how many of the Nodes each process has."""
    processes = min(nodes, processes)
    return [(nodes + number) // processes for number in range(processes)]


def host_deletions(run: Run) -> None:
    """Measure DELs with no holder, few and many, each with a Global of its own."""
    few, many = run.scale.host_nodes
    with ExitStack() as stack:
        contenders = [_contender(stack, run, nodes) for nodes in (0, few, many)]
        blocks = run.turns("host_delete", contenders, run.scale.host_rounds)
    for who, found in blocks.items():
        at = {"Nodes that hold the key": int(who)}
        run.record("host_delete", OURS.name, "s", flat(found), at, tail=True)
    for goal, nodes in (("host-delete", few), ("host-delete-many", many)):
        run.compare(goal, blocks, "0", who=str(nodes))


def _contender(stack: ExitStack, run: Run, nodes: int) -> Contender:
    size = run.scale.deletions
    keys = names(f"host_delete/{nodes}", (run.scale.host_rounds + 1) * size)
    place = stack.enter_context(OURS.serve_on_host())
    load(OURS, elsewhere(place), keys)
    deleter = stack.enter_context(connected(OURS, place))
    assert isinstance(deleter, OurClient)
    if nodes:
        crew = stack.enter_context(Crew())
        counts = shares(nodes, run.scale.clients)
        crew.grow(len(counts), several, OURS.name, place, counts)
        crew.each(len(counts), hold_in_each, keys)
    _trial(run, deleter, nodes, keys[0])

    def delete(key: Any) -> None:
        found = deleter.node.delete(key)
        if found.expired or found.pending or bool(found.confirmed) < bool(nodes):
            raise RuntimeError(f"a key held by {nodes} Nodes was not confirmed by all: {found}")

    def block(number: int) -> list[float]:
        return timed(delete, keys[number * size + (not number) : (number + 1) * size])

    return Contender(str(nodes), block)


def _trial(run: Run, deleter: OurClient, nodes: int, key: str) -> None:
    """Delete one key, and record who confirms it and how many sessions there are."""
    confirmed = deleter.node.delete(key).confirmed
    sessions = deleter.node.global_stats()["sessions"]
    at = {"Nodes that hold the key": nodes}
    run.record(SESSIONS, "memberships that confirm", "memberships", [float(confirmed)], at)
    run.record(SESSIONS, "sessions at Global", "sessions", [float(sessions)], at)

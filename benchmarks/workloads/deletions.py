"""DEL: confirmed by 0 to 16 processes that hold the key, and with bystanders that do not.

What peers do is not the same. Redis invalidates the caches of clients, but its DEL waits for none
of them; the others have no caches. dstore's DEL returns when no process can answer with the value
any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import Contender, describe, flat, timed
from benchmarks.peers import ECHO, OURS, Client, Peer, connected
from benchmarks.processes import Crew
from benchmarks.run import Blocks, Run
from benchmarks.workloads.reads import load, names

CROWDED = 8
"""Holders of the stage that is measured with bystanders, too."""


def hold(client: Client, keys: list[str]) -> None:
    client.hold(keys)


def look(client: Client, key: str) -> None:
    """Open a connection, and hold nothing."""
    try:
        client.get(key)
    except KeyError:
        pass


class Deleter:
    """A peer at work, one client that deletes, and the processes that hold the keys."""

    def __init__(self, stack: ExitStack, peer: Peer, run: Run) -> None:
        self.peer = peer
        self.size = run.scale.deletions
        self.rounds = run.scale.window_rounds
        self.place = stack.enter_context(peer.serve())
        self.client = stack.enter_context(connected(peer, self.place))
        self.crew = stack.enter_context(Crew())

    def contender(self, stage: str, holders: int) -> Contender:
        """Return a contender that deletes keys which were just bound, and read by all holders."""
        keys = names(stage, (self.rounds + 1) * self.size)
        if self.peer is not ECHO:
            load(self.peer, self.place, keys)
        if self.peer.caches:
            self.crew.grow(holders, connected, self.peer, self.place)
            self.crew.each(holders, hold, keys)
        asked = [self.client.key(key) for key in keys]

        def delete(key: Any) -> None:
            found = self.client.delete(key)
            if self.peer is OURS and found != (holders, 0, 0):
                raise RuntimeError(f"not confirmed by {holders} Locals alone: {found}")

        def block(number: int) -> list[float]:
            return timed(delete, asked[number * self.size : (number + 1) * self.size])

        return Contender(self.peer.name, block)


def deletions(run: Run) -> None:
    """Measure the time of a DEL over the number of holders."""
    peers = run.peers("delete")
    _nobody_holds(run, peers)
    if not run.scale.holders:
        return
    with ExitStack() as stack:
        here: list[Deleter] = []

        def prepare(stack: ExitStack, peer: Peer) -> Contender:
            here.append(Deleter(stack, peer, run))
            return Contender(peer.name, lambda _: [])

        holding = [each for each in peers if each is ECHO or each.caches]
        run.prepared("delete", stack, holding, prepare)
        for count in sorted(run.scale.holders):
            _stage(run, here, count)
            if count == min(CROWDED, max(run.scale.holders)):
                _with_bystanders(run, here, count)


def _nobody_holds(run: Run, peers: Sequence[Peer]) -> None:
    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        return Deleter(stack, peer, run).contender("delete/0/0", 0)

    blocks = run.compete("delete", prepare, run.scale.window_rounds, peers)
    _record(run, blocks, 0, 0)
    run.compare("delete", blocks, ECHO.name)


def _with_bystanders(run: Run, here: list[Deleter], holders: int) -> None:
    count = run.scale.bystanders
    ours = [each for each in here if each.peer in (OURS, ECHO)]
    for each in ours:
        if each.peer is OURS:
            with Crew() as crew:
                crew.grow(count, connected, OURS, each.place)
                crew.each(count, look, "nothing")
                _stage(run, ours, 0, count)
                _stage(run, ours, holders, count)


def _stage(run: Run, here: list[Deleter], holders: int, bystanders: int = 0) -> None:
    stage = f"delete/{holders}/{bystanders}"
    contenders = []
    for each in list(here):
        try:
            contenders.append(each.contender(stage, holders))
        except Exception as error:
            run.skip("delete", each.peer.name, describe(error))
            here.remove(each)
    _record(run, run.turns("delete", contenders, run.scale.window_rounds), holders, bystanders)


def _record(run: Run, blocks: Blocks, holders: int, bystanders: int) -> None:
    for who, found in blocks.items():
        at = {"holders": holders, "bystanders": bystanders}
        run.record("delete", who, "s", flat(found), at, tail=True)

"""One run: how much is measured, the results so far, and which peers take part in what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks import goals
from benchmarks.measure import (
    Block,
    Contender,
    describe,
    fastest,
    flat,
    paired,
    summarise,
    take_turns,
)
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.results import At, Measurement, Results, Skip
from benchmarks.settings import Scale

Blocks = dict[str, list[Block]]
Prepare = Callable[[ExitStack, Peer], Contender]


@dataclass
class Run:
    """The run that is handed to each workload. ``say`` prints a line of progress."""

    scale: Scale
    results: Results
    say: Callable[[str], None]
    without: frozenset[str] = frozenset()
    """The names of peers that are left out."""

    def peers(self, workload: str) -> list[Peer]:
        """Return the peers of a workload that are installed, and report each one that is not."""
        return [
            peer for peer in PEERS if workload in peer.workloads and self.allows(workload, peer)
        ]

    def allows(self, workload: str, peer: Peer) -> bool:
        """Return whether a peer is wanted and installed, and report it if not."""
        if peer.name in self.without or self.scale.leaves_out(workload, peer.name):
            self.skip(workload, peer.name, "was not wanted")
        elif missing := peer.missing():
            self.skip(workload, peer.name, f"needs {missing}")
        else:
            return True
        return False

    def skip(self, workload: str, who: str, why: str) -> None:
        self.results.skips.append(Skip(workload, who, why))
        self.say(f"  {who} is left out of {workload}: {why}")

    def record(
        self, workload: str, who: str, unit: str, samples: Iterable[float], at: At | None = None,
        tail: bool = False,
    ) -> None:  # fmt: skip
        """Record what a contender has reached. With ``tail`` also the 99th percentile."""
        summary = summarise(samples, tail)
        self.results.measurements.append(Measurement(workload, who, unit, summary, dict(at or {})))

    def goal(
        self, name: str, ratios: Sequence[float], ours: Sequence[Block],
        theirs: Sequence[Block] = (), unit: str = "s", fastest: float | None = None,
        where: str = "",
    ) -> None:  # fmt: skip
        """Judge a goal, and record how far it was reached, and ``where`` if that is not clear."""
        result = goals.judged(name, ratios, flat(ours), flat(theirs), unit, fastest)
        self.results.goals.append(replace(result, where=where))
        verdict = {True: "reached", False: "not reached", None: "shown"}[result.reached]
        goal = goals.BY_NAME[name]
        against = f" (against {goal.reference})" if goal.reference else ""
        place = f" at {where}" if where else ""
        shown = goal.shown.format(result.ratio.median)
        self.say(f"  {goal.what}{against}: {shown}{place}, {verdict}")

    def compare(
        self, goal: str, blocks: Blocks, reference: str, unit: str = "s", who: str = OURS.name,
        where: str = "",
    ) -> None:  # fmt: skip
        """Judge a goal by the ratio of dstore to a reference, if both were measured.

        A goal that is a least ratio is about speed, so that times are compared the other way.
        """
        ours, theirs = blocks.get(who), blocks.get(reference)
        if ours and theirs:
            times = unit == "s" and not goals.BY_NAME[goal].at_most
            one, other = (theirs, ours) if times else (ours, theirs)
            best = [fastest(blocks, unit == "1/s") for blocks in (one, other)]
            self.goal(goal, paired(one, other), ours, theirs, unit, best[0] / best[1], where)

    def turns(self, workload: str, contenders: Sequence[Contender], rounds: int) -> Blocks:
        """Let contenders take turns, and report each one that fails."""
        found = take_turns(contenders, rounds)
        for who, why in found.failed.items():
            self.skip(workload, who, why)
        return found.blocks

    def compete(
        self, workload: str, prepare: Prepare, rounds: int, peers: Sequence[Peer] | None = None
    ) -> Blocks:
        """Let all peers of a workload take turns; those that disturb others are measured alone.

        There are several sittings, and all servers and clients are started again for each. The
        system often leaves a process on the core where it has put it, which makes a difference.
        """
        here = self.peers(workload) if peers is None else peers
        quiet = [peer for peer in here if peer.quiet]
        each = self.each_sitting(rounds)
        found = self._sitting(workload, quiet, prepare, each)
        for _ in range(1, self.scale.sittings):
            again = [peer for peer in quiet if peer.name in found]
            more = self._sitting(workload, again, prepare, each)
            found = {name: found[name] + blocks for name, blocks in more.items()}
        for peer in here:
            if not peer.quiet:
                found.update(self._sitting(workload, [peer], prepare, rounds))
        return found

    def each_sitting(self, rounds: int) -> int:
        """Return the rounds of one sitting, without its warm-up."""
        return math.ceil(rounds / self.scale.sittings)

    def _sitting(
        self, workload: str, peers: Sequence[Peer], prepare: Prepare, rounds: int
    ) -> Blocks:
        with ExitStack() as stack:
            contenders = self.prepared(workload, stack, peers, prepare)
            return self.turns(workload, contenders, rounds)

    def prepared(
        self, workload: str, stack: ExitStack, peers: Iterable[Peer], prepare: Prepare
    ) -> list[Contender]:
        """Return the contenders, and report each peer that cannot be started."""
        found = []
        for peer in peers:
            try:
                found.append(prepare(stack, peer))
            except Exception as error:
                self.skip(workload, peer.name, describe(error))
        return found

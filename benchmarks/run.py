"""One run: how much is measured, what has been found, and who takes part in what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import goals
from benchmarks.measure import Block, Contender, describe, flat, summarise, take_turns
from benchmarks.peers import PEERS, Peer
from benchmarks.results import At, Figure, Results, Skip
from benchmarks.settings import Scale

Blocks = dict[str, list[Block]]
Prepare = Callable[[ExitStack, Peer], Contender]


@dataclass
class Run:
    """Handed to each workload. ``say`` shows a line to whoever is waiting."""

    scale: Scale
    results: Results
    say: Callable[[str], None]
    without: frozenset[str] = frozenset()
    """Names of peers that are not wanted."""

    def peers(self, workload: str) -> list[Peer]:
        """Those that take part and are there; a line for each that is not."""
        found = []
        for peer in PEERS:
            if workload not in peer.workloads:
                continue
            if self.allows(workload, peer):
                found.append(peer)
        return found

    def allows(self, workload: str, peer: Peer) -> bool:
        """Whether a peer is wanted and there; a line if not."""
        if peer.name in self.without:
            self.skip(workload, peer.name, "was not wanted")
        elif lacks := peer.lacks():
            self.skip(workload, peer.name, f"needs {lacks}")
        else:
            return True
        return False

    def skip(self, workload: str, who: str, why: str) -> None:
        self.results.skips.append(Skip(workload, who, why))
        self.say(f"  {who} is left out of {workload}: {why}")

    def figure(
        self, workload: str, who: str, unit: str, samples: Iterable[float], at: At | None = None,
        tail: bool = False,
    ) -> None:  # fmt: skip
        self.results.figures.append(
            Figure(workload, who, unit, summarise(samples, tail), dict(at or {}))
        )

    def goal(
        self, name: str, ratios: Sequence[float], ours: Sequence[Block],
        theirs: Sequence[Block] = (), unit: str = "s",
    ) -> None:  # fmt: skip
        """Judge a row of the Speed table."""
        row = goals.judged(name, ratios, flat(ours), flat(theirs), unit)
        self.results.rows.append(row)
        verdict = "reached" if row.reached else "not reached"
        shown = goals.BY_NAME[name].shown.format(row.ratio.median)
        self.say(f"  {goals.BY_NAME[name].what}: {shown}, {verdict}")

    def turns(self, workload: str, contenders: Sequence[Contender], rounds: int) -> Blocks:
        """Have them take turns; a line for each that fails."""
        found = take_turns(contenders, rounds)
        for who, why in found.failed.items():
            self.skip(workload, who, why)
        return found.blocks

    def compete(self, workload: str, prepare: Prepare, rounds: int) -> Blocks:
        """All peers of a workload take turns; those that disturb others, by themselves.

        They do so in several sittings, for which all servers and clients are started anew: where
        the system has placed a process, it often leaves it, and that makes a difference.
        """
        here = self.peers(workload)
        quiet = [peer for peer in here if peer.quiet]
        each = math.ceil(rounds / self.scale.sittings)
        found = self._sitting(workload, quiet, prepare, each)
        for _ in range(1, self.scale.sittings):
            again = [peer for peer in quiet if peer.name in found]
            more = self._sitting(workload, again, prepare, each)
            found = {name: found[name] + blocks for name, blocks in more.items()}
        for peer in here:
            if not peer.quiet:
                found.update(self._sitting(workload, [peer], prepare, rounds))
        return found

    def _sitting(
        self, workload: str, peers: Sequence[Peer], prepare: Prepare, rounds: int
    ) -> Blocks:
        with ExitStack() as stack:
            contenders = self.prepared(workload, stack, peers, prepare)
            return self.turns(workload, contenders, rounds)

    def prepared(
        self, workload: str, stack: ExitStack, peers: Iterable[Peer], prepare: Prepare
    ) -> list[Contender]:
        """The contenders; a line for each peer that cannot be started."""
        found = []
        for peer in peers:
            try:
                found.append(prepare(stack, peer))
            except Exception as error:
                self.skip(workload, peer.name, describe(error))
        return found

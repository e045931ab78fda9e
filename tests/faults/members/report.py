"""What a run with several Globals did, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.judge import Verdict
from tests.faults.members.nemesis import OF_GLOBAL, OF_OWNER, PLACES
from tests.faults.members.probes import KINDS
from tests.faults.records import DONE, NOT_DONE, TIMED_OUT


@dataclass
class Report:
    """What a run did, and the violations. ``longest`` has seconds by fault and by probe."""

    verdict: Verdict
    faults: Counter[str]
    longest: dict[str, dict[str, float]]
    processes: int
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        counts = self.verdict.counts
        head = "longest time until a key could be"
        table = [f"{head:58}{''.join(f'{kind:>8}' for kind in KINDS)}  times"]
        for fault, times in sorted(self.longest.items()):
            row = "".join(f"{times[kind]:8.2f}" for kind in KINDS)
            table.append(f"  {fault:56}{row}{self.faults.get(fault, 0) or '':>7}")
        never = [fault for fault, count in self.faults.items() if not count]
        return [
            f"{counts['calls']:,} calls, {self.verdict.operations:,} operations judged in "
            f"{self.verdict.rounds} rounds, {counts['hits']:,} cache hits, "
            f"{counts['acknowledged']:,} acknowledged writes",
            f"{self.verdict.deletions:,} deletions confirmed, {self.verdict.cleared:,} not waited "
            f"for; {counts['unknown']:,} writes with unknown outcome, {counts['not done']:,} "
            f"writes and {counts['reads unavailable']:,} reads given up",
            f"{counts[f'host_hits {PLACES[OF_GLOBAL]}']:,} hits of the pages of Globals, "
            f"{counts[f'host_hits {PLACES[OF_OWNER]}']:,} of the pages of dstore host; "
            f"{counts['large values sent']:,} large values sent, "
            f"{counts['large values fetched']:,} fetched",
            f"watches: {counts['events']:,} events, {counts['resyncs']:,} resyncs; "
            f"{counts['deletions watched']:,} times a deletion had to be seen, "
            f"{counts['deletions covered by a resync']:,} of them covered by a resync; "
            f"{counts['copies']:,} copies compared at the end; "
            f"{counts['callbacks']:,} calls of on_deletion",
            f"waits: {counts[f'waits {DONE}']:,} had a value, "
            f"{counts[f'waits {TIMED_OUT}']:,} timed out, "
            f"{counts[f'waits {NOT_DONE}']:,} given up; "
            f"{counts['waits for a key that is bound']:,} for a key that was or came to be bound",
            f"{self.processes} worker processes, {sum(self.faults.values())} faults",
            *table,
            *([f"did not happen: {', '.join(never)}"] if never else []),
            f"{len(self.wrong)} violations",
        ]

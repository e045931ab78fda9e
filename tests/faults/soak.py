"""Real processes under faults, for minutes: ``python -m tests.faults.soak --minutes N``.

Every round of some seconds has keys of its own. A separate process judges the history of a round
while the next rounds go on, and removes it if it finds no violation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dstore.shm.root import ROOT_DEFAULT, ROOT_VARIABLE
from tests.faults.cluster import Clients, GlobalLives, OwnerLives, Times
from tests.faults.judge import JudgeProcess, Verdict
from tests.faults.nemesis import FAULTS, KILL_OWNER, LOG_LENGTHS, Nemesis
from tests.faults.proxy import GLOBAL_HOST, Proxy
from tests.faults.records import files_of
from tests.faults.workload import Settings
from tests.integration.processes import free_port

LEASE = 1.0
TIMEOUT = 1.2
"""Seconds until a call of a client gives up."""
ROUND_SECONDS = 10.0
SETTLE_SECONDS = 2 * TIMEOUT + 5 * LEASE
"""Seconds after a round until its last calls have returned, even those of a stopped worker."""
STEP_SECONDS = 0.02
PROXY_HOSTS = ["127.0.0.2", "127.0.0.3"]
CACHE_BYTES = 4 << 20
WORKERS_MAX = 32
EXTRA_SECONDS = 60.0
"""Seconds by which a short run may be extended until every kind of fault has happened."""


@dataclass(frozen=True)
class Plan:
    """The length of a run, the number of clients, and the seed of all choices.

    With ``keep`` histories without violations are kept as well.
    """

    seconds: float
    workers: int = 5
    guests: int = 1
    seed: int = 0
    round_seconds: float = ROUND_SECONDS
    faults: Sequence[str] = FAULTS
    keep: bool = False


@dataclass
class Report:
    """What a run did, and the violations."""

    verdict: Verdict
    faults: Counter[str]
    lives: int
    processes: int
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        verdict = self.verdict
        counts = verdict.counts
        return [
            f"{counts['calls']:,} calls, {verdict.operations:,} operations judged in "
            f"{verdict.rounds} rounds, {counts['hits']:,} cache hits, {counts['host_hits']:,} hits "
            "of host caches",
            f"{verdict.deletions:,} deletions confirmed, {verdict.cleared:,} not waited for; the "
            f"longest took {verdict.longest / 1e9:.3f} s (of a caller that was not stopped)",
            f"{counts['unknown']:,} writes with unknown outcome, {counts['not done']:,} writes and "
            f"{counts['reads unavailable']:,} reads given up while Global could not be reached",
            f"{counts['joins']:,} joins, {counts['gaps']:,} gaps in what was published, "
            f"{counts['flushes']:,} whole caches dropped, {counts['evictions']:,} evictions",
            f"the longest read that was answered took {verdict.longest_read / 1e9:.3f} s",
            f"{self.lives} lives of Global, {verdict.unclear} operations that overlap two of them "
            f"and prove nothing, {self.processes} client processes",
            *(f"{count:5} x {fault}" for fault, count in sorted(self.faults.items())),
            f"{len(self.wrong)} violations",
        ]


@contextlib.contextmanager
def shared_memory(hosts: Sequence[str]) -> Iterator[dict[str, str]]:
    """Make a folder of shared memory for each "host", and remove them at the end."""
    base = os.environ.get(ROOT_VARIABLE) or ROOT_DEFAULT
    with tempfile.TemporaryDirectory(prefix="dstore-soak-", dir=base) as folder:
        folders = {host: os.path.join(folder, host) for host in hosts}
        for each in folders.values():
            os.mkdir(each, 0o700)
        yield folders


class Run:
    """A run with a Global, clients, a relay and a nemesis, and judges of the finished rounds."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None] = print) -> None:
        self.plan = plan
        self._folder = folder
        self._say = say
        self._times = Times(int(LEASE * 1e9))
        self._clients = Clients(self._times)
        self._verdict = Verdict()
        self._judge: JudgeProcess | None = None
        self._judged = 0

    def run(self) -> Report:
        plan = self.plan
        rng = random.Random(plan.seed)
        port = free_port()
        with ExitStack() as stack:
            proxy = stack.enter_context(Proxy(port, PROXY_HOSTS))
            folders = stack.enter_context(shared_memory([GLOBAL_HOST, *PROXY_HOSTS]))
            served = GlobalLives(port, LEASE, self._folder, self._times, folders[GLOBAL_HOST])
            owners = {
                host: OwnerLives(proxy.address(host), folders[host], self._folder)
                for host in PROXY_HOSTS
            }
            for owner in owners.values():
                stack.callback(owner.kill)
            stack.callback(self._end_judge)
            stack.callback(served.kill)
            stack.callback(self._clients.kill_all)
            served.start(rng.choice(LOG_LENGTHS))
            for owner in owners.values():
                owner.start()
            self._begin = time.monotonic_ns()
            worker = Settings(
                name="",
                role="worker",
                address="",
                folder=str(self._folder),
                seed=0,
                begin=self._begin,
                round_ns=int(plan.round_seconds * 1e9),
                timeout=TIMEOUT,
                cache_bytes=CACHE_BYTES,
            )
            nemesis = Nemesis(
                rng,
                self._times,
                served,
                self._clients,
                proxy,
                worker,
                plan.faults,
                folders,
                owners,
            )
            for _ in range(plan.workers):
                nemesis.add_worker()
            for _ in range(plan.guests):
                nemesis.add_guest()
            while self._elapsed() < plan.seconds or not nemesis.complete:
                if self._elapsed() > plan.seconds + EXTRA_SECONDS:
                    raise TimeoutError(f"not every kind of fault has happened: {nemesis.done}")
                nemesis.step()
                self._judge_rounds()
                time.sleep(STEP_SECONDS)
            nemesis.calm()
            self._clients.end_all()
            left = [owner.stop() for owner in owners.values()]
            code = served.stop()
            self._judge_rest()
        wrong = [*self._verdict.violations, *self._clients.problems]
        wrong += [f"Global ended with exit code {code}"] if code else []
        wrong += filter(None, left)
        return Report(
            self._verdict, nemesis.done, len(self._times.lives), self._clients.started, wrong
        )

    def _elapsed(self) -> float:
        return (time.monotonic_ns() - self._begin) / 1e9

    # ---- judging --------------------------------------------------------------------------

    def _judge_rounds(self) -> None:
        """Begin to judge a finished round, if no other is being judged."""
        if self._judge is not None and self._judge.ended:
            self._end_judge()
        committed = (self._judged + 1) * self.plan.round_seconds + SETTLE_SECONDS
        if self._judge is None and self._elapsed() > committed:
            self._begin_judge()

    def _begin_judge(self) -> None:
        self._times.save(self._folder)
        self._judge = JudgeProcess(self._folder, self._judged)
        self._judged += 1

    def _end_judge(self) -> None:
        if self._judge is not None:
            judge, self._judge = self._judge, None
            verdict = judge.verdict()
            if not (self.plan.keep or verdict.violations):
                judge.remove_files()
            self._verdict.add(verdict)
            self._say(f"round {judge.number}: {verdict}")

    def _judge_rest(self) -> None:
        self._end_judge()
        last = int(self._elapsed() // self.plan.round_seconds)
        while self._judged <= last or files_of(self._folder, self._judged):
            self._begin_judge()
            self._end_judge()


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dstore-soak-"))
    faults = (KILL_OWNER,) if options.hosts_only else FAULTS
    plan = Plan(60 * options.minutes, options.workers, seed=seed, faults=faults)
    report = Run(plan, folder, lambda line: print(line, flush=True)).run()
    print(*report.lines(), sep="\n")
    if report.wrong:
        print(*report.wrong, f"The histories are in {folder}", sep="\n")
        return 1
    shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument("--seed", type=int, help="seed of the choices; their timing varies")
    parser.add_argument(
        "--workers", type=int, default=5, choices=range(1, WORKERS_MAX + 1), metavar="N"
    )
    parser.add_argument(
        "--hosts-only",
        action="store_true",
        help="kill `dstore host` of the hosts again and again, and let all else be",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

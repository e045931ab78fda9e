"""A durable Global that is killed again and again: ``python -m tests.faults.crash --times N``.

Clients write and read all the time, and note each call before and after it. Global is killed at
random moments, also while it starts or stops, and is started again at once with the same data. The
histories are judged as one over all lives: what was acknowledged stays, what was deleted does not
come back, and no cache answers with a value whose deletion was confirmed.

After most restarts all keys are read, so that a lost one is noticed even if no client wants it.
Some readers reach Global through a relay that is cut around a restart: they are the last to hear of
it, and their caches are valid until their leases end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path

import dstore
from dstore.config import HOST_VARIABLE
from dstore.protocol.messages import NO_SESSION, Stats
from dstore.testing.running import announced_address
from tests.ending import end, kill
from tests.faults.broken_global import BROKEN
from tests.faults.client import Client, Keys
from tests.faults.cluster import STOPPED_BY_US, Clients, Life, Times
from tests.faults.judge import GLOBAL_LATE, JudgeProcess, Verdict
from tests.faults.proxy import GLOBAL_HOST, PATHS, Proxy, Rule
from tests.faults.records import Recorder, files_of
from tests.faults.soak import shared_memory
from tests.faults.workload import Settings
from tests.integration.processes import PATIENCE, ROOT, RawClient, free_port

NOTHING = "nothing"
LEASE, LEASE_MAX = 0.3, 2.5
"""The leases of lives. The longer one is longer than a restart takes, so that caches are still
valid after it. With the shorter one there is time for deletions.
"""
TIMEOUT = 0.6
"""Seconds until a call of a client gives up."""
LATE_TIMEOUT = 0.03
"""The same for clients that are cut off, so that they soon read what they have cached."""
ROUND_SECONDS = 10.0
SETTLE_SECONDS = 2 * TIMEOUT + 3 * LEASE_MAX
"""Seconds after a round until its last calls have returned."""
LATE_HOST = "127.0.0.2"
"""The "host" whose readers are cut off around a restart."""
CACHE_BYTES = 4 << 20
LARGE = 0.08
"""The part of the values that are large."""

AT_START, AT_ONCE, IN_SERVICE, LONG, STOP, IN_STOP = (
    "killed while it started",
    "killed as soon as it had started",
    "killed in service",
    "killed after some leases",
    "stopped",
    "killed while it stopped",
)
ENDS = {AT_ONCE: 15, IN_SERVICE: 60, LONG: 5, STOP: 10, IN_STOP: 10}
"""How a life ends, and how often."""
STARTS_KILLED = 0.2
"""The part of the starts that are killed."""
START_SECONDS = 0.6
"""Seconds within which that happens."""
LONG_SECONDS = LEASE_MAX + 2 * GLOBAL_LATE
"""Seconds of a long life: within them deletions must take effect that were not waited for."""
STOP_SECONDS = 0.3
"""Seconds within which a stop is killed."""
CUT_LEASES = (0.5, 1.2)
"""Leases of a life for which late readers are cut off from its end on."""
STEP_SECONDS = 0.02
QUIET_PASSED = 0.4
"""The part of the lives that are longer than the quiet period at their beginning."""
SAID_MAX = 2000
"""Characters of what Global has logged that are shown if it ends by itself."""
VERIFIED = 0.7
"""The part of the starts after which all keys are read."""


@dataclass(frozen=True)
class Plan:
    """How many kills there are, the clients, and the seed of all choices.

    Most lives serve for up to ``life_seconds``; one of ``long_leases`` has the long lease.
    ``broken`` is the rule that Global breaks; see :mod:`.broken_global`. A run ends early when a
    round has a violation.
    """

    kills: int
    seed: int = 0
    workers: int = 4
    readers: int = 3
    life_seconds: float = 1.2
    long_leases: int = 3
    round_seconds: float = ROUND_SECONDS
    broken: str = NOTHING


@dataclass
class Report:
    """What a run did, and the violations. ``slowest_start`` is in seconds."""

    verdict: Verdict
    ends: Counter[str]
    slowest_start: float
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.ends.values()) - self.ends[STOP]

    def lines(self) -> list[str]:
        verdict = self.verdict
        counts = verdict.counts
        return [
            f"{self.kills} kills, {counts['calls']:,} calls, {verdict.operations:,} operations "
            f"judged, {counts['acknowledged']:,} acknowledged writes, the longest time from the "
            f"start of Global to its first answer {self.slowest_start:.3f} s, "
            f"{len(self.wrong)} violations",
            f"{verdict.deletions:,} deletions confirmed, {verdict.cleared:,} not waited for, "
            f"{counts['unknown']:,} writes with unknown outcome, {counts['not done']:,} writes and "
            f"{counts['reads unavailable']:,} reads given up while Global could not be reached, "
            f"{counts['hits']:,} cache hits, {counts['host_hits']:,} hits of the host cache",
            *(f"{count:5} x {end}" for end, count in sorted(self.ends.items())),
        ]


class DurableLives:
    """``dstore global --data``, killed and started again with the same data at the same port."""

    def __init__(self, port: int, folder: Path, times: Times, shm: str, broken: str) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self.slowest_start = 0.0
        self._times = times
        self.said = folder / "global.err"
        self._env = {**os.environ, HOST_VARIABLE: "auto", "PYTHONPATH": str(ROOT)}
        self._command = [sys.executable, "-m", "tests.faults.broken_global", broken, "global"]
        self._command += ["--address", self.address]
        self._command += ["--data", str(folder / "data"), "--shm", shm]
        self._process: subprocess.Popen[str] | None = None

    def start(self, lease: float) -> None:
        """Begin to start it."""
        self._times.lives.append(Life(time.monotonic_ns(), lease=int(lease * 1e9)))
        with self.said.open("ab") as said:
            self._process = subprocess.Popen(
                [*self._command, "--lease", str(lease)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=self._env,
            )

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError if it ends or does not answer."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if not wait([process.stdout.fileno()], PATIENCE):
            raise RuntimeError("Global did not start in time")
        announced_address(process.stdout.readline())
        with RawClient(self.address) as client:
            client.ask(Stats(0, NO_SESSION, 1))
        life = self._times.lives[-1]
        life.ready = time.monotonic_ns()
        self.slowest_start = max(self.slowest_start, (life.ready - life.begin) / 1e9)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it is there. Raises RuntimeError if it has ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        code = process.poll()
        kill(process)
        self._times.lives[-1].end = time.monotonic_ns()
        if code is not None:
            raise RuntimeError(f"Global ended by itself with exit code {code}")

    def stop(self, patience: float = PATIENCE) -> bool:
        """Ask it to end, and kill it if it does not in time. Returns whether it ended by itself.

        Raises RuntimeError if its exit code is not 0.
        """
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it was killed
            end(process, patience)
        code = process.returncode
        self._process = None
        self._times.lives[-1].end = time.monotonic_ns()
        if code not in (0, STOPPED_BY_US):
            raise RuntimeError(f"Global ended with exit code {code}")
        return code == 0

    def problems(self) -> list[str]:
        """Return what it has logged that must not happen."""
        text = self.said.read_text(errors="replace") if self.said.exists() else ""
        return [text] if "Traceback" in text or " ERROR " in text else []


class Run:
    """A run with a durable Global, clients, a relay, and judges of the finished rounds."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None] = print) -> None:
        self.plan = plan
        self._folder = folder
        self._say = say
        self._rng = random.Random(plan.seed)
        self._times = Times(int(LEASE_MAX * 1e9), durable=True)
        self._clients = Clients(self._times)
        self._verdict = Verdict()
        self._ends: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._judge: JudgeProcess | None = None
        self._judged = 0
        self._lease = self._quiet = 0.0  # the lease of this life, and the longest of those before
        self._recorder = Recorder(folder, "all")
        self._going_on: threading.Timer | None = None

    def run(self) -> Report:
        plan, port = self.plan, free_port()
        with ExitStack() as stack:
            proxy = self._proxy = stack.enter_context(Proxy(port, [LATE_HOST]))
            folders = stack.enter_context(shared_memory([GLOBAL_HOST, LATE_HOST]))
            served = self._served = DurableLives(
                port, self._folder, self._times, folders[GLOBAL_HOST], plan.broken
            )
            stack.callback(self._end_judge)
            stack.callback(self._kill_what_is_left)
            stack.callback(self._clients.kill_all)
            stack.callback(self._let_late_readers_go_on)
            stack.enter_context(self._recorder)
            self._begin = time.monotonic_ns()
            try:
                self._start()
                served.wait_until_it_answers()
                self._start_clients(served.address, proxy.address(LATE_HOST), folders)
                self._kill_and_start()
                self._clients.end_all()
                self._read_at_the_end()
                served.stop()
            except (RuntimeError, AssertionError, dstore.DstoreError) as error:
                said = served.said.read_text(errors="replace")[-SAID_MAX:]
                self._wrong.append(f"{error!r}; Global said: {said}")
            self._clients.end_all()
            self._judge_rest()
        wrong = [*self._wrong, *self._verdict.violations, *self._clients.problems]
        wrong += served.problems()
        return Report(self._verdict, self._ends, served.slowest_start, wrong)

    def _kill_what_is_left(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._served.kill()

    def _start_clients(self, near: str, late: str, folders: dict[str, str]) -> None:
        settings = self._settings = Settings(
            name="",
            role="worker",
            address=near,
            folder=str(self._folder),
            seed=self.plan.seed,
            begin=self._begin,
            round_ns=int(self.plan.round_seconds * 1e9),
            timeout=TIMEOUT,
            cache_bytes=CACHE_BYTES,
            shm=folders[GLOBAL_HOST],
            large=LARGE,
        )
        for number in range(self.plan.workers):
            self._clients.start(replace(settings, host=("off", "auto")[number % 2]))
        for number in range(self.plan.readers):
            reader = replace(settings, role="reader")
            if number % 2 == 0:
                reader = replace(reader, address=late, shm=folders[LATE_HOST], timeout=LATE_TIMEOUT)
            else:
                reader = replace(reader, host="auto")
            self._clients.start(reader)
        until = time.monotonic() + PATIENCE
        while self._clients_at_work() < self._clients.started:
            if time.monotonic() > until:
                raise RuntimeError("not all clients have begun")
            time.sleep(STEP_SECONDS)

    def _clients_at_work(self) -> int:
        return len({path.name.split(".")[1] for path in self._folder.glob("*.jsonl")})

    # ---- lives ----------------------------------------------------------------------------

    def _kill_and_start(self) -> None:
        """End a life and begin the next one until there were enough kills, or a violation."""
        served, rng = self._served, self._rng
        while sum(self._ends.values()) - self._ends[STOP] < self.plan.kills:
            (kind,) = rng.choices(list(ENDS), list(ENDS.values()))
            self._live(kind)
            self._end_life(kind)
            while rng.random() < STARTS_KILLED:
                self._start()
                time.sleep(rng.random() * START_SECONDS)
                served.kill()
                self._ends[AT_START] += 1
                self._quiet = max(self._quiet, self._lease)
            self._start()
            served.wait_until_it_answers()
            self._judge_rounds()
            if self._verdict.violations:
                return

    def _start(self) -> None:
        self._lease = LEASE_MAX if self._rng.random() * self.plan.long_leases < 1 else LEASE
        self._served.start(self._lease)

    def _live(self, kind: str) -> None:
        """Let Global live for a while, and read all keys at the beginning."""
        if kind == AT_ONCE:
            return
        if self._rng.random() < VERIFIED:
            self._read_all(max(self._judged, self._round() - 1))
        seconds = self.plan.life_seconds * self._rng.random()
        if kind == LONG:
            seconds = LONG_SECONDS
        elif self._rng.random() < QUIET_PASSED:
            seconds += self._quiet
            self._quiet = 0.0
        time.sleep(seconds)

    def _end_life(self, kind: str) -> None:
        """End a life in service; the readers of the other "host" hear of it late."""
        self._let_late_readers_go_on()
        for path in PATHS:
            self._proxy.disturb(LATE_HOST, path, Rule("cut"))
        if kind == STOP:
            self._served.stop()
        elif kind == IN_STOP:
            kind = STOP if self._served.stop(self._rng.random() * STOP_SECONDS) else IN_STOP
        else:
            self._served.kill()
        self._ends[kind] += 1
        self._quiet = 0.0 if kind == STOP else max(self._quiet, self._lease)
        cut = self._lease * self._rng.uniform(*CUT_LEASES)
        self._going_on = threading.Timer(cut, self._restore)
        self._going_on.start()

    def _let_late_readers_go_on(self) -> None:
        timer, self._going_on = self._going_on, None
        if timer is not None:
            timer.cancel()
            timer.join()
            self._restore()

    def _restore(self) -> None:
        for path in PATHS:
            self._proxy.restore(LATE_HOST, path)

    # ---- reading --------------------------------------------------------------------------

    def _read_all(self, first: int) -> None:
        """Read all keys of the rounds from ``first`` on, at Global."""
        with dstore.Node(self._served.address, host="off", shm="", timeout=PATIENCE) as node:
            for number in range(first, self._round() + 1):
                self._recorder.enter(number)
                client = Client(node, self._recorder, self._rng, "all")
                client.read_many(self._keys(number).all())

    def _read_at_the_end(self) -> None:
        """Read all keys that are still to be judged, when all deletions must be over."""
        by = self._times.deleted_by(time.monotonic_ns(), len(self._times.lives) - 1)
        assert by is not None
        time.sleep(GLOBAL_LATE + (by - time.monotonic_ns()) / 1e9)
        self._read_all(self._judged)

    def _keys(self, number: int) -> Keys:
        return Keys(number, self._settings.hot, self._settings.cold, 0)

    def _round(self) -> int:
        return int(self._elapsed() // self.plan.round_seconds)

    def _elapsed(self) -> float:
        return (time.monotonic_ns() - self._begin) / 1e9

    # ---- judging --------------------------------------------------------------------------

    def _judge_rounds(self) -> None:
        """Begin to judge a finished round, if no other is being judged."""
        if self._judge is not None and self._judge.ended:
            self._end_judge()
        settled = (self._judged + 1) * self.plan.round_seconds + SETTLE_SECONDS
        if self._judge is None and self._elapsed() > settled:
            self._begin_judge()

    def _begin_judge(self) -> None:
        self._times.save(self._folder)
        self._judge = JudgeProcess(self._folder, self._judged)
        self._judged += 1

    def _end_judge(self) -> None:
        if self._judge is not None:
            judge, self._judge = self._judge, None
            verdict = judge.verdict()
            if not verdict.violations:
                judge.remove_files()
            self._verdict.add(verdict)
            restarts = sum(self._ends.values())
            self._say(f"round {judge.number}: {verdict}, {restarts} restarts so far")

    def _judge_rest(self) -> None:
        self._end_judge()
        last = self._round()
        while self._judged <= last or files_of(self._folder, self._judged):
            self._begin_judge()
            self._end_judge()


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dstore-crash-"))
    plan = Plan(options.times, seed, broken=options.broken)
    report = Run(plan, folder, lambda line: print(line, flush=True)).run()
    print(*report.lines(), sep="\n")
    if report.wrong:
        print(*report.wrong, f"The data and the histories are in {folder}", sep="\n")
        return 1
    shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/crash", description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="kills; default: %(default)s")
    parser.add_argument("--seed", type=int, help="seed of the choices; their timing varies")
    parser.add_argument(
        "--broken",
        default=NOTHING,
        choices=BROKEN,
        help="break a rule of durability, to see that it is noticed",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

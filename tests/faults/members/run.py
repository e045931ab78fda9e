"""A run with several Globals over PostgreSQL: ``python -m tests.faults.members.run --minutes N``.

A primary, a synchronous standby, Globals and workers with caches, all on this machine, with a relay
between each pair and faults of all kinds. Some workers have a cache of their own, some share the
page of a Global's host, or of a host with ``dstore host``, and some have an AsyncNode; of each sort
one watches and waits. All Globals ask for keys. The history of all workers is judged as one: each
key is linearizable, no cache answers with a value whose deletion was confirmed, watches and waits
have seen what happened, and at the end, when all keys are read, every acknowledged write is there.
Exit code 1 means a violation.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dstore
from dstore import config
from tests.faults.broken_client import BROKEN_CLIENTS, NOTHING
from tests.faults.client import WRONG_SERVERS, Client, Keys
from tests.faults.cluster import Clients, Life, OwnerLives, Times
from tests.faults.injector import Fault
from tests.faults.judge import GLOBAL_LATE, JudgeProcess, Verdict
from tests.faults.members import keys
from tests.faults.members.broken_member import BROKEN
from tests.faults.members.links import Links
from tests.faults.members.member import Member
from tests.faults.members.nemesis import (
    ESSENTIAL,
    FAULTS,
    FIRST_OWNER,
    GLOBAL_ADDED,
    GLOBAL_DRAINED,
    GLOBAL_REPLACED,
    PLACES,
    Nemesis,
    settles,
)
from tests.faults.members.probes import Prober, longest
from tests.faults.members.probes import Settings as ProbeSettings
from tests.faults.members.report import Report
from tests.faults.members.state import Settled
from tests.faults.records import Recorder, files_of
from tests.faults.soak import shared_memory
from tests.faults.workload import Settings
from tests.integration.processes import ROOT
from tests.postgres import Postgres, missing

MEMBERS = 4
WORKERS = 8
PROBED = 8
"""Keys that are probed: with four Globals, most likely some of each."""
ROUND_SECONDS = 10.0
STEP_SECONDS = 0.02
LOOK_SECONDS = 0.1
"""Seconds between two looks at the database."""
SETTLE_TIMEOUT = 60.0
"""Seconds until all partitions must be served, at the beginning and after the faults."""
QUIET_SECONDS = 5.0
"""Seconds between the last write and the end of the watches: more than a copy may be late."""
READ_TIMEOUT = 60.0
"""Seconds until a read at the end gives up."""
CACHE_BYTES = 4 << 20
HOST = "host"
"""The name of the host with ``dstore host``, beside those of the Globals, which have numbers."""
PAGES_SECONDS = 30.0
"""Seconds that a run must have lasted until each sort of page must have been used."""
PAUSE = 0.04
"""Longest pause of a worker between two operations, in seconds."""
JUDGES = 2
"""Judges at the same time."""
EXIT_MISSING, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Plan:
    """The length of a run, its size, its leases in seconds, and the seed of all choices.

    The faults of a run that is shorter than one of each kind takes are the first of the deck. The
    workers are ``quiet`` for these seconds at the end, before the watches end.
    ``extended`` is by how many seconds the run goes on until every kind has happened. With
    ``hosts`` some workers share the page of a host, and with ``keys`` the Globals ask for keys.
    """

    seconds: float
    seed: int = 0
    members: int = MEMBERS
    workers: int = WORKERS
    probed: int = PROBED
    lease: float = config.OWNERSHIP_LEASE_DEFAULT
    cache_lease: float = 2.0
    round_seconds: float = ROUND_SECONDS
    pause: float = PAUSE
    large: float = 0.02
    faults: Sequence[str] = FAULTS
    overlap: bool = False
    extended: float = 0.0
    quiet: float = QUIET_SECONDS
    standby: bool = True
    hosts: bool = True
    keys: bool = True
    broken: str = NOTHING


class Run:
    """A run: the database, Globals, the relay, workers, probes and a nemesis; then the judges."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None] = print) -> None:
        self.plan = plan
        self._folder = folder
        self._say = say
        self._rng = random.Random(plan.seed)
        # A deletion that was not waited for is over one quiet duration after all is settled, and
        # one lease of its holders.
        self._times = Times(int(2 * plan.cache_lease * 1e9), durable=True)
        self._clients = Clients(self._times)
        self._keys = keys.Keys(folder)
        self._wrong: list[str] = []

    def run(self) -> Report:
        with ExitStack() as stack:
            self._prepare(stack)
            for member in self._members[:-1]:
                member.start()
            self._wait_until_served()
            self._check_keys()
            for owner in self._owners:
                owner.start()
            nemesis = self._nemesis()
            for number in range(self.plan.workers):
                nemesis.add_worker(number)
            prober = self._prober()
            stack.callback(prober.close)
            try:
                self._wait_for_clients()
                self._disturb(nemesis)
                self._end()
            except (RuntimeError, TimeoutError, dstore.DstoreError) as error:
                self._wrong.append(f"the run was broken off: {error!r}")
                self._clients.end_all()
            prober.close()
            self._end_servers()
        return self._report(nemesis, prober)

    # ---- beginning ------------------------------------------------------------------------

    def _prepare(self, stack: ExitStack) -> None:
        """Start the database and the relay, and make what is started later."""
        count = self.plan.members + 1
        names = [HOST, *map(str, range(count))]
        folders = self._folders = stack.enter_context(shared_memory(names))
        shared = Path(folders["0"]).parent
        self._postgres = stack.enter_context(Postgres(standby=self.plan.standby, others=[shared]))
        self._init()
        links = self._links = Links(count, self._postgres.servers)
        stack.enter_context(links.relay)
        self._members = [self._member(each, folders[str(each)]) for each in range(count)]
        for member in self._members:
            stack.callback(member.kill)
        if self.plan.keys:
            self._keys.make(self._addresses())
        self._owners = [self._owner()] if self.plan.hosts else []
        for owner in self._owners:
            stack.callback(owner.kill)
        stack.callback(self._clients.kill_all)
        stack.callback(self._keep_logs)
        self._begin = time.monotonic_ns()
        self._times.lives.append(Life(self._begin, lease=int(self.plan.cache_lease * 1e9)))

    def _init(self) -> None:
        options = [] if self.plan.standby else ["--no-standby"]
        command = ["cluster", "init", self._postgres.url(), *options]
        done = subprocess.run(
            [sys.executable, "-m", "dstore", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if done.returncode:
            raise RuntimeError(f"dstore cluster init failed: {done.stdout}")

    def _member(self, number: int, shm: str) -> Member:
        links, plan = self._links, self.plan
        of_cluster = ["--engine", self._postgres.url(at=links.databases(number))]
        of_cluster += ["--ownership-lease", str(plan.lease)]
        options = ["--lease", str(plan.cache_lease), "--shm", shm]
        options += ["--keys", str(self._keys.path)] if plan.keys else []
        broken = plan.broken if plan.broken in BROKEN else NOTHING
        return Member(
            number,
            links.listens(number),
            links.advertises(number),
            options,
            of_cluster,
            self._folder,
            broken,
        )

    def _owner(self) -> OwnerLives:
        """The ``dstore host`` of the host that has no Global."""
        program = ["-m", "tests.faults.broken_owner", str(os.getpid())]
        program += [self._links.source(FIRST_OWNER), self._broken_client]
        connect = self._connect(keys.OWNER)
        options = ["--connect", connect] if connect else []
        shm = self._folders[HOST]
        return OwnerLives(self._addresses(), shm, self._folder, program, options)

    @property
    def _broken_client(self) -> str:
        return self.plan.broken if self.plan.broken in BROKEN_CLIENTS else NOTHING

    def _connect(self, name: str) -> str:
        """The connect file of a client; empty without keys."""
        return self._keys.connect(name) if self.plan.keys else ""

    def _check_keys(self) -> None:
        """Check that no Global answers a client without keys, if they are to ask for them."""
        for member in self._members[:-1] if self.plan.keys else ():
            if keys.admits_all(member.advertised):
                self._wrong.append(f"{member} answers a client without keys")

    def _nemesis(self) -> Nemesis:
        plan = self.plan
        self._worker = Settings(
            name="",
            role="worker",
            address="",
            folder=str(self._folder),
            seed=0,
            begin=self._begin,
            round_ns=int(plan.round_seconds * 1e9),
            timeout=0.0,
            cache_bytes=CACHE_BYTES,
            shm="",
            large=plan.large,
            pause=plan.pause,
            connect=self._connect(keys.WORKER),
            broken=self._broken_client,
        )
        homes = self._members[:-1] if plan.hosts else ()
        return Nemesis(
            self._rng,
            self._members,
            self._postgres,
            self._links,
            self._clients,
            self._times,
            self._worker,
            plan.faults,
            lease=plan.lease,
            cache_lease=plan.cache_lease,
            overlap=plan.overlap,
            folders={member: self._folders[str(member.number)] for member in homes},
            owners=self._owners,
        )

    def _prober(self) -> Prober:
        source, connect = self._links.source(0), self._connect(keys.PROBES)
        folder, probed = str(self._folder), self.plan.probed
        return Prober(ProbeSettings(self._addresses(), folder, source, probed, connect))

    def _addresses(self) -> str:
        return ",".join(member.advertised for member in self._members[:-1])

    def _wait_for_clients(self) -> None:
        """Wait until all clients are at work. Raises TimeoutError."""
        until = time.monotonic() + SETTLE_TIMEOUT
        names = {client.settings.name for client in self._clients.living}
        while not names <= {path.name.split(".")[1] for path in self._folder.glob("*.jsonl")}:
            if time.monotonic() > until:
                raise TimeoutError("not all clients have begun")
            time.sleep(STEP_SECONDS)

    def _keep_faults(self, history: Sequence[Fault]) -> None:
        """Write down when each fault began and ended, by the clock of the logs."""
        offset = time.time() - time.monotonic()
        lines = []
        for fault in history:
            begin, end = _wall_clock(fault.begin, offset), _wall_clock(fault.end, offset)
            lines.append(f"{begin} to {end}: {fault.kind}\n")
        (self._folder / "faults.log").write_text("".join(lines))

    def _keep_logs(self) -> None:
        for server in self._postgres.servers:
            (self._folder / f"postgres-{server.data.name}.log").write_text(server.log)

    # ---- in between -----------------------------------------------------------------------

    def _disturb(self, nemesis: Nemesis) -> None:
        plan, said, begin = self.plan, 0, time.monotonic()
        while (elapsed := time.monotonic() - begin) < plan.seconds or (
            not nemesis.complete and elapsed < plan.seconds + plan.extended
        ):
            nemesis.step()
            nemesis.revive()
            for fault in nemesis.history[said:]:
                said += 1
                self._say(f"{elapsed:7.1f} s: {fault.kind}")
            time.sleep(STEP_SECONDS)
        nemesis.calm()
        nemesis.revive()

    def _elapsed(self) -> float:
        return (time.monotonic_ns() - self._begin) / 1e9

    def _wait_until_served(self) -> None:
        """Wait until the living members, and they alone, own all partitions; or TimeoutError."""
        settled = Settled(self._postgres)
        until = time.monotonic() + SETTLE_TIMEOUT
        living = [member.advertised for member in self._members if member.alive]
        while not settled.look(living):
            if time.monotonic() > until:
                raise TimeoutError(f"{living} do not own all partitions: {settled.seen}")
            time.sleep(LOOK_SECONDS)

    # ---- end ------------------------------------------------------------------------------

    def _end(self) -> None:
        """Wait until all is settled, end the workers, and read all keys."""
        self._wait_until_served()
        self._times.lives[-1].ready = time.monotonic_ns()
        self._clients.quiet_all()
        by = self._times.deleted_by(time.monotonic_ns())
        assert by is not None
        time.sleep(max(self.plan.quiet, GLOBAL_LATE + (by - time.monotonic_ns()) / 1e9))
        self._clients.end_all()
        self._read_all()

    def _read_all(self) -> None:
        with (
            Recorder(self._folder, "all") as recorder,
            dstore.Node(
                self._addresses(),
                connect=self._connect(keys.END) or None,
                host="off",
                shm="",
                timeout=READ_TIMEOUT,
            ) as node,
        ):
            client = Client(node, recorder, self._rng, "all")
            for number in range(self._rounds()):
                recorder.enter(number)
                client.read_many(Keys(number, self._worker.hot, self._worker.cold, 0).all())

    def _end_servers(self) -> None:
        for owner in self._owners:
            if not owner.note_end():
                self._wrong += filter(None, [owner.stop()])
            self._wrong += owner.problems
        for member in self._members:
            member.ask_to_end()
        for member in self._members:
            member.stop()

    def _rounds(self) -> int:
        """How many rounds have begun."""
        number = int(self._elapsed() // self.plan.round_seconds) + 1
        while number and not files_of(self._folder, number - 1):
            number -= 1
        return number

    def _report(self, nemesis: Nemesis, prober: Prober) -> Report:
        self._keep_faults(nemesis.history)
        plan, over = self.plan, time.monotonic_ns()
        for each in nemesis.history:
            settle = int(settles(each.kind, plan.lease, plan.cache_lease) * 1e9)
            self._times.faults.append((each.begin, (each.end or over) + settle))
        verdict = self._judge()
        self._check_pages(verdict.counts)
        if verdict.counts[WRONG_SERVERS] and GLOBAL_REPLACED not in nemesis.done:
            self._wrong.append(f"{verdict.counts[WRONG_SERVERS]} calls have found a wrong server")
        found = longest(prober.probes(), nemesis.history, int(plan.lease * 1e9))
        wrong = [*self._wrong, *verdict.violations, *self._clients.problems, *prober.problems()]
        wrong += [problem for member in self._members for problem in member.all_problems()]
        for fault in self.plan.faults:
            nemesis.done[fault] += 0
        return Report(verdict, nemesis.done, found, self._clients.started, wrong)

    def _check_pages(self, counts: Counter[str]) -> None:
        """Check that pages have answered reads, unless the run was very short."""
        if not self.plan.hosts or self.plan.seconds < PAGES_SECONDS:
            return
        for sort, place in PLACES.items():
            if sort < self.plan.workers and not counts[f"host_hits {place}"]:
                self._wrong.append(f"no page {place} has answered a read")

    def _judge(self) -> Verdict:
        self._times.save(self._folder)
        verdict, left = Verdict(), list(range(self._rounds()))
        judges: list[JudgeProcess] = []
        while left or judges:
            if left and len(judges) < JUDGES:
                judges.append(JudgeProcess(self._folder, left.pop(0)))
                continue
            judge = judges.pop(0)
            found = judge.verdict()
            verdict.add(found)
            if not found.violations:
                judge.remove_files()
            self._say(f"round {judge.number}: {found}")
        return verdict


def _wall_clock(moment: int | None, offset: float) -> str:
    """A time of ``time.monotonic_ns`` as the logs have it."""
    if moment is None:
        return "the end"
    seconds = moment / 1e9 + offset
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03}"


def main() -> int:
    options = _parser().parse_args()
    if why := missing():
        print(f"scripts/cluster cannot run: {why}", file=sys.stderr)
        return EXIT_MISSING
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dstore-cluster-"))
    plan = Plan(
        60 * options.minutes,
        seed,
        members=options.globals,
        workers=options.workers,
        lease=options.ownership_lease,
        cache_lease=options.lease,
        faults=_faults(options.essential, options.only),
        overlap=options.overlap,
        keys=not options.plain,
        broken=options.broken,
    )
    try:
        report = Run(plan, folder, lambda line: print(line, flush=True)).run()
    except KeyboardInterrupt:
        print(f"interrupted; the histories and logs are in {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(*report.lines(), sep="\n")
    if report.wrong:
        print(*report.wrong, f"The histories and logs are in {folder}", sep="\n")
        return 1
    if options.keep:
        print(f"The logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return 0


def _faults(essential: bool, only: Sequence[str]) -> Sequence[str]:
    """Return the faults of a run: those that have one of these texts in their names."""
    there = ESSENTIAL if essential else FAULTS
    named = [fault for fault in there if not only or any(text in fault for text in only)]
    if not named:
        names = "\n  ".join(there)
        raise SystemExit(f"no fault has {' or '.join(only)} in its name; there are:\n  {names}")
    pair = {GLOBAL_ADDED, GLOBAL_DRAINED}
    return [*named, *pair.difference(named)] if pair.intersection(named) else named


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument("--seed", type=int, help="seed of the choices; their timing varies")
    parser.add_argument("--globals", type=int, default=MEMBERS, choices=range(1, 17), metavar="N")
    parser.add_argument("--workers", type=int, default=WORKERS, choices=range(1, 33), metavar="N")
    parser.add_argument(
        "--ownership-lease",
        type=float,
        default=config.OWNERSHIP_LEASE_DEFAULT,
        metavar="SECONDS",
        help="default: %(default)g",
    )
    parser.add_argument(
        "--lease",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="of caches; default: %(default)g",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="the faults alone that have this in their names; may be repeated",
    )
    parser.add_argument("--keep", action="store_true", help="keep logs without a violation, too")
    parser.add_argument("--essential", action="store_true", help="one fault of each sort")
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="faults overlap from the beginning, and not only when each kind was there alone",
    )
    parser.add_argument("--plain", action="store_true", help="Globals that do not ask for keys")
    parser.add_argument(
        "--broken",
        default=NOTHING,
        choices=[*BROKEN, *(each for each in BROKEN_CLIENTS if each not in BROKEN)],
        help="break a rule of Globals, workers or hosts, to see that it is noticed",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

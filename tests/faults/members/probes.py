"""Measures for how long keys cannot be read or written: a process of its own.

``python -m tests.faults.members.probes SETTINGS`` reads, sets and deletes a few keys all the time,
in a thread for each, and writes a line for each success: what was done, of which key, when it was
first attempted and when it was done. It ends when its standard input does. :class:`Prober` starts
one, :func:`longest` finds the longest times.

The reads are of a key that is never there, which no cache answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import dstore
from tests.faults.injector import Fault
from tests.faults.tether import tether
from tests.faults.workload import connect_from
from tests.integration.processes import PATIENCE, ROOT

PERIOD = 0.15
"""Seconds between two calls of a thread."""
RETRY = 0.05
"""Seconds after which a call that was given up is repeated, as the same attempt."""
READ, SET, DELETE = KINDS = ("read", "set", "delete")
RECORDS = "probes.jsonl"
FAILURES = "probes.log"
"""What attempts have failed with, for people."""
PROBLEMS = "probes.err"
NO_FAULT = "(no fault)"
SEVERAL = "(several at once)"


@dataclass(frozen=True)
class Settings:
    """What a process of probes is told.

    ``keys`` is how many keys are probed, ``connect`` its connect file if the Globals ask for keys.
    """

    address: str
    folder: str
    source: str
    keys: int
    connect: str = ""


class Probe(NamedTuple):
    """A success: attempted from ``begin`` on, done by ``end``, in ns of ``time.monotonic_ns``."""

    kind: str
    key: str
    begin: int
    end: int


# ---- within the process -----------------------------------------------------------------------


class Probes:
    """What the process does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._over = threading.Event()
        path = Path(settings.folder) / RECORDS
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._failures = path.with_name(FAILURES).open("w", buffering=1)

    def run(self) -> None:
        mine = self._settings
        connect = mine.connect or None
        with dstore.Node(
            mine.address, connect=connect, host="off", shm="", label="probes"
        ) as self._node:
            threads = [
                threading.Thread(target=self._guarded, args=(probe, number))
                for number in range(mine.keys)
                for probe in (self._read, self._write)
            ]
            for thread in threads:
                thread.start()
            while os.read(sys.stdin.fileno(), 1):
                pass
            self._over.set()
            # A call that waits for a Global that is away need not hold up the end.
            self._node.close()
            for thread in threads:
                thread.join()

    def _guarded(self, probe: Callable[[int], None], number: int) -> None:
        try:
            probe(number)
        except dstore.NodeClosed:
            pass
        except Exception:
            traceback.print_exc()

    def _read(self, number: int) -> None:
        key = f"probe{number}.missing"
        while not self._over.wait(PERIOD):
            self._attempt(READ, key, lambda: self._node.get(key, None))

    def _write(self, number: int) -> None:
        key = f"probe{number}"
        while not self._over.wait(PERIOD):
            self._attempt(SET, key, lambda: self._node.set(key, number))
            self._attempt(DELETE, key, lambda: self._node.delete(key))

    def _attempt(self, kind: str, key: str, call: Callable[[], object]) -> None:
        begin = time.monotonic_ns()
        while not self._over.is_set():
            try:
                call()
            except (dstore.KeyMissing, dstore.KeyOccupied):
                pass  # an attempt before was carried out
            except dstore.NodeClosed:
                raise
            except (dstore.GlobalUnavailable, dstore.WrongServer, dstore.OutcomeUnknown) as error:
                seconds = (time.monotonic_ns() - begin) / 1e9
                self._failures.write(f"{_wall_clock()} {kind} {key} {seconds:.2f} s: {error!r}\n")
                self._over.wait(RETRY)
                continue
            line = json.dumps(Probe(kind, key, begin, time.monotonic_ns()))
            os.write(self._file, line.encode() + b"\n")
            return


def _wall_clock() -> str:
    return time.strftime("%H:%M:%S")


# ---- seen from outside ------------------------------------------------------------------------


class Prober:
    """The process of probes."""

    def __init__(self, settings: Settings) -> None:
        self._folder = Path(settings.folder)
        with (self._folder / PROBLEMS).open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.members.probes", json.dumps(asdict(settings))],
                stdin=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def close(self) -> None:
        """End it; kill it if it does not end in time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()

    def problems(self) -> list[str]:
        """Return what it has written to stderr, which must be nothing."""
        said = (self._folder / PROBLEMS).read_text(errors="replace").strip()
        return [f"probes: {said}"] if said else []

    def probes(self) -> list[Probe]:
        """Return what was done. An incomplete last line is ignored."""
        path = self._folder / RECORDS
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [Probe(*json.loads(line)) for line in lines]


def longest(
    probes: Iterable[Probe], faults: Sequence[Fault], settle_ns: int
) -> dict[str, dict[str, float]]:
    """Return for each kind of fault the longest time that each kind of probe took, in seconds.

    A fault counts until ``settle_ns`` after its repair. A probe that overlaps several faults counts
    for none of them.
    """
    found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
    for probe in probes:
        during = [fault for fault in faults if _overlap(probe, fault, settle_ns)]
        kind = SEVERAL if len(during) > 1 else during[0].kind if during else NO_FAULT
        found[kind][probe.kind] = max(found[kind][probe.kind], (probe.end - probe.begin) / 1e9)
    return dict(found)


def _overlap(probe: Probe, fault: Fault, settle_ns: int) -> bool:
    over = fault.end is not None and fault.end + settle_ns <= probe.begin
    return fault.begin < probe.end and not over


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    connect_from(settings.source)
    tether()
    Probes(settings).run()


if __name__ == "__main__":
    main()

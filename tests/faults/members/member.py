"""``dstore global --engine postgresql://...`` as a process, killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dstore.config import HOST_VARIABLE
from dstore.testing.running import BANNER
from tests.faults.cluster import STOPPED_BY_US
from tests.integration.processes import PATIENCE, ROOT, send_signal

SAID_MAX = 2000
"""Characters of what a Global has logged that are shown if it ends by itself."""


class Member:
    """One Global of a cluster. Each start of it is another member, at the same address.

    ``of_cluster`` are the options of a member of a cluster, beside those of any Global. ``broken``
    is the rule that it breaks; see :mod:`.broken_member`.
    """

    def __init__(
        self,
        number: int,
        address: str,
        advertised: str,
        options: Sequence[str],
        of_cluster: Sequence[str],
        folder: Path,
        broken: str,
    ) -> None:
        self.number = number
        self.advertised = advertised
        self.problems: list[str] = []
        program = [sys.executable, "-m", "tests.faults.members.broken_member"]
        self._command = [*program, str(os.getpid()), broken]
        self._options = ["--address", address, *options]
        self._of_cluster = of_cluster
        self._log = folder / f"global-{number}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._draining: subprocess.Popen[bytes] | None = None
        self._database = ""
        self._asked = False  # to end
        self._before = 0  # characters that it had logged when it was started last

    def start(self) -> None:
        """Start it, without waiting until it serves anything: the database may be away."""
        self._run(["--advertise", self.advertised, *self._of_cluster])

    def start_plain(self) -> None:
        """Start a Global without the database at its address: it belongs to no cluster."""
        self._run([])

    def _run(self, options: Sequence[str]) -> None:
        assert not self.alive
        self._asked = False
        self._before = len(self._said())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "global", *self._options, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, HOST_VARIABLE: "auto", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it was started, and has not been ended by a signal of this object."""
        return self._process is not None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            send_signal(self._process.pid, number)

    def ask_to_end(self) -> None:
        """Ask it to hand over what it owns, and to end. A second signal would end it at once."""
        if not self._asked:
            self._asked = True
            self.signal(signal.SIGTERM)

    def drain(self, database: str) -> None:
        """Ask it by ``dstore cluster drain`` to hand over what it owns, without waiting."""
        self._database = database
        command = ["cluster", "drain", database, self.advertised]
        with self._log.open("ab") as log:
            self._draining = subprocess.Popen(
                [*self._command, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def has_drained(self) -> bool:
        """Whether that has ended. If it has failed, for which it says why, it begins again."""
        if self._draining is not None and (code := self._draining.poll()) is not None:
            self._draining = None
            if code:
                self.drain(self._database)
        return self._draining is None

    def kill(self) -> None:
        """Kill it with SIGKILL, if it is there. If it had ended by itself, that is noted."""
        if self._draining is not None:
            self._draining.kill()
            self._draining.wait()
            self._draining = None
        if self._process is not None and not self.note_end():
            self._process.kill()
            self._process.wait()
            self._process = None

    def note_end(self) -> bool:
        """Note a bad exit code if its process has ended. Returns whether it has."""
        if self._process is None or self._process.poll() is None:
            return False
        process, self._process = self._process, None
        said = self._said()[self._before :]
        just_begun = process.returncode == -signal.SIGTERM and BANNER not in said
        if process.returncode not in (0, STOPPED_BY_US) and not just_begun:
            said = said[-SAID_MAX:]
            self.problems.append(f"{self} ended with exit code {process.returncode}: {said}")
        return True

    def stop(self) -> None:
        """Ask it to end, and wait; kill it if it does not end in time, which is noted."""
        if self._process is None:
            return
        self.ask_to_end()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{self} did not end within {PATIENCE:g} s: {self._said()}")
        self.kill()

    def all_problems(self) -> list[str]:
        """Return what was noted, and what it has logged that must not happen."""
        said = self._said()
        logged = [f"{self}: {said}"] if "Traceback" in said or " ERROR " in said else []
        return self.problems + logged

    def _said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __repr__(self) -> str:
        return f"Global {self.number}"

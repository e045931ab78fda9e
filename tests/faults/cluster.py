"""The processes of a run: the lives of a Global, and clients that start, end and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dstore.config import HOST_VARIABLE
from dstore.testing import start_global
from tests.ending import kill
from tests.faults.workload import Settings
from tests.integration.processes import PATIENCE, ROOT, send_signal

STOPPED_BY_US = -signal.SIGKILL
TIMES = "times.json"


@dataclass
class Life:
    """One life of a Global: it did nothing before ``begin`` or after ``end``.

    ``ready`` is when it was seen to answer, if that was waited for, and ``lease`` the lease that it
    gives, both for a durable Global.
    """

    begin: int
    end: int | None = None
    ready: int | None = None
    lease: int = 0


@dataclass
class Times:
    """When a Global lived, when clients died and when they were (or may have been) stopped.

    All times are in nanoseconds of ``time.monotonic_ns``. Clients are identified by name. A
    ``durable`` Global has the same keys in all its lives. ``lease`` is the longest that it gives.
    ``faults`` are the times of faults, each until all should be as before it.
    """

    lease: int
    lives: list[Life] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)
    stops: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    durable: bool = False
    faults: list[tuple[int, int]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        (folder / TIMES).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Times:
        saved = json.loads((folder / TIMES).read_text())
        saved["lives"] = [Life(**life) for life in saved["lives"]]
        return cls(**saved)

    def in_one_life(self) -> Times:
        """These times as if Global had lived from the first life on without an end."""
        return replace(self, lives=[Life(self.lives[0].begin)])

    def deleted_by(self, answered: int, since: int = 0) -> int | None:
        """When a deletion that was not waited for must have taken effect in a durable Global.

        A life needs for it at most the longest lease of the lives before, which is waited for after
        a restart, and its own, which the holders of the key may have. None if no life from number
        ``since`` on was long enough.
        """
        for life in self.lives[since:]:
            if life.ready is not None:
                deadline = max(life.ready + self.lease, answered + life.lease)
                if life.end is None or deadline < life.end:
                    return deadline
        return None

    def stopped(self, client: str, since: int) -> None:
        """Note that a client may have been stopped, until now."""
        self.stops.setdefault(client, []).append((since, time.monotonic_ns()))

    def quiet(self, start: int, end: int) -> int:
        """Return for how much of this time there was no fault."""
        disturbed, reached = 0, start
        for since, until in sorted(self.faults):
            since, until = max(since, reached), min(until, end)
            if since < until:
                disturbed += until - since
                reached = until
        return max(0, end - start - disturbed)

    def disturbed(self, client: str, start: int, end: int) -> bool:
        """Whether a client was stopped during a part of this time."""
        return any(since < end and start < until for since, until in self.stops.get(client, ()))


class GlobalLives:
    """``python -m dstore global``, killed and started again at the same port."""

    def __init__(self, port: int, lease: float, folder: Path, times: Times, shm: str) -> None:
        self._port = port
        self._shm = shm
        self._lease = lease
        self._stderr_path = folder / "global.err"
        self._times = times
        self._process: subprocess.Popen[str] | None = None

    def start(self, log_length: int) -> None:
        self._times.lives.append(Life(time.monotonic_ns()))
        options = ["--lease", str(self._lease), "--log-length", str(log_length)]
        options += ["--shm", self._shm]
        address = f"tcp://127.0.0.1:{self._port}"
        env = {**os.environ, HOST_VARIABLE: "auto"}
        with self._stderr_path.open("ab") as stderr:
            try:
                self._process = start_global(
                    *options, address=address, stderr=stderr, env=env
                ).process
            except RuntimeError as error:
                raise RuntimeError(f"{error}: {self._stderr_path.read_text()}") from None

    def kill(self) -> None:
        """Kill it with SIGKILL, if it is running."""
        process, self._process = self._process, None
        if process is None:
            return
        kill(process)
        self._times.lives[-1].end = time.monotonic_ns()

    def stop(self) -> int:
        """Ask it to end. Returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(PATIENCE)
        self.kill()
        return code

    @property
    def alive(self) -> bool:
        return self._process is not None


class OwnerLives:
    """``dstore host`` of one "host", killed and started again with the same folder.

    ``program`` is what is run with the arguments of ``dstore``; ``options`` are further ones.
    """

    def __init__(
        self,
        address: str,
        shm: str,
        folder: Path,
        program: Sequence[str] = ("-m", "dstore"),
        options: Sequence[str] = (),
    ) -> None:
        self._command = [sys.executable, *program, "host", "--quiet"]
        self._command += ["--address", address, "--shm", shm, *options]
        self.shm = shm
        self.problems: list[str] = []
        self._said = folder / f"owner-{Path(shm).name}.out"
        self.started = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting until it can be used: Global may be away."""
        self.started += 1
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        send_signal(self._process.pid, number)

    def note_end(self) -> bool:
        """Note it as a problem if it has ended by itself. Returns whether it has."""
        if self._process is None or (code := self._process.poll()) is None:
            return False
        self._process = None
        self.problems.append(f"dstore host ended with {code}: {self._said.read_text()}")
        return True

    def kill(self) -> None:
        """Kill it with SIGKILL, if it is running."""
        process, self._process = self._process, None
        if process is not None:
            kill(process)

    def stop(self) -> str:
        """Ask it to end. Returns what is wrong with that; empty if all was well."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(PATIENCE)
        self.kill()
        if code in (0, -signal.SIGTERM):  # it may have begun a moment ago
            return ""
        return f"dstore host ended with {code}: {self._said.read_text()}"


class ClientProcess:
    """One process of :mod:`tests.faults.workload`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._has_read = False
        self._stderr_path = Path(settings.folder) / f"{settings.name}.err"
        with self._stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.workload", settings.dump()],
                stdin=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        send_signal(self.process.pid, number)

    def quiet(self) -> None:
        """Ask it to be quiet, without waiting; see :mod:`tests.faults.workload`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    @property
    def is_quiet(self) -> bool:
        return (Path(self.settings.folder) / f"{self.settings.name}.quiet").exists()

    @property
    def has_read(self) -> bool:
        """Whether it has recorded a read."""
        if not self._has_read:
            mine = Path(self.settings.folder).glob(f"*.{self.settings.name}.*.jsonl")
            self._has_read = any('["read",' in path.read_text() for path in mine)
        return self._has_read

    def end(self) -> None:
        """Ask it to end, without waiting."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill(self) -> None:
        kill(self.process)

    def problem(self) -> str:
        """What it wrote to stderr, or its exit code if that is bad; empty if all was well."""
        text = self._stderr_path.read_text(errors="replace").strip()
        if not text and self.process.returncode not in (0, STOPPED_BY_US):
            text = f"exit code {self.process.returncode}"
        return f"{self.settings.name}: {text}" if text else ""


class Clients:
    """All client processes, and the problems of those that have ended or were killed."""

    def __init__(self, times: Times) -> None:
        self.living: list[ClientProcess] = []
        self.problems: list[str] = []
        self.started = 0
        self._times = times

    def start(self, settings: Settings) -> ClientProcess:
        self.started += 1
        client = ClientProcess(replace(settings, name=f"{settings.role}{self.started}"))
        self.living.append(client)
        return client

    def kill(self, client: ClientProcess) -> None:
        """Kill a client with SIGKILL, and note a time at which it was certainly dead."""
        client.kill()
        self._times.deaths[client.settings.name] = time.monotonic_ns()
        self._remove(client)

    def end(self, client: ClientProcess, stall_timeout: float = PATIENCE) -> None:
        """Ask a client to end; kill it if it does not within ``stall_timeout`` seconds."""
        client.end()
        try:
            client.process.wait(stall_timeout)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{client.settings.name} did not end")
            client.kill()
        self._remove(client)

    def quiet_all(self) -> None:
        """Have all clients write and read nothing more, and wait until they do."""
        for client in self.living:
            client.quiet()
        until = time.monotonic() + PATIENCE
        for client in self.living:
            while not client.is_quiet and not client.ended and time.monotonic() < until:
                time.sleep(0.02)

    def end_all(self) -> None:
        for client in self.living:
            client.end()
        for client in list(self.living):
            self.end(client)

    def kill_all(self) -> None:
        for client in list(self.living):
            self.kill(client)

    def _remove(self, client: ClientProcess) -> None:
        self.living.remove(client)
        if problem := client.problem():
            self.problems.append(problem)

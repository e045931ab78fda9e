"""gunicorn with the example of the repository, and clients that ask its workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from dstore import config
from tests.ending import Closing, kill_group
from tests.integration.processes import PATIENCE, ROOT

WORKERS = 4
OK, MISSING = 200, 404
LIMIT = "config/limit"


class Answer(NamedTuple):
    """What a worker has answered; ``begun`` is when the request was, in nanoseconds."""

    begun: int
    pid: int
    status: int
    text: str


class Gunicorn(Closing):
    """The example in gunicorn, with ``--preload`` or without. It listens from the beginning."""

    def __init__(
        self,
        address: str,
        folder: Path,
        kind: str,
        *,
        preload: bool = True,
        workers: int = WORKERS,
    ) -> None:
        self.workers = workers
        self._said = folder / "gunicorn.log"
        with socket.create_server(("127.0.0.1", 0)) as listener, self._said.open("wb") as said:
            self.port: int = listener.getsockname()[1]
            command = [sys.executable, "-m", "gunicorn", "--no-control-socket"]
            command += ["--preload"] if preload else []
            command += ["--workers", str(workers), "--worker-class", kind]
            command += ["--threads", "2"] if kind == "gthread" else []
            command += ["--bind", f"fd://{listener.fileno()}", "--chdir", str(ROOT / "examples")]
            self.process = subprocess.Popen(
                [*command, "gunicorn_preload:application"],
                env={**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address},
                pass_fds=[listener.fileno()],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def client(self) -> Client:
        return Client(self.port)

    def ask(self, method: str, path: str, body: str | None = None) -> Answer:
        """A request on a connection of its own, which any worker may take."""
        with self.client() as client:
            return client.ask(method, path, body)

    def ask_all(self, method: str, path: str, but: int = 0) -> list[Answer]:
        """Ask until all workers have answered; the first answer of each, ``but`` this one's."""
        first: dict[int, Answer] = {}
        until = time.monotonic() + PATIENCE
        while len(first.keys() - {but}) < self.workers:
            assert time.monotonic() < until, f"only {sorted(first)} have answered"
            answer = self.ask(method, path)
            first.setdefault(answer.pid, answer)
        first.pop(but, None)
        return list(first.values())

    def said(self) -> str:
        return self._said.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        kill_group(self.process)  # its workers, too
        print(self.said())  # which is shown if the test fails


class Client(Closing):
    """One connection, for one thread; a new one whenever the worker has closed it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: str | None = None) -> Answer:
        begun = time.monotonic_ns()
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        text = response.read().decode().removesuffix("\n")
        return Answer(begun, int(response.headers["X-Worker"]), response.status, text)

    def close(self) -> None:
        self._connection.close()


class Readers(Closing):
    """Threads that ask for one key all the time, and note every answer."""

    KEEP = 10
    """Requests on one connection: it stays with one worker, where workers keep connections."""

    def __init__(self, service: Gunicorn, key: str, count: int) -> None:
        self._service = service
        self._path = f"/{key}"
        self._changed = threading.Condition()
        self._stopping = False
        self.answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._read) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        while not self._stopping:
            with self._service.client() as client:
                for _ in range(self.KEEP):
                    answer = client.ask("GET", self._path)
                    with self._changed:
                        self.answers.append(answer)
                        self._changed.notify_all()

    def wait_for_all(self, status: int, text: str | None = None) -> None:
        """Until each worker has answered like this to a request that begins from now on."""
        now = time.monotonic_ns()
        done: set[int] = set()
        looked = len(self.answers)

        def all_have() -> bool:
            nonlocal looked
            for answer in self.answers[looked:]:
                fits = answer.status == status and text in (None, answer.text)
                if fits and answer.begun >= now:
                    done.add(answer.pid)
            looked = len(self.answers)
            return len(done) >= self._service.workers

        with self._changed:
            assert self._changed.wait_for(all_have, PATIENCE), f"only {done} answer {status}"

    def close(self) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join()


def own_figures(service: Gunicorn) -> dict[int, dict[str, Any]]:
    """What each worker tells of itself, by process id."""
    return {answer.pid: json.loads(answer.text) for answer in service.ask_all("GET", "/")}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_the_end(pid: int) -> None:
    until = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.01)

"""A Node that is made in gunicorn's master is at home in each worker: the example under load."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest

import dstore
from dstore import config
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess, sessions_left

pytest.importorskip("gunicorn", minversion="25.1", reason="needs gunicorn 25.1 or newer")
if not hasattr(os, "fork"):
    pytest.skip("gunicorn needs a system that forks", allow_module_level=True)

WORKERS = 4
REQUESTS = int(os.environ.get("DSTORE_TEST_REQUESTS", "2000"))
"""How many at least; 10000 for a closer look."""
LONG_LEASE = 2 * PATIENCE
"""Seconds. While a test runs no lease lapses, and nobody is dropped who says no goodbye."""
SHORT_LEASE = 1.0
LIMIT = "config/limit"
OK, MISSING = 200, 404


class Answer(NamedTuple):
    """What a worker has answered; ``begun`` is when the request was, in nanoseconds."""

    begun: int
    pid: int
    status: int
    text: str


class Gunicorn:
    """The example in gunicorn, with ``--preload`` or without. It listens from the beginning."""

    def __init__(self, address: str, folder: Path, kind: str, *, preload: bool = True) -> None:
        self._said = folder / "gunicorn.log"
        with socket.create_server(("127.0.0.1", 0)) as listener, self._said.open("wb") as said:
            self.port: int = listener.getsockname()[1]
            command = [sys.executable, "-m", "gunicorn", "--no-control-socket"]
            command += ["--preload"] if preload else []
            command += ["--workers", str(WORKERS), "--worker-class", kind]
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
        while len(first.keys() - {but}) < WORKERS:
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

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers, too
            self.process.wait()
        if error is not None:
            print(self.said())


class Client:
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

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Readers:
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
            return len(done) >= WORKERS

        with self._changed:
            assert self._changed.wait_for(all_have, PATIENCE), f"only {done} answer {status}"

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join()


def own_figures(service: Gunicorn) -> dict[int, dict[str, int]]:
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


def bind_and_delete(node: dstore.Node, key: str, readers: Readers) -> dict[str, int]:
    """Do so, while they read, until there are enough answers; when each value was deleted.

    Each worker has answered with a value before that is deleted, and as missing afterwards.
    """
    over: dict[str, int] = {}
    while len(readers.answers) < REQUESTS:
        large = len(over) % 5 == 0  # these are in shared memory
        value = f"version {len(over)} " + "x" * (100_000 if large else 0)
        node.set(key, value)
        readers.wait_for_all(OK, value)
        deletion = node.delete(key)
        over[value] = time.monotonic_ns()
        assert deletion == dstore.Deletion(confirmed=WORKERS + 1, expired=0, pending=0)
        readers.wait_for_all(MISSING)
    return over


@pytest.mark.parametrize(
    ("kind", "preload"),
    [("sync", True), ("gthread", True), ("gevent", True), ("gevent", False)],
)
def test_no_worker_answers_with_a_value_whose_deletion_is_over(
    kind: str, preload: bool, tmp_path: Path
) -> None:
    if kind == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    with GlobalProcess(lease=LONG_LEASE) as served, dstore.Node(served.address) as node:
        with Gunicorn(served.address, tmp_path, kind, preload=preload) as service:
            before = own_figures(service)
            sessions = {each["session"] for each in before.values()}
            assert len(sessions) == WORKERS
            assert not sessions & {0, node.stats()["session"]}
            others = 1 + preload  # this one, and the master
            assert node.global_stats()["sessions"] == WORKERS + others

            with Readers(service, "k", count=6) as readers:
                over = bind_and_delete(node, "k", readers)
            assert {each.status for each in readers.answers} == {OK, MISSING}
            values = [each for each in readers.answers if each.status == OK]
            assert {each.text for each in values} == set(over)
            stale = [each for each in values if each.begun > over[each.text]]
            assert not stale, f"{len(stale)} answers, the first by worker {stale[0].pid}"

            after = own_figures(service)
            assert {pid: each["session"] for pid, each in after.items()} == {
                pid: each["session"] for pid, each in before.items()
            }
            assert all(after[pid]["hits"] > before[pid]["hits"] for pid in before)
            assert service.stop() == 0
        assert sessions_left(node, 1) == 1
        assert not any(alive(pid) for pid in before)
        assert "Traceback" not in service.said()


def test_what_the_master_has_read_is_not_in_the_workers(tmp_path: Path) -> None:
    with GlobalProcess(lease=LONG_LEASE) as served, dstore.Node(served.address) as node:
        node.set(LIMIT, 1000)
        with Gunicorn(served.address, tmp_path, "sync") as service:
            there = service.ask_all("POST", "/")  # refused without a look into the Node
            assert {each.status for each in there} == {405}
            assert "a value may have 1,000 bytes" in service.said()
            assert node.global_stats()["sessions"] == 2  # a worker joins when it has to

            assert node.delete(LIMIT).confirmed == 2  # here, and in the master
            found = service.ask_all("GET", f"/{LIMIT}")
            assert {(each.status, each.text) for each in found} == {
                (MISSING, f"no value is bound to '{LIMIT}'")
            }
            assert node.global_stats()["sessions"] == WORKERS + 2
            assert service.stop(signal.SIGQUIT) == 0
        assert sessions_left(node, 1) == 1
        assert "Traceback" not in service.said()


def test_a_killed_worker_is_replaced_and_the_service_goes_on(tmp_path: Path) -> None:
    with GlobalProcess(lease=SHORT_LEASE) as served, dstore.Node(served.address) as node:
        node.set("k", "v")
        with Gunicorn(served.address, tmp_path, "sync") as service:
            victim = service.ask_all("GET", "/k")[0].pid
            os.kill(victim, signal.SIGKILL)
            wait_for_the_end(victim)
            found = service.ask_all("GET", "/k", but=victim)
            assert {(each.status, each.text) for each in found} == {(OK, "v")}

            deletion = node.delete("k")  # when the lease of the killed one has run out
            assert deletion.confirmed + deletion.expired == WORKERS + 2
            assert deletion.expired >= 1
            assert {each.status for each in service.ask_all("GET", "/k")} == {MISSING}
            assert service.stop() == 0
        assert not any(alive(each.pid) for each in found)


def test_what_it_answers_also_when_global_is_away(tmp_path: Path) -> None:
    with (
        GlobalProcess(lease=SHORT_LEASE) as served,
        Gunicorn(served.address, tmp_path, "gthread") as service,
    ):

        def said(method: str, path: str, body: str | None = None) -> tuple[int, str]:
            answer = service.ask(method, path, body)
            return answer.status, answer.text

        assert said("PUT", "/gr%C3%BC%C3%9Fe", "hello") == (201, "'grüße' is bound")
        assert said("GET", "/gr%C3%BC%C3%9Fe") == (200, "hello")
        assert said("PUT", "/gr%C3%BC%C3%9Fe", "hi") == (
            409,
            "'grüße' is bound already; delete it first",
        )
        status, text = said("DELETE", "/gr%C3%BC%C3%9Fe")
        assert status == 200
        assert re.fullmatch(r"'grüße' is deleted; Locals that confirmed it: [1-4]", text)
        assert said("GET", "/gr%C3%BC%C3%9Fe") == (404, "no value is bound to 'grüße'")
        assert said("DELETE", "/gr%C3%BC%C3%9Fe")[0] == 404
        assert said("GET", "/%FF")[0] == 400
        assert said("GET", "/" + "k" * 600)[0] == 400
        assert said("PUT", f"/{LIMIT}", "4")[0] == 201
        assert said("PUT", "/k", "four") == (201, "'k' is bound")
        assert said("PUT", "/k", "fives") == (413, "a value may have 4 bytes here")
        assert said("POST", "/k")[0] == 405

        served.kill()
        status, text = said("GET", "/none")
        assert status == 503
        assert text.startswith("Global did not answer in time; connection refused at ")
        served.start()
        assert said("GET", "/none") == (404, "no value is bound to 'none'")
        assert service.stop() == 0
        assert "Traceback" not in service.said()

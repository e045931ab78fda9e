"""The asynchronous service of the examples, in several workers of the real uvicorn."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dstore
from dstore import config
from tests.ending import kill_group
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess, free_port, others_left

pytest.importorskip("starlette", reason="needs Starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn")

WORKERS = 3
ROUNDS = 20


class Service:
    """uvicorn with the example, and workers that answer."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode().removesuffix("\n")
        finally:
            connection.close()

    def workers(self) -> dict[int, int]:
        """Return the session of each worker, by process id."""
        found: dict[int, int] = {}
        until = time.monotonic() + PATIENCE
        while len(found) < WORKERS:
            assert time.monotonic() < until, f"only {sorted(found)} have answered"
            try:
                shown = json.loads(self.ask("GET", "/")[1])
            except ConnectionRefusedError:  # uvicorn is starting
                time.sleep(0.05)
                continue
            found[shown["pid"]] = shown["session"]
        return found


@contextmanager
def service(address: str, folder: Path) -> Iterator[Service]:
    port = free_port()
    with (folder / "uvicorn.log").open("wb") as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--log-level", "warning"),
                *("--workers", str(WORKERS), "--port", str(port)),
                *("--app-dir", str(ROOT / "examples"), "starlette_cache:app"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield Service(port, process)
    finally:
        kill_group(process)
    assert "Traceback" not in (folder / "uvicorn.log").read_text()


def test_no_worker_serves_a_page_whose_deletion_is_over(tmp_path: Path) -> None:
    with GlobalProcess(lease=2 * PATIENCE) as place, dstore.Node(place.address) as node:
        with service(place.address, tmp_path) as served:
            sessions = served.workers()
            assert len(set(sessions.values())) == WORKERS
            assert others_left(node, WORKERS) == WORKERS

            over, stale = threading.Event(), []
            oldest = 0  # pages of earlier rounds are deleted

            def read() -> None:
                while not over.is_set():
                    least = oldest
                    status, text = served.ask("GET", "/pages/news")
                    if status == 200 and text.startswith("round") and int(text.split()[1]) < least:
                        stale.append(text)

            readers = [threading.Thread(target=read) for _ in range(4)]
            for reader in readers:
                reader.start()
            try:
                for number in range(1, ROUNDS):
                    node.set("pages/news", f"round {number}", replace=True)
                    oldest = number
                    assert served.ask("GET", "/pages/news") == (200, f"round {number}")
                    status, text = served.ask("DELETE", "/pages/news")
                    assert (status, text.partition(";")[0]) == (200, "deleted")
                    oldest = number + 1
            finally:
                over.set()
                for reader in readers:
                    reader.join(PATIENCE)
            assert stale == []
            assert served.workers() == sessions
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(PATIENCE) == 0
        assert others_left(node) == 0


@pytest.mark.long
def test_pages_are_rendered_once_events_arrive_and_errors_have_a_status(tmp_path: Path) -> None:
    with (
        GlobalProcess(lease=1.0) as place,
        dstore.Node(place.address) as node,
        service(place.address, tmp_path) as served,
    ):
        served.workers()
        pages = {served.ask("GET", "/pages/hello") for _ in range(4 * WORKERS)}
        ((status, page),) = pages
        assert status == 200
        assert page.startswith("page hello, rendered by worker ")
        assert node.get("pages/hello") == page

        listening = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
        listening.request("GET", "/events")
        events = listening.getresponse()
        assert events.readline() == b"(read everything again)\n"
        assert served.ask("DELETE", "/pages/hello")[0] == 200
        assert events.readline() == b"pages/hello\n"
        listening.close()

        assert served.ask("DELETE", "/pages/hello") == (404, "no value is bound to 'pages/hello'")
        place.kill()
        assert served.ask("DELETE", "/pages/hello")[0] == 503
        place.start()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0

"""A Node that is made in gunicorn's master is at home in each worker: the example under load."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import time
from pathlib import Path

import pytest

import dstore
from tests.integration.gunicorn_service import (
    LIMIT,
    MISSING,
    OK,
    WORKERS,
    Gunicorn,
    Readers,
    alive,
    own_figures,
    wait_for_the_end,
)
from tests.integration.processes import PATIENCE, GlobalProcess, others_left

pytest.importorskip("gunicorn", minversion="25.1", reason="needs gunicorn 25.1 or newer")
if not hasattr(os, "fork"):
    pytest.skip("gunicorn needs a system that forks", allow_module_level=True)

REQUESTS = int(os.environ.get("DSTORE_TEST_REQUESTS", "2000"))
"""How many at least; 10000 for a closer look."""
LONG_LEASE = 2 * PATIENCE
"""Seconds. While a test runs no lease lapses, and nobody is dropped who says no goodbye."""
SHORT_LEASE = 1.0


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
            assert (
                others_left(node, WORKERS + preload) == WORKERS + preload
            )  # the master has one, too

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
        assert others_left(node) == 0
        assert not any(alive(pid) for pid in before)
        assert "Traceback" not in service.said()


def test_what_the_master_has_read_is_not_in_the_workers(tmp_path: Path) -> None:
    with GlobalProcess(lease=LONG_LEASE) as served, dstore.Node(served.address) as node:
        node.set(LIMIT, 1000)
        with Gunicorn(served.address, tmp_path, "sync") as service:
            there = service.ask_all("POST", "/")  # refused without a look into the Node
            assert {each.status for each in there} == {405}
            assert "a value may have 1,000 bytes" in service.said()
            assert others_left(node, 1) == 1  # a worker joins when it has to

            assert node.delete(LIMIT).confirmed == 2  # here, and in the master
            found = service.ask_all("GET", f"/{LIMIT}")
            assert {(each.status, each.text) for each in found} == {
                (MISSING, f"no value is bound to '{LIMIT}'")
            }
            assert others_left(node, WORKERS + 1) == WORKERS + 1
            assert service.stop(signal.SIGQUIT) == 0
        assert others_left(node) == 0
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


@pytest.mark.long
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
        assert re.fullmatch(r"'grüße' is deleted; memberships that confirmed it: [1-4]", text)
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

"""The servers that other tests use: they fail over, pause, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import postgres as servers
from tests.integration.processes import PATIENCE, ROOT
from tests.postgres import Postgres

BEGUN = """
import os, signal
from tests.postgres import Postgres

servers = Postgres()
servers.primary.pause()
print(servers.primary.data.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _numbers(servers: Postgres) -> list[int]:
    """What a client finds that has the one URL of both places."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(servers.url()) as connection:
        assert connection.info.host == servers.primary.host
        return [number for (number,) in connection.execute("SELECT number FROM kept ORDER BY 1")]


def test_what_was_committed_survives_two_failovers(new_postgres: Callable[..., Postgres]) -> None:
    pair = new_postgres(standby=True)
    pair.primary.query("CREATE TABLE kept (number int)")
    pair.primary.query("INSERT INTO kept VALUES (1)")
    former = pair.fail_over()
    assert not former.alive
    assert _numbers(pair) == [1]
    assert pair.rejoin() is former
    pair.primary.query("INSERT INTO kept VALUES (2)")  # waits for the former primary
    pair.fail_over()
    pair.replace_standby()
    pair.primary.query("INSERT INTO kept VALUES (3)")
    assert _numbers(pair) == [1, 2, 3]


def test_a_paused_server_answers_only_later(new_postgres: Callable[..., Postgres]) -> None:
    psycopg = pytest.importorskip("psycopg")
    only = new_postgres()
    with psycopg.connect(only.url()) as connection:
        only.primary.pause()
        one_way = connection.pgconn
        one_way.send_query(b"SELECT 1")
        one_way.flush()
        assert one_way.is_busy()
        only.primary.resume()
        results = list(iter(one_way.get_result, None))
        assert [each.get_value(0, 0) for each in results] == [b"1"]


def test_each_test_has_an_empty_database(postgres_url: str, postgres_pair_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    for url in (postgres_url, postgres_pair_url):
        with psycopg.connect(url) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            ).fetchone()
        assert count == 0


def test_a_killed_test_leaves_no_server() -> None:
    if why := servers.missing():
        pytest.skip(why)
    ended = subprocess.run(
        [sys.executable, "-c", BEGUN], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    folder = Path(ended.stdout.strip())
    until = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert folder.name.startswith("dstore-postgres-")
    assert not folder.exists()

"""A database on which a cluster cannot rest is refused, with a text that says what to do."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dstore.errors import DataError
from dstore.protocol.clusters import CLUSTER_BYTES
from dstore.protocol.partitions import partition_of
from dstore.server.postgres import drain, init, open_store, status
from tests.integration.processes import ROOT
from tests.integration.stores import Owner, bind
from tests.postgres import Postgres

psycopg = pytest.importorskip("psycopg")

from psycopg.conninfo import conninfo_to_dict  # noqa: E402

from dstore.server.postgres import connections  # noqa: E402
from dstore.server.postgres.connections import CONNECT_TIMEOUT, Link, Target  # noqa: E402
from dstore.server.postgres.journal import PostgresJournal  # noqa: E402

MEMORY = 1 << 20


def refusal(url: str) -> str:
    """Return why a database is refused."""
    with pytest.raises(DataError) as refused:
        open_store(url, memory_limit=MEMORY, patience=5.0)
    return str(refused.value)


def test_a_database_without_the_tables_is_refused(postgres_url: str) -> None:
    assert "dstore cluster init" in refusal(postgres_url)
    with pytest.raises(DataError, match="dstore cluster init"):
        status(postgres_url)


def test_tables_are_created_once_and_those_of_another_version_are_refused(
    postgres_url: str,
) -> None:
    assert init(postgres_url, standby=False)
    assert not init(postgres_url, standby=False)
    open_store(postgres_url, memory_limit=MEMORY).close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE dstore.setting SET value = '99' WHERE name = 'version'")
    assert "version 99" in refusal(postgres_url)
    with pytest.raises(DataError, match="version 99"):
        init(postgres_url, standby=False)


def _of_version_1(url: str) -> None:
    """Make the tables those of the former version, which had no id."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE dstore.setting SET value = '1' WHERE name = 'version'")
        connection.execute("DELETE FROM dstore.setting WHERE name = 'cluster'")


def test_tables_of_the_former_version_get_an_id_and_keep_what_is_there(postgres_url: str) -> None:
    init(postgres_url, standby=False)
    with Owner(postgres_url) as member:
        member.join()
        member.claim([3])
        key = next(key for key in map(str, range(9999)) if partition_of(key) == 3)
        member.write(bind(key))
    _of_version_1(postgres_url)
    for said in (refusal(postgres_url), _status_refused(postgres_url)):
        assert "end all members, then `dstore cluster init URL`" in said
    assert init(postgres_url, standby=False)
    assert not init(postgres_url, standby=False)
    told = status(postgres_url)
    assert len(told.cluster) == CLUSTER_BYTES
    assert (told.keys, told.needs_standby) == (1, False)
    with Owner(postgres_url) as again:
        assert again.store.cluster == told.cluster
        assert again.ask().members == told.members


def _status_refused(url: str) -> str:
    with pytest.raises(DataError) as refused:
        status(url)
    return str(refused.value)


def test_programs_that_upgrade_the_tables_at_the_same_time_agree(postgres_url: str) -> None:
    init(postgres_url, standby=False)
    _of_version_1(postgres_url)
    made = _at_the_same_time(lambda: init(postgres_url, standby=False))
    assert sorted(made) == [False, False, False, True]
    assert status(postgres_url).cluster


@pytest.mark.parametrize("value", ["", "00", "x" * 32])
def test_tables_without_a_whole_id_are_refused(postgres_url: str, value: str) -> None:
    init(postgres_url, standby=False)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE dstore.setting SET value = %s WHERE name = 'cluster'", [value])
    assert "no id of a cluster" in refusal(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DELETE FROM dstore.setting WHERE name = 'cluster'")
    assert "no id of a cluster" in refusal(postgres_url)


def test_each_database_has_an_id_of_its_own(postgres: Postgres, postgres_url: str) -> None:
    init(postgres_url, standby=False)
    first = status(postgres_url).cluster
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP SCHEMA dstore CASCADE")
    init(postgres_url, standby=False)
    assert status(postgres_url).cluster != first


def test_a_member_takes_no_other_database_behind_the_same_url(postgres_url: str) -> None:
    """What it has in memory, and what its clients know, is of the cluster that it has joined."""
    init(postgres_url, standby=False)
    with Owner(postgres_url) as member:
        member.join()
        before = member.store.cluster
        with psycopg.connect(postgres_url) as connection:
            connection.execute(
                "UPDATE dstore.setting SET value = %s WHERE name = 'cluster'", ["ab" * 16]
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'dstore directory'"
            )
        for _ in range(2):  # the first one may find that its connection is lost
            with pytest.raises(DataError) as refused:
                member.ask()
        assert "another cluster (abababab)" in str(refused.value)
        assert member.store.cluster == before


def _at_the_same_time(do: Callable[[], bool]) -> list[bool]:
    """Call a function in four threads. Returns its results."""
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(do())) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return made


def test_programs_that_create_the_tables_at_the_same_time_agree(postgres_url: str) -> None:
    made = _at_the_same_time(lambda: init(postgres_url, standby=False))
    assert sorted(made) == [False, False, False, True]


def test_a_server_without_a_synchronous_standby_is_refused(postgres_url: str) -> None:
    with pytest.raises(DataError, match=r"synchronous_standby_names is empty.*--no-standby"):
        init(postgres_url)


def test_a_standby_that_is_missing_at_present_is_said(
    postgres_pair: Postgres, postgres_pair_url: str
) -> None:
    init(postgres_pair_url)
    with psycopg.connect(postgres_pair_url) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        connection.execute("GRANT USAGE ON SCHEMA dstore TO guest")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA dstore TO guest")
    try:
        guest = re.sub("//.*?@", "//guest:guest@", postgres_pair_url)
        assert "GRANT pg_read_all_stats" in refusal(guest)
    finally:
        with psycopg.connect(postgres_pair_url) as connection:
            connection.execute("DROP OWNED BY guest")
            connection.execute("DROP ROLE guest")


def test_a_standby_alone_is_refused(postgres_pair: Postgres) -> None:
    assert postgres_pair.standby is not None
    with pytest.raises(DataError, match="read-only"):
        status(postgres_pair.standby.url())


def test_a_server_that_does_not_write_whole_pages_is_refused(
    postgres: Postgres, postgres_url: str
) -> None:
    init(postgres_url, standby=False)
    for value in ("off", "on"):
        postgres.primary.query(f"ALTER SYSTEM SET full_page_writes = {value}")
        postgres.primary.query("SELECT pg_reload_conf()")
        shown = postgres.primary.query("SHOW full_page_writes")
        while shown != [(value,)]:
            shown = postgres.primary.query("SHOW full_page_writes")
        if value == "off":
            assert "full_page_writes is off" in refusal(postgres_url)
    postgres.primary.query("ALTER SYSTEM RESET full_page_writes")


def test_no_text_has_a_password(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cr3t/p@ss"
    for url in (
        postgres_url.replace("//dstore:", "//dstore:wrong").replace("@", "wrong@", 1),
        f"postgresql://user:{secret}@host:port/name",
        f"postgresql://user:{secret}@127.0.0.1:1/name",
        "postgresql://user:s3cr3t@127.0.0.1:1/name?nonsense=s3cr3t",
        "postgresql://user:s3cr3t@127.0.0.1:1/s3cr3t",
    ):
        with pytest.raises(DataError) as refused:
            status(url)
        text = str(refused.value)
        assert "s3cr3t" not in text.replace("/s3cr3t", "")
        assert "wrong" not in text
        password = re.search("//dstore:(.*?)@", postgres_url)
        assert password is not None
        assert password[1] not in text
    # A member waits until the database can be reached.
    open_store("postgresql://user:s3cr3t@127.0.0.1:1/name", memory_limit=MEMORY).close()
    assert "cannot be reached" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_a_pooler_is_refused(postgres_url: str) -> None:
    """The process that executes a statement is not the one that took the connection."""
    init(postgres_url, standby=False)
    target = Target(postgres_url, 5.0)
    with contextlib.closing(target.connect()) as connection:
        target.check(connection, standby=False)
        pooled = SimpleNamespace(execute=connection.execute, info=SimpleNamespace(backend_pid=1))
        with pytest.raises(DataError, match="pooler"):
            target.check(pooled, standby=False)  # type: ignore[arg-type]


def test_the_status_and_the_draining_of_members(postgres_url: str) -> None:
    init(postgres_url, standby=False)
    with Owner(postgres_url) as member:
        member.join()
        member.claim([3])
        key = next(key for key in map(str, range(9999)) if partition_of(key) == 3)
        member.write(bind(key))
        told = status(postgres_url)
        assert list(told.members) == [member.me]
        assert told.partitions[3].owner == member.me
        assert (told.keys, told.bytes, told.standbys, told.needs_standby) == (1, 1, [], False)
        assert "@" not in told.where
        assert drain(postgres_url, member.me)
        assert not drain(postgres_url, b"another")
        assert member.ask().members[member.me].draining


WITHOUT = """
import sys
sys.modules["psycopg"] = None
import dstore
from dstore.server import postgres
try:
    postgres.open_store("postgresql://localhost/x", memory_limit=1)
except dstore.DstoreError as error:
    print(error)
"""


def test_dstore_works_without_psycopg_and_an_error_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert 'pip install "dstore[postgres]"' in done.stdout


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", CONNECT_TIMEOUT), ("0", 10), ("-1", 10), ("5", 5), ("10", 10), ("3600", 10)],
)
def test_each_connection_has_a_bound(given: str, seconds: int) -> None:
    option = f"?connect_timeout={given}" if given else ""
    target = Target(f"postgresql://u@h1,h2/n{option}", 5.0)
    assert int(str(conninfo_to_dict(target._conninfo)["connect_timeout"])) == seconds


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match=r"connect_timeout.*whole number of seconds, not 'soon'"):
        Target("postgresql://u@h/n?connect_timeout=soon", 5.0)


def test_a_server_that_accepts_and_never_answers_holds_up_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_MAX", 2)  # the least that libpq knows
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        link = Link(Target(f"postgresql://u@127.0.0.1:{port}/n?connect_timeout=0", 5.0), "journal")
        journal = PostgresJournal(link, waiting_max=1)
        journal.begin(b"m" * 16, int)
        journal.own({0: 1})
        journal.drop_pieces(0, b"t" * 16)
        accepted, _ = listener.accept()  # it is connecting by now
        closing = threading.Thread(target=journal.close)
        closing.start()
        closing.join(30)
        in_time = not closing.is_alive()
        accepted.close()
        closing.join()
        assert in_time


def test_a_connection_that_is_made_after_the_end_is_dropped(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(Target(postgres_url, 5.0), "journal")
    connect = link.target.connect
    made = []

    def late() -> Any:
        link.close()
        made.append(connect())
        return made[-1]

    monkeypatch.setattr(link.target, "connect", late)
    with pytest.raises(DataError, match="closed"):
        link.open()
    assert made[0].closed

"""With a synchronous standby: what was reported survives, and what is in doubt is not reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from dstore.core.engine import Outcome
from dstore.errors import DataError
from dstore.protocol.partitions import partition_of
from dstore.server.postgres import init, status
from tests.integration.stores import ALL, Owner, bind, owners, replace, stored, wait_until
from tests.postgres import Postgres

psycopg = pytest.importorskip("psycopg")

from dstore.server.postgres.writing import Fences, Released, raise_fences  # noqa: E402

DONE = Outcome.DONE


@pytest.fixture
def owner(postgres_pair: Postgres, postgres_pair_url: str) -> Iterator[Owner]:
    assert init(postgres_pair_url)
    with owners(postgres_pair_url, 1, patience=20.0) as (member,):
        member.write(bind("before"))
        yield member


def journal_pid(owner: Owner) -> int:
    connection = owner.store._links[1]._connection
    return 0 if connection is None else connection.info.backend_pid


def commits(servers: Postgres, pid: int) -> bool:
    """Whether a session waits for the standby within its commit."""
    query = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
    return servers.primary.query(query, [pid]) == [("SyncRep",)]


def rows_of(url: str, key: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT count(*) FROM dstore.kept WHERE key = %s"
        return int(connection.execute(query, [key.encode()]).fetchall()[0][0])


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_that_no_standby_has_confirmed_is_in_doubt_though_its_row_is_visible(
    postgres_pair: Postgres, postgres_pair_url: str, owner: Owner, how: str
) -> None:
    """The server ends the wait with a warning, and its commit with success or not at all."""
    fence = owner.fence("k")
    assert postgres_pair.standby is not None
    postgres_pair.standby.pause()
    try:
        batch = owner.begin(bind("k"))
        pid = journal_pid(owner)
        wait_until(lambda: commits(postgres_pair, pid), "a wait for the standby")
        assert rows_of(postgres_pair_url, "k") == 0
        postgres_pair.primary.query(f"SELECT {how}(%s)", [pid])
        wait_until(lambda: rows_of(postgres_pair_url, "k") == 1, "a visible row")
        wait_until(lambda: bool(owner.store.figures()["database_doubts"]), "a doubt")
        wait_until(lambda: commits(postgres_pair, journal_pid(owner)), "a barrier")
        assert not owner.store.news
    finally:
        postgres_pair.standby.resume()
    assert owner.end(batch) == [DONE]
    assert owner.fence("k") == fence + 1
    assert owner.write(bind("later")) == [DONE]


def test_a_warning_comes_also_to_a_user_who_wants_to_see_errors_alone(
    postgres_pair: Postgres, postgres_pair_url: str
) -> None:
    """A commit that no standby has confirmed differs from others by the warning and no more."""
    quiet = f"{postgres_pair_url}{'&' if '?' in postgres_pair_url else '?'}"
    assert init(postgres_pair_url)
    with owners(f"{quiet}options=-c%20client_min_messages%3Derror", 1) as (member,):
        connection = member.store._links[1].open()
        connection.execute("DO $$ BEGIN RAISE WARNING 'of a commit'; END $$")
        assert "of a commit" in member.store._links[1].warning()


def test_a_beat_that_no_standby_has_confirmed_has_no_answer(
    postgres_pair: Postgres, owner: Owner
) -> None:
    assert postgres_pair.standby is not None
    postgres_pair.standby.pause()
    try:
        link = owner.store._links[0]
        assert link._connection is not None
        pid = link._connection.info.backend_pid

        def cancel() -> None:
            wait_until(lambda: commits(postgres_pair, pid), "a wait for the standby")
            postgres_pair.primary.query("SELECT pg_cancel_backend(%s)", [pid])

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(DataError, match="in doubt"):
            owner.ask()
        thread.join()
    finally:
        postgres_pair.standby.resume()
    owner.ask()


def name_standbys(pair: Postgres, names: str | None) -> None:
    """Change the setting while the primary runs; None: as it was."""
    value = "DEFAULT" if names is None else f"'{names}'"
    pair.primary.query(f"ALTER SYSTEM SET synchronous_standby_names = {value}")
    pair.primary.query("SELECT pg_reload_conf()")


def test_a_commit_that_is_released_without_a_warning_is_in_doubt(
    postgres_pair: Postgres, postgres_pair_url: str, owner: Owner
) -> None:
    """Somebody empties the setting, so that the standby that does not answer is not waited for."""
    fence = owner.fence("k")
    assert postgres_pair.standby is not None
    postgres_pair.standby.pause()
    try:
        batch = owner.begin(bind("k"))
        wait_until(lambda: commits(postgres_pair, journal_pid(owner)), "a wait for the standby")
        name_standbys(postgres_pair, "")
        wait_until(lambda: bool(owner.store.figures()["database_doubts"]), "a doubt")
        assert rows_of(postgres_pair_url, "k") == 1
        with pytest.raises(DataError, match="emptied"):
            owner.ask()
        assert not owner.store.news
    finally:
        name_standbys(postgres_pair, None)
        postgres_pair.standby.resume()
        postgres_pair.primary.wait_for_standby()
    assert owner.end(batch) == [DONE]
    assert owner.fence("k") == fence + 1


def test_a_beat_and_a_barrier_that_are_released_without_a_warning_are_not_believed(
    postgres_pair: Postgres, owner: Owner
) -> None:
    assert postgres_pair.standby is not None
    links = [owner.store._links[number] for number in (0, 1)]
    pids = [link.open().info.backend_pid for link in links]
    fences = Fences(owner.me, {partition_of("k"): owner.fence("k")}, standby=True)
    refused: list[type[Exception]] = []

    def attempt(do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:
            refused.append(type(error))

    threads = [
        threading.Thread(target=attempt, args=[owner.ask]),
        threading.Thread(target=attempt, args=[lambda: raise_fences(links[1].open(), fences, 0)]),
    ]
    postgres_pair.standby.pause()
    try:
        for each in threads:
            each.start()
        for pid in pids:
            wait_until(lambda pid=pid: commits(postgres_pair, pid), "a wait for the standby")  # type: ignore[misc]
        name_standbys(postgres_pair, "")
        for each in threads:
            each.join()
    finally:
        name_standbys(postgres_pair, None)
        postgres_pair.standby.resume()
        postgres_pair.primary.wait_for_standby()
    assert set(refused) == {DataError, Released}
    owner.ask()


@pytest.mark.long
def test_what_was_in_doubt_and_is_lost_in_a_failover_is_carried_out_on_the_next_primary(
    new_postgres: Callable[..., Postgres],
) -> None:
    """The row was visible on the former primary only. The URL names both servers."""
    pair = new_postgres(standby=True)
    init(pair.url())
    with owners(pair.url(), 1, patience=20.0) as (member,):
        old = stored()
        assert member.write(bind("old", old), bind("kept")) == [DONE] * 2
        large = member.upload(bytes(3_000_000))
        assert member.write(bind("large", large)) == [DONE]
        assert pair.standby is not None
        pair.standby.kill()
        batch = member.begin(replace("old", old.token, new := stored()), bind("new"))
        pid = journal_pid(member)
        wait_until(lambda: commits(pair, pid), "a wait for the standby")
        pair.primary.query("SELECT pg_cancel_backend(%s)", [pid])
        wait_until(lambda: bool(member.store.figures()["database_doubts"]), "a doubt")
        wait_until(lambda: commits(pair, pid), "a barrier")
        pair.primary.query("SELECT pg_cancel_backend(%s)", [pid])  # it is in doubt, too
        wait_until(lambda: not commits(pair, pid), "the end of the barrier")
        wait_until(lambda: commits(pair, pid), "another barrier")
        assert pair.primary.query("SELECT count(*) FROM dstore.kept") == [(4,)]
        pair.primary.kill()
        pair.standby.start()
        pair.fail_over(kill=False)
        assert pair.primary.query("SELECT count(*) FROM dstore.kept") == [(3,)]
        with pytest.raises(DataError):  # the former connection is lost
            member.ask()
        with pytest.raises(DataError, match="synchronous standby is missing"):
            member.ask()
        assert not member.store.news, "the next primary has no standby"
        pair.replace_standby()
        assert member.end(batch) == [DONE] * 2
        member.forget(ALL)
        member.load()
        assert member.read("old") == new
        assert member.read("new") is not None
        assert member.read_large("large", large) == bytes(3_000_000)
        told = status(pair.url())
        assert [each.synchronous for each in told.standbys] == [True]

"""A member's writes, their fences and their doubts, over a real database without a standby."""

from __future__ import annotations

import gc
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dstore.core.cluster.messages import Beat, Leave, Member
from dstore.core.engine import NO_DEADLINE, Away, Change, Outcome, Unloaded
from dstore.errors import DataError, StoreFull
from dstore.protocol.messages import DAMAGED, Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.server.postgres import init
from tests.integration.stores import (
    ALL,
    PATIENCE,
    Owner,
    bind,
    date,
    owners,
    remove,
    replace,
    stored,
    wait_until,
)
from tests.postgres import Postgres

psycopg = pytest.importorskip("psycopg")

from dstore.server.postgres import loading, values, writing  # noqa: E402

DONE, FULL, FAILED = Outcome.DONE, Outcome.FULL, Outcome.FAILED
LARGE = bytes(range(256)) * 12_300  # a bit more than three pieces


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> Iterator[str]:
    """The URL of the tables of a cluster, for all tests here: to make them takes long."""
    with postgres.database() as name:
        url = f"{postgres.url(name)}?options=-c%20search_path%3Dmine"
        assert init(url, standby=False)
        yield url


@pytest.fixture
def url(tables: str) -> Iterator[str]:
    """The URL of a cluster without members and keys."""
    yield tables
    with psycopg.connect(tables) as connection:
        connection.execute("DELETE FROM member; DELETE FROM kept; DELETE FROM piece")
        connection.execute("UPDATE partition SET owner = NULL, fence = 0, quiet = 0")


@pytest.fixture
def sql(url: str) -> Iterator[Callable[..., list[Any]]]:
    """A function that executes a statement as a user would, and returns the rows."""
    with psycopg.connect(url, autocommit=True) as connection:

        def execute(query: str, *parameters: object) -> list[Any]:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

        yield execute


@pytest.fixture
def owner(url: str) -> Iterator[Owner]:
    with owners(url, 1) as (member,):
        yield member


def keys_of(partition: int, count: int) -> list[str]:
    """Keys of one partition."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if partition_of(f"k{number}") == partition:
            found.append(f"k{number}")
        number += 1
    return found


# ---- writes -----------------------------------------------------------------------------------


def test_changes_of_all_kinds_are_carried_out_together_or_not_at_all(owner: Owner) -> None:
    """Each set of kinds has a statement of its own."""
    for number in range(1, 16):
        old, new = stored(b"old"), stored(b"new")
        keys = [f"{name}{number}" for name in "abcd"]
        assert owner.write(*[bind(key, old) for key in keys[1:]]) == [DONE] * 3
        each = [
            bind(keys[0], new),
            replace(keys[1], old.token, new),
            remove(keys[2], old.token),
            date(keys[3], old.token, 5.0),
        ]
        changes = [change for place, change in enumerate(each) if number >> place & 1]
        fences = {partition_of(change.key): owner.fence(change.key) for change in changes}
        with psycopg.connect(owner.url, autocommit=True) as connection:
            wrong = {partition: fence + 1 for partition, fence in fences.items()}
            with pytest.raises(writing.Fenced):
                writing.apply(connection, writing.Fences(owner.me, wrong, False), changes)
            assert set(writing.took_effect(connection, changes)) == {FAILED}
            done = writing.apply(connection, writing.Fences(owner.me, fences, False), changes)
            assert done == writing.took_effect(connection, changes) == [DONE] * len(changes)


def test_what_is_written_is_there_for_the_next_owner(url: str) -> None:
    values = {key: stored(key.encode("utf-8", "surrogateescape")) for key in "aä\udcff"}
    with owners(url, 2) as (first, second):
        a, b, c = values.values()
        assert first.write(*[bind(key, value) for key, value in values.items()]) == [DONE] * 3
        new, dated = stored(b"", "json"), stored(memoryview(b"view").tobytes())
        assert first.write(replace("a", a.token, new), remove("ä", b.token)) == [DONE] * 2
        assert first.write(bind("d", dated, 2.5), date("\udcff", c.token, 1.5)) == [DONE] * 2
        second.join(first)
        second.claim()
        found = {key: second.read(key) for key in second.store.engine.scan("", "", 9)}
        assert found == {"a": new, "d": dated, "\udcff": c}
        assert sorted(second.deadlines) == [("d", dated.token, 2.5), ("\udcff", c.token, 1.5)]


def test_changes_of_one_key_in_one_group_are_made_in_their_order(owner: Owner) -> None:
    value = stored()
    owner.write(bind("k", value))
    batches = [owner.begin(date("k", value.token, 5.0)), owner.begin(remove("k", value.token))]
    assert [owner.end(each) for each in batches] == [[DONE], [DONE]]


def test_one_value_that_the_database_does_not_take_harms_no_other(owner: Owner) -> None:
    odd = stored(codec="a\0b")
    assert owner.write(bind("a"), bind("b", odd), bind("c")) == [DONE, FAILED, DONE]
    assert owner.write(bind("b")) == [DONE]


def test_a_change_that_finds_something_else_changes_nothing(owner: Owner) -> None:
    first = stored()
    assert owner.write(bind("k", first)) == [DONE]
    wrong = stored().token
    changes = [bind("k"), replace("k", wrong), date("k", wrong, 1.0), remove("k", wrong)]
    assert [owner.end(owner.begin(change)) for change in changes] == [[FAILED]] * 4
    owner.forget(ALL)
    owner.load()
    assert owner.read("k") == first
    assert owner.deadlines == []


def test_values_that_wait_have_a_limit_and_deletions_have_none(
    url: str, sql: Callable[..., list[Any]]
) -> None:
    with Owner(url, memory_limit=80_000) as member:
        member.join()
        member.claim()
        old = stored()
        member.write(bind("old", old))
        big = [bind(f"big{number}", stored(bytes(4_000))) for number in range(4)]
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM partition FOR UPDATE")
            batches = [member.begin(change) for change in big]
            batches.append(member.begin(remove("old", old.token)))
        assert [member.end(each) for each in batches] == [[DONE], [DONE], [FULL], [FULL], [DONE]]
        assert member.write(bind("later", stored(bytes(4_000)))) == [DONE]


# ---- fences -----------------------------------------------------------------------------------


def test_a_former_owner_that_comes_back_writes_nothing(url: str) -> None:
    with owners(url, 2) as (first, second):
        value = stored()
        first.write(bind("k", value))
        second.join(first)
        second.claim()
        number = first.begin(remove("k", value.token), bind("l"))
        with pytest.raises(DataError, match="another member owns"):
            first.end(number)
        second.forget(ALL)
        second.load()
        assert second.read("k") == value
        assert second.read("l") is None
        with pytest.raises(DataError):
            first.end(first.begin(bind("m")))


@pytest.mark.parametrize("locks", [True, False])
def test_without_the_lock_a_writer_that_stalls_would_write_after_a_change_of_owner(
    url: str, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """The transaction of the former owner is held open, as if it stood still before its commit."""
    if not locks:  # the broken statement
        broken = {kinds: each.replace("FOR SHARE", "") for kinds, each in writing._APPLY.items()}
        monkeypatch.setattr(writing, "_APPLY", broken)
    with owners(url, 2) as (first, second):
        number = partition_of("k")
        fences = writing.Fences(first.me, {number: first.fence("k")}, False)
        with psycopg.connect(url) as stalled:
            assert writing.apply(stalled, fences, [bind("k")]) == [DONE]
            second.join(first)
            before = second.ask().partitions[number]
            after = second.ask(claim=((number, before.fence),)).partitions[number]
            assert (after.owner == second.me) is not locks
            stalled.commit()
        second.claim([number])
        if locks:
            assert second.read("k") is not None, "the claim has waited for it"
        late = writing.Fences(first.me, {number: before.fence}, False)
        with psycopg.connect(url) as stalled, pytest.raises(writing.Fenced):
            writing.apply(stalled, late, [bind("l")])


def test_a_claim_waits_until_a_statement_under_the_former_fence_has_ended(url: str) -> None:
    """A statement that waits for a claim sees the new owner when it goes on."""
    with owners(url, 2) as (first, second):
        number = partition_of("k")
        with psycopg.connect(url) as claiming:
            claiming.execute(
                "UPDATE partition SET owner = %s, fence = fence + 1 WHERE id = %s",
                [second.me, number],
            )
            batch = first.begin(bind("k"))
            journal = first.store._links[1]
            wait_until(lambda: waits(url, journal), "a wait for the lock")
            claiming.commit()
        with pytest.raises(DataError):
            first.end(batch)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchall() == [(0,)]


def waits(url: str, link: Any) -> bool:
    """Whether the statement of a connection waits for a lock."""
    if link._connection is None:
        return False
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s",
            [link._connection.info.backend_pid],
        ).fetchone()
    return found is not None and found[0] == "Lock"


def test_rows_of_a_server_that_does_not_show_the_claim_are_not_loaded(owner: Owner) -> None:
    owner.write(bind("k"))
    owner.store.own({partition_of("k"): owner.fence("k") + 1})
    with pytest.raises(DataError, match="does not show what was claimed"):
        owner.load()


def test_writes_wait_while_the_server_does_not_wait_for_a_standby(
    owner: Owner, sql: Callable[..., list[Any]]
) -> None:
    """As if somebody had emptied synchronous_standby_names, which the cluster needs."""
    owner.write(bind("before"))
    setting = "UPDATE setting SET value = %s WHERE name = 'standby'"
    sql(setting, "synchronous")
    for link in owner.store._links[:2]:
        link.standby = True
    with pytest.raises(DataError, match="synchronous_standby_names was emptied"):
        owner.ask()
    with pytest.raises(DataError, match="no synchronous standby"):
        owner.ask()
    batch = owner.begin(bind("k"))
    journal = owner.store._links[1]
    wait_until(lambda: journal._connection is None, "a refusal")
    assert sql("SELECT count(*) FROM kept") == [(1,)]
    sql(setting, "none")
    assert owner.end(batch) == [DONE]
    assert owner.store.figures()["database_doubts"] == 0, "it was known that nothing was written"


# ---- doubt ------------------------------------------------------------------------------------


def test_a_write_whose_connection_is_lost_before_it_commits_is_carried_out(
    owner: Owner, url: str
) -> None:
    old = stored()
    assert owner.write(bind("old", old), bind("other")) == [DONE] * 2
    fence, other = owner.fence("old"), owner.fence("other")
    journal = owner.store._links[1]
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM partition FOR UPDATE")
        batch = owner.begin(replace("old", old.token, new := stored()))
        wait_until(lambda: waits(url, journal), "a wait for the lock")
        pid = journal._connection.info.backend_pid  # type: ignore[union-attr]
        holder.execute("SELECT pg_terminate_backend(%s)", [pid])
        holder.commit()
    assert owner.end(batch) == [DONE]
    assert (owner.fence("old"), owner.fence("other")) == (fence + 1, other)
    assert owner.end(owner.begin(remove("old", new.token))) == [DONE], "it is there"


def test_a_write_whose_connection_is_lost_after_it_has_committed_is_not_repeated(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, dated = stored(), stored()
    assert owner.write(bind("old", value), bind("dated", dated)) == [DONE] * 2
    fences = {key: owner.fence(key) for key in ("old", "new", "dated")}
    journal = owner.store._links[1]
    applied: list[int] = []
    real = writing.apply

    def apply(connection: Any, fences: writing.Fences, changes: list[Change]) -> list[Outcome]:
        outcomes = real(connection, fences, changes)
        applied.append(len(changes))
        if len(applied) == 1:
            journal.cut()  # the answer does not arrive
            connection.execute("SELECT")
        return outcomes

    monkeypatch.setattr(writing, "apply", apply)
    changes = remove("old", value.token), bind("new"), date("dated", dated.token, 7.0)
    assert owner.write(*changes) == [DONE] * 3
    assert applied == [3], "nothing was left to be carried out"
    assert owner.store.figures()["database_doubts"] == 1
    for key, fence in fences.items():
        assert owner.fence(key) == fence + 1


def test_the_barrier_is_tried_until_it_is_known_to_have_been_passed(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is lost, and so are the answers of two barriers, one of them carried out."""
    link = owner.store._links[1]
    real_apply, real_raise = writing.apply, writing.raise_fences
    tries: list[str] = []

    def lose(connection: Any) -> None:
        link.cut()
        connection.execute("SELECT")

    def apply(connection: Any, fences: writing.Fences, changes: Any) -> list[Outcome]:
        tries.append("apply")
        if len(tries) == 1:
            lose(connection)
        return real_apply(connection, fences, changes)

    def raise_fences(connection: Any, fences: writing.Fences, attempts: int) -> dict[int, int]:
        tries.append(f"raise {attempts}")
        if attempts == 0:
            lose(connection)
        raised = real_raise(connection, fences, attempts)
        if attempts == 1:
            lose(connection)
        return raised

    fence = owner.fence("k")
    monkeypatch.setattr(writing, "apply", apply)
    monkeypatch.setattr(writing, "raise_fences", raise_fences)
    assert owner.write(bind("k")) == [DONE]
    assert tries == ["apply", "raise 0", "raise 1", "raise 2", "apply"]
    assert owner.fence("k") == fence + 3
    assert owner.write(bind("l")) == [DONE]


def test_what_has_happened_is_read_over_the_connection_of_the_barrier(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another connection may be to a server that was replaced. So there is another barrier."""
    link = owner.store._links[1]
    real_apply, real_raise, real_read = writing.apply, writing.raise_fences, writing.took_effect
    tries: list[str] = []

    def lose(connection: Any) -> None:
        link.cut()
        connection.execute("SELECT")

    def apply(connection: Any, fences: writing.Fences, changes: Any) -> list[Outcome]:
        outcomes = real_apply(connection, fences, changes)
        lose(connection)
        return outcomes

    def raise_fences(connection: Any, fences: writing.Fences, attempts: int) -> dict[int, int]:
        tries.append("raise")
        return real_raise(connection, fences, attempts)

    def took_effect(connection: Any, changes: Any) -> list[Outcome]:
        tries.append("read")
        if tries.count("read") == 1:
            lose(connection)
        return real_read(connection, changes)

    monkeypatch.setattr(writing, "apply", apply)
    monkeypatch.setattr(writing, "raise_fences", raise_fences)
    monkeypatch.setattr(writing, "took_effect", took_effect)
    assert owner.write(bind("k")) == [DONE]
    assert tries == ["raise", "read", "raise", "read"]
    monkeypatch.undo()
    assert owner.write(bind("l")) == [DONE]


def test_a_doubt_ends_when_the_partition_is_not_owned_any_more(url: str) -> None:
    with owners(url, 2) as (first, second):
        journal = first.store._links[1]
        first.write(bind("other"))
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM partition FOR UPDATE")
            batch = first.begin(bind("k"))
            wait_until(lambda: waits(url, journal), "a wait for the lock")
            pid = journal._connection.info.backend_pid  # type: ignore[union-attr]
            holder.execute("SELECT pg_terminate_backend(%s)", [pid])
            holder.execute("UPDATE partition SET owner = %s, fence = fence + 1", [second.me])
        with pytest.raises(DataError, match="another member owns"):
            first.end(batch)


def test_after_a_loss_nothing_of_before_is_reported_or_written_later(
    owner: Owner, url: str
) -> None:
    journal = owner.store._links[1]
    owner.write(bind("other"))
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM partition FOR UPDATE")
        batch = owner.begin(bind("k"))
        wait_until(lambda: waits(url, journal), "a wait for the lock")
        owner.begin(bind("never"))
        owner.store.reset()
        owner.bulk.close()
        owner.bulk = owner.store.bulk(owner.bulk)
    assert len(owner.store.engine) == 0
    owner.claim()
    seen = owner.store.engine.read("k")
    assert owner.write(bind("new")) == [DONE]
    assert batch not in owner._ended
    owner.forget(ALL)
    owner.load()
    assert owner.store.engine.read("k") == seen, "after the claim it cannot come any more"
    assert owner.store.engine.read("never") is None
    assert owner.store.engine.read("new") is not None


def test_a_doubt_of_before_a_loss_writes_nothing_after_the_next_claim(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim has raised the fence by one, as the barrier would have done that was lost."""
    link = owner.store._links[1]
    real_apply, real_raise = writing.apply, writing.raise_fences
    in_doubt, claimed = threading.Event(), threading.Event()

    def apply(connection: Any, fences: writing.Fences, changes: Any) -> list[Outcome]:
        if not in_doubt.is_set():
            link.cut()
        return real_apply(connection, fences, changes)

    def raise_fences(connection: Any, fences: writing.Fences, attempts: int) -> dict[int, int]:
        if not in_doubt.is_set():
            in_doubt.set()
            assert claimed.wait(30)
            link.cut()
        return real_raise(connection, fences, attempts)

    monkeypatch.setattr(writing, "apply", apply)
    monkeypatch.setattr(writing, "raise_fences", raise_fences)
    owner.begin(bind("k"))
    assert in_doubt.wait(30)
    owner.store.reset()
    owner.bulk = owner.store.bulk(owner.bulk)
    owner.claim(serve=False)
    claimed.set()
    assert owner.write(bind("l")) == [DONE]
    owner.forget(ALL)
    owner.load()
    assert owner.store.engine.scan("", "", 9) == ["l"]


@pytest.mark.long
def test_a_database_that_does_not_answer_holds_nothing_up_for_longer_than_its_patience(
    new_postgres: Callable[..., Postgres],
) -> None:
    servers = new_postgres()
    init(servers.url(), standby=False)
    with owners(servers.url(), 1, patience=0.3) as (member,):
        assert member.write(bind("k", stored())) == [DONE]
        servers.primary.pause()
        with pytest.raises(DataError):
            member.ask()
        batch = member.begin(bind("l"))
        wait_until(lambda: bool(member.store.figures()["database_doubts"]), "a doubt")
        servers.primary.resume()
        assert member.end(batch) == [DONE]
        member.ask()


def test_many_rows_are_loaded_in_pages_and_large_ones_later(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PAGE_ROWS", 7)
    values = {f"k{number}": stored(b"%d" % number) for number in range(100)}
    values |= {f"big{number}": stored(bytes(5_000)) for number in range(10)}
    for key, value in values.items():
        owner.begin(bind(key, value))
    owner.end(len(values))
    pages = list(owner.store.load(ALL))
    assert [len(page) for page in pages] == [7] * 15 + [5]
    rows = {row.key: row.bound for page in pages for row in page}
    assert rows == {
        key: value if value.size < 5_000 else Away(value.token, value.codec, value.size)
        for key, value in values.items()
    }
    monkeypatch.setattr(loading, "PAGE_ROWS", 11)
    assert [len(page) for page in owner.store.load(ALL)] == [11] * 10 + [0]
    assert sum(len(page) for page in owner.store.load([1, 2])) == sum(
        partition_of(key) in (1, 2) for key in values
    )


# ---- large values -----------------------------------------------------------------------------


def test_a_large_value_is_read_in_pieces_by_the_next_owner(
    url: str, sql: Callable[..., list[Any]]
) -> None:
    with owners(url, 2) as (first, second):
        value = first.upload(LARGE)
        assert first.write(bind("k", value)) == [DONE]
        assert sql("SELECT number, length(body) FROM piece ORDER BY number") == [
            *((number, 1 << 20) for number in range(3)),
            (3, len(LARGE) - (3 << 20)),
        ]
        second.join(first)
        second.claim()
        assert second.store.engine.read("k") == value
        assert second.read_large("k", value) == LARGE
        end = second.bulk.read(value.token, len(LARGE), 10)
        assert end is not None and not end
        assert second.bulk.read(secrets.token_bytes(16), 0, 10) is None
        with pytest.raises(StoreFull):
            second.bulk.reserve(value.token, 10)
        assert second.write(remove("k", value.token)) == [DONE]
        assert second.write(bind("l")) == [DONE]  # the journal does that in its order
        second.end(second.begin(bind("m")))
        assert sql("SELECT count(*) FROM piece") == [(0,)]


PIECE = 1 << 20


def away(owner: Owner) -> Stored:
    """Bind a large value to "k", whose bytes are in the database alone."""
    value = owner.upload(LARGE)
    owner.write(bind("k", value))
    owner.forget(ALL)
    owner.load()
    return value


def begin_part(owner: Owner, value: Stored, number: int) -> None:
    """Begin to load one piece of the value of "k", which has the number of the load, too."""
    owner.store.engine.begin(owner.woken.set)
    owner.store.engine.load_part(number, "k", value.token, number * PIECE, PIECE)


def test_parts_of_a_large_value_are_loaded_in_their_order_when_the_database_is_back(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = away(owner)
    failed = threading.Event()

    def lost(*_: object) -> bytes:
        failed.set()
        raise psycopg.OperationalError("the connection is lost")

    with pytest.raises(Unloaded):
        owner.bulk.read(value.token, 0, 10)
    with monkeypatch.context() as gone:
        gone.setattr(values, "read_part", lost)
        for number in range(3):
            begin_part(owner, value, number)
        assert failed.wait(PATIENCE)
        assert not owner.store.engine.loaded()
    parts = [(number, LARGE[number * PIECE :][:PIECE]) for number in range(3)]
    assert [(number, owner.loaded(number)) for number in range(3)] == parts


def test_what_is_asked_for_all_the_time_holds_up_no_further_attempt(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = away(owner)
    real, numbers = values.read_part, iter(range(1, 10_000))

    def lost(*_: object) -> bytes:
        monkeypatch.setattr(values, "read_part", real)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(values, "read_part", lost)
    begin_part(owner, value, 0)
    end = time.monotonic() + PATIENCE
    while not (ended := owner.store.engine.loaded()):
        owner.store.engine.load_part(next(numbers), "k", value.token, 0, 1)
        assert time.monotonic() < end
        owner.woken.wait(values.FAILED_PAUSE / 4)
    assert ended[0][0] == 0


def test_a_part_whose_pieces_are_gone_is_said_to_be_gone(
    owner: Owner, sql: Callable[..., list[Any]]
) -> None:
    value = away(owner)
    sql("DELETE FROM piece WHERE number = 1")
    begin_part(owner, value, 1)
    assert isinstance(owner.loaded(1), LookupError)


def test_large_values_leave_the_memory_when_the_database_has_them(url: str) -> None:
    with Owner(url, memory_limit=8 << 20) as member:
        member.join()
        member.claim()
        first, second = member.upload(LARGE), member.upload(LARGE[:1000])
        with pytest.raises(StoreFull, match="uploads"):
            member.upload(LARGE)
        assert member.write(bind("k", first), bind("l", second)) == [DONE] * 2
        third = member.upload(LARGE[::-1])
        assert member.write(bind("m", third)) == [DONE]
        assert member.bulk._inner.read(first.token, 0, 1) is None  # type: ignore[attr-defined]
        figures: dict[str, Any] = member.store.figures()
        assert len(LARGE) <= figures["large_memory"] <= figures["large_memory_limit"] == 4 << 20
        assert member.read_large("k", first) == LARGE
        assert member.read_large("m", third) == LARGE[::-1]


def test_pieces_that_no_row_names_are_removed_by_the_next_owner(
    url: str, sql: Callable[..., list[Any]]
) -> None:
    with owners(url, 2) as (first, second):
        kept = first.upload(LARGE)
        first.write(bind("kept", kept))
        number = partition_of("kept")
        sql(
            "INSERT INTO piece VALUES (%s, %s, 0, 'x'), (7, %s, 0, 'y')",
            number,
            b"o" * 16,
            b"p" * 16,
        )
        second.join(first)
        second.claim()
        assert second.write(bind("k")) == [DONE]
        assert sql("SELECT DISTINCT token FROM piece") == [(kept.token,)]
        assert second.read_large("kept", kept) == LARGE


def test_a_large_value_whose_pieces_are_not_all_there_is_damaged(
    owner: Owner, sql: Callable[..., list[Any]]
) -> None:
    value = owner.upload(LARGE)
    owner.write(bind("k", value))
    sql("DELETE FROM piece WHERE number = 1")
    owner.forget(ALL)
    owner.load()
    assert owner.store.engine.read("k") == Stored(value.token, DAMAGED, b"")
    assert owner.read_large("k", value) is None
    assert owner.write(remove("k", value.token)) == [DONE]


def test_a_removal_of_pieces_that_comes_late_harms_neither_this_member_nor_the_next_owner(
    url: str, sql: Callable[..., list[Any]]
) -> None:
    """The partition was handed over and gained again, and has a value with the same token."""
    with owners(url, 2) as (first, second):
        value = first.upload(LARGE)
        number = partition_of("k")
        with psycopg.connect(url) as holder:  # so that the journal stands still
            holder.execute("SELECT FROM partition WHERE id <> %s FOR UPDATE", [number])
            other = next(key for key in map(str, range(99)) if partition_of(key) != number)
            batch = first.begin(bind(other))
            wait_until(lambda: waits(url, first.store._links[1]), "a wait for the lock")
            for _ in range(2):
                first.store._journal.drop_pieces(number, value.token)
            first.release([number])
            second.claim([number])
            second.bulk.reserve(value.token, len(LARGE))
            second.bulk.write(value.token, 0, LARGE)
            second.bulk.seal(value.token)
            assert second.write(bind("k", value)) == [DONE]
            second.release([number])
            first.claim([number])
        assert first.end(batch) == [DONE]
        assert first.write(bind("l")) == [DONE]
        assert first.read_large("k", value) == LARGE
        assert sql("SELECT count(*) FROM piece") == [(4,)]


def test_bytes_that_are_not_those_of_the_digest_are_not_kept(
    owner: Owner, sql: Callable[..., list[Any]]
) -> None:
    value = owner.upload(LARGE)
    wrong = value._replace(body=Large(len(LARGE), bytes(32)))
    assert owner.write(bind("k", wrong), bind("l")) == [FAILED, DONE]
    assert sql("SELECT count(*) FROM piece") == [(0,)]
    again = owner.upload(LARGE)
    assert owner.write(bind("k", again)) == [DONE]
    assert owner.read_large("k", again) == LARGE


def test_a_piece_whose_answer_is_lost_is_there_once(
    owner: Owner, sql: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = writing.put_pieces, owner.store._links[1]
    tries: list[int] = []

    def put(connection: Any, *arguments: Any) -> None:
        real(connection, *arguments)
        tries.append(1)
        if len(tries) == 1:
            link.cut()
            connection.execute("SELECT")

    monkeypatch.setattr(writing, "put_pieces", put)
    fence = owner.fence("k")
    value = owner.upload(LARGE)
    assert owner.write(bind("k", value)) == [DONE]
    assert owner.fence("k") == fence + 1, "the barrier says that they are replicated"
    assert sql("SELECT count(*) FROM piece") == [(4,)]


# ---- loads ------------------------------------------------------------------------------------


def test_a_value_that_was_replaced_is_looked_for_until_global_knows(owner: Owner) -> None:
    """The database has the new value already, and Global has not yet been told."""
    engine = owner.store.engine
    value = stored(b"x" * 10_000)
    owner.write(bind("k", value))
    owner.forget(ALL)
    owner.load()
    engine.begin(owner.woken.set)
    batch = owner.begin(replace("k", value.token, new := stored()))
    assert owner.end(batch) == [DONE]
    engine.load(1, [("k", value.token)])
    values = owner.store._values
    wait_until(lambda: bool(values._again), "another look")
    assert engine.loaded() == []
    assert engine.replace("k", value.token, new)
    wait_until(lambda: bool(engine._ended), "an end")
    ((number, (result,)),) = engine.loaded()
    assert number == 1
    assert isinstance(result, KeyError)


def test_reads_wait_for_a_database_that_is_away_for_a_moment(
    owner: Owner, url: str, sql: Callable[..., list[Any]]
) -> None:
    value = stored(b"x" * 10_000)
    owner.write(bind("k", value))
    owner.forget(ALL)
    owner.load()
    link = owner.store._links[3]
    assert owner.read("k") == value
    sql("SELECT pg_terminate_backend(%s)", link._connection.info.backend_pid)  # type: ignore[union-attr]
    owner.forget(ALL)
    owner.load()
    assert owner.read("k") == value


# ---- the directory ----------------------------------------------------------------------------


def test_a_beat_that_comes_late_does_nothing(url: str) -> None:
    with Owner(url) as member:
        member.join()
        late = next(member._beats)
        view = member.ask(claim=((1, 0),))
        assert view.partitions[1] == (member.me, 1, 1.0)
        shown = member.store.carry_out(Beat(member.me, late, release=((1, 1),)))
        assert shown is not None
        assert member.me not in shown.members
        assert shown.partitions[1].owner == member.me
        assert member.ask().members[member.me].beat == late + 2
        row = Member("tcp://127.0.0.1:2", late, 9.0, 9.0, True)
        shown = member.store.carry_out(Beat(member.me, late, row))
        assert shown is not None
        assert member.me not in shown.members
        assert member.ask().members[member.me].lease == 1.0


def test_claims_releases_and_quiet_times(url: str) -> None:
    with Owner(url, lease=5.0) as first, Owner(url, lease=2.0) as second:
        first.join()
        second.join()
        first.claim([1, 2])
        assert second.ask(claim=((1, 1),)).partitions[1].owner == first.me, "it is not free"
        view = first.release([1])
        assert view.partitions[1] == (None, 2, 5.0)
        assert second.ask(claim=((1, 1),)).partitions[1].owner is None, "it has another fence"
        view = second.ask(claim=((1, 2),))
        assert view.partitions[1] == (second.me, 3, 5.0), "the longest lease that may be out"
        view = second.ask(quieted=((1, 3),))
        assert view.partitions[1] == (second.me, 3, 2.0)
        beat = view.members[first.me].beat
        assert first.me in second.ask(dead=((first.me, beat - 1),)).members
        view = second.ask(dead=((first.me, beat),), claim=((2, 1),))
        assert first.me not in view.members
        assert view.partitions[2] == (second.me, 2, 5.0)
        gone = first.ask()
        assert first.me not in gone.members, "it was buried"
        view = second.ask(draining=True)
        assert view.members[second.me].draining
        left = second.store.carry_out(Leave(second.me, next(second._beats)))
        assert left is not None
        assert left.members == {}


def test_a_row_that_another_transaction_holds_is_left_out(url: str) -> None:
    with owners(url, 2) as (first, second):
        beat = second.ask().members[first.me].beat
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM member WHERE id = %s FOR UPDATE", [first.me])
            assert first.me in second.ask(dead=((first.me, beat),)).members
        assert first.me not in second.ask(dead=((first.me, beat),)).members


# ---- the end ----------------------------------------------------------------------------------


def test_a_forked_child_leaves_the_connections_to_its_parent(owner: Owner) -> None:
    owner.write(bind("before"))
    child = os.fork()
    if not child:
        owner.store.forked()
        owner.store.close()
        del owner.store
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert owner.write(bind("after")) == [DONE]
    owner.ask()
    assert owner.store.figures()["database_doubts"] == 0


def test_close_waits_for_no_answer(url: str) -> None:
    with owners(url, 1) as (member,):
        member.write(bind("other"))
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM partition FOR UPDATE")
            member.begin(bind("k"))
            wait_until(lambda: waits(url, member.store._links[1]), "a wait for the lock")
            closing = threading.Thread(target=member.store.close)
            closing.start()
            closing.join(20)
            assert not closing.is_alive()
        member.store.close()


def test_a_key_without_a_deadline_stays_so(owner: Owner) -> None:
    value = stored()
    owner.write(bind("k", value, 5.0))
    assert owner.write(date("k", value.token, NO_DEADLINE)) == [DONE]
    owner.forget(ALL)
    owner.load()
    assert owner.deadlines == []

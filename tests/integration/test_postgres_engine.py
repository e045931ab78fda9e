"""The engine and the large values of a member keep their contracts, over a real database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from dstore.core.engine import Away, Bulk, Change, ChangeKind, LoadingEngine
from dstore.engines import Stored
from dstore.protocol.messages import Key
from dstore.server.postgres import init
from dstore.testing.bulk_contract import BulkContract
from dstore.testing.engine_contract import EngineContract, LoadingContract, Loads
from tests.integration.stores import Owner, bind, stored
from tests.postgres import Postgres

pytest.importorskip("psycopg")

from dstore.server.postgres.engine import StoredEngine


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as name:
        init(postgres.url(name), standby=False)
        yield postgres.url(name)


@pytest.fixture(scope="module")
def owner(url: str) -> Iterator[Owner]:
    with Owner(url) as member:
        member.join()
        member.claim()
        # All connections are made here: one that is made in a test would be left behind by it.
        made = WritingEngine(member, 1_000)
        made.bind("k", value := stored())
        Loads(made).now(("k", value.token))
        made.close()
        yield member


class NoLoader:
    def load(self, engine: StoredEngine, number: int, wanted: object) -> None:
        raise AssertionError("nothing is away")

    def load_part(self, engine: StoredEngine, *part: object) -> None:
        raise AssertionError("nothing is large")


class TestStoredEngine(EngineContract):
    def make(self, limit: int) -> StoredEngine:
        return StoredEngine(NoLoader(), memory=1 << 30, limit=limit)


class WritingEngine(StoredEngine):
    """Has all values away; what is bound is written to the database before, as a journal does."""

    def __init__(self, owner: Owner, limit: int) -> None:
        super().__init__(owner.store._values, memory=1 << 30, limit=limit, cache=0)
        self._owner = owner

    def _write(self, *changes: Change) -> None:
        assert not any(self._owner.end(self._owner.begin(*changes)))

    def bind(self, key: Key, stored: Stored) -> None:
        if self.fits(key, stored):
            self._write(bind(key, stored))
        super().bind(key, stored)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        if self.wants((key, token)):
            self._write(Change(ChangeKind.REPLACE, key, token, stored))
        return super().replace(key, token, stored)

    def remove(self, key: Key, token: bytes) -> bool:
        if self.wants((key, token)):
            self._write(Change(ChangeKind.REMOVE, key, token))
        return super().remove(key, token)

    def close(self) -> None:
        left = [(key, bound.token) for key, bound in self._values.items()]
        if left:
            self._write(*[Change(ChangeKind.REMOVE, *place) for place in left])
        super().close()


class TestStoredEngineWithAllAway(LoadingContract):
    @pytest.fixture(autouse=True)
    def _owner(self, owner: Owner) -> None:
        self.owner = owner

    def make(self, limit: int) -> LoadingEngine:
        return WritingEngine(self.owner, limit)


class TestStoredBulk(BulkContract):
    @pytest.fixture(autouse=True)
    def _owner(self, owner: Owner) -> None:
        self.owner = owner

    def make(self) -> Bulk:
        from dstore.shm.bulk import PrivateBulk

        return self.owner.store.bulk(PrivateBulk())


def test_values_leave_the_memory_when_it_is_full_and_those_in_use_stay(
    owner: Owner, url: str
) -> None:
    with Owner(url, memory_limit=400_000) as member:
        member.join(owner)
        member.claim()
        engine = member.store.engine
        body = {f"full/{number}": secrets.token_bytes(10_000) for number in range(40)}
        values = {key: stored(each) for key, each in body.items()}
        for key, value in values.items():
            assert not any(member.write(bind(key, value)))
            engine.read("full/0")
        assert isinstance(engine.read("full/0"), Stored), "it was read all the time"
        assert isinstance(engine.read("full/1"), Away)
        figures = engine.figures()
        assert figures["memory_limit"] == 200_000
        assert int(str(figures["cached_bytes"])) + int(str(figures["index_bytes"])) <= 200_000
        assert engine.size >= 400_000
        for key, value in values.items():
            assert member.read(key) == value
        assert isinstance(engine.read("full/39"), Stored), "what was loaded stays for a while"
        assert not any(engine.forget(set(range(256))))
        assert (engine.size, len(engine)) == (0, 0)


def test_keys_that_find_no_room_are_refused_before_they_are_written(url: str) -> None:
    with Owner(url, memory_limit=20_000) as member:
        engine = member.store.engine
        number = 0
        while engine.fits(f"k{number}", stored(b"")):
            engine.bind(f"k{number}", stored(b""))
            number += 1
        assert 5 < number < 20
        assert engine.fits("k0", stored(b"x" * 100_000)), "a value for a known key finds room"

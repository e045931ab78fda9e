"""Pages in the shared memory of a simulated host: as their owners write them and as others read.

What an owner writes, and what a process reads in the middle of a call, is a step of its own: the
process may stand still there while others go on, or die.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from dstore.core.local.membership import lease_word
from dstore.core.local.shared import Put, Record, SharedPage
from dstore.core.local.vector import Vector
from dstore.protocol.messages import Found, Key
from dstore.shm.table import Table
from tests.simulation.loop import Loop

VOID, LAPSED = 0, 1
NS = 1e9
TABLE_BYTES = 1 << 16
TWIN_RECORDS = 4
"""Records of a table that is a dictionary; it is so few that some are evicted."""
BUSY, LOST = 0.1, 0.1
"""The parts of puts that find another writer, and that are lost, in such a table."""
TABLES = ("none", "real", "twin")


class HostCache(Protocol):
    """What the pages need of :class:`dstore.shm.table.Table`."""

    def find(self, key: str, hash64: int) -> Record | None: ...

    def put_many(self, items: Iterable[Put]) -> int: ...

    def values(self) -> Iterator[tuple[Key, str, bytes]]: ...

    @property
    def size(self) -> int: ...


class TwinTable:
    """A dictionary that keeps the contract of a table, and makes use of all that it allows."""

    size = TABLE_BYTES

    def __init__(self, loop: Loop) -> None:
        self._dice = loop.dice
        self._records: dict[Key, Record] = {}

    def find(self, key: str, hash64: int) -> Record | None:
        return self._records.get(key)

    def values(self) -> Iterator[tuple[Key, str, bytes]]:
        for key, record in list(self._records.items()):
            yield key, record.codec, record.body

    def put_many(self, items: Iterable[Put]) -> int:
        return 0 if self._dice.random() < BUSY else sum([self._put(each) for each in items])

    def _put(self, item: Put) -> bool:
        key, _, seq, token, codec, body = item
        former = self._records.pop(key, None)
        if former is not None and former.seq > seq:
            self._records[key] = former
            return False
        self._records[key] = Record(seq, token, codec, body)
        if len(self._records) > TWIN_RECORDS or self._dice.random() < LOST:
            del self._records[self._dice.choice(list(self._records))]
        return True


def table_of(kind: str, loop: Loop) -> HostCache | None:
    """Return a new host cache of one of ``TABLES``."""
    if kind == "none":
        return None
    return Table.over(bytearray(TABLE_BYTES), TABLE_BYTES) if kind == "real" else TwinTable(loop)


class SimPage:
    """The memory of one page. It stays readable for those who have it, whatever happens to it."""

    def __init__(
        self,
        *,
        epoch: int,
        session: int,
        lease: float,
        value_limit: int,
        large_from: int,
        hash_key: bytes,
        buckets: int,
        began: int,
        table: HostCache | None,
    ) -> None:
        self.epoch = epoch
        self.session = session
        self.lease = lease
        self.value_limit = value_limit
        self.large_from = large_from
        self.hash_key = hash_key
        self.began = began  # invalidations up to this number concern none of its values
        self.table = table
        self._words = bytearray(8 * buckets)
        self._lease = bytearray(8)
        self.vector = Vector(hash_key, buckets, memoryview(self._words).cast("Q"))
        self.lease_word = memoryview(self._lease).cast("Q")
        self.lease_word[0] = LAPSED

    def __repr__(self) -> str:
        return f"<SimPage epoch={self.epoch} session={self.session} lease={self.lease_word[0]}>"

    def mapped(self) -> tuple[Vector, memoryview]:
        """Map the page into another process, read-only: its vector and its lease word."""
        words = memoryview(self._words).toreadonly().cast("Q")
        lease = memoryview(self._lease).toreadonly().cast("Q")
        return Vector(self.hash_key, self.vector.buckets, words), lease

    def usable(self, now: float) -> bool:
        """Whether a process may begin to use the page."""
        return VOID != self.lease_word[0] <= lease_word(now + self.lease)

    @property
    def lease_end(self) -> float:
        """In seconds of the host's clock."""
        return self.lease_word[0] / NS

    def void(self) -> None:
        self.lease_word[0] = VOID


class Writer(Protocol):
    """The owner of a page."""

    alive: bool

    def between(self) -> None:
        """Perhaps stand still, or die, in the middle of a call."""

    def fails(self) -> bool:
        """Whether the next call of a page raises."""

    def withdraw(self, page: SimPage) -> None:
        """Remove the names of a page."""


class WrittenPage:
    """A page as its owner writes it. Each call may fail, before or after it has taken effect."""

    def __init__(self, page: SimPage, owner: Writer) -> None:
        self.page = page
        self._owner = owner

    def put(self, key: Key, found: Found) -> bool:
        self._step()
        table, (token, codec, body) = self.page.table, found.stored
        if table is None or type(body) is not bytes:
            return False
        value = (key, self.page.vector.hashed(key), found.seq, token, codec, body)
        put = table.put_many([value]) == 1
        self._step()
        return put

    def values(self) -> Iterable[tuple[Key, str, bytes]]:
        self._step()
        return () if self.page.table is None else self.page.table.values()

    def note(self, key: Key, seq: int) -> None:
        self._step()
        self.page.vector.note(key, seq)
        self._step()

    def renew(self, end: float) -> None:
        self._step()
        if self.page.lease_word[0] == VOID:
            raise OSError("the page is void")
        self.page.lease_word[0] = max(LAPSED, int(end * NS))
        self._step()

    def void(self) -> None:
        self._step()
        self.page.void()
        self._step()

    def close(self) -> None:
        self._step()
        self.page.void()
        self._owner.withdraw(self.page)

    def _step(self) -> None:
        self._owner.between()
        if self._owner.fails():
            raise OSError("the page cannot be written")


class Reader(Protocol):
    """A process that uses a page."""

    def clock(self) -> float: ...

    def between(self) -> None:
        """Perhaps stand still, or die, in the middle of a call."""


class ReadPage:
    """A page as one process reads it: a :class:`dstore.core.local.shared.SharedPage`."""

    def __init__(self, page: SimPage, process: Reader) -> None:
        self.page = page
        self.epoch, self.session = page.epoch, page.session
        self.cluster, self.lease = b"", page.lease
        self.value_limit, self.large_from = page.value_limit, page.large_from
        self.capacity = 0 if page.table is None else page.table.size
        self._process = process
        self._vector, self._lease_word = page.mapped()

    @property
    def shared(self) -> SharedPage:
        """Itself, as the core has it."""
        return cast(SharedPage, self)

    @property
    def vector(self) -> Vector:
        self._process.between()
        return self._vector

    @property
    def lease_word(self) -> memoryview:
        self._process.between()
        return self._lease_word

    def now(self) -> float:
        self._process.between()
        return self._process.clock()

    def used(self) -> int:
        return self.capacity // 2

    def find(self, key: Key, hashed: int) -> Record | None:
        self._process.between()
        table = self.page.table
        record = None if table is None else table.find(key, hashed)
        self._process.between()
        return record

    def put(self, value: Put) -> bool:
        return self.put_many([value]) == 1

    def put_many(self, values: Iterable[Put]) -> int:
        self._process.between()
        return 0 if self.page.table is None else self.page.table.put_many(values)

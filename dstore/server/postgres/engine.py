"""The keys of the partitions that a member owns: all in memory, with as many values as find room.

The database has all of them. A value whose bytes are not in memory is *away*: it is loaded when
somebody reads it. Bytes go when there is no room for others, those first that were not read since
they came, or since they were last passed over (*second chance*). What is removed here has been
removed from the database before, and what is bound is there already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from sortedcontainers import SortedList

from dstore.core.engine import NO_DEADLINE, UNLIMITED, Away, Bound, Loaded
from dstore.errors import StoreFull
from dstore.protocol.keys import from_order, in_order
from dstore.protocol.messages import Key, Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.server.engines.memory import (
    AFTER_ALL,
    ENTRY_OVERHEAD,
    LARGE_OVERHEAD,
    key_size,
)

RESIDENT_OVERHEAD = 150
"""Bytes per key for the order in which values leave the memory."""
FORGET_KEYS = 1_000
"""Keys that are looked at in one step while those of some partitions are forgotten."""

Place = tuple[Key, bytes]
"""Key and token of a value."""


class KeptRow(NamedTuple):
    """What the database has of one key. A ``deadline`` is a time of the wall clock."""

    key: Key
    bound: Bound
    deadline: float


class Loader(Protocol):
    """Loads the bytes of values."""

    def load(self, engine: StoredEngine, number: int, wanted: list[Place]) -> None:
        """Begin to load them; :meth:`StoredEngine.ended` is called with the results."""

    def load_part(
        self, engine: StoredEngine, number: int, key: Key, token: bytes, offset: int, length: int
    ) -> None:
        """Begin to load a part of a large value, in the same way."""


class StoredEngine:
    """A :class:`dstore.engines.PartLoader` over a database, which others write.

    Keys and values in memory take ``memory`` bytes at most, except that partitions that are gained
    bring all their keys. ``limit`` is for all keys and values, also those that are away:
    by default there is none but what the database can hold. ``cache`` is the most that values may
    take in memory, if that is less than what keys leave to them.

    For Global's thread, except :meth:`ended` and :meth:`wants`.
    """

    def __init__(
        self, loader: Loader, *, memory: int, limit: int = UNLIMITED, cache: int = UNLIMITED
    ) -> None:
        self.limit = limit
        self.size = 0
        self.closed = False
        self._loader = loader
        self._memory = memory
        self._cache = cache
        self._values: dict[Key, Bound] = {}
        self._order: SortedList[str] = SortedList()  # of the texts that in_order() returns
        self._index = 0  # bytes of memory for keys, without values
        self._here: dict[Key, None] = {}  # whose bytes are in memory, in the order to leave it
        self._here_bytes = 0
        self._used: set[Key] = set()  # of these, read since the last look
        self._asked: dict[int, list[Place]] = {}
        self._ended: deque[tuple[int, list[Loaded]]] = deque()
        self._wake: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return (
            f"<StoredEngine keys={len(self)} bytes={self.size} index={self._index} "
            f"here={len(self._here)} ({self._here_bytes} bytes)>"
        )

    # ---- what is known at once --------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._values)

    def read(self, key: Key) -> Bound | None:
        """Return the value bound to ``key``, or None."""
        bound = self._values.get(key)
        if bound is not None and key in self._here:
            self._used.add(key)
        return bound

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """Return at most ``limit`` keys with a prefix that come after ``after``."""
        begun, last = in_order(prefix), in_order(after)
        start, end = max(begun, last), begun + AFTER_ALL
        page = islice(self._order.irange(start, end, (start != last, False)), limit)
        return [each if each.isascii() else from_order(each) for each in page]

    def fits(self, key: Key, stored: Stored) -> bool:
        """Whether a value fits, in place of the one that ``key`` may have."""
        old = self._values.get(key)
        if old is not None:
            return self.size - _value_size(old) + _value_size(stored) <= self.limit
        further = _key_size(key)
        if self._index + further + _fixed_size(stored) > self._memory:
            return False
        return self.size + further + _value_size(stored) <= self.limit

    # ---- changes ----------------------------------------------------------------------------

    def bind(self, key: Key, stored: Stored) -> None:
        """Bind a value to a key that has none. Raises StoreFull beyond ``limit``."""
        if self.size + _key_size(key) + _value_size(stored) > self.limit:
            raise StoreFull(f"this Global holds {self.size:,} of {self.limit:,} bytes")
        self._bind(key, stored)
        self._make_room()

    def bind_all(self, rows: Iterable[KeptRow]) -> list[tuple[Key, bytes, float]]:
        """Bind what the database has, without a look at a limit. Returns the deadlines."""
        deadlines = []
        for key, bound, deadline in rows:
            self._bind(key, bound)
            if deadline != NO_DEADLINE:
                deadlines.append((key, bound.token, deadline))
        self._make_room()
        return deadlines

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        """Bind ``stored`` in place of the value with ``token``. Returns whether it was bound."""
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self._lose_value(key, old)
        self._take_value(key, stored)
        self._make_room()
        return True

    def remove(self, key: Key, token: bytes) -> bool:
        """Remove the value with ``token``. Returns whether it was bound."""
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self._remove(key, old)
        self._order.remove(in_order(key))
        return True

    def forget(self, partitions: Collection[int]) -> Iterator[list[bytes]]:
        """Forget the keys of partitions, some of them each time that the result is advanced.

        Yields the tokens of their large values. Meanwhile nothing else may be bound in these
        partitions.
        """
        keys = list(self._values)
        for start in range(0, len(keys), FORGET_KEYS):
            tokens = []
            for key in keys[start : start + FORGET_KEYS]:
                if partition_of(key) in partitions and (old := self._values.get(key)) is not None:
                    self._remove(key, old)
                    self._order.remove(in_order(key))
                    if _is_large(old):
                        tokens.append(old.token)
            yield tokens

    def _bind(self, key: Key, bound: Bound) -> None:
        self._order.add(in_order(key))
        self.size += _key_size(key)
        self._index += _key_size(key)
        self._take_value(key, bound)

    def _remove(self, key: Key, old: Bound) -> None:
        self._lose_value(key, old)
        del self._values[key]
        self.size -= _key_size(key)
        self._index -= _key_size(key)

    def _take_value(self, key: Key, bound: Bound) -> None:
        self._values[key] = bound
        self.size += _value_size(bound)
        self._index += _fixed_size(bound)
        if isinstance(bound, Stored) and bound.inline:
            self._here[key] = None
            self._here_bytes += bound.inline

    def _lose_value(self, key: Key, old: Bound) -> None:
        self.size -= _value_size(old)
        self._index -= _fixed_size(old)
        if key in self._here:
            self._put_away(key, old)

    def _put_away(self, key: Key, old: Bound) -> None:
        del self._here[key]
        self._used.discard(key)
        self._here_bytes -= old.inline

    def _make_room(self) -> None:
        """Let bytes leave the memory until they fit."""
        room = min(self._cache, max(0, self._memory - self._index))
        while self._here_bytes > room:
            key = next(iter(self._here))
            if key in self._used:
                self._used.discard(key)
                del self._here[key]
                self._here[key] = None
                continue
            old = self._values[key]
            self._put_away(key, old)
            self._values[key] = Away(old.token, old.codec, old.inline)

    # ---- loading ----------------------------------------------------------------------------

    def begin(self, wake: Callable[[], None]) -> None:
        """Take the function that wakes Global."""
        self._wake = wake

    def load(self, number: int, wanted: list[Place]) -> None:
        """Begin to load the bytes of some values."""
        self._asked[number] = wanted
        self._loader.load(self, number, wanted)

    def load_part(self, number: int, key: Key, token: bytes, offset: int, length: int) -> None:
        """Begin to load a part of a large value."""
        self._loader.load_part(self, number, key, token, offset, length)

    def wants(self, place: Place) -> bool:
        """Whether the key still has this value, as far as Global knows. From any thread."""
        bound = self._values.get(place[0])
        return bound is not None and bound.token == place[1]

    def ended(self, number: int, results: list[Loaded]) -> None:
        """Take the results of a load. From any thread."""
        self._ended.append((number, results))
        self._wake()

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        """Return the loads that have ended since the last call.

        Their values stay in memory, and parts of large ones do not.
        """
        ended = []
        while self._ended:
            number, results = self._ended.popleft()
            ended.append((number, results))
            for (key, token), body in zip(self._asked.pop(number, ()), results):
                bound = self._values.get(key)
                if type(bound) is Away and bound.token == token and isinstance(body, bytes):
                    self._values[key] = Stored(token, bound.codec, body)
                    self._here[key] = None
                    self._here_bytes += len(body)
        if ended:
            self._make_room()
        return ended

    def figures(self) -> dict[str, object]:
        """Return metrics by name. ``index_bytes`` and ``cached_bytes`` share ``memory_limit``."""
        return {
            "index_bytes": self._index,
            "cached": len(self._here),
            "cached_bytes": self._here_bytes,
            "memory_limit": self._memory,
        }

    def close(self) -> None:
        """Forget all keys. Idempotent."""
        self.closed = True
        self._values.clear()
        self._order.clear()
        self._here.clear()
        self._used.clear()
        self._asked.clear()
        self._ended.clear()
        self.size = self._index = self._here_bytes = 0


def _is_large(bound: Bound) -> bool:
    return isinstance(bound, Stored) and type(bound.body) is Large


def _key_size(key: Key) -> int:
    return key_size(key, in_order(key))


def _fixed_size(bound: Bound) -> int:
    """Return the bytes that a value takes in memory beside its own."""
    large = LARGE_OVERHEAD if _is_large(bound) else 0
    return ENTRY_OVERHEAD + RESIDENT_OVERHEAD + len(bound.codec) + large


def _value_size(bound: Bound) -> int:
    return _fixed_size(bound) + bound.size


def _nothing() -> None:
    """Wake nobody: Global is not bound yet."""

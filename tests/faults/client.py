"""A client that makes seeded random calls to a Node and records each."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import dstore
from tests.faults.records import (
    DONE,
    MISSING,
    NOT_DONE,
    OCCUPIED,
    OCCUPIED_LOCAL,
    TIMED_OUT,
    UNKNOWN,
    Recorder,
    Values,
)

T = TypeVar("T")
PADDING_MAX = 600
"""Bytes by which a value may be made longer."""
LARGE_PADDING = (70_000, 200_000)
"""Bytes that are added to a large value: lowest, highest. It then travels in chunks."""
FLOOD_PADDING = "-" * 150
"""Makes the keys of a flood long, so that buffers between Global and a Local fill up soon."""
FLOOD_READ = 60
"""Keys of a flood that are read."""
MANY = 8
"""Keys of one call with many keys."""
AWAITED = 8
"""Keys of a round that are set once and never deleted, for those that wait for them."""
AWAITED_SORT = "awaited"
LISTED = ("hot", "loose", "cold1")
"""What the listed keys of a round begin with."""
BURST_NS = 1_000_000
"""Nanoseconds for which one key is read repeatedly."""
Errors: TypeAlias = tuple[type[dstore.DstoreError], ...]
UNREACHED: Errors = (dstore.GlobalUnavailable,)
UNREACHED_OF_SEVERAL: Errors = (dstore.GlobalUnavailable, dstore.WrongServer)
WRONG_SERVERS = "wrong servers"
"""The count of calls that found another Global in place of a member."""
now = time.monotonic_ns


@dataclass(frozen=True)
class Keys:
    """The keys of a round: few hot ones, many cold ones, those of a flood.

    Only *loose* keys are deleted without waiting, since such a deletion takes effect later.
    """

    number: int
    hot: int
    cold: int
    flood: int

    def any(self, rng: random.Random) -> str:
        """A key that is never deleted without waiting."""
        if rng.random() < 0.6:
            return f"{self.number}.hot{rng.randrange(self.hot)}"
        return f"{self.number}.cold{rng.randrange(self.cold)}"

    def loose(self, rng: random.Random) -> str:
        return f"{self.number}.loose{rng.randrange(self._loose)}"

    def all(self) -> list[str]:
        """All keys of the round, but those of a flood."""
        sorts = {"hot": self.hot, "cold": self.cold, "loose": self._loose, AWAITED_SORT: AWAITED}
        return [f"{self.number}.{sort}{n}" for sort, count in sorts.items() for n in range(count)]

    def awaited(self, rng: random.Random) -> str:
        """A key that is set once, and never deleted."""
        return f"{self.number}.{AWAITED_SORT}{rng.randrange(AWAITED)}"

    def listed(self, rng: random.Random) -> tuple[str, list[str]]:
        """A prefix, and all the keys that have it."""
        prefix = f"{self.number}.{rng.choice(LISTED)}"
        return prefix, [key for key in self.all() if key.startswith(prefix)]

    @property
    def _loose(self) -> int:
        return self.hot + self.cold // 8

    def flooded(self, number: int) -> str:
        return f"{self.number}.flood{number}{FLOOD_PADDING}"


class Client:
    """Calls a Node and records. For one thread."""

    def __init__(
        self,
        node: dstore.Node,
        recorder: Recorder,
        rng: random.Random,
        name: str,
        large: float = 0.0,
        several: bool = False,
    ) -> None:
        self.node = node
        # With several Globals the keys of one call travel in several messages. Some may be written
        # if others are given up.
        self._many_given_up = UNKNOWN if several else NOT_DONE
        # Another Global may be in place of a member.
        self._unreached: Errors = UNREACHED_OF_SEVERAL if several else UNREACHED
        self._large = large  # the part of the values that are large
        self._recorder = recorder
        self._rng = rng
        self._name = name
        self._written = 0

    # ---- reading --------------------------------------------------------------------------

    def get(self, keys: Keys) -> None:
        self.burst(self._key(keys), 0)

    def burst(self, key: str, length_ns: int = BURST_NS) -> None:
        """Read one key repeatedly, until the time is up or it is missing."""
        until = now() + length_ns
        start, end, seen = self._lookup(key)
        while seen is not None:
            first, last, more, run = (start, end), (start, end), 0, seen
            again: tuple[str | None, bool] | None = None
            while now() < until and run[0] is not None:
                start, end, again = self._lookup(key)
                if again != run:
                    break
                last, more, again = (start, end), more + 1, None
            self._recorder.read("get", {key: run[0]}, *first, run[1])
            if more:
                self._recorder.read("get", {key: run[0]}, *last, run[1], more - 1)
            seen = again

    def _lookup(self, key: str) -> tuple[int, int, tuple[str | None, bool] | None]:
        start = now()
        try:
            found = self.node.lookup(key)
        except dstore.KeyMissing:
            return start, now(), (None, False)
        except self._unreached as error:
            self._count_unreached(error)
            return start, now(), None
        end = now()
        if not found.from_local and _is_large(found.value):
            self._recorder.count({"large values fetched": 1})
        return start, end, (_value_of(found.value), found.from_local)

    def get_stale(self, keys: Keys) -> None:
        stale = copy.copy(self.node._commands)  # reads as a Node with stale_ok, of the same cache
        stale.options = stale.options._replace(stale_ok=True)
        key = self._key(keys)
        start = now()
        try:
            found = self.node._do(stale.lookup(key))
        except dstore.KeyMissing:
            self._recorder.read("stale", {key: None}, start, now(), False)
        except self._unreached as error:
            self._count_unreached(error)
        else:
            value = _value_of(found.value)
            self._recorder.read("stale", {key: value}, start, now(), found.from_local)

    def get_many(self, keys: Keys) -> None:
        self.read_many({self._key(keys) for _ in range(MANY)})

    def get_flooded(self, keys: Keys) -> None:
        """Read some of the few keys of a flood that are read repeatedly."""
        self.read_many(map(keys.flooded, self._rng.sample(range(FLOOD_READ), 2 * MANY)))

    def read_many(self, keys: Iterable[str]) -> None:
        if (answer := self.values_of(list(keys))) is not None:
            self._recorder.read("get", *answer, None)

    def values_of(self, keys: Sequence[str]) -> tuple[Values, int, int] | None:
        """Read keys, without a record. Returns the values, and when the call began and ended."""
        start = now()
        try:
            found = self.node.get_many(keys)
        except self._unreached as error:
            self._count_unreached(error)
            return None
        end = now()
        return {key: _value_of(found[key]) if key in found else None for key in keys}, start, end

    def contains(self, keys: Keys) -> None:
        key = self._key(keys)
        start = now()
        try:
            there = key in self.node
        except self._unreached as error:
            self._count_unreached(error)
            return
        if there:
            self._recorder.read("contains", {key: None}, start, now(), None)
        else:
            self._recorder.read("get", {key: None}, start, now(), False)

    def list_keys(self, keys: Keys) -> None:
        """List some keys. Each was looked for at some moment of the call."""
        prefix, all_keys = keys.listed(self._rng)
        start = now()
        try:
            there = set(self.node.keys(prefix))
        except self._unreached as error:
            self._count_unreached(error)
            return
        end = now()
        assert there <= set(all_keys), f"keys that nobody has set: {there - set(all_keys)}"
        missing: Values = {key: None for key in all_keys if key not in there}
        self._recorder.read("get", missing, start, end, False)
        self._recorder.read("contains", dict.fromkeys(there), start, end, None)

    def wait(self, key: str, timeout: float, longest: float) -> None:
        """Wait for a key. It has to return within ``longest`` seconds in any case."""
        start, value, outcome = now(), None, DONE
        try:
            value = _value_of(self.node.wait(key, timeout))
        except dstore.WaitTimedOut:
            outcome = TIMED_OUT
        except dstore.NodeClosed:
            outcome = NOT_DONE
        except self._unreached as error:
            self._count_wrong(error)
            outcome = NOT_DONE
        self._recorder.wait(key, value, start, now(), outcome, int(longest * 1e9))

    # ---- writing --------------------------------------------------------------------------

    def set(self, keys: Keys) -> None:
        self._bind(self._key(keys))

    def set_awaited(self, keys: Keys) -> None:
        """Set a key that is never deleted, if that has not been done yet."""
        self._bind(keys.awaited(self._rng))

    def _bind(self, key: str) -> None:
        value = self._value()
        self._write("set", {key: value}, lambda: self.node.set(key, self._stored_form(value)))

    def replace(self, keys: Keys) -> None:
        key, value = self._key(keys), self._value()
        self._write(
            "replace",
            {key: value},
            lambda: self.node.set(key, self._stored_form(value), replace=True),
        )

    def set_many(self, keys: Keys) -> None:
        self.bind_many({self._key(keys) for _ in range(MANY)}, self._rng.random() < 0.2)

    def bind_many(self, keys: Iterable[str], replace: bool = False) -> None:
        values: Values = {key: self._value() for key in keys}
        stored = {key: self._stored_form(value or "") for key, value in values.items()}

        def call() -> dict[str, str]:
            refused = self.node.set_many(stored, replace=replace)
            # The result does not say whether Global or this Local's cache knew that the key exists.
            # The cache may know it from a former life of Global.
            return {key: OCCUPIED_LOCAL if key in refused else DONE for key in values}

        # Large values travel last, and the small ones may be bound if those are given up.
        given_up = UNKNOWN if any(map(_is_large, stored.values())) else self._many_given_up
        self._write("replace" if replace else "set", values, call, given_up)

    def delete(self, keys: Keys) -> None:
        key = self._key(keys)

        def call() -> None:
            self.node.delete(key)

        self._write("delete", {key: None}, call)

    def delete_many(self, keys: Keys) -> None:
        self.remove_many({self._key(keys) for _ in range(MANY)}, wait=True)

    def clear(self, keys: Keys) -> None:
        key = keys.loose(self._rng)

        def call() -> None:
            self.node.delete(key, wait=False)

        self._write("clear", {key: None}, call)

    def clear_many(self, keys: Keys) -> None:
        self.remove_many({keys.loose(self._rng) for _ in range(MANY)}, wait=False)

    def remove_many(self, keys: Iterable[str], *, wait: bool) -> None:
        values: Values = dict.fromkeys(keys)

        def call() -> dict[str, str]:
            deleted = self.node.delete_many(values, wait=wait)
            return {key: DONE if key in deleted else MISSING for key in values}

        self._write("delete" if wait else "clear", values, call, self._many_given_up)

    def _write(
        self,
        kind: str,
        values: Values,
        call: Callable[[], dict[str, str] | None],
        given_up: str = NOT_DONE,
    ) -> None:
        number = self._recorder.begin(kind, values, now())
        start = now()
        try:
            outcomes = call() or dict.fromkeys(values, DONE)
        except dstore.KeyMissing:
            outcomes = dict.fromkeys(values, MISSING)
        except dstore.KeyOccupied as error:
            outcomes = dict.fromkeys(values, OCCUPIED_LOCAL if error.local else OCCUPIED)
        except dstore.OutcomeUnknown as error:
            outcomes = dict.fromkeys(values, given_up)
            outcomes.update((str(key), UNKNOWN) for key in error.keys)
        except self._unreached as error:
            self._count_wrong(error)
            outcomes = dict.fromkeys(values, given_up)
        self._recorder.end(number, start, now(), outcomes)

    def _count_unreached(self, error: dstore.DstoreError) -> None:
        self._recorder.count({"reads unavailable": 1})
        self._count_wrong(error)

    def _count_wrong(self, error: dstore.DstoreError) -> None:
        if isinstance(error, dstore.WrongServer):
            self._recorder.count({WRONG_SERVERS: 1})

    # ---- choices --------------------------------------------------------------------------

    def _key(self, keys: Keys) -> str:
        return keys.loose(self._rng) if self._rng.random() < 0.15 else keys.any(self._rng)

    def _value(self) -> str:
        """A value that no client has written before."""
        self._written += 1
        return f"{self._name}:{self._written}"

    def _stored_form(self, value: str) -> Any:
        """The value as it is stored: text, or a list, which every read decodes again."""
        chosen = self._rng.random()
        if chosen < self._large:
            self._recorder.count({"large values sent": 1})
            return [value, _filler(value, self._rng.randrange(*LARGE_PADDING))]
        if chosen < 0.7:
            return value
        return [value, _filler(value, self._rng.randrange(PADDING_MAX))]


def _filler(value: str, size: int) -> str:
    """Text of this size that shows which value it belongs to, all over."""
    return (f"{value}." * (size // (len(value) + 1) + 1))[:size]


def _is_large(stored: Any) -> bool:
    return isinstance(stored, list) and len(stored[1]) >= LARGE_PADDING[0]


def _value_of(stored: Any) -> str:
    """The unique value in what was stored, which must be whole."""
    if not isinstance(stored, list):
        assert isinstance(stored, str)
        return stored
    ident, filler = stored
    assert isinstance(ident, str)
    assert filler == _filler(ident, len(filler)), f"the value {ident!r} is not whole"
    return ident


OPERATIONS: dict[Callable[[Client, Keys], None], int] = {
    Client.get: 30,
    Client.get_many: 8,
    Client.get_flooded: 6,
    Client.get_stale: 5,
    Client.contains: 3,
    Client.list_keys: 1,
    Client.set: 17,
    Client.set_many: 4,
    Client.replace: 7,
    Client.delete: 13,
    Client.delete_many: 3,
    Client.clear: 4,
    Client.clear_many: 2,
}
"""The operations of a client and their relative frequency."""

OF_SEVERAL = {
    operation: frequency
    for operation, frequency in OPERATIONS.items()
    if operation not in (Client.get_stale, Client.get_flooded)
} | {Client.set_awaited: 3}
"""The same for a client of several Globals: none has ``stale_ok``, there are no floods, and some
wait for keys."""

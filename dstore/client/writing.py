"""Writing large values and files: operations that store the bytes here, upload and bind them.

Whatever blocks (hashing, copying, files) is a Work step, which the host does without its lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from dstore import codecs, config
from dstore.client import files
from dstore.client.files import Progress
from dstore.client.large import LargeValues, Upload, random16
from dstore.codecs import Encoded
from dstore.core.local import operations
from dstore.core.local.operations import LargeBody, ReadOptions, SetOutcome
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, T, WaitUntil, Work
from dstore.errors import (
    KeyOccupied,
    OutcomeUnknown,
    RequestRefused,
    StoreFull,
    ValueCorrupt,
    ValueTooLarge,
)
from dstore.protocol import content
from dstore.protocol.content import PLAIN, Addresses
from dstore.protocol.keys import public
from dstore.protocol.messages import Key, Large, SetItem, SetStatus, Stored

Outcomes: TypeAlias = dict[Key, SetOutcome]
WRITTEN = (SetStatus.STORED, SetStatus.REPLACED)
WRITTEN_OR_OCCUPIED = (*WRITTEN, SetStatus.OCCUPIED)
Start: TypeAlias = Callable[[LocalState, LargeValues, float], Operation[T]]
"""Begins an operation at a time, with the state that the host has locked."""


@dataclass
class Writing:
    """One write of large values or of a file: one of its operations is to be used.

    It may be used again after :meth:`abort`.

    ``count`` is called with the hits of a look-up and the number of its keys.
    ``addresses`` are the content addresses of the Node.
    """

    timeout: float
    replace: bool
    ttl: float | None
    progress: Progress | None
    count: Callable[[int, int], None]
    addresses: Addresses = PLAIN
    _digest: bytes = b""  # of the value, once it is known
    _uploads: list[Upload] = field(default_factory=list)  # those that are not bound yet
    _files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def abort(self, error: BaseException) -> None:
        """Drop the values that are not bound from shared memory, and close the file."""
        # If the outcome of a write is unknown, Global has a copy of its own.
        self._drop_uploads()
        self._files.__exit__(type(error), error, error.__traceback__)

    def _drop_uploads(self) -> None:
        while self._uploads:
            self._uploads.pop().drop()

    def address_of(self, encoded: Encoded) -> Key:
        """Return the content address of a value. Hashes it, which takes some time, once."""
        self._digest = self._digest or digest(encoded)
        return self.addresses.of(self._digest)

    def address_of_file(self, path: files.Path) -> Key:
        """Return the content address of a file, which is read as a whole. Raises as ``reading``."""
        with files.reading(path, None) as file:
            hashed = file.digest()
        return self.addresses.of(hashed)

    def put(
        self, encoded: Encoded, state: LocalState, large: LargeValues, now: float
    ) -> Operation[Key]:
        """Bind a value to its content address, unless that is bound. Returns the address."""
        hashed = yield Work(lambda: self.address_of(encoded))
        key: Key = hashed.value
        stored = Stored(random16(), encoded.codec, Large(encoded.size, self._digest))
        bound, now = yield from self._prolonged(state, SetItem(key, stored), hashed.now)
        if not bound:  # if it is bound, its bytes are stored already
            yield from self.values({key: encoded}, state, large, now)
        return key

    def values(
        self, values: Mapping[Key, Encoded], state: LocalState, large: LargeValues, now: float
    ) -> Operation[Outcomes]:
        """Bind values to keys."""
        # The host's memory has a folder for each life of Global.
        now = yield from operations.join(state, now, now + self.timeout)
        epoch, large_from = state.epoch, state.large_from
        for value in values.values():
            check_size(state.value_limit, value.size)

        def store() -> list[SetItem]:
            items = []
            for key, value in values.items():
                if value.size < large_from:
                    stored = Stored(random16(), value.codec, value.joined())
                else:
                    self._uploads.append(large.keep(epoch, value))
                    stored = self._uploads[-1].stored
                items.append(SetItem(key, stored))
            return items

        if max(value.size for value in values.values()) < large_from:
            items = store()
        else:
            result = yield Work(store)
            items, now = result.value, result.now
        return (yield from self._bind(state, items, now))

    def _bind(self, state: LocalState, items: list[SetItem], now: float) -> Operation[Outcomes]:
        """Bind items whose bytes are stored here. Those that are not bound are dropped."""
        bodies = {each.stored.token: LargeBody(each.body, each.mapped) for each in self._uploads}
        outcomes = yield from operations.set_(
            state,
            items,
            self.replace,
            now,
            now + self.timeout,
            bodies,
            self.progress,
            ttl=self.ttl,
        )
        bound = {item.stored.token for item in items if outcomes[item.key].status in WRITTEN}
        self._uploads = [each for each in self._uploads if each.stored.token not in bound]
        if self._uploads:
            yield Work(self._drop_uploads)
        check_written(state.value_limit, items, outcomes)
        return outcomes

    def _is_bound(self, state: LocalState, key: Key, now: float) -> Operation[tuple[bool, float]]:
        """Return whether a key is bound, and the time after the look-up."""
        options = ReadOptions(bodies=False)
        answer, local = yield from operations.get_one(state, key, now, now + self.timeout, options)
        self.count(local, 1)
        result = yield WaitUntil(lambda _: True, now)  # returns at once, with the time
        return answer is not None, result.now

    def _prolonged(
        self, state: LocalState, item: SetItem, now: float
    ) -> Operation[tuple[bool, float]]:
        """Make a content address live for as long as is asked for, if it is bound.

        ``item`` names bytes that are nowhere, so that nothing is bound. Returns whether the address
        is bound, and the time after that.
        """
        bound = False
        with contextlib.suppress(OutcomeUnknown):
            outcomes = yield from operations.set_(
                state, [item], False, now, now + self.timeout, ttl=self.ttl
            )
            bound = outcomes[item.key].status is SetStatus.OCCUPIED
        result = yield WaitUntil(lambda _: True, now)  # returns at once, with the time
        return bound, result.now

    def put_file(
        self, path: str, state: LocalState, large: LargeValues, now: float
    ) -> Operation[Key]:
        """Bind the bytes of a file to their content address. Returns the address."""
        opened = yield Work(lambda: self._open(path))
        file: files.FileToStore = opened.value
        if file.size >= config.LARGE_FROM_DEFAULT:  # before all of it is read for its hash
            yield from operations.join(state, opened.now, opened.now + self.timeout)
            check_size(state.value_limit, file.size)
        hashed = yield Work(file.digest)
        key = self.addresses.of(hashed.value)
        bound, now = False, hashed.now
        if file.size >= config.LARGE_FROM_DEFAULT:
            stored = Stored(random16(), codecs.BYTES, Large(file.size, hashed.value))
            bound, now = yield from self._prolonged(state, SetItem(key, stored), now)
        if not bound:
            yield from self._write_file(key, file, state, large, now)
        yield Work(self._files.close)
        return key

    def set_file(
        self,
        key: Key,
        path: str,
        given: str | bytes,
        state: LocalState,
        large: LargeValues,
        now: float,
    ) -> Operation[SetOutcome]:
        """Bind the bytes of a file to a key, which errors name as it was ``given``."""
        opened = yield Work(lambda: self._open(path))
        file, now = opened.value, opened.now
        if file.size >= config.LARGE_FROM_DEFAULT and not self.replace:
            bound, now = yield from self._is_bound(state, key, now)
            if bound:
                raise KeyOccupied(given)  # before all of it is read
        outcomes = yield from self._write_file(key, file, state, large, now)
        yield Work(self._files.close)
        return outcomes[key]

    def _open(self, path: str) -> files.FileToStore:
        return self._files.enter_context(files.reading(path, self.progress))

    def _write_file(
        self, key: Key, file: files.FileToStore, state: LocalState, large: LargeValues, now: float
    ) -> Operation[Outcomes]:
        now = yield from operations.join(state, now, now + self.timeout)
        epoch = state.epoch
        if file.size < state.large_from:
            read = yield Work(lambda: tuple(file.pieces()))
            value = Encoded(codecs.BYTES, read.value, file.size)
            return (yield from self.values({key: value}, state, large, read.now))
        check_size(state.value_limit, file.size)

        def store() -> list[SetItem]:
            self._uploads.append(large.keep_file(epoch, file))
            return [SetItem(key, self._uploads[-1].stored)]

        result = yield Work(store)
        return (yield from self._bind(state, result.value, result.now))


def check_size(value_limit: int, size: int) -> None:
    """Raise ValueTooLarge for a value that Global does not take."""
    if size > value_limit:
        raise ValueTooLarge(size, value_limit)


def check_written(value_limit: int, items: list[SetItem], outcomes: Outcomes) -> None:
    """Raise ValueTooLarge, StoreFull, ValueCorrupt or RequestRefused for an item that failed."""
    for item in items:
        status, size = outcomes[item.key].status, item.stored.size
        if status in WRITTEN_OR_OCCUPIED:
            continue
        if status is SetStatus.TOO_LARGE:
            raise ValueTooLarge(size, value_limit)
        key = public(item.key)
        if status is SetStatus.FULL:
            raise StoreFull(
                f"Global has no room for {key!r} ({size:,} bytes) in memory or on its disk; delete "
                "something, start it with a higher --memory-limit, or free space on that disk"
            )
        if status is SetStatus.MISMATCH:
            raise ValueCorrupt(
                f"{key!r} was not written: its value was damaged on its way, or its file was "
                "changed while it was read"
            )
        if status is SetStatus.FAILED:
            raise RequestRefused(f"Global's storage failed; {key!r} was not written")
        raise RequestRefused(f"Global asks for bytes that it has had; {key!r} was not written")


def digest(encoded: Encoded) -> bytes:
    """Return the hash of a value."""
    hasher = content.Hasher(encoded.codec)
    for part in encoded.parts:
        hasher.update(part)
    return hasher.digest()

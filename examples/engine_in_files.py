"""An engine of a program's own: keys in memory, and values in files, so that these need not fit.

Global asks such an engine for keys, tokens and sizes at once, and for the bytes of a value when
somebody reads it. Threads of the engine read the file, while Global answers other requests. What a
Node has read once it answers from its cache: no file is read for that.

    python examples/engine_in_files.py [--values 500] [--bytes 50000]
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import tempfile
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import dstore
from dstore.engines import Away, Bound, Key, Large, Loaded, Stored, from_bytes, to_bytes

KEY_OVERHEAD = 1_000
"""Bytes that a key takes beside its name and its value, rounded up."""


class FileEngine:
    """A :class:`dstore.engines.LoadingEngine` over a folder that it has for itself.

    Values of fewer than ``small`` bytes stay in memory. ``limit`` is in bytes, of all values. What
    is in the folder does not survive this object: its keys are in memory alone.
    """

    def __init__(
        self, folder: Path, limit: int = 1 << 40, small: int = 1_000, threads: int = 4
    ) -> None:
        self.limit = limit
        self.size = 0
        self._folder = folder
        self._small = small
        self._values: dict[Key, Bound] = {}
        self._order: list[bytes] = []
        self._threads = ThreadPoolExecutor(threads)
        self._ended: queue.SimpleQueue[tuple[int, list[Loaded]]] = queue.SimpleQueue()
        self._wake: Callable[[], None] = lambda: None

    # ---- what is known at once --------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._values)

    def read(self, key: Key) -> Bound | None:
        return self._values.get(key)

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        first, last = to_bytes(prefix), to_bytes(after)
        start = max(bisect_left(self._order, first), bisect_right(self._order, last))
        page = islice(self._order, start, start + limit)
        return [from_bytes(each) for each in page if each.startswith(first)]

    # ---- changes, which have taken effect when they return ----------------------------------

    def bind(self, key: Key, stored: Stored) -> None:
        if not self.fits(key, stored):
            raise dstore.StoreFull(f"{self.size:,} of {self.limit:,} bytes are taken")
        self._values[key] = self._kept(stored)
        insort(self._order, to_bytes(key))
        self.size += _cost(key, stored)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self._values[key] = self._kept(stored)
        self.size += _cost(key, stored) - _cost(key, old)
        self._unlink(old)
        return True

    def remove(self, key: Key, token: bytes) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        del self._values[key]
        del self._order[bisect_left(self._order, to_bytes(key))]
        self.size -= _cost(key, old)
        self._unlink(old)
        return True

    def fits(self, key: Key, stored: Stored) -> bool:
        old = self._values.get(key)
        freed = 0 if old is None else _cost(key, old)
        return self.size - freed + _cost(key, stored) <= self.limit

    def _kept(self, stored: Stored) -> Bound:
        """Write a value to its file, which is named by its token and never changes."""
        if isinstance(stored.body, Large) or stored.size < self._small:
            return stored
        try:
            self._file(stored.token).write_bytes(stored.body)
        except OSError as error:  # Global knows the errors of dstore
            raise dstore.StoreFull(f"the value cannot be written: {error}") from error
        return Away(stored.token, stored.codec, stored.size)

    def _file(self, token: bytes) -> Path:
        return self._folder / token.hex()

    def _unlink(self, old: Bound) -> None:
        if isinstance(old, Away):
            self._file(old.token).unlink(missing_ok=True)

    # ---- loading ----------------------------------------------------------------------------

    def begin(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        self._threads.submit(self._load, number, [token for _, token in wanted])

    def _load(self, number: int, tokens: list[bytes]) -> None:
        """Read some files, in a thread. A value may be removed meanwhile: that is no harm."""
        self._ended.put((number, [self._bytes_of(token) for token in tokens]))
        self._wake()

    def _bytes_of(self, token: bytes) -> Loaded:
        try:
            return self._file(token).read_bytes()
        except OSError as error:
            return error

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        return [self._ended.get() for _ in range(self._ended.qsize())]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def _cost(key: Key, value: Bound) -> int:
    return KEY_OVERHEAD + 5 * len(to_bytes(key)) + len(value.codec) + value.size


def main() -> None:
    parser = argparse.ArgumentParser(description="serve values from files")
    parser.add_argument("--values", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=50_000)
    args = parser.parse_args()

    values = {f"value/{number}": os.urandom(args.bytes) for number in range(args.values)}
    with tempfile.TemporaryDirectory() as folder:
        engine = FileEngine(Path(folder))
        with dstore.Global("tcp://127.0.0.1:0", engine=engine) as server:
            # Without the cache of the host, which has what the writer has written.
            reader = dstore.Node(server.address, host="off")
            with dstore.Node(server.address) as writer, reader:
                writer.set_many(values)
                print(f"{len(os.listdir(folder))} values in {folder}")
                keys = list(reader.keys("value/"))
                random.shuffle(keys)
                found = {key: reader.get(key) for key in keys}
                again = reader.get_many(keys)
                print(f"{writer.global_stats()['loads']} of them were read from their files")
                deleted = reader.delete_many(keys)
                left = os.listdir(folder)
    if found != values or again != values:
        raise SystemExit("some value is not what was written")
    if len(deleted) != len(values) or left:
        raise SystemExit(f"{len(left)} files were left behind")
    print("all are as they were written, and are gone after their deletion")


if __name__ == "__main__":
    main()

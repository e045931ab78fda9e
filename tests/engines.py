"""Engines for tests that have to load the bytes of small values."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from dstore.engines import Away, Bound, Key, Large, Loaded, MemoryEngine, Stored

DELAY_MAX = 0.003
"""Seconds that a thread takes for one load at most."""


class AwayEngine:
    """The engine in memory, except that the bytes of small values are away.

    :meth:`is_away` says of which. A load ends with :meth:`result`.
    """

    def __init__(self, inner: MemoryEngine) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def limit(self) -> int:
        return self.inner.limit

    def bind(self, key: Key, stored: Stored) -> None:
        self.inner.bind(key, stored)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        return self.inner.replace(key, token, stored)

    def remove(self, key: Key, token: bytes) -> bool:
        return self.inner.remove(key, token)

    def fits(self, key: Key, stored: Stored) -> bool:
        return self.inner.fits(key, stored)

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        return self.inner.scan(prefix, after, limit)

    def close(self) -> None:
        self.inner.close()

    def is_away(self, key: Key) -> bool:
        return True

    def read(self, key: Key) -> Bound | None:
        stored = self.inner.read(key)
        if stored is None or isinstance(stored.body, Large) or not self.is_away(key):
            return stored
        return Away(stored.token, stored.codec, stored.size)

    def result(self, key: Key, token: bytes) -> Loaded:
        """What a load of this value ends with now."""
        stored = self.inner.read(key)
        if stored is None or stored.token != token or isinstance(stored.body, Large):
            return LookupError(f"{key} has no value with the token {token.hex()}")
        return stored.body


def _not_begun() -> None:
    raise RuntimeError("begin() was not called")


class LateEngine(AwayEngine):
    """Loads in threads of its own, after random delays and in random order.

    While it is *held* no load ends; so a test can put other events before that. A key for which
    there is an entry in ``failures`` fails with that.
    """

    def __init__(self, inner: MemoryEngine, threads: int = 3, seed: int = 0) -> None:
        super().__init__(inner)
        self.failures: dict[Key, Exception] = {}
        self.begun = threading.Event()  # set when a load has begun
        self.closed = 0  # how often
        self._taken: queue.SimpleQueue[tuple[int, list[tuple[Key, bytes]]] | None]
        self._taken = queue.SimpleQueue()
        self._ended: deque[tuple[int, list[Loaded]]] = deque()
        self._free = threading.Event()
        self._free.set()
        self._wake: Callable[[], object] = _not_begun
        self._threads = [
            threading.Thread(target=self._run, args=[random.Random(f"{seed} {number}")])
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        self._taken.put((number, wanted))
        self.begun.set()

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        return ended

    def hold(self) -> None:
        self.begun.clear()
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def close(self) -> None:
        self.closed += 1
        self.release()
        threads, self._threads = self._threads, []
        for _ in threads:
            self._taken.put(None)
        for thread in threads:
            thread.join()
        super().close()

    def result(self, key: Key, token: bytes) -> Loaded:
        return self.failures.get(key) or super().result(key, token)

    def _run(self, dice: random.Random) -> None:
        while (taken := self._taken.get()) is not None:
            number, wanted = taken
            time.sleep(dice.random() * DELAY_MAX)
            self._free.wait()
            self._ended.append((number, [self.result(*each) for each in wanted]))
            self._wake()

"""The keys that Tab offers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from dstore.console import signals_stay_here


class KeyFinder:
    """Asks for keys without ever making the person who pressed Tab wait long.

    The asking is done by a thread of its own, since the Node has the patience of its timeout. One
    question is under way at a time; while an old one is unanswered, the answer is "no keys".
    """

    def __init__(self, keys: Callable[[str], Iterable[str | bytes]], limit: int, wait: float):
        self._keys = keys
        self._limit = limit
        self._wait = wait
        self._busy = threading.Lock()

    def find(self, prefix: str) -> list[str | bytes]:
        """At most ``limit`` keys with this prefix; none if that takes longer than ``wait``."""
        if not self._busy.acquire(blocking=False):
            return []
        answer: queue.SimpleQueue[list[str | bytes]] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._ask, args=(prefix, answer), name="dstore-tab", daemon=True
        )
        with signals_stay_here():
            thread.start()
        try:
            return answer.get(timeout=self._wait)
        except queue.Empty:
            return []

    def _ask(self, prefix: str, answer: queue.SimpleQueue[list[str | bytes]]) -> None:
        found: list[str | bytes] = []
        try:
            for key in self._keys(prefix):
                found.append(key)
                if len(found) >= self._limit:
                    break
        except Exception:  # Tab is silent, whatever went wrong
            pass
        finally:
            answer.put(found)
            self._busy.release()

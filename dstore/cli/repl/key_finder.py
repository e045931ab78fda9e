"""Finds keys and paths of files for Tab."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dstore.runtime.native import signals_blocked


class KeyFinder:
    """Looks for keys, or for paths, so that a person who has pressed Tab never waits long.

    A thread asks, since a Node may take as long as its timeout, and a network file system any
    time. One question is under way at a time; until it is answered, others find nothing.
    """

    def __init__(self, keys: Callable[[Any], Iterable[str | bytes]], limit: int, wait: float):
        self._keys = keys
        self._limit = limit
        self._wait = wait
        self._busy = threading.Lock()

    def find(self, prefix: str | bytes) -> list[str | bytes]:
        """Return at most ``limit`` keys with a prefix, or none after ``wait`` seconds."""
        if not self._busy.acquire(blocking=False):
            return []
        answer: queue.SimpleQueue[list[str | bytes]] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._ask, args=(prefix, answer), name="dstore-tab", daemon=True
        )
        try:
            with signals_blocked():
                thread.start()
        except RuntimeError:  # the system allows no more threads
            self._busy.release()
            return []
        try:
            return answer.get(timeout=self._wait)
        except queue.Empty:
            return []

    def _ask(self, prefix: str | bytes, answer: queue.SimpleQueue[list[str | bytes]]) -> None:
        found: list[str | bytes] = []
        try:
            for key in self._keys(prefix):
                found.append(key)
                if len(found) >= self._limit:
                    break
        except Exception:  # Tab reports no errors
            pass
        finally:
            answer.put(found)
            self._busy.release()


def find_paths(begun: str | bytes) -> Iterator[str]:
    """Yield the paths that begin like this, in any order; folders end with a slash.

    ``~`` stays as it was typed. Hidden files are included if the dot was typed. Raises OSError.
    """
    begun = os.fsdecode(begun.encode() if isinstance(begun, str) else begun)
    if begun == "~":
        yield "~/"
        return
    folder, slash, name = begun.rpartition("/")
    with os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not name.startswith(".")
            if entry.name.startswith(name) and not hidden:
                yield folder + slash + entry.name + ("/" if entry.is_dir() else "")

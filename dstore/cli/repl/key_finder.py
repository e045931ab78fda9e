"""What Tab offers: keys, and the paths of files."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dstore.runtime.signals import signals_blocked


class KeyFinder:
    """Asks for keys without ever making the person who pressed Tab wait long. (And for paths.)

    The asking is done by a thread of its own, since the Node has the stall_timeout of its timeout, and
    a file system of the network any. One question is under way at a time; while an old one is
    unanswered, the answer is "no keys".
    """

    def __init__(self, keys: Callable[[Any], Iterable[str | bytes]], limit: int, wait: float):
        self._keys = keys
        self._limit = limit
        self._wait = wait
        self._busy = threading.Lock()

    def find(self, prefix: str | bytes) -> list[str | bytes]:
        """At most ``limit`` keys with this prefix; none if that takes longer than ``wait``."""
        if not self._busy.acquire(blocking=False):
            return []
        answer: queue.SimpleQueue[list[str | bytes]] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._ask, args=(prefix, answer), name="dstore-tab", daemon=True
        )
        try:
            with signals_blocked():
                thread.start()
        except RuntimeError:  # there can be no more threads
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
        except Exception:  # Tab is silent, whatever went wrong
            pass
        finally:
            answer.put(found)
            self._busy.release()


def find_paths(begun: str | bytes) -> Iterator[str]:
    """What there is in a folder that begins like this, in any order; folders end with a slash.

    ``~`` stays as it was typed. Hidden files come if the dot was typed. Raises OSError.
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

"""The look at the shared files of cached values: evicted ones keep their memory taken."""

from __future__ import annotations

from dstore.client.hosts.core import Host
from dstore.client.large import release

CHECK_EVERY = 2.0
"""Seconds between two looks at whether the shared files of cached values are still there."""
CHECK_MAX = 500
"""Files looked at in one go."""


class EvictedFiles:
    """Removes the entries of values whose files are gone. For the background thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unchecked: list[bytes] = []

    def check(self, now: float) -> None:
        """Look at the next files, if it is time, and set ``next_check`` of the host."""
        host = self._host
        if not self._unchecked:
            if now < host.next_check:
                return
            with host.lock:
                self._unchecked = list(host.state.cache.shared)
        tokens, self._unchecked = self._unchecked[:CHECK_MAX], self._unchecked[CHECK_MAX:]
        host.next_check = now if self._unchecked else now + CHECK_EVERY
        shared = host.state.cache.shared
        gone = host.large.evicted(entry for token in tokens if (entry := shared.get(token)))
        with host.lock:
            entries = [shared[token] for token in gone if token in shared]
            for key in [entry.key for entry in entries]:  # no variable may keep an entry
                host.state.cache.discard(key)
        release(entries)

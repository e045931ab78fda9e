"""The watches of one Local: who hears of deletions that have taken effect."""

from __future__ import annotations

import itertools
import weakref

from dstore.client.hosts.core import Host
from dstore.client.watch import Watch
from dstore.core.local.watching import ALL, Removal
from dstore.protocol.messages import Key
from dstore.runtime import clock


class Watches:
    """Watches by number. A watch that the program has dropped leaves by itself."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Watches {len(self._watches)}>"

    def begin(self, prefix: Key, limit: int) -> Watch:
        """Return a new watch of the keys that begin with ``prefix``. Raises NodeClosed."""
        host = self._host
        watch = Watch(prefix, limit)

        def begin() -> None:
            with host.lock:
                host.check_open()
                number = next(self._numbers)
                self._watches[number] = watch
                host.state.watch(number, clock.now())
            host.link.control.wake()

        host.call(begin)
        return watch

    def announce(self, removals: list[Removal]) -> None:
        """Put removals into the watches that they concern. In the background thread."""
        state = self._host.state
        with self._host.lock:
            watches = {n: watch for n, watch in self._watches.items() if not watch.over}
            for number in state.watching.watchers - set(watches):
                state.unwatch(number)  # it was closed, or dropped
        for removal in removals:
            for number, watch in watches.items():
                if removal.watcher in (ALL, number):
                    watch.put(removal.key)

    def end(self) -> None:
        """Close all watches, since the Node is closed."""
        with self._host.lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.close()

    def forked(self) -> None:
        """Close all watches in a forked child, where nothing will be put into them."""
        for watch in list(self._watches.values()):
            watch.close()

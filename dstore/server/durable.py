"""What a durable Global has beside its sockets: its data, and the rules of its start and end.

A start goes in this order. The folder is locked; from then on the *quiet period* counts, as long as
the longest lease that a former life may have given. What its log has is made durable, and all keys
are loaded. The longest lease that may be out is recorded before any session begins. Until the quiet
period is over nothing is removed or replaced, since Locals of the former life may answer from their
caches; reads and SETs of new keys go on at once. A folder that was copied or restored is silent for
that time: the Global that it was copied from may have gone on.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

from dstore.core.authority.effects import NEVER, Commit
from dstore.core.engine import NO_DEADLINE, Bulk, Outcome
from dstore.protocol.messages import DAMAGED, Key, Large, Stored
from dstore.runtime import clock
from dstore.runtime.logs import Log
from dstore.server.data import open_data
from dstore.server.data.durable_bulk import DurableBulk
from dstore.server.data.folder import LARGE
from dstore.server.data.large import LargeFiles
from dstore.server.engines.memory import MemoryEngine

log = Log("dstore.global")


class Durable:
    """The data of a Global while it is bound. ``lease`` is the one that it gives, in seconds.

    ``quiet_until`` is when the leases of former lives are over, and ``silent_until`` when this
    Global may answer at all, both by the clock of leases. At ``check_at`` :meth:`check` is due; it
    may become earlier with each change.
    Raises DataError. Only Global's thread may use it, after :meth:`begin`.
    """

    def __init__(self, path: str, lease: float) -> None:
        self._lease = lease
        self._closed = False
        self._bulk: DurableBulk | None = None
        self._damaged = 0
        self._data = data = open_data(path, self._keep)
        try:
            now = clock.now()  # after the folder was locked
            quiet = max(data.lease, lease) if data.moved else data.lease
            self.quiet_until = now + quiet if quiet else 0.0
            self.silent_until = self.quiet_until if data.moved else 0.0
            self._settle_at = self.quiet_until or NEVER
            self._files = LargeFiles(os.path.join(path, LARGE))
        except BaseException:
            data.close()
            raise

    def __repr__(self) -> str:
        return f"<Durable {self._data!r}>"

    def load(self, engine: MemoryEngine) -> list[tuple[Key, bytes, float]]:
        """Bind all keys in an empty engine. Returns the deadlines: keys, tokens of values, times.

        The value of a damaged row, or of one whose large bytes are gone, is a marker: Nodes raise
        ValueCorrupt for it, and the key can be deleted or replaced.
        """
        with _collector_paused():
            return self._load(engine)

    def _load(self, engine: MemoryEngine) -> list[tuple[Key, bytes, float]]:
        values: dict[Key, Stored] = {}
        deadlines: list[tuple[Key, bytes, float]] = []
        large: dict[bytes, tuple[Key, int]] = {}
        damaged = 0
        for key, token, stored, deadline in self._data.load():
            if stored is None:
                stored = Stored(token, DAMAGED, b"")
                damaged += 1
            elif type(stored.body) is Large:
                large[token] = key, stored.size
            values[key] = stored
            if deadline != NO_DEADLINE:
                deadlines.append((key, token, deadline))
        sizes = {token: size for token, (_, size) in large.items()}
        for token in self._files.lost(sizes):
            key, _ = large[token]
            values[key] = Stored(token, DAMAGED, b"")
            damaged += 1
        engine.bind_all(values)
        self._damaged = damaged
        if damaged:
            log.warning(
                "%s of the stored values are damaged; `dstore check` names their keys, which can "
                "be deleted or replaced",
                f"{damaged:,}",
            )
        self._files.remove_orphans(sizes, keep_all=bool(damaged))
        return deadlines

    def bulk(self, inner: Bulk) -> Bulk:
        """Return the place for large values: in ``inner``, and on the disk."""
        self._bulk = DurableBulk(inner, self._files)
        return self._bulk

    def _keep(self, stored: Stored) -> None:
        assert self._bulk is not None
        self._bulk.keep(stored)

    def begin(self, wake: Callable[[], None]) -> None:
        """Record the longest lease that may be out, and begin to commit. ``wake`` wakes Global."""
        journal = self._data.journal
        longest = max(self._data.lease, self._lease)
        if longest != self._data.lease:
            journal.set_lease(longest)
        journal.begin(wake)

    def commit(self, batch: Commit) -> None:
        self._data.journal.commit(batch.number, batch.changes)

    @property
    def news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""
        return self._data.journal.news

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended; see :class:`~dstore.core.engine.Journal`."""
        return self._data.journal.committed()

    @property
    def check_at(self) -> float:
        return min(self._settle_at, self._files.tend_at)

    def check(self) -> None:
        """Do what is due: removals that a backup held up, and the end of the quiet period."""
        now = clock.now()
        if now >= self._files.tend_at:
            self._files.tend()
        if now >= self._settle_at:  # no lease but one's own is out
            self._settle_at = NEVER
            self._data.journal.set_lease(self._lease)
            self._data.settle()

    def figures(self) -> dict[str, object]:
        """Return metrics of the disk, by name.

        ``disk_damaged`` counts the values that were damaged at the start, large ones included.
        """
        found = {**self._data.figures(), **self._files.figures(), "damaged": self._damaged}
        return {f"disk_{name}": value for name, value in found.items()}

    def close(self, *, lease_out: bool) -> None:
        """Commit what was taken and give the folder back. ``lease_out``: whether a lease may be.

        Idempotent. After the sockets are closed, so that no further lease is given.
        """
        if self._closed:
            return
        self._closed, data = True, self._data
        try:
            if not lease_out and clock.now() >= self.quiet_until:
                data.journal.set_lease(0.0)
            data.journal.close()
        finally:
            self._files.close()
            data.close()

    def forked(self) -> None:
        """In a forked child: leave everything to the parent."""
        self._data.forked()


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's collector of reference cycles, which looks at new objects again and again.

    That would take a quarter of the time of loading, and there are no cycles. Afterwards the new
    objects count as old ones, as if the collector had seen them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else the program has a use for what it has frozen
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()

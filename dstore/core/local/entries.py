"""The entries of a Local and the fills in flight: which value may be cached, and for how long.

An entry may be used while the lease is valid, in the session in which it was stored. The fill rule
decides whether the value of a reply is stored: not if Global says that it is not cacheable, if the
request was abandoned, if the session has changed, or if an invalidation of the key was applied
meanwhile whose number is above the ``seq`` of the reply.

Invalidations are applied in order and without gaps, so that one number, ``applied``, says what has
been dropped. A reply may be newer than invalidations that are still to be applied: these do not
concern its entry.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from dstore.core.local.cache import Cache, Entry, MappedBody
from dstore.core.local.watching import Watching
from dstore.protocol.messages import NO_SESSION, Found, Key

ACK_EVERY = 1_000
"""Invalidations after which an ACK is sent although no deletion waits, so that a targeted
invalidation stays short.
"""
NEWER_ENTRIES_MAX = 4_096
"""Entries that are known to be newer than invalidations that are still to be applied."""
LAPSED = float("-inf")


class NewerEntry(NamedTuple):
    """An entry newer than all invalidations up to ``seq``, not all of which are applied.

    ``replaced`` says that it took the place of an entry to which they may apply.
    """

    seq: int
    replaced: bool


@dataclass(eq=False, repr=False)
class Fill:
    """A request in flight whose reply may be stored in the cache.

    ``deleted`` is the highest number of an invalidation of the key that was applied meanwhile.
    """

    key: Key
    epoch: int
    session: int
    reading: bool
    deleted: int = 0
    done: bool = False

    def __repr__(self) -> str:
        return f"<Fill {self.key!r} deleted={self.deleted} done={self.done}>"


class Entries:
    """The cache, the fills in flight, and the invalidations that are applied to both."""

    def __init__(self, cache_bytes: int) -> None:
        self.epoch = 0
        self.session = NO_SESSION
        self.closing = False
        self.lease_end = LAPSED
        self.applied = 0
        self.cache = Cache(cache_bytes)
        self.entries = self.cache.entries
        self.counters = dict.fromkeys(
            ("fills", "deletions", "drops", "flushes", "gaps", "joins"), 0
        )
        self.watching = Watching()
        self._fills: dict[Key, list[Fill]] = {}
        self._newer: OrderedDict[Key, NewerEntry] = OrderedDict()  # in the order of insertion
        self._ack_due = False
        self._acked = 0
        # What the next tick reports as dropped:
        self._dropped: list[Key] = []
        self._dropped_tokens: list[bytes] = []
        self._to_release: list[Entry] = []

    def _void_entries(self) -> None:
        """Forget session and epoch, and all that was stored or asked for in the session."""
        self.epoch, self.session, self.applied = 0, NO_SESSION, 0
        # A new dictionary for each session, and the old one is emptied: a hit that is under way
        # on another thread and has noted an old lease must not find a new session's entry.
        self.entries = self.cache.renew()
        for fills in self._fills.values():
            for fill in fills:
                fill.done = True
        self._fills.clear()
        self._newer.clear()
        self.watching.void()
        self._ack_due = False

    def hit(self, key: Key, now: float, stale_ok: bool = False) -> Entry | None:
        """Return the entry of ``key`` if the lease is valid at ``now``."""
        entry = self.entries.get(key)
        if entry is None or not (now < self.lease_end or stale_ok):
            return None
        entry.visited = True
        return entry

    def begin_fill(self, key: Key, into: list[Fill], reading: bool = False) -> None:
        """Note that a request for ``key`` (``reading``: a GET) is about to be sent.

        The fill is put ``into`` the list of the caller before it is noted here: so an interrupt in
        between leaves no fill that is never ended.
        """
        fill = Fill(key, self.epoch, self.session, reading)
        into.append(fill)
        others = self._fills.get(key)
        if others is None:
            self._fills[key] = [fill]
        else:
            others.append(fill)

    def reading(self, key: Key) -> Fill | None:
        """Return the fill of a GET of ``key`` in flight, not of a write: that may take long."""
        for fill in self._fills.get(key, ()):
            if fill.reading:
                return fill
        return None

    def finish_fill(self, fill: Fill, found: Found, body: MappedBody | None = None) -> Entry | None:
        """Store the value of a reply if the fill rule allows it. Returns the entry, or None.

        ``body`` has the bytes of a large value. If they may not be stored here because the value
        is deleted, their file is not kept for other processes either.
        """
        if (
            not found.cacheable
            or fill.done
            or self.closing
            or (fill.epoch, fill.session) != (self.epoch, self.session)
            or fill.deleted > found.seq
        ):
            deleted = not found.cacheable or fill.deleted > found.seq
            if deleted and body is not None and body.shared:
                self._dropped_tokens.append(found.stored.token)
            return None
        self.counters["fills"] += 1
        if found.seq > self.applied or self._newer:
            self._note_newer(fill.key, found.seq)
        if body is None:
            return self.cache.insert(fill.key, found.stored)
        stored = found.stored._replace(body=body.view)
        return self.cache.insert(fill.key, stored, shared=body.shared)

    def _note_newer(self, key: Key, seq: int) -> None:
        """Note that an entry is newer than all invalidations up to ``seq``.

        If it is older than the entry that it replaces, invalidations before ``seq`` concern it.
        """
        former = self._newer.pop(key, None)
        if seq > self.applied:
            replaced = key in self.entries if former is None else former.replaced
            self._newer[key] = NewerEntry(seq, replaced)
            if len(self._newer) > NEWER_ENTRIES_MAX:
                # Its entry is dropped, which costs a miss, if an invalidation of the key comes.
                self._newer.popitem(last=False)

    def end_fill(self, fill: Fill) -> None:
        """End a fill, answered or abandoned: a reply that comes later is not stored."""
        fills = self._fills.get(fill.key)
        if fills is not None and fill in fills:
            fills.remove(fill)
            if not fills:
                del self._fills[fill.key]
        fill.done = True  # last: if this is interrupted before, the fill is ended once more

    def _apply(self, first: int, keys: list[Key]) -> None:
        for key in keys[max(0, self.applied + 1 - first) :]:
            self.applied += 1
            self.counters["deletions"] += 1
            self.watching.applied(self.applied, key)
            for fill in self._fills.get(key, ()):
                fill.deleted = self.applied
            ahead = self._newer.get(key)
            if ahead is not None and ahead.seq >= self.applied:
                if ahead.replaced:
                    self._dropped.append(key)
                continue
            entry = self.cache.discard(key)
            if entry is not None:
                self.counters["drops"] += 1
                self._dropped.append(key)
                if entry.shared is not None:
                    self._dropped_tokens.append(entry.shared)
                    self._to_release.append(entry)
        while self._newer and next(iter(self._newer.values())).seq <= self.applied:
            self._newer.popitem(last=False)
        if self.applied >= self._acked + ACK_EVERY:
            self._ack_due = True

    def _flush(self, seq: int) -> None:
        """Drop the whole cache: an invalidation numbered ``seq`` of every key."""
        if seq <= self.applied:
            return
        self.counters["flushes"] += 1
        self.cache.clear()
        self._newer.clear()
        for fills in self._fills.values():
            for fill in fills:
                fill.deleted = seq
        self.applied = seq
        self.watching.missed(seq)

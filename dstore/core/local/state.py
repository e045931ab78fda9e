"""What a Local does with each event: the cache's half of the coherence protocol.

Pure: messages and the time go in, effects come out. The host calls everything here under one
lock, but for the hits of :class:`dstore.Node`, which read ``entries`` and ``lease_end`` without.

Deletions reach a Local on two ways: published (fast, may be lost) and in the answer to a SYNC
(reliable). They are applied in their order and without gaps, so that one number, ``applied``, says
what has been dropped, and an acknowledgement of it is never too much. What arrives after a gap
waits, in a bounded buffer, for one repair.

The cache may be used until ``lease_end``. That is counted from the moment *before* the SYNC was
sent, less a margin for clocks that run at different rates; Global counts from receipt. A change of
epoch or session voids lease, cache, fills in flight and ``applied`` together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from dstore.config import LARGE_FROM_DEFAULT, VALUE_LIMIT_DEFAULT
from dstore.core.local.cache import Cache, Entry, MappedBody
from dstore.core.local.effects import Announce, Dropped, LocalEffect, Subscribe, Tell
from dstore.core.local.watching import Watching
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Broadcast,
    Committed,
    Farewell,
    Found,
    Goodbye,
    Hello,
    Key,
    Refusal,
    Refused,
    Sync,
    Synced,
    ToLocal,
    Unstage,
    Unwait,
    Wait,
    Welcome,
)

MARGIN = 0.05
"""The part of a lease that a Local gives up, for clocks that run at different rates."""
RENEW = 1 / 3
"""The part of a lease after which it is renewed."""
RETRY_FIRST, RETRY_MAX = 0.05, 1.0
"""Pauses between HELLOs that are not answered; the first, too, before an unanswered SYNC is
followed by another.
"""
REORDER_KEYS_MAX = 16_384
"""Deletions that wait for a repair; more are dropped, and the next repair brings them."""
ACK_EVERY = 1_000
"""Deletions after which they are acknowledged though nobody waits: so that a push stays short."""
NEWER_ENTRIES_MAX = 4_096
"""Entries that are known to be newer than deletions that are still to be applied."""
SYNCS_MAX = 64
"""SYNCs whose moment of sending is remembered."""
NEVER = float("inf")
LAPSED = float("-inf")


class NewerEntry(NamedTuple):
    """What is known of an entry that is newer than all deletions up to ``seq``, while these have
    not all been applied. ``held``: there was an entry before it, which they may concern.
    """

    seq: int
    held: bool


class Fill:
    """A request in flight whose reply may be stored in the cache.

    ``deleted`` is the highest number of a deletion of the key that was applied meanwhile.
    """

    __slots__ = ("deleted", "done", "epoch", "key", "reading", "session")

    def __init__(self, key: Key, epoch: int, session: int, reading: bool) -> None:
        self.key = key
        self.reading = reading
        self.epoch = epoch
        self.session = session
        self.deleted = 0
        self.done = False

    def __repr__(self) -> str:
        return f"<Fill {self.key!r} deleted={self.deleted} done={self.done}>"


class LocalState:
    """The state of one Local.

    ``random16`` gives 16 fresh random bytes; ``label`` tells people who this is; ``cache_bytes``
    bounds the cache, ``reorder_keys_max`` what waits for a repair.
    """

    def __init__(
        self,
        *,
        random16: Callable[[], bytes],
        label: str,
        cache_bytes: int,
        reorder_keys_max: int = REORDER_KEYS_MAX,
    ) -> None:
        self.epoch = 0
        self.session = NO_SESSION
        self.lease = 0.0
        self.lease_end = LAPSED
        self.applied = 0
        self.value_limit = VALUE_LIMIT_DEFAULT
        self.large_from = LARGE_FROM_DEFAULT
        self.closing = False
        self.last_error = ""  # why it may be that Global does not answer, if that is known
        self.cache = Cache(cache_bytes)
        self.entries = self.cache.entries
        self.counters = dict.fromkeys(
            ("fills", "deletions", "drops", "flushes", "gaps", "joins"), 0
        )
        self.watching = Watching()
        self._random16 = random16
        self._label = label
        self._fills: dict[Key, list[Fill]] = {}
        self._newer: OrderedDict[Key, NewerEntry] = OrderedDict()  # in the order of their insertion
        self._reorder_buffer: list[Broadcast] = []
        self._reorder_keys = 0
        self._reorder_keys_max = reorder_keys_max
        self._dropped: list[Key] = []
        self._unshared: list[bytes] = []
        self._to_release: list[Entry] = []
        self._withdrawn: list[Unstage | Unwait] = []
        self._ack_due = False
        self._acked = 0
        # HELLO
        self._nonce = b""
        self._replaces = (0, NO_SESSION)
        self._hello_first = LAPSED
        self._hello_at = LAPSED
        self._hello_pause = RETRY_FIRST
        # SYNC
        self._serial = 0
        self._sent_at: dict[int, float] = {}
        self._synced_at = LAPSED
        self._sync_at = NEVER
        # requests and writes
        self._request = 0
        self._write = 0
        self._writing: set[int] = set()
        self._void(LAPSED)

    def __repr__(self) -> str:
        return (
            f"<LocalState epoch={self.epoch:x} joined={bool(self.session)} applied={self.applied} "
            f"lease_end={self.lease_end:.3f} {self.cache!r} fills={list(self._fills.values())} "
            f"held={self._reorder_keys}>"
        )

    # ---- events ---------------------------------------------------------------------------

    def receive(self, message: ToLocal, now: float) -> list[LocalEffect]:
        """Take one message that came on the control channel or was published."""
        effects: list[LocalEffect] = []
        if type(message) is Broadcast:
            self._on_broadcast(message, now)
        elif type(message) is Synced:
            self._on_synced(message, now)
        elif type(message) is Committed:
            if self.session and message.epoch == self.epoch:
                self.watching.committed(message.committed)
        elif type(message) is Welcome:
            effects += self._on_welcome(message, now)
        elif type(message) is Refused:
            self.refused(message, now)
        elif type(message) is Farewell and self.closing:
            self.session = NO_SESSION
        return effects

    def tick(self, now: float) -> list[LocalEffect]:
        """Do what is due: also to be called once a batch of messages has been received, since
        one acknowledgement serves many deletions.
        """
        effects: list[LocalEffect] = []
        if self.closing:
            effects += self._goodbye_if_due(now)
        elif not self.session:
            effects += self._hello_if_due(now)
        else:
            if self._ack_due:
                self._ack_due = False
                self._acked = self.applied
                effects.append(Tell(Ack(self.epoch, self.session, self.applied)))
            if now >= self._sync_at:
                effects.append(self._sync(now))
            if self._withdrawn:
                effects += map(Tell, self._withdrawn)
                self._withdrawn = []
        if self._dropped or self._unshared:
            effects.append(Dropped(self._dropped, self._unshared, self._to_release))
            self._dropped, self._unshared, self._to_release = [], [], []
        if self.watching.due:
            effects.append(Announce(self.watching.take()))
        return effects

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        if self._ack_due or self._dropped or self._unshared:
            return LAPSED
        if self.watching.uncommitted and self.watching.due:
            return LAPSED
        if self._withdrawn and not self.closing:
            return LAPSED
        if self.closing:
            return self._hello_at if self.session else NEVER
        return self._sync_at if self.session else self._hello_at

    def reconnected(self, now: float) -> None:
        """A connection to Global has come up: what was sent or published before may be lost."""
        self._hello_at = now
        if self.session:
            self._sync_at = now

    def goodbye(self, now: float) -> None:
        """Give up everything. ``session`` becomes 0 once Global has answered."""
        self.lease_end = LAPSED
        self.closing = True
        self._ack_due = False
        self.cache.clear()
        self._hello_at = now

    # ---- joining --------------------------------------------------------------------------

    def _void(self, now: float) -> None:
        """Neither epoch nor session, lease, cache, fills in flight nor applied number."""
        self.lease_end = LAPSED  # first: a hit on another thread looks at it last
        if self.session:
            self._replaces = (self.epoch, self.session)
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
        self._reorder_buffer, self._reorder_keys = [], 0
        self._sent_at.clear()
        self._withdrawn = []
        self._writing.clear()
        self._ack_due = False
        self._sync_at = NEVER
        self._nonce = self._random16()
        self._hello_first, self._hello_at = NEVER, now
        self._hello_pause = RETRY_FIRST

    def _hello_if_due(self, now: float) -> list[LocalEffect]:
        if now < self._hello_at:
            return []
        # Repeats bear the same nonce and get the same answer; the lease in it counts from the
        # first one that may have arrived.
        self._hello_first = min(self._hello_first, now)
        self._hello_at = now + self._hello_pause
        self._hello_pause = min(2 * self._hello_pause, RETRY_MAX)
        return [Tell(Hello(self._nonce, *self._replaces, self._label))]

    def _on_welcome(self, message: Welcome, now: float) -> list[LocalEffect]:
        if self.session or self.closing or message.nonce != self._nonce:
            return []
        self.counters["joins"] += 1
        self.last_error = ""
        self.epoch, self.session = message.epoch, message.session
        self.applied = self._acked = message.seq
        self.lease = message.lease
        self.value_limit, self.large_from = message.value_limit, message.large_from
        self._synced_at = self._hello_first
        self._sync_at = self._hello_first + RENEW * self.lease
        self._trust(self._hello_first)
        if self.watching.watchers:
            self.watching.missed(self.applied)
            self.renew(now)
        return [Subscribe(message.epoch, message.publisher)]

    def refused(self, message: Refused, now: float) -> None:
        """Global does not know this session any more: join anew. Or it is not to be talked to."""
        if message.refusal in (Refusal.OTHER_VERSION, Refusal.BUSY):
            self.last_error = f"it says: {message.text}"
        lost = message.refusal in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION)
        current = (message.epoch, message.session) == (self.epoch, self.session)
        if lost and current and self.session:
            if self.closing:
                self.session = NO_SESSION
            else:
                self._void(now)

    def _goodbye_if_due(self, now: float) -> list[LocalEffect]:
        if not self.session or now < self._hello_at:
            return []
        self._hello_at = now + 2 * RETRY_FIRST
        return [Tell(Goodbye(self.epoch, self.session))]

    # ---- lease ----------------------------------------------------------------------------

    def renew(self, now: float) -> None:
        """Have a SYNC sent at once, or soon if one is under way: the lease has lapsed, or
        deletions were missed.
        """
        if self.session:
            due = self._synced_at + RETRY_FIRST if self._sent_at else now
            self._sync_at = min(self._sync_at, max(now, due))

    def _sync(self, now: float) -> LocalEffect:
        self._serial += 1
        self._sent_at[self._serial] = now
        while len(self._sent_at) > SYNCS_MAX:
            del self._sent_at[next(iter(self._sent_at))]
        self._synced_at = now
        self._acked = self.applied
        self._sync_at = now + RENEW * self.lease
        watching = bool(self.watching.watchers)
        return Tell(Sync(self.epoch, self.session, self._serial, self.applied, self.seen, watching))

    def _on_synced(self, message: Synced, now: float) -> None:
        ours = (message.epoch, message.session) == (self.epoch, self.session)
        if not ours or not self.session or self.closing:
            return
        if message.keys is None:
            self._flush(message.seq)
        elif message.after <= self.applied:
            self._apply(message.after + 1, message.keys)
        else:  # a push that builds on an acknowledgement from before we joined anew: not ours
            return
        self.watching.committed(message.committed)
        sent_at = self._sent_at.get(message.serial)
        if sent_at is not None:
            self._trust(sent_at)
            self._sent_at = {n: at for n, at in self._sent_at.items() if n > message.serial}
        # Also if it brought nothing new: an earlier acknowledgement may have been lost.
        if message.acknowledge:
            self._ack_due = True
        self._apply_reordered(now)

    def _trust(self, sent_at: float) -> None:
        self.lease_end = max(self.lease_end, sent_at + self.lease * (1 - MARGIN))

    # ---- deletions ------------------------------------------------------------------------

    def _on_broadcast(self, message: Broadcast, now: float) -> None:
        if not self.session or self.closing or message.epoch != self.epoch:
            return
        # Others of this host may have left copies that no cache knows of. No order matters here:
        # a token is never used again.
        self._unshared += message.tokens
        if message.first > self.applied + 1:
            self.counters["gaps"] += 1
            self._buffer(message)
            self.renew(now)
            return
        self._apply(message.first, message.keys)
        if message.acknowledge:
            self._ack_due = True
        self._apply_reordered(now)

    def _buffer(self, message: Broadcast) -> None:
        if self._reorder_keys + len(message.keys) <= self._reorder_keys_max:
            self._reorder_buffer.append(message)
            self._reorder_keys += len(message.keys)

    def _apply_reordered(self, now: float) -> None:
        """Apply what waited for a repair, as far as there is no further gap."""
        if not self._reorder_buffer:
            return
        held, self._reorder_buffer, self._reorder_keys = self._reorder_buffer, [], 0
        for message in sorted(held, key=lambda each: each.first):
            if message.first > self.applied + 1:
                self._buffer(message)
            else:
                self._apply(message.first, message.keys)
        self._ack_due = True
        if self._reorder_buffer:
            self.renew(now)

    def _apply(self, first: int, keys: list[Key]) -> None:
        """Apply the deletions ``first``, ``first + 1``, … that have not been applied."""
        for key in keys[max(0, self.applied + 1 - first) :]:
            self.applied += 1
            self.counters["deletions"] += 1
            self.watching.applied(self.applied, key)
            for fill in self._fills.get(key, ()):
                fill.deleted = self.applied
            ahead = self._newer.get(key)
            if ahead is not None and ahead.seq >= self.applied:
                if ahead.held:
                    self._dropped.append(key)
                continue
            entry = self.cache.discard(key)
            if entry is not None:
                self.counters["drops"] += 1
                self._dropped.append(key)
                if entry.shared is not None:
                    self._unshared.append(entry.shared)
                    self._to_release.append(entry)
        while self._newer and next(iter(self._newer.values())).seq <= self.applied:
            self._newer.popitem(last=False)
        if self.applied >= self._acked + ACK_EVERY:
            self._ack_due = True

    def _flush(self, seq: int) -> None:
        """Drop the whole cache: a deletion numbered ``seq`` of every key."""
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

    # ---- those who watch ------------------------------------------------------------------

    def watch(self, watcher: int, now: float) -> None:
        """From now on tell this one which values are gone."""
        self.watching.begin(watcher, self.applied if self.session else None)
        self.renew(now)

    def unwatch(self, watcher: int) -> None:
        self.watching.end(watcher)

    # ---- the cache ------------------------------------------------------------------------

    def hit(self, key: Key, now: float, stale_ok: bool = False) -> Entry | None:
        """The entry of ``key``, if the lease is valid at ``now``."""
        entry = self.entries.get(key)
        if entry is None or not (now < self.lease_end or stale_ok):
            return None
        entry.visited = True
        return entry

    def begin_fill(self, key: Key, into: list[Fill], reading: bool = False) -> None:
        """A request for ``key`` (``reading``: a GET) is about to be sent in this session.

        The fill is put ``into`` the list of the caller, who has to end it, before it is noted
        here: an interrupt between the two leaves nothing that nobody ends.
        """
        fill = Fill(key, self.epoch, self.session, reading)
        into.append(fill)
        others = self._fills.get(key)
        if others is None:
            self._fills[key] = [fill]
        else:
            others.append(fill)

    def reading(self, key: Key) -> Fill | None:
        """A GET of ``key`` that is in flight. (A write may wait long for others.)"""
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
                self._unshared.append(found.stored.token)
            return None
        self.counters["fills"] += 1
        if found.seq > self.applied or self._newer:
            self._note_newer(fill.key, found.seq)
        if body is None:
            return self.cache.insert(fill.key, found.stored)
        stored = found.stored._replace(body=body.view)
        return self.cache.insert(fill.key, stored, shared=body.shared)

    def _note_newer(self, key: Key, seq: int) -> None:
        """A value of ``key`` is about to be stored that is newer than all deletions up to ``seq``.

        It may also be older than what is stored now; then deletions before ``seq`` concern it.
        """
        former = self._newer.pop(key, None)
        if seq > self.applied:
            held = key in self.entries if former is None else former.held
            self._newer[key] = NewerEntry(seq, held)
            if len(self._newer) > NEWER_ENTRIES_MAX:
                self._newer.popitem(last=False)  # its entry goes, without need, if it is deleted

    def end_fill(self, fill: Fill) -> None:
        """The request has ended, answered or given up: nothing that comes later is stored."""
        fills = self._fills.get(fill.key)
        if fills is not None and fill in fills:
            fills.remove(fill)
            if not fills:
                del self._fills[fill.key]
        fill.done = True  # last: until then an interrupted call ends it once more

    def unstage(self, token: bytes) -> None:
        """An upload is given up."""
        if self.session:
            self._withdrawn.append(Unstage(self.epoch, self.session, token))

    def unwait(self, message: Wait) -> None:
        """Nobody waits for the answer any more."""
        if (message.epoch, message.session) == (self.epoch, self.session):
            self._withdrawn.append(Unwait(*message[:4]))

    # ---- numbers --------------------------------------------------------------------------

    def next_request(self) -> int:
        self._request += 1
        return self._request

    def new_token(self) -> bytes:
        return self._random16()

    @property
    def next_write(self) -> int:
        """The number for the next write."""
        return self._write + 1

    def begin_write(self, write: int) -> None:
        """The write with this number, the next one, begins in the present session."""
        self._writing.add(write)
        self._write = write

    def end_write(self, write: int) -> None:
        """Nobody waits for this write any more."""
        self._writing.discard(write)

    @property
    def seen(self) -> int:
        """Every write below this number has ended here."""
        return min(self._writing, default=self.next_write)

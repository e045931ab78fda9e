"""What a Local does with each event: the membership half of the coherence protocol.

Pure: messages and the time go in, effects come out. The host calls everything here under one lock,
except for the hits of :class:`dstore.Node`, which read the present ``membership`` without it.

Invalidations reach a Local in two ways: by broadcast (fast, may be lost) and in the answer to a
SYNC (reliable). A broadcast that arrives after a gap waits in a bounded reorder buffer for one
repair. Invalidations are applied to the entries in :mod:`dstore.core.local.entries`.

The cache may be used until the end of the membership's lease. That is counted from the moment
*before* the SYNC was sent, less a margin for clocks that run at different rates; Global counts from
receipt. A change of epoch or session is a new membership: lease, entries and ``applied`` end
together, and a reply to a request of the former one is not stored.
"""

from __future__ import annotations

from collections.abc import Callable

from dstore.config import LARGE_FROM_DEFAULT, VALUE_LIMIT_DEFAULT
from dstore.core.local.cache import NONE_KEPT, Kept
from dstore.core.local.effects import Announce, Dropped, LocalEffect, Subscribe, Tell
from dstore.core.local.entries import Entries
from dstore.core.local.membership import LAPSED
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Broadcast,
    Committed,
    Farewell,
    Goodbye,
    Hello,
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
"""The part of a lease that a Local does not use, for clocks that run at different rates."""
RENEW = 1 / 3
"""The part of a lease after which it is renewed."""
RETRY_FIRST, RETRY_MAX = 0.05, 1.0
"""Seconds between unanswered HELLOs, doubling. The first is also the time after which another SYNC
may follow one that is not answered.
"""
REORDER_KEYS_MAX = 16_384
"""Keys of broadcasts in the reorder buffer; more are dropped, and the next repair brings them."""
SYNCS_MAX = 64
"""SYNCs whose time of sending is remembered."""
NEVER = float("inf")


class LocalState(Entries):
    """The state of one Local. ``random16`` returns 16 random bytes; ``label`` is for people.

    ``cache_bytes`` bounds the cache, ``reorder_keys_max`` the reorder buffer. ``kept`` says what an
    entry has as its value.
    """

    def __init__(
        self,
        *,
        random16: Callable[[], bytes],
        label: str,
        cache_bytes: int,
        reorder_keys_max: int = REORDER_KEYS_MAX,
        kept: Kept = NONE_KEPT,
    ) -> None:
        super().__init__(cache_bytes, kept)
        self.lease = 0.0
        self.value_limit = VALUE_LIMIT_DEFAULT
        self.large_from = LARGE_FROM_DEFAULT
        self.last_error = ""  # the likely reason if Global does not answer; empty if unknown
        self._random16 = random16
        self._label = label
        self._reorder_buffer: list[Broadcast] = []
        self._reorder_keys = 0
        self._reorder_keys_max = reorder_keys_max
        self._withdrawn: list[Unstage | Unwait] = []
        # HELLO
        self._nonce = b""
        self._secret = NO_SESSION
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
        self._write = 0
        self.writing: set[int] = set()
        self._void(LAPSED)

    def __repr__(self) -> str:
        return (
            f"<LocalState {self.membership!r} {self.cache!r} asking={self.in_flight} "
            f"reordering={self._reorder_keys}>"
        )

    @property
    def epoch(self) -> int:
        """The epoch of the present membership; 0 without a session."""
        return self.membership.epoch

    @property
    def session(self) -> int:
        """The session of the present membership; 0 if it has none."""
        return self.membership.session

    @property
    def lease_end(self) -> float:
        """Until when the cache may be used."""
        return self.membership.lease_end

    # ---- events ---------------------------------------------------------------------------

    def receive(self, message: ToLocal, now: float) -> list[LocalEffect]:
        """Take one message from the control channel, or one that was broadcast."""
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
            self.membership.session = NO_SESSION
        return effects

    def tick(self, now: float) -> list[LocalEffect]:
        """Do what is due. Also to be called after each batch of messages: one ACK serves many."""
        effects: list[LocalEffect] = []
        if self.closing:
            effects += self._goodbye_if_due(now)
        elif not self.session:
            effects += self._hello_if_due(now)
        else:
            if self._ack_due:
                self._ack_due = False
                self._acked = self.applied
                effects.append(Tell(Ack(self.epoch, self._secret, self.applied)))
            if now >= self._sync_at:
                effects.append(self._sync(now))
            if self._withdrawn:
                effects += map(Tell, self._withdrawn)
                self._withdrawn = []
        if self._dropped or self._dropped_tokens:
            effects.append(Dropped(self._dropped, self._dropped_tokens, self._to_release))
            self._dropped, self._dropped_tokens, self._to_release = [], [], []
        if self.watching.due:
            effects.append(Announce(self.watching.take()))
        return effects

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        if self._ack_due or self._dropped or self._dropped_tokens:
            return LAPSED
        if self.watching.uncommitted and self.watching.due:
            return LAPSED
        if self._withdrawn and not self.closing:
            return LAPSED
        if self.closing:
            return self._hello_at if self.session else NEVER
        return self._sync_at if self.session else self._hello_at

    def reconnected(self, now: float) -> None:
        """Note a new connection to Global: what was sent or broadcast before may be lost."""
        self._hello_at = now
        if self.session:
            self._sync_at = now

    def goodbye(self, now: float) -> None:
        """Leave Global, with an empty cache. ``session`` becomes 0 when it has answered."""
        self.lapse()
        self.closing = True
        self._ack_due = False
        self.cache.clear()
        self._hello_at = now

    # ---- joining --------------------------------------------------------------------------

    def _void(self, now: float) -> None:
        """Give up the session, with all that belongs to it, and join again."""
        if self.session:
            self._replaces = (self.epoch, self._secret)
        self._nonce = self._random16()
        self._new_membership(self._nonce)
        self._reorder_buffer, self._reorder_keys = [], 0
        self._sent_at.clear()
        self._withdrawn = []
        self.writing.clear()
        self._sync_at = NEVER
        self._hello_first, self._hello_at = NEVER, now
        self._hello_pause = RETRY_FIRST

    def _hello_if_due(self, now: float) -> list[LocalEffect]:
        if now < self._hello_at:
            return []
        # Repeats have the same nonce and get the same answer; the lease in it counts from the first
        # one that may have arrived.
        self._hello_first = min(self._hello_first, now)
        self._hello_at = now + self._hello_pause
        self._hello_pause = min(2 * self._hello_pause, RETRY_MAX)
        return [Tell(Hello(self._nonce, *self._replaces, self._label))]

    def _on_welcome(self, message: Welcome, now: float) -> list[LocalEffect]:
        if self.session or self.closing or message.nonce != self._nonce:
            return []
        self.counters["joins"] += 1
        self.last_error = ""
        membership = self.membership
        membership.epoch, membership.session = message.epoch, message.session
        self._secret = message.secret
        membership.applied = self._acked = message.seq
        self.lease = message.lease
        self.value_limit, self.large_from = message.value_limit, message.large_from
        self._synced_at = self._hello_first
        self._sync_at = self._hello_first + RENEW * self.lease
        self._trust(self._hello_first)
        if self.watching.watchers:
            self.watching.missed(message.seq)
            self.renew(now)
        return [Subscribe(message.epoch, message.publisher)]

    def refused(self, message: Refused, now: float) -> None:
        """Handle a refusal: join again if the session is lost; note other reasons for errors."""
        if message.refusal in (Refusal.OTHER_VERSION, Refusal.BUSY):
            self.last_error = f"it says: {message.text}"
        lost = message.refusal in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION)
        current = message.epoch == self.epoch and message.session in (self.session, self._secret)
        if lost and current and self.session:
            if self.closing:
                self.membership.session = NO_SESSION
            else:
                self._void(now)

    def _goodbye_if_due(self, now: float) -> list[LocalEffect]:
        if not self.session or now < self._hello_at:
            return []
        self._hello_at = now + 2 * RETRY_FIRST
        return [Tell(Goodbye(self.epoch, self._secret))]

    # ---- lease ----------------------------------------------------------------------------

    def renew(self, now: float) -> None:
        """Have a SYNC sent at once, or soon if one is under way."""
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
        return Tell(Sync(self.epoch, self._secret, self._serial, self.applied, self.seen, watching))

    def _on_synced(self, message: Synced, now: float) -> None:
        ours = (message.epoch, message.session) == (self.epoch, self.session)
        if not ours or not self.session or self.closing:
            return
        if message.keys is None:
            self._flush(message.seq)
        elif message.after <= self.applied:
            self._apply(message.after + 1, message.keys)
        else:  # it builds on an acknowledgement from before this Local joined again
            return
        self.watching.committed(message.committed)
        sent_at = self._sent_at.get(message.serial)
        if sent_at is not None:  # after the invalidations of this answer
            self._trust(sent_at)
            self._sent_at = {n: at for n, at in self._sent_at.items() if n > message.serial}
        # Even if nothing in it is new: an earlier acknowledgement may have been lost.
        if message.acknowledge:
            self._ack_due = True
        self._apply_reordered(now)

    def _trust(self, sent_at: float) -> None:
        membership, end = self.membership, sent_at + self.lease * (1 - MARGIN)
        membership.lease_end = max(membership.lease_end, end)

    # ---- invalidations ------------------------------------------------------------------------

    def _on_broadcast(self, message: Broadcast, now: float) -> None:
        if not self.session or self.closing or message.epoch != self.epoch:
            return
        # Other processes of this host may have left files that no cache knows of. They may be
        # dropped in any order, since a token is never used again.
        self._dropped_tokens += message.tokens
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
        if not self._reorder_buffer:
            return
        waiting, self._reorder_buffer, self._reorder_keys = self._reorder_buffer, [], 0
        for message in sorted(waiting, key=lambda each: each.first):
            if message.first > self.applied + 1:
                self._buffer(message)
            else:
                self._apply(message.first, message.keys)
        self._ack_due = True
        if self._reorder_buffer:
            self.renew(now)

    # ---- watchers, and requests that are withdrawn ----------------------------------------

    def watch(self, watcher: int, now: float) -> None:
        """Begin to announce committed deletions to a watcher."""
        self.watching.begin(watcher, self.applied if self.session else None)
        self.renew(now)

    def unstage(self, token: bytes) -> None:
        """Tell Global that an upload is abandoned."""
        if self.session:
            self._withdrawn.append(Unstage(self.epoch, self.session, token))

    def unwait(self, message: Wait) -> None:
        """Tell Global that the answer to a WAIT is not needed any more."""
        if (message.epoch, message.session) == (self.epoch, self.session):
            self._withdrawn.append(Unwait(*message[:4]))

    # ---- requests and writes --------------------------------------------------------------

    def next_request(self) -> int:
        """Return the number for the next request."""
        self.request += 1
        return self.request

    @property
    def next_write(self) -> int:
        """The number for the next write."""
        return self._write + 1

    def begin_write(self, write: int) -> None:
        """Begin the write with this number, the next one, in the present session.

        It ends when its number leaves ``writing``, answered or abandoned.
        """
        self.writing.add(write)
        self._write = write

    def reserve_write(self) -> int:
        """Return the number for a write that is added to ``writing`` next."""
        self._write += 1
        return self._write

    @property
    def seen(self) -> int:
        """A number below which every write has ended here."""
        return min(self.writing, default=self.next_write)

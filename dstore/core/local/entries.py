"""The entries of a Local: which value of a reply may be cached, and for how long.

An entry may be used while the lease of its membership is valid. It has the number, ``seq``, of the
newest invalidation at the moment *before* Global read its value. The fill rule decides whether the
value of a reply is stored: not if Global says that it is not cacheable, if the membership under
which it was asked for has ended, or if an invalidation of the key after ``seq`` was applied
meanwhile, as the invalidation vector shows.

Invalidations are applied in order and without gaps, so that one number, ``applied``, says what has
been applied. Applying invalidation n drops the entry of its key if its ``seq`` is below n. A reply
may be newer than invalidations that are still to be applied: these do not concern its entry.
"""

from __future__ import annotations

from collections.abc import Iterable

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.cache import Cache, Kept, MappedBody
from dstore.core.local.membership import LAPSED, Entry, Membership, Present
from dstore.core.local.vector import BUCKETS, Vector
from dstore.core.local.watching import Watching
from dstore.protocol.messages import Found, GetReply, Key, Stored

ACK_EVERY = 1_000
"""Invalidations after which an ACK is sent although no deletion waits, so that a targeted
invalidation stays short.
"""


class Entries(Present):
    """The cache of the present membership, and the invalidations that are applied to it."""

    buckets = BUCKETS

    def __init__(self, cache_bytes: int, kept: Kept) -> None:
        self.cache = Cache(cache_bytes, kept)
        super().__init__(Membership(self.cache.entries))
        self.closing = False
        self.counters = dict.fromkeys(
            ("fills", "deletions", "drops", "flushes", "gaps", "joins"), 0
        )
        self.watching = Watching()
        self.vector: Vector
        self.request = 0  # the number of the newest request
        self.in_flight: dict[Key, int] = {}
        self._ack_due = False
        self._acked = 0
        # What the next tick reports as dropped:
        self._dropped: list[Key] = []
        self._dropped_tokens: list[bytes] = []
        self._to_release: list[Entry] = []

    @property
    def entries(self) -> dict[Key, Entry]:
        """The entries of the present membership."""
        return self.membership.entries

    @property
    def applied(self) -> int:
        """The number up to which all invalidations have been applied."""
        return self.membership.applied

    def _new_membership(self, hash_key: bytes) -> None:
        """Forget all that was stored or asked for; there is no session any more."""
        # First: a hit on another thread looks at it last.
        self.membership.lease_end = LAPSED
        self.vector = Vector(hash_key, self.buckets)
        # The old dictionary is emptied, and a new membership has a new one: a hit that is under way
        # on another thread must not find an entry of another session than its lease.
        self.membership = Membership(self.cache.renew(), self._words_of_hits())
        self.in_flight.clear()
        self.watching.void()
        self._ack_due = False

    def _words_of_hits(self) -> memoryview | None:
        """Return the words that hits look at: none, since entries are dropped in :meth:`_apply`."""
        return None

    def lapse(self) -> None:
        """Do not answer from the cache any more, until the next renewal."""
        self.membership.lease_end = LAPSED

    def hit(self, key: Key, now: float, stale_ok: bool = False) -> Entry | None:
        """Return the entry of ``key`` if the lease is valid at ``now``."""
        membership = self.membership
        entry = membership.entries.get(key)
        if entry is None or not (now < membership.lease_end or stale_ok):
            return None
        words = membership.words
        if words is not None and words[entry.bucket] > entry.seq:
            return None
        entry.visited = 1
        return entry

    # ---- reads in flight ------------------------------------------------------------------

    def asking(self, key: Key) -> int | None:
        """Return the number of the GET of ``key`` that is in flight, or None."""
        return self.in_flight.get(key)

    def ask_one(self, key: Key) -> int:
        """Begin a GET of one key: other threads wait for it from now on. Returns its number.

        Returns 0, and changes nothing, unless there is a session, no entry, and no other GET.
        """
        membership, in_flight = self.membership, self.in_flight
        if not membership.session or key in membership.entries or key in in_flight:
            return 0
        self.request = in_flight[key] = self.request + 1
        return self.request

    def may_ask(self, keys: list[Key]) -> bool:
        """Whether one GET may ask for these keys: they are not too many, and none is in flight."""
        return len(keys) <= KEYS_PER_MESSAGE_MAX and self.in_flight.keys().isdisjoint(keys)

    def begin_asking(self, keys: list[Key], request: int) -> None:
        """Note that a GET is about to be sent, so that other threads wait for it."""
        for key in keys:
            self.in_flight[key] = request

    def end_asking(self, keys: Iterable[Key], request: int) -> None:
        """Note that a GET was answered or abandoned: a later GET of the same key goes on."""
        in_flight = self.in_flight
        for key in keys:
            if in_flight.get(key) == request:
                del in_flight[key]

    def end_asking_after(self, key: Key, former: float) -> None:
        """Note that a GET whose number is above ``former`` was abandoned.

        It may be the GET of another thread; that others do not wait for it does no harm.
        """
        request = self.in_flight.get(key, 0)
        if request > former:
            del self.in_flight[key]

    # ---- filling --------------------------------------------------------------------------

    def fill(
        self, membership: Membership, key: Key, found: Found, body: MappedBody | None = None
    ) -> Entry | None:
        """Store the value of a reply if the fill rule allows it. Returns the entry, or None.

        ``membership`` is the one under which the request was sent. ``body`` has the bytes of a
        large value. If they may not be stored here because the value is deleted, their file is not
        kept for other processes either.
        """
        seq, (token, codec, content) = found.seq, found.stored
        if body is None:
            assert type(content) is bytes
            if not found.cacheable:
                return None
            return self.fill_small(membership, key, seq, token, codec, content)
        present = membership is self.membership and not self.closing
        stale = present and seq < membership.applied and self.vector.after(key, seq)
        if not found.cacheable or stale:
            if body.shared:
                self._dropped_tokens.append(token)
            return None
        if not present:
            return None
        self.counters["fills"] += 1
        stored = found.stored._replace(body=body.view)
        bucket = 0 if membership.words is None else self.vector.bucket(key)
        return self.cache.insert_mapped(key, seq, stored, body.shared, bucket)

    def fill_small(
        self, membership: Membership, key: Key, seq: int, token: bytes, codec: str, body: bytes
    ) -> Entry | None:
        """Store a value that Global says is cacheable, by the same rule; see :meth:`fill`."""
        if membership is not self.membership or self.closing:
            return None
        applied = membership.applied
        if seq == applied:
            seq = applied  # one object for all entries of this number: 32 bytes less for each
        elif seq < applied and self.vector.after(key, seq):  # no word is above ``applied``
            return None
        self.counters["fills"] += 1
        bucket = 0 if membership.words is None else self.vector.bucket(key)
        return self.cache.insert(key, seq, token, codec, body, bucket)

    def fill_many(
        self,
        membership: Membership,
        keys: list[Key],
        reply: GetReply,
        answers: dict[Key, Entry | Stored],
    ) -> None:
        """Store the values of a reply, none of which is large, and note them in ``answers``."""
        if (
            membership is self.membership
            and not self.closing
            and reply.seq >= membership.applied
            and membership.words is None
            and not reply.uncacheable
        ):
            self.counters["fills"] += len(keys) - reply.bodies.count(None)
            self.cache.insert_many(keys, reply, answers)
            return
        for key, found in zip(keys, reply.items):
            if found is not None:
                answers[key] = self.fill(membership, key, found) or found.stored

    # ---- applying invalidations -----------------------------------------------------------

    def _apply(self, first: int, keys: list[Key]) -> None:
        membership = self.membership
        for key in keys[max(0, membership.applied + 1 - first) :]:
            seq = membership.applied + 1
            self.counters["deletions"] += 1
            self.vector.note(key, seq)
            self._invalidate(key, seq)
            # After word and entry: from now on it may be acknowledged.
            membership.applied = seq
            self.watching.applied(seq, key)
        if membership.applied >= self._acked + ACK_EVERY:
            self._ack_due = True

    def _invalidate(self, key: Key, seq: int) -> None:
        """Drop the entry of a key, unless it is newer than the invalidation ``seq``."""
        entry = self.membership.entries.get(key)
        if entry is None:
            return
        if entry.seq < seq:
            self.counters["drops"] += 1
            self.cache.discard(key)
            self._dropped.append(key)
            if entry.shared is not None:
                self._dropped_tokens.append(entry.shared)
                self._to_release.append(entry)
        elif entry.since < seq:  # it took the place of one that was not
            entry.since = entry.seq
            self._dropped.append(key)

    def _flush(self, seq: int) -> None:
        """Drop the whole cache: an invalidation numbered ``seq`` of every key."""
        if seq <= self.membership.applied:
            return
        self.counters["flushes"] += 1
        self.vector.flush(seq)
        self.cache.clear()
        self.membership.applied = seq
        self.watching.missed(seq)

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
from typing import Protocol

from dstore.config import KEYS_PER_MESSAGE_MAX
from dstore.core.local.cache import NONE_DECODED, Cache, Encode, Kept, MappedBody
from dstore.core.local.membership import LAPSED, Entry, Membership, Present
from dstore.core.local.shared import NO_KEYS_SEEN, Put, Record, Seen, SharedPage
from dstore.core.local.vector import BUCKETS, Vector
from dstore.core.local.watching import Watching
from dstore.protocol.messages import Found, GetReply, Key, Large, Stored

ACK_EVERY = 1_000
"""Invalidations after which an ACK is sent although no deletion waits, so that a targeted
invalidation stays short.
"""

SHARED_PART, SHARED_MIN = 1 / 10, 3 << 20
"""What the entries of one process may take beside a host cache, unless a limit was set: this part
of what the host cache holds, or this number of bytes. Eight processes that read the same 100,000
values took three times the memory of one when the bound was a part of what the host cache may hold.
"""
LIMIT_EVERY = 64
"""Entries that are stored before that is looked at again."""


class Others(Protocol):
    """The other Globals of a cluster, as one Local of it sees them. Neither method waits."""

    def own(self, keys: Iterable[Key]) -> bool:
        """Whether another Global owns one of these keys by now, as far as is known."""

    def ask(self) -> None:
        """Have one of them asked who owns what."""


class Entries(Present):
    """The cache of the present membership, and the invalidations that are applied to it.

    ``page`` is that of the host, if the processes of the host share the membership. ``joined`` is
    the membership that this Local itself keeps up with Global: the present one, unless that is
    shared, and then one without entries, of an observer. ``observing``: it is to be reported which
    cached keys are invalidated.
    """

    buckets = BUCKETS

    def __init__(
        self,
        cache_bytes: int,
        kept: Kept,
        observing: bool = False,
        shared_bytes: int | None = None,
        encode: Encode = NONE_DECODED,
    ) -> None:
        self.cache = Cache(cache_bytes, kept, encode)
        super().__init__(Membership(self.cache.entries))
        self.cache.belong_to(self.membership)
        self.closing = False
        self.one_of_several = False
        self.others: Others | None = None
        self.counters = dict.fromkeys(
            (
                *("fills", "revalidated", "deletions", "drops", "flushes", "gaps", "joins"),
                "host_hits",
            ),
            0,
        )
        self.watching = Watching()
        self.observing = observing
        self.vector: Vector
        self.page: SharedPage | None = None
        self.joined = self.membership
        self.request = 0  # the number of the newest request
        self.in_flight: dict[Key, int] = {}
        self.seen = NO_KEYS_SEEN
        # What an observer has applied: the owner of the page may be behind it.
        self._heard = Vector(bytes(16), self.buckets) if observing else None
        self._private_limit = cache_bytes
        self._shared_limit = shared_bytes
        self._inserts = 0
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
        """The number up to which all invalidations have been applied here."""
        return self.joined.applied

    def _new_membership(self, hash_key: bytes) -> None:
        """Forget all that was stored or asked for; there is no session any more."""
        self._end_membership()
        self.vector = Vector(hash_key, self.buckets)
        # The old dictionary is emptied, and a new membership has a new one: a hit that is under way
        # on another thread must not find an entry of another session than its lease.
        self.membership = self.joined = Membership(self.cache.renew(), self._words_of_hits())
        self.cache.belong_to(self.membership)
        self.cache.limit = self._private_limit

    def _share(self, page: SharedPage) -> None:
        """Begin to use the membership of a page, in place of the present one."""
        self._end_membership()
        self.page, self.vector, self.seen = page, page.vector, Seen()
        self._share_entries(page, self.cache.renew())
        self._end_observer()
        self._inserts = 0
        self._set_shared_limit(page)

    def join_index(self, index: dict[Key, Entry]) -> None:
        """Go on as one of several Locals, with the index of all their entries; see :class:`Cache`.

        From now on a request for which there is no connection is one for another Global.
        """
        self.one_of_several = True
        self.cache.join_index(index)

    def bound(self, cache_bytes: int, shared_bytes: int | None) -> None:
        """Change the bounds of the cache, by itself and beside a host cache."""
        self._private_limit, self._shared_limit = cache_bytes, shared_bytes
        if self.page is None:
            self.cache.limit = cache_bytes
        else:
            self._set_shared_limit(self.page)
        self.cache.shrink()

    def _set_shared_limit(self, page: SharedPage) -> None:
        """Bound the entries beside the host cache, which grows."""
        if self._shared_limit is not None:
            self.cache.limit = self._shared_limit
        elif page.capacity:
            part = max(SHARED_MIN, int(page.used() * SHARED_PART))
            self.cache.limit = min(self._private_limit, part)

    def _share_entries(self, page: SharedPage, entries: dict[Key, Entry]) -> None:
        membership = Membership(entries, page.vector.words, page.lease_word)
        membership.epoch, membership.session = page.epoch, page.session
        self.membership = membership
        self.cache.belong_to(membership)

    def _end_observer(self) -> None:
        """Forget the session that observes. What was announced counts as missed in the next one."""
        self.joined = Membership({})
        self.watching.void()
        if self._heard is not None:  # nothing would report that these are invalidated meanwhile
            self._heard = Vector(bytes(16), self.buckets)
            self.cache.clear()

    def _end_membership(self) -> None:
        if self.page is None:
            # First: a hit on another thread looks at it last. A shared one is not ours to end.
            self.membership.lease_end = LAPSED
        self.page = None
        self.in_flight.clear()
        self.watching.void()
        self._ack_due = False

    def _words_of_hits(self) -> memoryview | None:
        """Return the words that hits look at: none, since entries are dropped in :meth:`_apply`."""
        return None

    def lapse(self) -> None:
        """Do not answer from the cache any more, until the next renewal."""
        if self.page is None:
            self.membership.lease_end = LAPSED
        else:  # the page is not ours to change
            self.membership = Membership(self.cache.renew())
            self.cache.belong_to(self.membership)

    def hit(self, key: Key, now: float, stale_ok: bool = False) -> Entry | None:
        """Return the entry of ``key`` if the lease is valid at ``now``.

        In a shared membership a value of the host cache is as good; its entry may not be stored.
        """
        membership = self.membership
        if self.page is not None:
            return self._hit_shared(membership, self.page, key, stale_ok)
        entry = membership.entries.get(key)
        if entry is None or not (now < membership.lease_end or stale_ok):
            return None
        words = membership.words
        if words is not None and words[entry.bucket] > entry.seq:
            return None
        entry.visited = 1
        return entry

    def _hit_shared(
        self, membership: Membership, page: SharedPage, key: Key, stale_ok: bool
    ) -> Entry | None:
        lease_end = membership.lease_end
        entry = membership.entries.get(key)
        if entry is None or page.vector.words[entry.bucket] > entry.seq:
            entry = self._read_host(page, key)
        # The clock is read last: another process changes the page.
        now = page.now()
        if now >= lease_end:
            self._note_lapse(page)
        if entry is None or not (now < lease_end or stale_ok):
            return None
        entry.visited = 1
        return entry

    def is_known(self, key: Key, now: float) -> bool:
        """Whether ``key`` is bound, as far as the cache can say, and its end will be reported here.

        Who is refused a key may wait for its deletion, so an observer needs an entry for it.
        """
        known = self.hit(key, now) is not None
        return known and not (self.observing and key not in self.membership.entries)

    def drop_dead(self, entry: Entry) -> bool:
        """Drop an entry that a word shows to be out of date. Returns whether it was."""
        page = self.page
        if page is None or page.vector.words[entry.bucket] <= entry.seq:
            return False
        if self.membership.entries.get(entry.key) is entry and not self.observing:
            self.cache.discard(entry.key)
        return True

    def promote(self, page: SharedPage, key: Key, hashed: int, record: Record) -> Entry | None:
        """Store an entry for a value of the host cache. Returns None if that is not possible."""
        if page is not self.page or self.closing:
            return None
        return self._store(page, key, *record, hashed % page.vector.buckets)

    def seen_again(self, hashed: int) -> bool:
        """Note a read from the host cache. Returns whether the key is to be stored here now."""
        return self.observing or self.seen.again(hashed)

    def _read_host(self, page: SharedPage, key: Key) -> Entry | None:
        """Return an entry for what the host cache has; from the second read on it is stored."""
        hashed = page.vector.hashed(key)
        record = page.find(key, hashed)
        bucket = hashed % page.vector.buckets
        if record is None or page.vector.words[bucket] > record.seq:
            return None
        self.counters["host_hits"] += 1
        entry = None
        if self.seen_again(hashed):
            entry = self._store(page, key, *record, bucket)
        return entry or self.cache.made(key, *record, bucket)

    def _store(
        self,
        page: SharedPage,
        key: Key,
        seq: int,
        token: bytes,
        codec: str,
        body: bytes,
        bucket: int,
    ) -> Entry | None:
        """Store an entry in a shared membership. Returns None if that is not possible."""
        if not self._would_be_reported(key, seq):
            return None
        self._inserts += 1
        if not self._inserts % LIMIT_EVERY:
            self._set_shared_limit(page)
        return self.cache.insert(key, seq, token, codec, body, bucket)

    def _would_be_reported(self, key: Key, seq: int) -> bool:
        """Whether the invalidation of an entry will be reported, or need not be.

        The page may be behind what an observer has applied.
        """
        heard = self._heard
        return heard is None or (bool(self.joined.session) and not heard.after(key, seq))

    # ---- reads in flight ------------------------------------------------------------------

    def asking(self, key: Key) -> int | None:
        """Return the number of the GET of ``key`` that is in flight, or None."""
        return self.in_flight.get(key)

    def ask_one(self, key: Key) -> int:
        """Begin a GET of one key: other threads wait for it from now on. Returns its number.

        Returns 0, and changes nothing, unless there is a session, no entry, and no other GET. An
        entry of a shared membership may be out of date: then it is asked for.
        """
        membership, in_flight = self.membership, self.in_flight
        if not membership.session or key in in_flight:
            return 0
        page = self.page
        if page is not None:
            if page.now() >= membership.lease_end:
                self._note_lapse(page)
        elif key in membership.entries:
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
        shared = self.page is not None
        stale = present and (shared or seq < membership.applied) and self.vector.after(key, seq)
        if not found.cacheable or stale:
            if body.shared:
                self._dropped_tokens.append(token)
            return None
        if not present:
            return None
        self.counters["fills"] += 1
        stored = found.stored._replace(body=body.view)
        digest = content.digest if type(content) is Large else b""
        if shared and not self._would_be_reported(key, seq):
            return None
        bucket = 0 if membership.words is None else self.vector.bucket(key)
        return self.cache.insert_mapped(key, seq, stored, body.shared, bucket, digest)

    def fill_small(
        self, membership: Membership, key: Key, seq: int, token: bytes, codec: str, body: bytes
    ) -> Entry | None:
        """Store a value that Global says is cacheable, by the same rule; see :meth:`fill`."""
        if membership is not self.membership or self.closing:
            return None
        if self.page is not None:
            return self._fill_shared(self.page, (key, seq, token, codec, body))
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
        present = membership is self.membership and not self.closing
        if present and self.page is not None:
            self._fill_many_shared(self.page, membership, keys, reply, answers)
            return
        if (
            present
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

    def _fill_many_shared(
        self,
        page: SharedPage,
        membership: Membership,
        keys: list[Key],
        reply: GetReply,
        answers: dict[Key, Entry | Stored],
    ) -> None:
        """Store the values of a reply, with one call of the host cache."""
        values: list[Put] = []
        words, buckets = page.vector.words, page.vector.buckets
        for key, found in zip(keys, reply.items):
            if found is None:
                continue
            answers[key] = stored = found.stored
            body = stored.body
            assert type(body) is bytes
            hashed = page.vector.hashed(key)
            if found.cacheable and words[hashed % buckets] <= reply.seq:  # else it is of no use
                values.append((key, hashed, reply.seq, *stored[:2], body))
        there = page.put_many(values)
        for key, hashed, seq, token, codec, body in values:
            bucket = hashed % buckets
            self.counters["fills"] += 1
            entry = None
            if there < len(values) or self.observing or key in membership.entries:
                entry = self._store(page, key, seq, token, codec, body, bucket)
            else:
                self.seen.again(hashed)
            answers[key] = entry or self.cache.made(key, seq, token, codec, body, bucket)

    def _fill_shared(
        self, page: SharedPage, value: tuple[Key, int, bytes, str, bytes]
    ) -> Entry | None:
        """Store a value in the host cache, or here if that is not possible or not enough."""
        key, seq, token, codec, body = value
        hashed = page.vector.hashed(key)
        bucket = hashed % page.vector.buckets
        if page.vector.words[bucket] > seq:
            return None  # it would be of no use
        self.counters["fills"] += 1
        is_there = page.put((key, hashed, seq, token, codec, body))
        if is_there and not self.observing and key not in self.membership.entries:
            self.seen.again(hashed)
            return self.cache.made(key, seq, token, codec, body, bucket)
        return self._store(page, key, seq, token, codec, body, bucket)

    def _note_lapse(self, page: SharedPage) -> None:
        """Note that the lease of a page has lapsed: its owner may have ended."""
        raise NotImplementedError

    # ---- applying invalidations -----------------------------------------------------------

    def _apply(self, first: int, keys: list[Key]) -> None:
        joined = self.joined
        for key in keys[max(0, joined.applied + 1 - first) :]:
            seq = joined.applied + 1
            self.counters["deletions"] += 1
            if not key:  # one that this Local may not see: nothing here can be of it
                joined.applied = seq
                continue
            if self.page is None:  # else its owner notes it
                self.vector.note(key, seq)
            elif self._heard is not None:
                self._heard.note(key, seq)
            self._invalidate(key, seq)
            # After word and entry: from now on it may be acknowledged.
            joined.applied = seq
            self.watching.applied(seq, key)
        if joined.applied >= self._acked + ACK_EVERY:
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
        if seq <= self.joined.applied:
            return
        self.counters["flushes"] += 1
        if self.page is None:
            self.vector.flush(seq)
            self.cache.clear()
        elif self._heard is not None:
            self._heard.flush(seq)
            self.cache.clear()
        self.joined.applied = seq
        self.watching.missed(seq)

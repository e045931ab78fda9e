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

A Local belongs to the cluster whose Global it has joined first, or that its Node has a map of. It
joins no other Global from then on, and uses no page of one: what is written there would be lost to
the cluster. Its requests without a session name the cluster, and other Globals refuse them.

Where the processes of a host share a membership (:mod:`~dstore.core.local.shared`), its owner does
all that. A Local that uses it sends requests in its name, and has a session of its own only to
write, and to observe invalidations while something here wants to know them. If the page ends, reads
go to Global without a session, and cache nothing, until there is another page; after
``PRIVATE_AFTER`` seconds the Local joins by itself, and goes on looking for a page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from dstore.config import LARGE_FROM_DEFAULT, VALUE_LIMIT_DEFAULT
from dstore.core.local.cache import (
    NONE_DECODED,
    NONE_KEPT,
    Encode,
    FormerLarge,
    Kept,
    MappedBody,
    Value,
)
from dstore.core.local.clusters import wrong_cluster
from dstore.core.local.effects import (
    Announce,
    Dropped,
    LocalEffect,
    Look,
    Subscribe,
    TakeBack,
    TakenBack,
    Tell,
)
from dstore.core.local.entries import Entries
from dstore.core.local.former import Former
from dstore.core.local.membership import LAPSED, Membership, lease_word
from dstore.core.local.shared import SharedPage
from dstore.core.local.writer import Writer
from dstore.errors import AccessDenied, DstoreError, WrongServer
from dstore.protocol.clusters import NO_CLUSTER, mark
from dstore.protocol.content import PLAIN, Addresses
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
    Kind,
    Offered,
    Refusal,
    Refused,
    Stored,
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
PRIVATE_AFTER = 3.0
"""Seconds without a page that can be used after which a Local that had one joins by itself."""
LOOK_SOON, LOOK_LATER = 0.05, 1.0
"""Seconds between two looks for a page: in the ``PRIVATE_AFTER`` after one has ended, and later."""
REFUSED_MAX = 64
"""Pages that Global has refused and that are remembered, so that none of them is used again."""
NEVER = float("inf")
NO_DIGESTS: Mapping[bytes, bytes] = {}


class LocalState(Entries):
    """The state of one Local. ``random16`` returns 16 random bytes; ``label`` is for people.

    ``cache_bytes`` bounds the cache, ``reorder_keys_max`` the reorder buffer. ``kept`` says what an
    entry has as its value, and ``encode`` is the way back. ``observing``: effects report which
    cached keys are invalidated.
    ``shared_bytes`` bounds the cache beside a host cache; None: by what that holds.
    ``looking``: it uses the membership of its host if there is one. ``joining``: it joins by itself
    if there is none. ``addresses`` says which keys are content addresses.
    """

    def __init__(
        self,
        *,
        random16: Callable[[], bytes],
        label: str,
        cache_bytes: int,
        reorder_keys_max: int = REORDER_KEYS_MAX,
        kept: Kept = NONE_KEPT,
        encode: Encode = NONE_DECODED,
        observing: bool = False,
        shared_bytes: int | None = None,
        looking: bool = False,
        joining: bool = True,
        addresses: Addresses = PLAIN,
    ) -> None:
        super().__init__(cache_bytes, kept, observing, shared_bytes, encode)
        self.addresses = addresses
        self.cluster = NO_CLUSTER  # to which it belongs; none as long as no such Global was joined
        self.former = Former()
        self.quiet_until = LAPSED
        self.lease = 0.0
        self.value_limit = VALUE_LIMIT_DEFAULT
        self.large_from = LARGE_FROM_DEFAULT
        self.last_error = ""  # the likely reason if Global does not answer; empty if unknown
        self._shut_out: DstoreError | None = None  # why Global does not let this client in
        self._hello_denied: DstoreError | None = None  # or gives it no session
        self.writer_denied: DstoreError | None = None  # or does not let it write
        self._random16 = random16
        self._label = label
        self._reorder_buffer: list[Broadcast] = []
        self._reorder_keys = 0
        self._reorder_keys_max = reorder_keys_max
        self._withdrawn: list[Unstage | Unwait] = []
        # Sharing the membership of the host
        self.looking = looking
        self.joining = joining
        self.no_page = ""  # why there is no page, if that is known
        self._look_at = NEVER
        self._lapsed_at = NEVER  # since when the page cannot be used
        self._checked_at = LAPSED
        self._refused: deque[tuple[int, int]] = deque(maxlen=REFUSED_MAX)
        self.bridging = False
        # Writing
        self.writer = Writer()
        self._writer_nonce = b""
        self._writer_at = NEVER
        self._writer_pause = RETRY_FIRST
        self._leaving: list[tuple[int, int, Writer | None]] = []
        # HELLO
        self._nonce = b""
        self._abandoned = b""  # that of a HELLO which may still be answered, and is not needed
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
        # Two processes that share a session must not have the same number under way.
        self.request = int.from_bytes(random16()[:6], "big") << 8
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

    @property
    def addressee(self) -> tuple[int, int]:
        """The epoch and the session that a request names, or the mark of the cluster and 0."""
        if self.session:
            return self.epoch, self.session
        return mark(self.cluster), NO_SESSION

    def belong(self, cluster: bytes, now: float) -> None:
        """Use Globals of this cluster and no others from now on. Sessions at others end."""
        if cluster == self.cluster or self.closing:
            return
        if self.page is not None:
            self.detach(now)
        elif self.joined.session or self.session:
            self._leave_joined(now)
            self._void(now)
        writer, self.writer = self.writer, Writer()
        if writer.secret:
            self._leaving.append((writer.epoch, writer.secret, writer))
        self.former.forget()
        # Last: if Ctrl-C comes before, all this is done once more before the next call.
        self.cluster = cluster

    def _may_join(self, cluster: bytes, now: float) -> bool:
        """Whether a Global of this cluster may be joined. The first cluster is the one for good."""
        if not self.cluster:
            self.belong(cluster, now)
        return cluster == self.cluster

    # ---- events ---------------------------------------------------------------------------

    def receive(self, message: ToLocal, now: float) -> list[LocalEffect]:
        """Take one message from the control channel, or one that was broadcast."""
        effects: list[LocalEffect] = []
        if type(message) is Broadcast:
            self._on_broadcast(message, now)
        elif type(message) is Synced:
            self._on_synced(message, now)
        elif type(message) is Committed:
            if self.joined.session and message.epoch == self.joined.epoch:
                self.watching.committed(message.committed)
        elif type(message) is Welcome:
            effects += self._on_welcome(message, now)
        elif type(message) is Refused:
            self.refused(message, now)
        elif type(message) is Offered:
            effects += self._on_offered(message, now)
        elif type(message) is Farewell:
            self._on_farewell(message.secret)
        return effects

    def tick(self, now: float) -> list[LocalEffect]:
        """Do what is due. Also to be called after each batch of messages: one ACK serves many."""
        effects: list[LocalEffect] = []
        if self.closing:
            effects += self._goodbye_if_due(now)
        else:
            if self.page is not None:
                self._check_page(self.page, now)
            elif self.joined is not self.membership:  # Ctrl-C came while a page was given up
                self._void(now)
            looking = now >= self._look_at
            if looking:
                soon = now < self._hello_at and self._hello_first == NEVER  # a page has just ended
                self._look_at = now + (LOOK_SOON if soon else LOOK_LATER)
                effects.append(Look(self.joined.epoch))
            if self.joined.session:
                effects += self._keep_up(now)
            elif self._wants_session and not looking:  # there may be a page
                effects += self._hello_if_due(now)
            effects += self._offer_if_due(now)
            effects += self._writer_if_due(now)
            effects += self._leave_if_idle()
            if self._withdrawn:
                effects += map(Tell, self._withdrawn)
                self._withdrawn = []
        if self._dropped or self._dropped_tokens:
            effects.append(Dropped(self._dropped, self._dropped_tokens, self._to_release))
            self._dropped, self._dropped_tokens, self._to_release = [], [], []
        if self.watching.due:
            effects.append(Announce(self.watching.take()))
        return effects

    def _keep_up(self, now: float) -> Iterator[LocalEffect]:
        """Acknowledge, renew the lease, and end an observer that is not needed any more."""
        joined = self.joined
        if self._ack_due:
            self._ack_due = False
            self._acked = joined.applied
            if self._kind is Kind.MEMBER:  # no deletion waits for an observer
                yield Tell(Ack(joined.epoch, self._secret, joined.applied))
        if self._kind is Kind.OBSERVER and not self._wants_session:
            self._leave_joined(now)
        elif now >= self._sync_at:
            yield self._sync(now)

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        if self._ack_due or self._dropped or self._dropped_tokens:
            return LAPSED
        if self.watching.uncommitted and self.watching.due:
            return LAPSED
        if self.closing:
            return self._hello_at if self.leaving else NEVER
        if self._withdrawn or any(not each or each.idle for _, _, each in self._leaving):
            return LAPSED
        at = min(self._look_at, self._writer_at, self.former.due)
        if self.page is not None and self._lapsed_at < NEVER:
            at = min(at, self._checked_at + LOOK_SOON)
        if not self._wants_session:
            if self.joined.session:  # an observer leaves
                return LAPSED
            return at
        if not self.joined.session:
            return min(at, self._hello_at)
        return min(at, self._sync_at)

    def reconnected(self, now: float) -> None:
        """Note a new connection to Global: what was sent or broadcast before may be lost."""
        if not self.bridging or self._hello_first < NEVER:  # else it is not yet time to join
            self._hello_at = now
        if isinstance(self._hello_denied, WrongServer):  # another one may answer now
            self._hello_denied = None
        if self._writer_at < NEVER:
            self._writer_at = now
        if self.joined.session:
            self._sync_at = now
        self.former.again(now)

    def deny(self, error: DstoreError | None) -> None:
        """Note why Global does not let this client in; None: it does, or that is not known.

        The session and its lease stay: Global counts this Local as a holder until the lease ends.
        """
        self._shut_out = error

    @property
    def denied(self) -> DstoreError | None:
        """Why every request is in vain, until Global lets this client in; None if it does."""
        return self._shut_out or self._hello_denied

    # ---- leaving --------------------------------------------------------------------------

    def goodbye(self, now: float) -> None:
        """End the sessions of this Local, with an empty cache; ``leaving`` until all have ended.

        The session of a membership that is shared with other processes is left as it is.
        """
        self._leave_joined(now)
        if self.writer.secret:
            self._leaving.append((self.writer.epoch, self.writer.secret, None))
        self.lapse()
        self.closing = True
        self.former.forget()
        self._ack_due = False
        self._look_at = NEVER
        self.cache.clear()
        self._hello_at = now

    @property
    def leaving(self) -> bool:
        """Whether Global has yet to confirm that sessions of this Local have ended."""
        return bool(self._leaving)

    def _leave_joined(self, now: float) -> None:
        """Give up the session that this Local keeps up: say goodbye once its writes have ended."""
        joined = self.joined
        if joined.session:
            writer = self.writer
            if writer.session == joined.session:
                self.writer = Writer()
            else:
                writer = Writer()
            self._leaving.append((joined.epoch, self._secret, writer))
        if joined is not self.membership:
            self._end_observer()
        self._reset_control(now)

    def _leave_if_idle(self) -> Iterator[LocalEffect]:
        """Say goodbye, once, for sessions that were given up and have no write under way."""
        for leaving in list(self._leaving):
            epoch, secret, writer = leaving
            if writer is None or writer.idle:
                self._leaving.remove(leaving)
                yield Tell(Goodbye(epoch, secret))

    def _goodbye_if_due(self, now: float) -> list[LocalEffect]:
        if not self._leaving or now < self._hello_at:
            return []
        self._hello_at = now + 2 * RETRY_FIRST
        return [Tell(Goodbye(epoch, secret)) for epoch, secret, _ in self._leaving]

    def _on_farewell(self, secret: int) -> None:
        if self.closing:
            self._leaving = [each for each in self._leaving if each[1] != secret]
            if secret == self._secret:
                self.membership.session = NO_SESSION

    # ---- sharing the membership of the host -----------------------------------------------

    def attach(self, page: SharedPage, now: float) -> None:
        """Use the membership of the host, in place of the present one.

        Does nothing if it belongs to another epoch than the present session, if Global has refused
        it before, if its lease has lapsed, or if it is one of another cluster.
        """
        joined = self.joined
        other = joined.session and joined.epoch != page.epoch
        refused = (page.epoch, page.session) in self._refused
        if self.closing or other or refused or lease_word(page.now()) >= page.lease_word[0]:
            return
        if not self._may_join(page.cluster, now):
            error = wrong_cluster(self.cluster, page.cluster)
            self.no_page = str(error)
            if not self.joining:  # else its HELLO finds out what answers
                self._hello_denied = error
            return
        if self.session and self.page is None:
            self.former.keep((), self.cache.large_values(), self.epoch)
        self._leave_joined(now)
        self.former.keep((), (), self.former.epoch)  # the owner offers those of the host cache
        self._share(page)
        self.former.begin(now)
        self._reset_control(now)
        self.lease = page.lease
        self.value_limit, self.large_from = page.value_limit, page.large_from
        self.last_error = ""
        self._hello_denied = None
        self.bridging = False
        self._look_at = self._lapsed_at = NEVER

    def inherit(
        self,
        page: SharedPage,
        membership: Membership,
        now: float,
        digests: Mapping[bytes, bytes] = NO_DIGESTS,
    ) -> None:
        """In a forked child: go on with the membership of the host, and the parent's entries.

        ``membership`` is that of the parent. A thread of it may have been in the middle of a change
        of memberships: then it is of another session than the page, and of no use. ``digests`` are
        those of its large values.
        """
        self.attach(page, now)
        same = (membership.epoch, membership.session) == (page.epoch, page.session)
        if self.page is page and same and not self.observing:
            self.cache.adopt(membership.entries, digests)
            self._share_entries(page, membership.entries)

    def detach(self, now: float) -> None:
        """Give up a page that has ended, and look for another one."""
        self.former.keep((), self.cache.large_values(), self.epoch)
        self._leave_joined(now)
        self._void(now)
        self.bridging = self.joining
        self._hello_at = now + PRIVATE_AFTER

    def _end_bridge(self, now: float) -> None:
        """Join at once: what answers requests without a session may be another Global."""
        if self.bridging:
            self.bridging = False
            self._hello_at = now

    def _note_lapse(self, page: SharedPage) -> None:
        if self._lapsed_at == NEVER:
            self._lapsed_at = page.now()
            self._checked_at = LAPSED

    def see_page(self) -> bool:
        """Notice that the lease of the page has lapsed, as a hit would. Returns whether it has."""
        page = self.page
        if page is None or page.now() < self.lease_end:
            return False
        self._note_lapse(page)
        return True

    @property
    def has_lapsed(self) -> bool:
        """Whether the lease of the page has lapsed, so that :meth:`tick` has to look after it."""
        return self._lapsed_at < NEVER

    def _check_page(self, page: SharedPage, now: float) -> None:
        """See whether a page that had lapsed can be used again."""
        if self._lapsed_at == NEVER:
            return
        self._checked_at = now
        if not page.lease_word[0]:
            self.detach(now)  # its owner has given it up
        elif page.now() < self.membership.lease_end:
            self._lapsed_at = NEVER
        elif now >= self._lapsed_at + PRIVATE_AFTER:
            self.detach(now)
            self._hello_at = now

    # ---- joining --------------------------------------------------------------------------

    @property
    def _kind(self) -> Kind:
        """What the session that this Local keeps up is for."""
        return Kind.MEMBER if self.page is None else Kind.OBSERVER

    @property
    def _wants_session(self) -> bool:
        if self.page is None:
            return self.joining
        return self.observing or bool(self.watching.watchers)

    def _reset_control(self, now: float) -> None:
        """Forget what belongs to the session that this Local has kept up."""
        if self._hello_first < NEVER and not self.joined.session:
            self._abandoned = self._nonce
        self._nonce = self._random16()
        self._reorder_buffer, self._reorder_keys = [], 0
        self._sent_at.clear()
        self._sync_at = NEVER
        self._hello_first, self._hello_at = NEVER, now
        self._hello_pause = RETRY_FIRST
        self._ack_due = False

    def _void(self, now: float) -> None:
        """Give up the session, with all that belongs to it, and join again."""
        if self.joined.session:
            self._replaces = (self.joined.epoch, self._secret)
            if self.page is None:
                self.former.keep(self._cached(), self.cache.large_values(), self.joined.epoch)
        if self.writer.session == self.joined.session:
            self.writer = Writer()
        self._reset_control(now)
        self._new_membership(self._nonce)
        self._withdrawn = []
        self._lapsed_at = NEVER
        self.bridging = False
        self._look_at = now if self.looking else NEVER

    def _hello_if_due(self, now: float) -> list[LocalEffect]:
        if now < self._hello_at:
            return []
        # Repeats have the same nonce and get the same answer; the lease in it counts from the first
        # one that may have arrived.
        self._hello_first = min(self._hello_first, now)
        self._hello_at = now + self._hello_pause
        self._hello_pause = min(2 * self._hello_pause, RETRY_MAX)
        return [Tell(Hello(self._nonce, *self._replaces, self._label, self._kind))]

    def _on_welcome(self, message: Welcome, now: float) -> list[LocalEffect]:
        if self.closing or not self._accepts(message, now):
            return []
        self.quiet_until = max(self.quiet_until, now + message.quiet)
        if message.nonce == self._writer_nonce and not self.writer.session:
            self.writer = Writer(message.epoch, message.session, message.secret)
            self._writer_at = NEVER
            self._see_epoch(message.epoch, now)
            return []
        if message.nonce == self._abandoned:
            self._abandoned = b""
            self._leaving.append((message.epoch, message.secret, None))
        joined = self.joined
        if joined.session or message.nonce != self._nonce:
            return []
        if self._see_epoch(message.epoch, now):
            self._leaving.append((message.epoch, message.secret, None))
            return []
        self.counters["joins"] += 1
        self.last_error = ""
        self._hello_denied = None
        joined.epoch, joined.session = message.epoch, message.session
        joined.applied = self._acked = message.seq
        self._secret = message.secret
        self._synced_at = self._hello_first
        self._sync_at = self._hello_first + RENEW * message.lease
        if self.page is None:
            self.lease = message.lease
            self.value_limit, self.large_from = message.value_limit, message.large_from
            self.bridging = False
            if not self.writer.session:
                self.writer = Writer(message.epoch, message.session)
                self._writer_at = NEVER
            if self.looking:
                self._look_at = now
            if message.durable or message.epoch == self.former.epoch:
                self.former.begin(now)
            else:
                self.former.forget()
        self._trust(self._hello_first)
        if self.watching.watchers:
            self.watching.missed(message.seq)
        if self._kind is Kind.OBSERVER:  # of what is pending it has yet to hear
            self.renew(now)
        return [Subscribe(message.epoch, message.publisher)]

    def _accepts(self, message: Welcome, now: float) -> bool:
        """Whether this is an answer to a HELLO, and of a Global that may be joined."""
        if message.nonce not in (self._nonce, self._writer_nonce, self._abandoned):
            return False
        if self._may_join(message.cluster, now):
            return True
        self._leaving.append((message.epoch, message.secret, None))
        self._on_wrong_cluster(wrong_cluster(self.cluster, message.cluster))
        return False

    def _cached(self) -> Iterable[Value]:
        """The small values that can be offered to Global in the next session."""
        return self.cache.values()

    def _offer_if_due(self, now: float) -> Iterator[LocalEffect]:
        """Offer what the former session had, in the name of the present one."""
        membership = self.membership
        if now >= self.former.due and membership.session:
            envelope = membership.epoch, membership.session, self.next_request()
            # A process that has found a page may have yet to be connected to Global.
            patience = self.lease + (PRIVATE_AFTER if self.page is not None else 0.0)
            offer = self.former.offer(envelope, patience, now)
            if offer is not None:
                yield Tell(offer)

    def _on_offered(self, message: Offered, now: float) -> Iterator[LocalEffect]:
        """Store again what is unchanged, by the rule for the reply to a GET of this session."""
        membership = self.membership
        if (message.epoch, message.session) != (membership.epoch, membership.session):
            return
        large: list[TakenBack] = []
        for token, (key, codec, body) in self.former.taken(message, now):
            if isinstance(body, FormerLarge):
                found = Found(message.seq, True, Stored(token, codec, body.large))
                large.append(TakenBack(key, found, body))
            elif self._take_back(key, Found(message.seq, True, Stored(token, codec, body))):
                self.counters["revalidated"] += 1
        if large:
            yield TakeBack(membership, large)

    def _take_back(self, key: Key, found: Found) -> bool:
        return self.fill(self.membership, key, found) is not None

    def taken_back(self, membership: Membership, key: Key, found: Found, body: MappedBody) -> None:
        """Store a large value whose bytes have been found; see :class:`TakeBack`."""
        if self.fill(membership, key, found, body) is not None:
            self.counters["revalidated"] += 1

    def is_quiet(self, now: float) -> bool:
        """Whether Global is there, as far as this Local knows, and still removes nothing."""
        return now < min(self.quiet_until, self.lease_end)

    def is_silent(self, now: float) -> bool:
        """Whether Global has not answered for a lease."""
        return (now if self.page is None else self.page.now()) >= self.lease_end

    def _see_epoch(self, epoch: int, now: float) -> bool:
        """Give up a page of another epoch than Global's. Returns whether that was so."""
        if self.page is None or self.page.epoch == epoch:
            return False
        self.detach(now)
        return True

    def refused(self, message: Refused, now: float) -> None:
        """Handle a refusal: join again if the session is lost; note other reasons for errors."""
        if message.refusal in (Refusal.OTHER_VERSION, Refusal.BUSY):
            self.last_error = f"it says: {message.text}"
        if message.refusal is Refusal.DENIED and not message.request:  # else it is of an OFFER
            self._on_denied(AccessDenied(message.text))
        if message.refusal not in (Refusal.OTHER_EPOCH, Refusal.UNKNOWN_SESSION):
            return
        if self.closing:
            self._on_farewell(message.session)
            return
        writer, joined = self.writer, self.joined
        other_epoch = message.refusal is Refusal.OTHER_EPOCH
        if writer.secret and (message.epoch, message.session) == (writer.epoch, writer.session):
            self.writer = Writer()
            if joined.session and joined is self.membership:
                self.writer = Writer(joined.epoch, joined.session)
        if message.session == NO_SESSION:
            self._end_bridge(now)
            return
        # If Global has another epoch, no session of the former one is left.
        ended = {message.session, *(other_epoch * [self.session, joined.session])}
        if self.page is not None and message.epoch == self.epoch and self.session in ended:
            self._refused.append((self.epoch, self.session))  # whatever its lease says
            self.detach(now)
        elif joined.session and message.epoch == joined.epoch:
            if ended.isdisjoint((joined.session, self._secret)):
                return
            if joined is self.membership:
                self._void(now)
            else:
                self._replaces = (joined.epoch, self._secret)
                self._end_observer()
                self._reset_control(now)

    def _on_wrong_cluster(self, error: WrongServer) -> None:
        """A HELLO was answered by a Global of another cluster, or of none."""
        self._on_denied(error)

    def _on_denied(self, error: DstoreError) -> None:
        """Note why a HELLO was in vain: this client may not have such a session, or not there."""
        if self._writer_at < NEVER:
            self.writer_denied, self._writer_at = error, NEVER
        if self.page is None and not self.joined.session:
            self._hello_denied = error

    # ---- the session for writes -----------------------------------------------------------

    def want_writer(self, now: float) -> None:
        """Have a session opened for the writes of this Local, unless there is one."""
        own = self.page is None and not self.bridging  # then its membership serves for writes
        if not own and not self.writer.session and self._writer_at == NEVER:
            self.writer_denied = None
            self._writer_nonce = self._random16()
            self._writer_at, self._writer_pause = now, RETRY_FIRST

    def _writer_if_due(self, now: float) -> list[LocalEffect]:
        if now < self._writer_at:
            return []
        self._writer_at = now + self._writer_pause
        self._writer_pause = min(2 * self._writer_pause, RETRY_MAX)
        return [Tell(Hello(self._writer_nonce, 0, NO_SESSION, self._label, Kind.WRITER))]

    # ---- lease ----------------------------------------------------------------------------

    def renew(self, now: float) -> None:
        """Have a SYNC sent at once, or soon if one is under way."""
        if self.joined.session:
            due = self._synced_at + RETRY_FIRST if self._sent_at else now
            self._sync_at = min(self._sync_at, max(now, due))

    def _sync(self, now: float) -> LocalEffect:
        self._serial += 1
        self._sent_at[self._serial] = now
        while len(self._sent_at) > SYNCS_MAX:
            del self._sent_at[next(iter(self._sent_at))]
        self._synced_at = now
        joined, writer = self.joined, self.writer
        self._acked = joined.applied
        self._sync_at = now + RENEW * self.lease
        watching = bool(self.watching.watchers)
        seen = writer.seen if writer.session == joined.session else 0
        return Tell(Sync(joined.epoch, self._secret, self._serial, joined.applied, seen, watching))

    def _on_synced(self, message: Synced, now: float) -> None:
        joined = self.joined
        ours = (message.epoch, message.session) == (joined.epoch, joined.session)
        if not ours or not joined.session or self.closing:
            return
        if message.keys is None:
            self._flush(message.seq)
        elif message.after <= self.applied:
            self._apply(message.after + 1, message.keys)
        else:  # one before it was lost, or it is from before this Local joined again
            self.renew(now)
            return
        # As in a broadcast. Where Global has none, each session is told what it may see.
        self._dropped_tokens += message.tokens
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
        joined, end = self.joined, sent_at + self.lease * (1 - MARGIN)
        joined.lease_end = max(joined.lease_end, end)

    # ---- invalidations ------------------------------------------------------------------------

    def _on_broadcast(self, message: Broadcast, now: float) -> None:
        joined = self.joined
        if not joined.session or self.closing or message.epoch != joined.epoch:
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
        self.watching.begin(watcher, self.applied if self.joined.session else None)
        self.renew(now)

    def unstage(self, writer: Writer, token: bytes) -> None:
        """Tell Global that an upload in the session of a writer is abandoned."""
        self._withdrawn.append(Unstage(writer.epoch, writer.session, token))

    def unwait(self, message: Wait) -> None:
        """Tell Global that the answer to a WAIT is not needed any more."""
        if (message.epoch, message.session) == self.addressee:
            self._withdrawn.append(Unwait(*message[:4]))

    # ---- requests -----------------------------------------------------------------------

    def next_request(self) -> int:
        """Return the number for the next request."""
        self.request += 1
        return self.request

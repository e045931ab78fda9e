"""The messages of the protocol: what Global and Locals send to each other, and the values in them.

Every message has the ``epoch`` of the Global it belongs to and, where it concerns one Local, its
``session``. :mod:`dstore.protocol.wire` encodes and decodes messages; ``docs/protocol.md`` explains
what each is for.

A key is a ``str`` throughout. Bytes that are not UTF-8 become lone surrogates (PEP 383), so that
text and bytes share one name space: ``"a"`` and ``b"a"`` are the same key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

NO_SESSION = 0
"""The id of no session."""
TOKEN_BYTES = 16
"""Bytes of a token."""
NO_TOKEN = bytes(TOKEN_BYTES)
"""Stands for the token of a key that has no value."""

# ---- values -----------------------------------------------------------------------------------

Key: TypeAlias = str
Buffer: TypeAlias = bytes | memoryview
Route: TypeAlias = bytes
"""How Global reaches one DEALER: the identity that its ROUTER socket gave to the connection."""


class Large(NamedTuple):
    """Stands for the bytes of a large value, which travel in chunks: their number and digest."""

    size: int
    digest: bytes


DAMAGED = "damaged"
"""The codec of a value that Global's disk has lost. Its body is empty, and nothing decodes it."""
UNREADABLE = "unreadable"
"""The codec of a value that Global's engine could not load this time; it may be possible later."""
Body: TypeAlias = bytes | memoryview | Large
"""The bytes of a value (read-only), or the :class:`Large` that stands for them."""


class Stored(NamedTuple):
    """One value as Global keeps it: opaque bytes and the name of the codec that decodes them.

    ``token`` is 16 random bytes that name the write that bound the value.
    """

    token: bytes
    codec: str
    body: Body

    @property
    def size(self) -> int:
        """The length of the value in bytes."""
        body = self.body
        return body.size if type(body) is Large else len(body)

    @property
    def inline(self) -> int:
        """How many bytes of the value travel within a message."""
        return 0 if type(self.body) is Large else len(self.body)


class Found(NamedTuple):
    """A value in a reply. ``seq`` is the number of the newest invalidation when it was read."""

    seq: int
    cacheable: bool
    stored: Stored


class SetStatus(IntEnum):
    """How one item of a SET ended."""

    STORED = 0
    OCCUPIED = 1
    REPLACED = 2
    FULL = 3
    MISMATCH = 4  # the key is a content address, and not that of the value
    TOO_LARGE = 5
    FAILED = 6  # the engine raised
    ABSENT = 7  # the bytes of a large value are not here: upload them, and ask again


class SetResult(NamedTuple):
    """The outcome of one item of a SET.

    ``cacheable`` says whether the writer may cache the value that it has written. ``found`` is the
    value that occupies the key. ``confirmed`` and ``expired`` count the holders of a value that was
    replaced.
    """

    status: SetStatus
    seq: int
    cacheable: bool = False
    found: Found | None = None
    confirmed: int = 0
    expired: int = 0


class DelStatus(IntEnum):
    """How one key of a DEL ended."""

    DELETED = 0
    MISSING = 1
    PENDING = 2  # ``wait=False``: the deletion has started, and holders have yet to acknowledge
    FAILED = 3  # the engine raised


class DelResult(NamedTuple):
    """The outcome of one key of a DEL: how many holders confirmed, expired, or are awaited."""

    status: DelStatus
    seq: int
    confirmed: int = 0
    expired: int = 0
    pending: int = 0


class ExpireStatus(IntEnum):
    """How one key of an EXPIRE ended."""

    DONE = 0
    MISSING = 1
    FULL = 2  # there is no room for a deadline
    FAILED = 3  # the disk has refused it


class Refusal(IntEnum):
    """Why Global did not execute a request."""

    BAD_MESSAGE = 0
    OTHER_VERSION = 1
    OTHER_EPOCH = 2
    UNKNOWN_SESSION = 3
    STALE_WRITE = 4  # its sender has said that it no longer waits for the outcome
    CLOSING = 5
    BUSY = 6
    GONE = 7  # the large value is not here, or not any more
    DAMAGED = 8  # the bytes of an upload do not have the digest that was announced
    FULL = 9
    TOO_LARGE = 10
    DENIED = 11  # its identity may not do that, or not with that key
    NOT_MINE = 12  # one of its keys is in a partition that this Global does not own


# ---- from a Local to Global -------------------------------------------------------------------


class Kind(IntEnum):
    """What a session is for."""

    MEMBER = 0  # a membership: it has a lease, is a holder of keys, and may write
    WRITER = 1  # the writes of one process: it has neither lease nor keys
    OBSERVER = 2  # it is notified of invalidations and holds no key, so that no deletion waits


class Hello(NamedTuple):
    """Open a session, and end the one that it replaces, named by its secret (0, 0: none).

    A HELLO with the same ``nonce`` is a repeat and gets the same answer.
    """

    nonce: bytes
    replaces_epoch: int
    replaces_secret: int
    label: str
    kind: Kind = Kind.MEMBER


class Sync(NamedTuple):
    """Renew the lease; ``serial`` ties the answer to the moment of sending.

    All invalidations up to ``applied`` have been applied. The outcomes of this session's writes
    below ``seen`` need not be kept. With ``watching`` the Local wants to know which deletions are
    committed. The session is named by its secret, which only its owner has.
    """

    epoch: int
    secret: int
    serial: int
    applied: int
    seen: int
    watching: bool = False


class Ack(NamedTuple):
    """All invalidations up to ``applied`` have been applied."""

    epoch: int
    secret: int
    applied: int


class Goodbye(NamedTuple):
    """End the session: the Local's cache is empty."""

    epoch: int
    secret: int


class Get(NamedTuple):
    """Ask for the values of keys.

    With the session 0 the reply says that no value may be cached. That holds for a WAIT too. A
    SCAN, STATS, FETCH or ASKMAP may come without a session as well. Its epoch is 0 then, for any
    Global, or the :func:`~dstore.protocol.clusters.mark` of the cluster whose members are asked.
    """

    epoch: int
    session: int
    request: int
    keys: list[Key]


class Wait(NamedTuple):
    """Ask for the value of a key. If it has none, wait for one, at most ``timeout`` seconds."""

    epoch: int
    session: int
    request: int
    key: Key
    timeout: float


class Unwait(NamedTuple):
    """Withdraw a WAIT. Not answered."""

    epoch: int
    session: int
    request: int
    key: Key


class SetItem(NamedTuple):
    """One key and the value to bind to it."""

    key: Key
    stored: Stored


class Set(NamedTuple):
    """Bind values to keys. ``write`` numbers the session's writes, so that repeats are known.

    The outcomes of the writes below ``seen`` need not be kept. ``holder`` is the session that
    caches the values, of which the writer may be one process of several; 0: the reply says that
    none may be cached. The keys expire ``ttl`` seconds after they are bound; None: never. A SET of
    a content address that is bound makes it live for at least as long.
    """

    epoch: int
    session: int
    request: int
    write: int
    seen: int
    replace: bool
    items: list[SetItem]
    holder: int = NO_SESSION
    ttl: float | None = None


class Del(NamedTuple):
    """Delete keys. With ``wait`` the answer comes when the deletions are committed."""

    epoch: int
    session: int
    request: int
    write: int
    seen: int
    wait: bool
    keys: list[Key]


class Expire(NamedTuple):
    """Let keys expire ``ttl`` seconds from now, whatever was said before; None: never."""

    epoch: int
    session: int
    request: int
    write: int
    seen: int
    ttl: float | None
    keys: list[Key]


class Ttl(NamedTuple):
    """Ask in how many seconds a key expires."""

    epoch: int
    session: int
    request: int
    key: Key


class Offer(NamedTuple):
    """Ask which of these keys still have the values that this Local had cached in another session.

    ``digests`` has :func:`dstore.protocol.offers.digest` of each value. Not all need be looked at.
    """

    epoch: int
    session: int
    request: int
    keys: list[Key]
    digests: bytes


class Fetch(NamedTuple):
    """Ask for ``length`` bytes of the large value of a key. A transfer has one request number.

    ``token`` is that of the value: if the key has another one by now, there is nothing to fetch.
    """

    epoch: int
    session: int
    request: int
    key: Key
    token: bytes
    offset: int
    length: int


class Stage(NamedTuple):
    """Upload a part of a large value. A SET of ``stored`` follows when all parts are there."""

    epoch: int
    session: int
    request: int
    stored: Stored
    offset: int
    data: Buffer


class Unstage(NamedTuple):
    """Withdraw an upload. Not answered."""

    epoch: int
    session: int
    token: bytes


class Scan(NamedTuple):
    """Ask for one page of the keys that begin with ``prefix``, after the key ``after``.

    ``partitions`` has a bit for each partition whose keys are wanted, as in
    :func:`dstore.protocol.partitions.to_bitmap`; without any bytes, all that this Global has.
    """

    epoch: int
    session: int
    request: int
    prefix: str
    after: str
    limit: int
    partitions: bytes = b""


class Stats(NamedTuple):
    """Ask Global for its metrics."""

    epoch: int
    session: int
    request: int


class AskMap(NamedTuple):
    """Ask which Global of a cluster owns which partition."""

    epoch: int
    session: int
    request: int


# ---- from Global to a Local -------------------------------------------------------------------


class Welcome(NamedTuple):
    """The answer to HELLO. It counts as the answer to a first SYNC at ``seq``.

    Requests name the session by its id, ``session``, which may be known to several processes.
    ``secret`` is for the one that renews the lease, acknowledges and ends the session. For
    ``quiet`` seconds from now on nothing is removed or replaced: leases of a former life of Global
    may last so long. ``durable``: it has what it had before its restart. ``cluster`` is the id of
    the cluster of which Global is a member, without any bytes if it is none.
    """

    epoch: int
    session: int
    nonce: bytes
    seq: int
    lease: float
    publisher: str
    value_limit: int
    large_from: int
    secret: int
    quiet: float = 0.0
    durable: bool = False
    cluster: bytes = b""


class Synced(NamedTuple):
    """The invalidations in (``after``, ``seq``]. If ``keys`` is None, drop the whole cache.

    As the answer to the SYNC with this ``serial`` it renews the lease. With serial 0 it is a
    targeted invalidation, sent to a holder or a watcher, and renews nothing. With ``acknowledge``,
    as in each that is sent to a holder, a deletion waits for this Local to acknowledge. All
    deletions up to ``committed`` are committed. A key is "" if the identity of the session does not
    see it: the invalidation counts, and concerns nothing that this Local has. ``tokens`` name the
    large values among those that are deleted; where broadcasts do so, there are none.
    """

    epoch: int
    session: int
    serial: int
    after: int
    seq: int
    keys: list[Key] | None
    acknowledge: bool = True
    committed: int = 0
    tokens: Sequence[bytes] = ()


class Committed(NamedTuple):
    """All deletions up to ``committed`` are committed. Broadcast for watchers."""

    epoch: int
    committed: int


class Farewell(NamedTuple):
    """The answer to GOODBYE: the session has ended."""

    epoch: int
    secret: int


class GetReply(NamedTuple):
    """Values for the first ``len(bodies)`` keys of the GET, one column for each part of a value.

    A reply that would become too large ends early; the Local asks again for the rest. ``seq`` is
    the number of the newest invalidation before any of the values was read. ``tokens`` has 16 bytes
    for each key. A key without a value has the codec "", the body None and a token of zeros. The
    values whose indexes are in ``uncacheable`` must not be cached.
    """

    epoch: int
    session: int
    request: int
    seq: int
    codecs: list[str]
    tokens: bytes
    bodies: list[Body | None]
    uncacheable: list[int]

    @classmethod
    def of(
        cls, envelope: tuple[int, int, int], seq: int, items: Iterable[Found | None]
    ) -> GetReply:
        """Make the reply that has these values. Their own ``seq`` is not used."""
        found = list(items)
        values = [each and each.stored for each in found]
        return cls(
            *envelope,
            seq,
            [each.codec if each else "" for each in values],
            b"".join([each.token if each else NO_TOKEN for each in values]),
            [each and each.body for each in values],
            [index for index, each in enumerate(found) if each and not each.cacheable],
        )

    @property
    def items(self) -> list[Found | None]:
        """The values one by one, None where missing. Each use makes a new list."""
        tokens, uncacheable = self.tokens, set(self.uncacheable)
        items: list[Found | None] = []
        for index, (codec, body) in enumerate(zip(self.codecs, self.bodies)):
            found = None
            if body is not None:
                token = tokens[TOKEN_BYTES * index : TOKEN_BYTES * (index + 1)]
                found = Found(self.seq, index not in uncacheable, Stored(token, codec, body))
            items.append(found)
        return items


class SetReply(NamedTuple):
    """One outcome for each item of the SET."""

    epoch: int
    session: int
    request: int
    items: list[SetResult]


class DelReply(NamedTuple):
    """One outcome for each key of the DEL."""

    epoch: int
    session: int
    request: int
    items: list[DelResult]


class ExpireReply(NamedTuple):
    """One outcome for each key of the EXPIRE."""

    epoch: int
    session: int
    request: int
    items: list[ExpireStatus]


class TtlReply(NamedTuple):
    """Whether a key has a value, and the seconds until it expires; None: it does not."""

    epoch: int
    session: int
    request: int
    bound: bool
    left: float | None


class Offered(NamedTuple):
    """The keys of the OFFER, by their indexes, whose values are the same and may be cached.

    ``seq`` is the number of the newest invalidation before any of them was read. ``tokens`` has 16
    bytes for each of them.
    """

    epoch: int
    session: int
    request: int
    seq: int
    same: list[int]
    tokens: bytes


class Chunk(NamedTuple):
    """Bytes of a large value from ``offset``."""

    epoch: int
    session: int
    request: int
    token: bytes
    offset: int
    data: Buffer


class Staged(NamedTuple):
    """The first ``received`` bytes of an upload are here; ``credit`` more may be under way."""

    epoch: int
    session: int
    request: int
    token: bytes
    received: int
    credit: int


class ScanReply(NamedTuple):
    """One page of keys, which may be empty. A SCAN with this ``after`` continues.

    It is empty after the last page.
    """

    epoch: int
    session: int
    request: int
    keys: list[Key]
    after: str


class StatsReply(NamedTuple):
    """Global's metrics, by name."""

    epoch: int
    session: int
    request: int
    metrics: dict[str, object]


class MapReply(NamedTuple):
    """The map of a cluster: which of its ``members``, by their addresses, owns which partition.

    ``owners`` has a byte for each partition: the index of its owner among the members, or 255 if
    nobody owns it at present. A higher ``version`` is newer. Without a cluster both are empty, and
    so is ``cluster``, its id.
    """

    epoch: int
    session: int
    request: int
    version: int
    members: list[str]
    owners: bytes
    cluster: bytes = b""


class Refused(NamedTuple):
    """Nothing was executed. ``epoch`` and ``session`` (or secret) are those of the message."""

    epoch: int
    session: int
    request: int
    refusal: Refusal
    text: str


class Broadcast(NamedTuple):
    """The invalidations ``first``, ``first + 1``, …, sent to all Locals.

    With ``acknowledge`` all Locals are to acknowledge at once. ``tokens`` name the large values
    among those that are deleted.
    """

    epoch: int
    first: int
    keys: list[Key]
    acknowledge: bool
    tokens: Sequence[bytes] = ()


WriteMessage: TypeAlias = Set | Del | Expire
WriteReply: TypeAlias = SetReply | DelReply | ExpireReply
WriteResult: TypeAlias = SetResult | DelResult | ExpireStatus
RequestMessage: TypeAlias = Get | Wait | WriteMessage | Ttl | Scan | Stats | AskMap | Fetch | Stage
ToGlobal: TypeAlias = Hello | Sync | Ack | Goodbye | Unstage | Unwait | Offer | RequestMessage
Answered: TypeAlias = GetReply | WriteReply | TtlReply | ScanReply | StatsReply | MapReply
Reply: TypeAlias = Answered | Chunk | Staged | Refused
REPLIES = (
    GetReply,
    SetReply,
    DelReply,
    ExpireReply,
    TtlReply,
    ScanReply,
    StatsReply,
    MapReply,
    Chunk,
    Staged,
    Refused,
)
ToLocal: TypeAlias = Welcome | Synced | Committed | Farewell | Offered | Reply | Broadcast
Message: TypeAlias = ToGlobal | ToLocal

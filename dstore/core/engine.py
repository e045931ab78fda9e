"""The storage protocols of a Global: :class:`Engine` for keys and small values, :class:`Bulk`
for the bytes of large values, and :class:`Journal`, which makes changes durable.

Programs import them from :mod:`dstore.engines`, which tells how they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

from dstore.protocol.messages import Buffer, Key, Stored

UNLIMITED = 1 << 62
"""The :attr:`Engine.limit` of an engine that does not bound the bytes of its keys and values."""


class Lost(Exception):
    """Raised by :meth:`Bulk.write`: the bytes written so far of a large value are lost.

    The value is still reserved and has to be written from its beginning. The Local that uploads it
    is asked to start again.
    """


class Unloaded(Exception):
    """Raised by :meth:`Bulk.read`: the bytes are somewhere else, and have to be loaded.

    ``length`` is how many bytes the part has. The engine loads them, see :class:`PartLoader`.
    """

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length


class Bulk(Protocol):
    """Where Global keeps the bytes of large values, each under the token of its write.

    These bytes come and go in pieces, so they have a place apart from the keys. A value is
    reserved, written piece by piece, sealed, then read. The engine has such a value as a
    :class:`~dstore.protocol.messages.Large`, which stands for its bytes. Tokens are 16 random
    bytes; sizes and offsets are in bytes.

    With a journal, :meth:`read` is called from the journal's thread as well, to make a value
    durable, while Global's thread calls any method.
    """

    def reserve(self, token: bytes, size: int) -> None:
        """Make room for a value of ``size`` bytes that will be written.

        No other value has that token, now or later. The token may come again after :meth:`drop`:
        then the same upload starts again.

        This must take no longer than writing a piece, however large the value is. So the room may
        be promised here and be reserved while the value is written. Raises StoreFull, and changes
        nothing, if there is no memory.
        """

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        """Write a piece of a value that is reserved and not sealed. Pieces come in any order.

        Raises KeyError if no value with that token is reserved and not sealed, and ValueError if
        the piece is not within the value. If others have taken the room that was promised, raises
        Lost if there is other room and the value has to be written from its beginning, and
        StoreFull, with nothing changed, if there is none.
        """

    def seal(self, token: bytes) -> None:
        """Make a complete value readable. It never changes again.

        Raises KeyError unless the value is reserved and not sealed.
        """

    def adopt(self, token: bytes, size: int) -> bool:
        """Take over a value of ``size`` bytes that a Node on this host has written and sealed.

        Returns False, and changes nothing, if there is no such value or if it has been taken over
        before.
        """

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """Return at most ``count`` bytes from ``offset`` on, fewer at the end of the value.

        Returns None unless a value with that token is here and sealed. The view is read-only. It
        stays valid after :meth:`drop` and :meth:`close`. A bulk whose engine is a
        :class:`PartLoader` may raise :class:`Unloaded`, except in the journal's thread.
        """

    def drop(self, token: bytes) -> None:
        """Remove a value, sealed or not. Does nothing if there is none with that token.

        This must not take long either: what takes long is done in the background.
        """

    def close(self) -> None:
        """Release what this object holds; nothing can be read from it any more. Idempotent."""


class Away(NamedTuple):
    """A value that an engine has, and whose bytes it has to load before they can be answered.

    ``token`` and ``codec`` are those of the value, ``size`` is the number of its bytes. A value
    whose body is a :class:`~dstore.protocol.messages.Large` is never away; see :class:`Unloaded`.
    """

    token: bytes
    codec: str
    size: int

    @property
    def inline(self) -> int:
        """How many bytes of the value travel within a message."""
        return self.size


Bound: TypeAlias = Stored | Away
"""A value as :meth:`Engine.read` returns it."""
Loaded: TypeAlias = Buffer | Exception
"""How one value was loaded: its bytes, or why they could not be."""


class Engine(Protocol):
    """Where Global keeps keys, each bound to a value.

    A value is a :class:`~dstore.protocol.messages.Stored`: ``token`` (16 bytes that name the write
    that bound it), ``codec`` (a name of ASCII characters) and ``body`` (read-only bytes, or a
    :class:`~dstore.protocol.messages.Large`). An engine returns it as it was bound; a
    :class:`LoadingEngine` may return it as :class:`Away`. Keys are texts, which
    :func:`~dstore.protocol.keys.to_bytes` turns into bytes, also those that are not UTF-8.
    """

    def read(self, key: Key) -> Bound | None:
        """Return the value bound to ``key``, or None."""

    def bind(self, key: Key, stored: Stored) -> None:
        """Bind a value to a key that has none; the caller has made sure of that.

        Raises StoreFull, and changes nothing, if the value does not fit.
        """

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        """Bind ``stored`` in place of the value with ``token``, in one step.

        Returns False, and changes nothing, if another value or none is bound. The memory limit was
        checked with :meth:`fits` when the replacement started and is not checked again.
        """

    def remove(self, key: Key, token: bytes) -> bool:
        """Remove the value with ``token``.

        Returns False, and changes nothing, if another value or none is bound.
        """

    def fits(self, key: Key, stored: Stored) -> bool:
        """Whether :attr:`size` stays within :attr:`limit` if ``stored`` is bound to ``key``, in
        place of the value that ``key`` may have.
        """

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """Return at most ``limit`` keys that begin with ``prefix`` and come after ``after``.

        Keys count as bytes here: a prefix may end within a character, and the order is that of the
        bytes (:func:`~dstore.protocol.keys.to_bytes`). The empty key comes before all others, and
        all keys begin with it. ``prefix`` and ``after`` need be neither bound nor related. A key
        that is bound during a whole scan is found in it, whatever is bound and removed meanwhile.
        """

    def __len__(self) -> int:
        """Return how many keys are bound."""

    @property
    def size(self) -> int:
        """The bytes that all keys and values take, an upper bound.

        All that the engine has to keep for them counts: wide characters, the names of codecs,
        objects, and the order of the keys.
        """

    @property
    def limit(self) -> int:
        """The bytes that they may take, or ``UNLIMITED``."""

    def close(self) -> None:
        """Release what the engine holds. Idempotent."""


class LoadingEngine(Engine, Protocol):
    """An engine that has to load the bytes of some values, from a disk or over a network.

    Keys, tokens, codecs and sizes it knows at once: :meth:`~Engine.read` returns :class:`Away` for
    a value whose bytes are not here, and all other methods of :class:`Engine` have taken effect
    when they return. Which values are away may change at any time. Global asks for the bytes of a
    value that somebody reads, goes on with other messages, and answers when they are here.

    A value may be removed or replaced while its bytes are being loaded, or just before. Then
    anything may be returned for it, also an exception: Global compares the token once more, and
    does not use it. But the bytes that are returned for a token must be those of that token
    whenever it is bound; never those of the value that its key has by now.
    """

    def begin(self, wake: Callable[[], None]) -> None:
        """Take the function that wakes Global. It may be called in any thread, and returns at once.

        Called before the first :meth:`load`, each time that Global is bound: if that fails it may
        be tried again, and the latest function counts.
        """

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        """Begin to load the bytes of some values, each named by key and token. Returns at once.

        They were away when they were looked at, and need not be away any more.

        When all of them have ended, in whatever way, :meth:`loaded` returns them, after a call of
        ``wake``. Many loads may be under way, and may end in any order. Global does not ask for a
        value that is being loaded already.
        """

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        """Return the loads that have ended since the last call, each with its number.

        There is one result for each value that was wanted, in that order: its bytes, which nothing
        changes any more, or an exception, which Global logs. A result that is not as long as the
        ``size`` of the value counts as an exception. Readers of that value get
        :class:`~dstore.errors.RequestRefused`, and a later read tries again.
        """


class PartLoader(LoadingEngine, Protocol):
    """A loading engine that loads parts of large values, too, for a :class:`Bulk` that may raise
    :class:`Unloaded`.
    """

    def load_part(self, number: int, key: Key, token: bytes, offset: int, length: int) -> None:
        """Begin to load a part of the large value of a key, as :meth:`~LoadingEngine.load` does.

        :meth:`~LoadingEngine.loaded` returns one result for it: ``length`` bytes, a LookupError if
        the value has gone, or another exception if it cannot be read at present. Readers then get
        no answer, and ask again. Global asks for few parts at a time.
        """


NO_DEADLINE = float("inf")
"""The deadline of a key that does not expire."""


class ChangeKind(IntEnum):
    """What a change does to its key."""

    BIND = 0  # the key has no value; it gets ``stored``
    REPLACE = 1  # ``stored`` takes the place of the value with ``token``
    REMOVE = 2  # the value with ``token`` goes, and the key is free
    DEADLINE = 3  # the value with ``token`` stays, and gets another ``deadline``


class Change(NamedTuple):
    """One change of one key.

    ``deadline`` is a time of the wall clock, in seconds since 1970: from then on the key is to be
    removed. A deadline that has passed is how a deletion that is not waited for survives a crash.
    """

    kind: ChangeKind
    key: Key
    token: bytes = b""
    stored: Stored | None = None
    deadline: float = NO_DEADLINE


class Outcome(IntEnum):
    """How a change has ended. Whatever is not DONE has changed nothing."""

    DONE = 0
    FULL = 1  # there is no room for it
    FAILED = 2


class Kept(NamedTuple):
    """What a journal has of one key when Global starts.

    ``stored`` is None if the value is damaged: the key is not free, but its value is lost. Its
    ``token`` is then known if that part of the row is sound, and empty otherwise.
    """

    key: Key
    token: bytes
    stored: Stored | None
    deadline: float


class Journal(Protocol):
    """Makes changes durable, beside an engine that answers from memory.

    A Global with ``data=`` has one, over SQLite. It is no parameter of :class:`dstore.Global`.

    Global applies a change to its engine only when it is durable. So no answer of any kind shows
    what a crash takes back. No two changes of one key are under way at one time, except that a
    removal may follow a change of the deadline.
    """

    def commit(self, number: int, changes: list[Change]) -> None:
        """Take a batch of changes, and return at once. They are made durable in their order.

        Called from Global's thread only.
        """

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended since the last call: number, and an outcome each.

        Batches may end in any order, but those that change the same key in the order in which they
        were given. Each change of a batch ends by itself. Raises
        :class:`~dstore.errors.DstoreError` if no further change can be made durable, and it is not
        known what has become of those that are under way; then Global ends. Called from Global's
        thread only.
        """

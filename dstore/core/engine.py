"""What an engine is: the place where Global keeps its keys and values.

One thread uses an engine, Global's. Every method is done when it returns: what it wrote is what
the next call reads. ``dstore/testing`` holds a contract test that every engine passes.
"""

from __future__ import annotations

from typing import Protocol

from dstore.protocol.messages import Buffer, Key, Stored


class Lost(Exception):
    """What was written of a value is lost. It is still reserved, to be written from its beginning.

    Internal: whoever uploads it is told to begin anew.
    """


class Bulk(Protocol):
    """Where Global keeps the bytes of large values, each under the token of its write.

    They come and go in pieces, so they have a place apart from the keys: reserved, written piece by
    piece, sealed, then read. An engine has such a value as a :class:`~dstore.protocol.messages.Large`, which
    stands for its bytes. Sizes and offsets are in bytes. One thread uses it, Global's.
    """

    def reserve(self, token: bytes, size: int) -> None:
        """Make room for a value that will be written.

        No value has that token, now or in future: if it is used again after :meth:`drop`, it is
        to start the same write afresh. Raises StoreFull, and changes nothing, if there is no
        memory.

        This takes no longer than to write a piece, however large the value is. So the room may be
        promised here, and be reserved while the value is written.
        """

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        """Write a piece of a value that is reserved and not sealed, in any order.

        Raises KeyError for another token, and ValueError if the piece is not within the value.
        If others have taken the room that was promised, Lost says that there is other room, and
        StoreFull, which changes nothing, that there is none.
        """

    def seal(self, token: bytes) -> None:
        """The value is complete and may be read. It never changes again.

        Raises KeyError unless the value is reserved and not sealed.
        """

    def adopt(self, token: bytes, size: int) -> bool:
        """Take over a value of ``size`` bytes that a Node on this host has written, sealed.

        False, and nothing changed, if there is none such, or if it has been taken over already.
        """

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """At most ``count`` bytes from ``offset`` on, fewer at the end; read-only.

        None if no such value is here and sealed. The view (of the value, or of a copy)
        stays good after :meth:`drop` and :meth:`close`.
        """

    def drop(self, token: bytes) -> None:
        """Give up a value, sealed or not. One that is not here is fine.

        Nor does this take long: what does is done in the background.
        """

    def close(self) -> None:
        """Give up everything. Idempotent."""


class Engine(Protocol):
    """Keys bound to values, each value with the token of the write that bound it."""

    def read(self, key: Key) -> Stored | None:
        """The value bound to ``key``, or None."""

    def bind(self, key: Key, stored: Stored) -> None:
        """Bind a value to a key that is free.

        Raises StoreFull, and changes nothing, if it does not fit. The caller has made sure that
        the key is free.
        """

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        """Bind ``stored`` in place of the value with ``token``, in one step.

        False, and nothing changed, if another value or none is bound. The memory limit was
        checked with :meth:`fits` when the replacement began and is not checked again.
        """

    def remove(self, key: Key, token: bytes) -> bool:
        """Remove the value with ``token``. False, and nothing changed, if it is not bound."""

    def fits(self, key: Key, stored: Stored) -> bool:
        """Whether binding ``stored`` to ``key`` (in place of what it has) stays in the limits."""

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """At most ``limit`` keys that begin with ``prefix`` and come after ``after``.

        A key is bytes here: what it begins with are bytes, which may end within a character, and
        the order is that of the bytes (see :mod:`dstore.keys`). The empty key comes before all,
        and all begin with it. ``prefix`` and ``after`` need not be bound, nor be related. A key
        that is bound during a whole scan is found in it, whatever comes and goes beside it.
        """

    def __len__(self) -> int:
        """How many keys are bound."""

    @property
    def size(self) -> int:
        """What the keys and values take, in bytes, with all that an engine has to keep for them:
        an upper bound, wide characters, names of codecs, objects and the order included.
        """

    @property
    def limit(self) -> int:
        """What they may take, in bytes."""

    def close(self) -> None:
        """Give back what the engine holds. Idempotent."""

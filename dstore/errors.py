"""What can go wrong, and whose fault it was.

Every exception that dstore raises on purpose is a :class:`DstoreError`. Where Python has a
built-in that callers already catch (``KeyError``, ``ConnectionError``, ``ValueError``), the class
derives from it too.
"""

from __future__ import annotations

from collections.abc import Sequence


class DstoreError(Exception):
    """The common base of all errors of dstore."""


class KeyMissing(DstoreError, KeyError):
    """No value is bound to the key. Likely cause: never set, or deleted by some Node."""

    def __init__(self, key: str | bytes) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"no value is bound to {self.key!r}"


class KeyOccupied(DstoreError):
    """The key is bound already; a key keeps its value until it is deleted.

    Delete it first, or pass ``replace=True``. ``local`` says that this Local knew it from its own
    cache, ``updated`` that this Local holds the value since this very attempt.
    """

    def __init__(self, key: str | bytes, *, local: bool = False, updated: bool = False) -> None:
        super().__init__(key)
        self.key = key
        self.local = local
        self.updated = updated

    def __str__(self) -> str:
        return f"{self.key!r} is bound already; delete it first, or pass replace=True"


class GlobalUnavailable(DstoreError, ConnectionError):
    """Global did not answer in time, and what was asked of it was not done.

    (Of the keys of ``set_many`` or ``delete_many`` that travel in several messages, those of the
    earlier ones have been written.)

    Likely cause: it is not running, the address is wrong, or the network is cut. The Node goes on
    trying by itself; the same call works again once Global is back.
    """


class OutcomeUnknown(DstoreError):
    """A write was sent and its outcome is not known: it may have happened, now or a little later,
    or not at all.

    Likely cause: Global died or was cut off after the write had been sent. ``keys`` names what is
    in doubt; read it to find out.
    """

    def __init__(self, keys: Sequence[str | bytes], reason: str) -> None:
        super().__init__(keys, reason)
        self.keys = list(keys)
        self.reason = reason

    def __str__(self) -> str:
        named = ", ".join(repr(key) for key in self.keys[:3])
        more = f" and {len(self.keys) - 3} more" if len(self.keys) > 3 else ""
        return f"the write of {named}{more} may or may not have happened: {self.reason}"


class NodeClosed(DstoreError, RuntimeError):
    """The Node was closed, before or during the call. A write under way may have happened."""


class GlobalClosed(DstoreError, RuntimeError):
    """The Global was stopped or closed, or its service ended of an error; it lives only once.

    Likely cause: it is used after its ``with`` block, or in a child that was forked while it
    served. Make a new one. (What a Node raises when Global does not answer is GlobalUnavailable.)
    """


class GlobalServing(DstoreError, RuntimeError):
    """The Global serves already, in another thread, so that ``run`` cannot serve in this one."""


class InvalidKey(DstoreError, ValueError):
    """The caller's key is empty, too long, not text or bytes, or reserved."""


class ValueTooLarge(DstoreError, ValueError):
    """The value is larger than Global accepts. ``size`` and ``limit`` are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the value has {self.size:,} bytes, and one value may have at most {self.limit:,}; "
            "split it, or store it elsewhere and keep its location here"
        )


class ValueCorrupt(DstoreError):
    """A stored value does not decode, or does not hash to its content address.

    Likely cause: it was written by a program that is not dstore, or damaged on the way; or a file
    was changed while it was being stored.
    """


class UnknownCodec(DstoreError):
    """The value needs a codec that this Node does not have. ``codec`` is its name.

    Likely cause: it was written by a Node with other options, or of a machine with numpy.
    """

    def __init__(self, codec: str) -> None:
        super().__init__(codec)
        self.codec = codec

    def __str__(self) -> str:
        advice = {"pickle": "create the Node with pickle=True", "ndarray": "install numpy"}
        what_to_do = advice.get(self.codec, "pass that codec to the Node")
        return f"the value needs the codec {self.codec!r}, which is not here; {what_to_do}"


class StoreFull(DstoreError):
    """Global has reached its memory limit: delete something, or start it with a higher one."""


class WaitTimedOut(DstoreError, TimeoutError):
    """The key was not bound within the time that was given to :meth:`dstore.Node.wait`."""


class AddressError(DstoreError, OSError):
    """An address is malformed, in use, or cannot be bound. The message names it."""


class BadMessage(DstoreError):
    """A frame is not a message of this protocol. Its sender is at fault, not its receiver."""


class RequestRefused(DstoreError):
    """Global refuses the request, or its storage failed, or it answered nonsense."""

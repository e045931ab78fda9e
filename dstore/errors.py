"""The exceptions of dstore. Each docstring says whose fault it was and names the likely cause.

All are derived from :class:`DstoreError`. Where Python has a built-in exception that callers
already catch (``KeyError``, ``ConnectionError``, ``ValueError``), the class derives from it too.
Wrong arguments raise the built-in TypeError and ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class DstoreError(Exception):
    """The base of all errors of dstore."""


class KeyMissing(DstoreError, KeyError):
    """The key has no value. Likely cause: it was never set, or a Node has deleted it.

    ``key`` is the object that the caller gave.
    """

    def __init__(self, key: str | bytes) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"no value is bound to {self.key!r}"


class KeyOccupied(DstoreError):
    """The key has a value already, and keeps it until it is deleted.

    Delete it first, or pass ``replace=True``. ``local``: this Local answered from its own cache.
    ``updated``: this Local has cached the present value with this attempt. With neither of them
    ``on_deletion`` may not be called when the key is deleted.
    """

    def __init__(self, key: str | bytes, *, local: bool = False, updated: bool = False) -> None:
        super().__init__(key)
        self.key = key
        self.local = local
        self.updated = updated

    def __str__(self) -> str:
        return f"{self.key!r} is bound already; delete it first, or pass replace=True"


class GlobalUnavailable(DstoreError, ConnectionError):
    """Global did not answer in time, and the request was not carried out.

    (When the keys of ``set_many`` or ``delete_many`` travel in several messages, those of earlier
    messages have been written.)

    Likely cause: Global is not running, the address is wrong, or the network is down. The Node
    keeps trying to connect; the call works again once Global is back.
    """


class AccessDenied(DstoreError, PermissionError):
    """Global does not admit this client, or does not let it do this. The message says which.

    Likely cause: its key was never added at that Global, or was revoked; or its role, or its
    prefixes, do not permit the request. The request was not carried out. (As with
    GlobalUnavailable, keys of earlier messages may have been written.) A write that was under way
    when the client was shut out raises OutcomeUnknown. The Node goes on to ask; calls work again
    once the client is admitted.
    """


class WrongServer(DstoreError, ConnectionError):
    """What listens at the address is not the Global whose keys, or whose cluster, this client has.

    Likely cause: its server key is another one than that of the connect file; or it asks for keys,
    and the client has none; or it uses no keys, and the client does; or a Global without the
    database of the cluster, or with another one, runs where a member did. The message says which.
    The request was not carried out. The Node goes on to ask; calls work again once the right Global
    listens there, or the connect file has its key.
    """


class OutcomeUnknown(DstoreError):
    """A write was sent and its outcome is not known.

    It may have happened, may still happen a little later, or may never happen. It never happens
    twice. Likely cause: Global died or the connection was lost after the write had been sent. Read
    ``keys``, the keys in doubt, to find out.
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
    """The Node was closed before or during the call. A write under way may have happened."""


class GlobalClosed(DstoreError, RuntimeError):
    """The Global was stopped or closed, or its service ended with an error. It cannot be reused.

    Likely cause: it is used after its ``with`` block, or in a child that was forked while it
    served. Make a new one. (A Node raises GlobalUnavailable when Global does not answer.)
    """


class GlobalServing(DstoreError, RuntimeError):
    """The Global is serving in another thread, so that ``run`` cannot serve in this one."""


class InvalidKey(DstoreError, ValueError):
    """The caller's key is empty, longer than 511 bytes, not text or bytes, or reserved."""


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

    Likely cause: a program other than dstore wrote it, it was damaged on its way, or a file was
    changed while it was being stored.
    """


class UnknownCodec(DstoreError):
    """The value needs a codec that this Node does not have. ``codec`` is its name.

    Likely cause: the Node that wrote it has other settings, or runs where numpy is installed.
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
    """The key got no value within the time that was given to :meth:`dstore.Node.wait`."""


class AddressError(DstoreError, OSError):
    """An address is malformed, in use, or cannot be bound. The message names it."""


class DataError(DstoreError):
    """The data folder of a Global cannot be used, is damaged, or cannot be written any more.

    Likely cause: another Global uses the folder, this user may not write there, or the disk has
    failed. The message names the folder and says what to do. (A full disk raises StoreFull.)
    """


class KeyFolderError(DstoreError):
    """A key folder, or a file in it, cannot be used or changed. The message says what to do.

    Likely cause: it belongs to another user, others may read it, or it is damaged; or a client is
    added whose name is taken, or revoked whose name is unknown.
    """


class BadConnectFile(DstoreError, ValueError):
    """A connect file cannot be used. The message names it and says what to do.

    Likely cause: it is missing or damaged, or other users may read or write it.
    """


class BadMessage(DstoreError):
    """A frame is not a message of this protocol. Its sender is at fault, not the receiver."""


class RequestRefused(DstoreError):
    """Global refused the request, its storage failed, or its answer was malformed."""


def copy_of(error: E) -> E:
    """Return an equal error, for another call: one that is raised twice has a wrong traceback."""
    return type(error)(*error.args)

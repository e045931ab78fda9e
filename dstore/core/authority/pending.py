"""A pending deletion: a deletion between its two phases."""

from __future__ import annotations

from collections.abc import Callable

from dstore.core.authority.active_writes import ActiveWrite
from dstore.core.authority.budgets import text_bytes
from dstore.protocol.messages import Key, Large, Stored

PENDING_BYTES, AWAITED_BYTES = 700, 100
"""What a pending deletion takes at most beside its key, and what each awaited holder takes."""


class PendingDeletion:
    """A key that is being deleted or replaced.

    ``token`` names the value that is to be removed, ``size`` is its length in bytes, and ``large``
    says whether its bytes are kept apart. ``awaited`` counts the holders that have neither
    acknowledged nor expired. ``joined`` are other DELs of the key. ``queued`` are writes that run
    once the deletion is committed.
    """

    __slots__ = (
        "_account",
        "_cost",
        "awaited",
        "confirmed",
        "expired",
        "index",
        "joined",
        "key",
        "large",
        "queued",
        "replacement",
        "seq",
        "size",
        "token",
        "write",
    )

    def __init__(self, key: Key, old: Stored, write: ActiveWrite, index: int) -> None:
        self.key = key
        self.token = old.token
        self.large = type(old.body) is Large
        self.size = old.size
        self.seq = 0
        # The write that gets the outcome as its item ``index``; None if it was answered before.
        self.write: ActiveWrite | None = write
        self.index = index
        self.replacement: Stored | None = None
        self.awaited = 0
        self.confirmed = 0
        self.expired = 0
        self.joined: list[tuple[ActiveWrite, int]] = []
        self.queued: list[Callable[[float], None]] = []
        self._account = write.session.writes
        self._cost = 0

    def __repr__(self) -> str:
        return f"<PendingDeletion {self.key!r} seq={self.seq} awaited={self.awaited}>"

    def charge(self) -> None:
        """Put the memory that this takes on the account of the session that deletes."""
        self._cost = PENDING_BYTES + text_bytes(self.key) + AWAITED_BYTES * self.awaited
        self._account.take(self._cost)

    def discharge(self) -> None:
        """Take that memory off the account again."""
        self._account.take(-self._cost)

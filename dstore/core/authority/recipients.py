"""What Global knows about one session as a recipient of invalidations."""

from __future__ import annotations

from collections import deque

from dstore.core.authority.alarm import NEVER
from dstore.core.authority.pending import PendingDeletion
from dstore.core.authority.sessions import Session


class Recipient:
    """The record of one session.

    Only :class:`~dstore.core.authority.invalidations.Invalidations` and its parts change it.
    """

    __slots__ = (
        "acknowledged",
        "awaited",
        "notified",
        "remind_at",
        "remind_pause",
        "repeated",
        "repeated_since",
        "session",
        "targeted",
        "watching",
    )

    def __init__(self, session: Session, seq: int, now: float) -> None:
        self.session = session
        self.acknowledged = seq  # it has applied all up to this one
        self.notified = seq  # all up to this one were sent to it, in answers and targeted
        self.targeted = 0  # it was asked, by itself, to acknowledge all up to this one
        self.repeated = 0  # how many were sent to it once more since ``repeated_since``
        self.repeated_since = now
        # The deletions that wait for it, each with the lease end noted when the deletion started.
        # The order is that of their numbers, and of the lease ends as well.
        self.awaited: deque[tuple[PendingDeletion, float]] = deque()
        self.remind_at = NEVER
        self.remind_pause = 0.0
        self.watching = False  # it wants to know which deletions are committed

    def __repr__(self) -> str:
        return (
            f"<Recipient session no. {self.session.number} acknowledged={self.acknowledged} "
            f"notified={self.notified} awaited={len(self.awaited)}>"
        )

"""Global's own membership: the one that the processes of its host share.

Global is the owner of that membership, so no message is needed: in phase 2 of each deletion, just
before the engine changes, it writes the invalidation into the page that those processes look at.
From that moment on none of them answers with the value. So a deletion never waits for this
membership, is never sent to it, and counts it as confirmed.

The word is written for every deletion, whether or not the membership is a holder of the key: that
costs less than to find out, and nothing depends on the record of holders.

A page that cannot be written is voided, and the session ends. If even that fails, the processes may
trust the page until the end of its lease. So until then no deletion is committed, though the page
of a new session may be in use.
"""

from __future__ import annotations

from typing import Protocol

from dstore.core.authority.effects import NEVER, Alarm
from dstore.core.authority.sessions import Session
from dstore.protocol.messages import Key

RENEW = 1 / 3
"""The part of a lease after which it is renewed."""


class Page(Protocol):
    """What the processes of the host look at: the end of the lease, and the invalidation vector."""

    def note(self, key: Key, seq: int) -> None:
        """Write invalidation ``seq`` of a key. A word never becomes smaller."""

    def renew(self, end: float) -> None:
        """Set the end of the lease, in seconds of Global's clock."""

    def void(self) -> None:
        """End the lease at once, for ever."""


class OwnMembership:
    """The session of Global's own host and its page, if there is one. ``lease`` is in seconds.

    The owner of this object sets ``session``, which is None if there is none. At ``wake_at``
    :meth:`tick` is next due.
    """

    def __init__(self, lease: float, alarm: Alarm) -> None:
        self.session: Session | None = None
        self.wake_at = NEVER
        self._lease = lease
        self._lease_end = 0.0  # of the page
        self._trusted_until = 0.0  # the end of the leases of pages that could not be voided
        self._page: Page | None = None
        self._alarm = alarm

    def __repr__(self) -> str:
        return (
            f"<OwnMembership {self.session!r} lost={self.lost} lease_end={self._lease_end:.3f} "
            f"trusted_until={self._trusted_until:.3f}>"
        )

    @property
    def lost(self) -> bool:
        """Whether there is no page that can be written."""
        return self._page is None

    def trusted(self, now: float) -> bool:
        """Whether a process of this host may trust a page that is in use, or was not voided."""
        return self._page is not None or now < self._trusted_until

    def begin(self, page: Page, now: float) -> None:
        """Let the processes of this host use a page, in the name of the session."""
        self.end(now)
        self._page = page
        self.tick(now)

    def tick(self, now: float) -> None:
        """Give the page a lease from now. Without a page, set when deletions can be committed."""
        if self._page is not None:
            # First, since a call that raises may have written the new end.
            self._lease_end = now + self._lease
            try:
                self._page.renew(self._lease_end)
            except Exception:
                self.end(now)
        self._schedule(now)

    def invalidated(self, key: Key, seq: int, now: float) -> bool:
        """Write an invalidation. Returns whether no process of the host can use the value now.

        If not, it is to be called again at ``wake_at``.
        """
        if self._page is not None:
            try:
                self._page.note(key, seq)
            except Exception:
                self.end(now)
        return now >= self._trusted_until

    def end(self, now: float) -> None:
        """Void the page and give it up. The caller ends the session."""
        page, self._page = self._page, None
        if page is None:
            return
        try:
            page.void()
        except Exception:  # the lease ends by itself
            self._trusted_until = max(self._trusted_until, self._lease_end)
        self._schedule(now)

    def _schedule(self, now: float) -> None:
        """Set ``wake_at``: when the page needs a new lease, or a voidless page has lost its own."""
        renewal = now + RENEW * self._lease if self._page is not None else NEVER
        self.wake_at = min(renewal, self._trusted_until) if now < self._trusted_until else renewal
        self._alarm.at(self.wake_at)

"""Global's own membership: the one that the processes of its host share.

Global is the owner of that membership, so no message is needed: in phase 2 of each deletion, just
before the engine changes, it writes the invalidation into the page that those processes look at.
From that moment on none of them answers with the value. So a deletion never waits for this
membership, is never sent to it, and counts it as confirmed.

A page that cannot be written is voided, and the session ends. If even that fails, the processes may
trust the page until the end of its lease, and deletions wait for that moment.
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

    ``session`` is None without a page. At ``wake_at`` :meth:`renew` is next due.
    """

    def __init__(self, lease: float, alarm: Alarm) -> None:
        self.session: Session | None = None
        self.wake_at = NEVER
        self._lease = lease
        self._lease_end = 0.0
        self._page: Page | None = None
        self._alarm = alarm

    def __repr__(self) -> str:
        return f"<OwnMembership {self.session!r} lease_end={self._lease_end:.3f}>"

    @property
    def lost(self) -> bool:
        """Whether there is no page that can be written."""
        return self._page is None

    def begin(self, session: Session, page: Page, now: float) -> None:
        """Let the processes of this host use a page, in the name of a session."""
        self.session, self._page = session, page
        self.renew(now)

    def renew(self, now: float) -> None:
        """Give the page a lease from now."""
        if self._page is None:
            return
        try:
            self._page.renew(now + self._lease)
        except Exception:
            self.end()
            return
        self._lease_end = now + self._lease
        self.wake_at = now + RENEW * self._lease
        self._alarm.at(self.wake_at)

    def invalidated(self, key: Key, seq: int, now: float) -> bool:
        """Write an invalidation. Returns whether no process of the host can use the value now.

        If not, it is to be called again at the end of the lease.
        """
        if self._page is not None:
            try:
                self._page.note(key, seq)
                return True
            except Exception:
                self.end()
        if now >= self._lease_end:
            return True
        self._alarm.at(self._lease_end)
        return False

    def end(self) -> None:
        """Void the page and give it up. The caller ends the session."""
        page, self._page = self._page, None
        self.wake_at = NEVER
        if page is None:
            return
        try:
            page.void()
            self._lease_end = 0.0
        except Exception:
            pass  # the lease ends by itself

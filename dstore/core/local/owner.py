"""The owner of a membership that the processes of a host share, where Global is on another host.

It is a Local without entries. It joins, renews its lease, applies and acknowledges invalidations as
each Local does (:mod:`dstore.core.local.state`), and writes what it knows into the page of its
session, which the processes of the host look at. What they may do follows from the page alone, so
the order of what is written counts:

- An invalidation is in the page before ``applied`` counts it, and so before it is acknowledged.
- The invalidations in the answer to a SYNC are in the page before the lease is renewed by it.
- A page is of one session. It is created after WELCOME, and is void and removed before the session
  is given up by GOODBYE or by a HELLO that replaces it. That also happens if the log of Global does
  not reach back to what was applied: the session begins again, with another page.
- A page that cannot be written is void, and so is its session. If it cannot even be voided, the
  owner says nothing to Global until the lease in it has ended: Global counts it as a holder
  for that time.

A lease that has lapsed is no reason to give up the session: the page says so itself, and Global
knows whether the session has missed anything.

What was in the host cache is offered to Global in the next session, and what is unchanged is put
into the new one (:mod:`dstore.core.local.former`).

The secret of the session is in the memory of the owner alone. So a restarted owner replaces
nothing; the session of the former one lapses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from dstore.core.local.cache import Value
from dstore.core.local.effects import LocalEffect
from dstore.core.local.key_hash import HASH_KEY_BYTES
from dstore.core.local.membership import LAPSED
from dstore.core.local.state import LocalState
from dstore.core.local.vector import Vector
from dstore.errors import WrongServer
from dstore.protocol.messages import Found, Key, Refusal, Refused, Synced, ToLocal, Welcome

PAGE_PAUSE = 1.0
"""Seconds before the owner joins again after it could not make a page for its session."""


class Page(Protocol):
    """The page of one session."""

    def note(self, key: Key, seq: int) -> None:
        """Write invalidation ``seq`` of a key. A word never becomes smaller."""

    def renew(self, end: float) -> None:
        """Set the end of the lease, in seconds of the owner's clock."""

    def void(self) -> None:
        """End the lease at once, for ever."""

    def put(self, key: Key, found: Found) -> bool:
        """Put a value into the host cache. Returns whether it is there."""

    def values(self) -> Iterable[Value]:
        """Return what the host cache has, also to be read after :meth:`close`."""

    def close(self) -> None:
        """Void the page and remove it, so that no process finds it."""


class OwnerState(LocalState):
    """The state of an owner. ``open_page`` creates the page of the session of a WELCOME.

    ``open_page`` may raise any exception: there is no page, and the owner joins again later.
    ``published`` is the page that the processes look at, None without a session. ``trouble`` says
    why there is none, if that is known. ``refusal`` says why Global will never admit this owner.
    """

    buckets = 1  # the words are in the page

    def __init__(
        self,
        *,
        random16: Callable[[], bytes],
        label: str,
        open_page: Callable[[Welcome], Page],
    ) -> None:
        self.published: Page | None = None
        self.trouble = ""
        self.refusal = ""
        self._open_page = open_page
        self._usable = False  # whether the newest page has had a lease
        self._lease_in_page = LAPSED
        self._left: Iterable[Value] = ()  # what the host cache of the former page has
        self._silent_until = LAPSED
        super().__init__(random16=random16, label=label, cache_bytes=0)

    # ---- events ---------------------------------------------------------------------------

    def receive(self, message: ToLocal, now: float) -> list[LocalEffect]:
        """Take one message; see :meth:`LocalState.receive`. Raises if the page cannot be voided."""
        before = self.session
        effects = super().receive(message, now)
        if type(message) is Welcome and self.session and not before:
            self._publish(message)
        return effects

    def tick(self, now: float) -> list[LocalEffect]:
        """Do what is due."""
        if now < self._silent_until:
            return []
        if self._pageless:
            self.abandon(now)
            if not self._usable:  # no process has seen the page; else deletions wait for this HELLO
                self._hello_at = now + PAGE_PAUSE
        return super().tick(now)

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        at = LAPSED if self._pageless else super().wake_at
        return max(at, self._silent_until)

    def _on_wrong_cluster(self, error: WrongServer) -> None:
        self.trouble = str(error)  # it is no reason to end: the member may come back

    def abandon(self, now: float) -> None:
        """Begin another session, as when another program has removed the page."""
        self._void(now)

    def refuse(self, reason: str, now: float) -> None:
        """Note that Global will never admit this owner, as if it speaks another protocol."""
        self.refusal = reason
        if not self.closing:
            self._void(now)

    @property
    def _pageless(self) -> bool:
        return bool(self.joined.session) and self.published is None and not self.closing

    # ---- the page -------------------------------------------------------------------------

    def _publish(self, message: Welcome) -> None:
        """Create the page of a session that has just begun."""
        self._usable = False
        self.vector = _Words(self._note)  # first: a page with a lease and without words is stale
        try:
            self.published = self._open_page(message)
        except Exception as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        self._renew_page()
        self._usable = self.published is not None

    def _renew_page(self) -> None:
        if self.published is None:
            return
        try:
            self._lease_in_page = self.joined.lease_end
            self.published.renew(self._lease_in_page)
        except Exception as error:
            self.trouble = str(error)
            self._close_page()

    def _note(self, key: Key, seq: int) -> None:
        if self.published is None:
            return
        try:
            self.published.note(key, seq)
        except Exception as error:
            self.trouble = str(error)
            self._close_page()

    def _close_page(self) -> None:
        """Void and remove the page. Raises if it cannot be voided: its lease has to end first."""
        page, self.published = self.published, None
        if page is None:
            return
        try:
            page.void()
        except Exception:
            self._silent_until = self._lease_in_page
            raise
        finally:
            with suppress(Exception):  # it is only asked for again
                self._left = page.values()
            with suppress(Exception):  # the next owner removes what is left
                page.close()

    # ---- the life of a session, in which the page comes first -------------------------------

    def _trust(self, sent_at: float) -> None:
        super()._trust(sent_at)
        self._renew_page()

    def _void(self, now: float) -> None:
        try:
            self._close_page()
        finally:
            super()._void(now)

    def goodbye(self, now: float) -> None:
        """Void and remove the page, then end the session."""
        try:
            self._close_page()
        finally:
            super().goodbye(now)

    def _cached(self) -> Iterable[Value]:
        left, self._left = self._left, ()
        return left

    def _take_back(self, key: Key, found: Found) -> bool:
        with suppress(Exception):  # it is only asked for again
            return self.published is not None and self.published.put(key, found)
        return False

    def lapse(self) -> None:
        """Let no process of the host answer from its cache any more."""
        try:
            self._close_page()
        finally:
            super().lapse()

    def _on_synced(self, message: Synced, now: float) -> None:
        ours = (message.epoch, message.session) == (self.epoch, self.session)
        if message.keys is None and ours and self.session and message.seq > self.applied:
            self.counters["flushes"] += 1
            self._dropped_tokens += message.tokens
            self.abandon(now)
            return
        super()._on_synced(message, now)

    def refused(self, message: Refused, now: float) -> None:
        """Handle a refusal; see :meth:`LocalState.refused`."""
        if message.refusal is Refusal.OTHER_VERSION:
            self.refuse(message.text, now)
        super().refused(message, now)


class _Words(Vector):
    """The vector of an owner: each word goes to the page."""

    __slots__ = ("_note_in_page",)

    def __init__(self, note: Callable[[Key, int], None]) -> None:
        super().__init__(bytes(HASH_KEY_BYTES), 1)
        self._note_in_page = note

    def note(self, key: Key, seq: int) -> None:
        """Note that invalidation ``seq`` is one of ``key``."""
        self._note_in_page(key, seq)

"""When deletions that have begun are published, and which of them together.

A publication goes to every Local, and each has to wake up for it. A deletion that waits for
holders is published at once, with all that came before it, so that numbers follow each other.
Nobody waits for one without holders: its publication only tells those who watch, and spares the
Locals a gap when the next one comes. So such publications keep a pause. What comes after it is sent
at once, what comes within it goes into one when it ends. Without that, deletions of keys that
nobody holds would cost what all Locals cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from dstore.core.dying import Dying
from dstore.core.outbox import Outbox
from dstore.core.sessions import Sessions
from dstore.messages import Key, Publication

PAUSE, PAUSE_PER_LOCAL, PAUSE_MAX = 0.005, 0.0005, 1.0
"""Seconds between publications that nobody waits for, and more for each Local, but no more than the
last: some ten times what it takes Locals to wake up for one if they share few cores.
"""
KEYS_MAX = 1_000
"""So many keys are published together without a pause, so that a publication stays small."""
NEVER = float("inf")


class Publications:
    """Deletions from when they begin until they are published.

    All up to the number ``published`` have been. When Global is ``closing`` there are no pauses.
    """

    def __init__(self, epoch: int, sessions: Sessions, out: Outbox) -> None:
        self.published = 0
        self.closing = False
        self._epoch = epoch
        self._sessions = sessions
        self._out = out
        self._keys: list[Key] = []  # of the numbers from published + 1 on
        self._tokens: list[bytes] = []
        self._next_at = 0.0

    def __repr__(self) -> str:
        return f"<Publications published={self.published} kept={len(self._keys)}>"

    @property
    def wake_at(self) -> float:
        """When :meth:`publish` is next due by itself."""
        if not self._keys:
            return NEVER
        return 0.0 if self.closing else self._next_at

    def begun(self, deletions: Sequence[Dying], holders: list[int], now: float) -> None:
        """These have begun, in the order of their numbers, and ``holders`` are to acknowledge."""
        for dying in deletions:
            self._keys.append(dying.key)
            if dying.large:
                self._tokens.append(dying.token)
        if holders or now >= self._next_at or len(self._keys) >= KEYS_MAX:
            self._publish(holders, now)

    def publish(self, now: float) -> None:
        """Publish what has been kept for long enough."""
        if now >= self.wake_at:
            self._publish([], now)

    def _publish(self, holders: list[int], now: float) -> None:
        first = self.published + 1
        self._out.publish(Publication(self._epoch, first, self._keys, holders, self._tokens))
        self.published += len(self._keys)
        self._keys, self._tokens = [], []
        pause = PAUSE + PAUSE_PER_LOCAL * len(self._sessions)
        self._next_at = now + min(pause, PAUSE_MAX)

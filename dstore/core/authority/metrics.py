"""The metrics of a Global, by name, as STATS returns them."""

from __future__ import annotations

from itertools import islice

from dstore.core.authority.sessions import Sessions

LOCALS_SHOWN = 1_000
"""The metrics name this many Locals, the oldest ones."""
SHOWN_PER_LOCAL = 20e-6
"""Seconds for each Local within which the metrics of all Locals are not gathered again. So a peer
that asks for them all the time takes no more than a few percent of Global's time.
"""


class LocalMetrics:
    """The metrics that need a look at each session. They contain no session id."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._gathered: dict[str, object] = {}
        self._generation = (0, 0)
        self._until = 0.0

    def get(self, now: float) -> dict[str, object]:
        """Return how many leases have run out, and the labels and leases of the Locals."""
        sessions = self._sessions
        if now >= self._until or self._generation != sessions.generation:
            self._generation = sessions.generation
            self._until = now + SHOWN_PER_LOCAL * len(sessions)
            self._gathered = {
                "lapsed": sum(each.lease_end <= now for each in sessions),
                "locals": {
                    str(each.number): {
                        "label": each.label,
                        "lease_left": max(0.0, each.lease_end - now),
                    }
                    for each in islice(sessions, LOCALS_SHOWN)
                },
            }
        return self._gathered

"""What one Local can make Global hold, in bytes: a budget for all, and a share of it for each.

Values have the memory limit. What else a peer makes Global keep (writes at work and their outcomes,
requests that wait) has a budget each, counted as Python really takes it, rounded up. Nothing is
counted again: each amount is noted when it begins and given back when it ends.

A session that has little of it is always served, even when others have taken all the rest: no
crowd of greedy Locals can keep out one that follows the rules.
"""

from __future__ import annotations

TEXT_OVERHEAD = 56
"""Bytes that a string of ASCII takes beyond its characters."""
WIDE_OVERHEAD, WIDE_CHARACTER = 600, 4
"""The same of any other, with its UTF-8 form, which Python keeps once it has been asked for; and
bytes for each character.
"""


def text_bytes(text: str) -> int:
    """What a key or label takes at most. The same at all times, unlike ``sys.getsizeof``."""
    if text.isascii():
        return TEXT_OVERHEAD + len(text)
    return WIDE_OVERHEAD + WIDE_CHARACTER * len(text)


class Budget:
    """At most ``total`` bytes, of which one session has at most ``share``.

    The first ``assured`` bytes of each session are there in any case, on top of ``total``.
    """

    def __init__(self, total: int, share: int, assured: int) -> None:
        self.total = total
        self.share = share
        self.assured = assured
        self.taken = 0

    def __repr__(self) -> str:
        return f"<Budget {self.taken:,} of {self.total:,} bytes>"


class Account:
    """What one session has of a budget. What it has begun may outlive it, and counts until then."""

    __slots__ = ("_budget", "taken")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def __repr__(self) -> str:
        return f"<Account {self.taken:,} of {self._budget!r}>"

    def admits(self, size: int) -> bool:
        """Whether this session may have ``size`` bytes more."""
        taken, budget = self.taken + size, self._budget
        if taken <= budget.assured:
            return True
        return taken <= budget.share and budget.taken + size <= budget.total

    def take(self, size: int) -> None:
        """Note ``size`` bytes more, or fewer if it is negative."""
        self.taken += size
        self._budget.taken += size

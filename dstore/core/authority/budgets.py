"""Budgets: how many bytes of memory Locals can make Global hold, in total and for each.

For values there is the memory limit. Two other things that Locals make Global keep have a budget
each: active writes with their outcomes, and requests that wait. The amounts are what the Python
objects really take, rounded up. It is charged when it begins and returned at its end.

A session that has taken little is always served, even when others have taken all the rest: greedy
Locals, however many, cannot shut out one that follows the rules. All sessions of one identity have
a part of each budget together, beside what is assured to each of them, so that the rest of it
cannot be taken by one identity with many sessions either.
"""

from __future__ import annotations

from dataclasses import dataclass

from dstore.config import PEER_SHARE

TEXT_OVERHEAD = 56
"""Bytes that an ASCII string takes beyond its characters."""
WIDE_OVERHEAD, WIDE_CHARACTER = 600, 4
"""Bytes that any other string takes, with its UTF-8 form, which Python keeps once it was asked for;
and bytes for each character.
"""


def text_bytes(text: str) -> int:
    """Return the bytes that a key or label takes at most.

    Unlike ``sys.getsizeof`` it returns the same number for the same text at all times.
    """
    if text.isascii():
        return TEXT_OVERHEAD + len(text)
    return WIDE_OVERHEAD + WIDE_CHARACTER * len(text)


@dataclass(slots=True, eq=False)
class Budget:
    """At most ``total`` bytes, of which one session has at most ``share``.

    Each session can take ``assured`` bytes in any case, even if ``total`` is taken.
    """

    total: int
    share: int
    assured: int
    taken: int = 0


@dataclass(slots=True, eq=False)
class Group:
    """The bytes that all sessions of one identity have taken of a budget."""

    _budget: Budget
    taken: int = 0

    def admits(self, size: int) -> bool:
        """Whether these sessions may take ``size`` bytes more together."""
        return self.taken + size <= PEER_SHARE * self._budget.total


@dataclass(slots=True, eq=False)
class Account:
    """The bytes that one session has taken of a budget, and with it its ``group``, if it has one.

    An active write may outlive its session; its bytes count until it ends.
    """

    _budget: Budget
    _group: Group | None = None
    taken: int = 0

    def admits(self, size: int) -> bool:
        """Whether this session may take ``size`` bytes more."""
        taken, budget = self.taken + size, self._budget
        if taken <= budget.assured:
            return True
        if self._group is not None and not self._group.admits(size):
            return False
        return taken <= budget.share and budget.taken + size <= budget.total

    def take(self, size: int) -> None:
        """Note ``size`` bytes more, or fewer if it is negative."""
        self.taken += size
        self._budget.taken += size
        if self._group is not None:
            self._group.taken += size

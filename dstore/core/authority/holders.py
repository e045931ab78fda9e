"""The holders of each key: one bit per session and key.

A bit is named by its number, not by a mask with this one bit set: for each session such a mask
would be as wide as all bits together.

When a session ends its bit is not cleared at once, since each GOODBYE would then need a walk over
all keys. The bit is retired: it is added to no further key, and a reader of the holders of a key
masks it out. Once enough bits are retired a sweep clears them, a few keys at a time; then they are
free for new sessions.

The record of holders has a budget in bytes. When it is spent, no session becomes a holder of a key
that would need more; the reply to a reader of such a key says "do not cache".
"""

from __future__ import annotations

from collections.abc import Iterator

from dstore.config import HOLDER_BYTES_MAX
from dstore.core.authority.budgets import text_bytes
from dstore.protocol.messages import Key

SWEEP_AT = 32
"""Number of retired bits that starts a sweep."""
PART_BITS = 256
"""Bits of the parts in which a mask is read: the time of each step grows with the mask's width."""
_PART = (1 << PART_BITS) - 1
KEY_OVERHEAD = 150
"""Bytes for each held key, beyond the key and its bits: its place in the dictionary, also while
the dictionary grows, its place in a sweep, and what an integer takes without its digits.
"""
DIGIT_BITS, DIGIT_BYTES = 30, 4
"""Size of the digits that Python's integers are made of."""


class Holders:
    """A bit set for each key, and the numbers of the bits."""

    def __init__(self, limit: int = HOLDER_BYTES_MAX) -> None:
        self.limit = limit  # of ``bytes``
        self.bytes = 0  # the memory that is taken
        self._of: dict[Key, int] = {}
        self._free: list[int] = []
        self.width = 0  # how many bits exist, in use or not
        self._retired = 0
        self._sweeping = 0
        self._left: list[Key] | None = None  # keys that the sweep has yet to visit

    def __repr__(self) -> str:
        return f"<Holders keys={len(self._of)} bytes={self.bytes:,} width={self.width}>"

    def __len__(self) -> int:
        return len(self._of)

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return self._left is not None

    def claim(self) -> int:
        """Return a bit for a new session."""
        if self._free:
            return self._free.pop()
        self.width += 1
        return self.width - 1

    def retire(self, bit: int) -> None:
        """Retire the bit of a session that has ended. This may start a sweep."""
        self._retired |= 1 << bit
        if self._left is None and self._retired.bit_count() >= SWEEP_AT:
            self._sweeping, self._retired = self._retired, 0
            self._left = list(self._of)

    def add(self, key: Key, bit: int) -> bool:
        """Make the session of ``bit`` a holder of ``key``.

        Returns False, and changes nothing, if there is no room: the session must not cache the
        value.
        """
        bits = self._of.get(key, 0)
        if not bits:
            size = self.bytes + _digits(bit + 1) + KEY_OVERHEAD + text_bytes(key)
            if size > self.limit:
                return False
            self.bytes = size
            self._of[key] = 1 << bit
            return True
        if bits >> bit & 1:
            return True
        width = bits.bit_length()
        if bit >= width:  # only the highest bit makes a mask larger
            size = self.bytes + _digits(bit + 1) - _digits(width)
            if size > self.limit:
                return False
            self.bytes = size
        self._of[key] = bits | 1 << bit
        return True

    def of(self, key: Key) -> int:
        """Return a mask of the bits of ``key``, retired ones included."""
        return self._of.get(key, 0)

    def drop(self, key: Key) -> None:
        """Forget the holders of ``key``: its value has been removed."""
        bits = self._of.pop(key, 0)
        if bits:
            self._gone(key, bits)

    def _gone(self, key: Key, bits: int) -> None:
        self.bytes -= _digits(bits.bit_length()) + KEY_OVERHEAD + text_bytes(key)

    def sweep(self, keys_max: int) -> None:
        """Clear the retired bits of at most ``keys_max`` keys that the sweep has not visited."""
        if self._left is None:
            return
        for key in self._left[-keys_max:]:
            self._clear(key)
        del self._left[-keys_max:]
        if not self._left:
            self._free.extend(bits_of(self._sweeping))
            self._sweeping = 0
            self._left = None

    def _clear(self, key: Key) -> None:
        bits = self._of.get(key)
        if bits is None or not bits & self._sweeping:
            return
        left = bits & ~self._sweeping
        if left:
            self.bytes -= _digits(bits.bit_length()) - _digits(left.bit_length())
            self._of[key] = left
        else:
            del self._of[key]
            self._gone(key, bits)


def _digits(width: int) -> int:
    """Return the bytes of the digits of an integer of ``width`` bits."""
    return (width + DIGIT_BITS - 1) // DIGIT_BITS * DIGIT_BYTES


def bits_of(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits of a mask, from the lowest."""
    base = 0
    while mask:
        lowest = _lowest(mask)
        part = mask >> lowest & _PART
        base += lowest
        while part:
            yield base + _lowest(part)
            part &= part - 1
        mask >>= lowest + PART_BITS
        base += PART_BITS


def _lowest(mask: int) -> int:
    """Return the number of the lowest bit."""
    return (mask & -mask).bit_length() - 1

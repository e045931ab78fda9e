"""Who may hold which value: one bit per session and key.

A bit is named by its number, not by a mask with this one bit set: that would be as wide as all bits
together, for each session.

A bit that a session leaves behind is not cleared at once, since that would mean a walk over all
keys for each goodbye. It is retired: no new value gets it, and whoever asks for the holders of a
key masks it away. Once enough bits are retired a sweep clears them, a few keys at a time, and
then they are free for new sessions.

All this has a budget in bytes. When it is spent, nobody becomes a holder of a key that would need
more; a reader of such a key is told not to cache it.
"""

from __future__ import annotations

from collections.abc import Iterator

from dstore.config import HOLDER_BYTES_MAX
from dstore.core.authority.budgets import text_bytes
from dstore.protocol.messages import Key

SWEEP_AT = 32
"""Retired bits that start a sweep."""
PART_BITS = 256
"""A mask is taken apart in parts of so many bits, since each step costs what its mask is wide."""
_PART = (1 << PART_BITS) - 1
KEY_OVERHEAD = 150
"""Bytes for each key that is held, beyond the key and its bits: its place in the dictionary, also
while that grows, and in a sweep; and what an integer takes without its digits.
"""
DIGIT_BITS, DIGIT_BYTES = 30, 4
"""Of the digits that Python's integers are made of."""


class Holders:
    """Bit sets of the keys, and the bits themselves."""

    def __init__(self, limit: int = HOLDER_BYTES_MAX) -> None:
        self.limit = limit  # of ``bytes``
        self.bytes = 0  # what all this takes
        self._of: dict[Key, int] = {}
        self._free: list[int] = []
        self._width = 0
        self._retired = 0
        self._sweeping = 0
        self._left: list[Key] | None = None  # keys that the sweep has yet to visit

    def __repr__(self) -> str:
        retired = self._retired.bit_count()
        return (
            f"<Holders keys={len(self._of)} bytes={self.bytes:,} width={self._width} "
            f"retired={retired}>"
        )

    def __len__(self) -> int:
        return len(self._of)

    @property
    def width(self) -> int:
        """How many bits exist, in use or not."""
        return self._width

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return self._left is not None

    def claim(self) -> int:
        """A bit for a new session."""
        if self._free:
            return self._free.pop()
        self._width += 1
        return self._width - 1

    def retire(self, bit: int) -> None:
        """The session of ``bit`` has ended."""
        self._retired |= 1 << bit
        if self._left is None and self._retired.bit_count() >= SWEEP_AT:
            self._sweeping, self._retired = self._retired, 0
            self._left = list(self._of)

    def add(self, key: Key, bit: int) -> bool:
        """The session of ``bit`` is handed the value of ``key``.

        False, and nothing changed, if there is no room for that: it must not cache the value.
        """
        bits = self._of.get(key, 0)
        width = bits.bit_length()
        if bit >= width:  # only the highest bit makes a mask larger
            size = self.bytes + _digits(bit + 1) - _digits(width)
            if not bits:
                size += KEY_OVERHEAD + text_bytes(key)
            if size > self.limit:
                return False
            self.bytes = size
        self._of[key] = bits | 1 << bit
        return True

    def of(self, key: Key) -> int:
        """A mask of the bits of ``key``, retired ones included."""
        return self._of.get(key, 0)

    def drop(self, key: Key) -> None:
        """The value of ``key`` is gone."""
        bits = self._of.pop(key, 0)
        if bits:
            self._gone(key, bits)

    def _gone(self, key: Key, bits: int) -> None:
        self.bytes -= _digits(bits.bit_length()) + KEY_OVERHEAD + text_bytes(key)

    def sweep(self, keys_max: int) -> None:
        """Clear the retired bits of at most ``keys_max`` more keys."""
        if self._left is None:
            return
        for key in self._left[-keys_max:]:
            self._clear(key)
        del self._left[-keys_max:]
        if not self._left:
            self._finish()

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

    def _finish(self) -> None:
        self._free.extend(bits_of(self._sweeping))
        self._sweeping = 0
        self._left = None


def _digits(width: int) -> int:
    """Bytes of the digits of a number of ``width`` bits."""
    return (width + DIGIT_BITS - 1) // DIGIT_BITS * DIGIT_BYTES


def bits_of(mask: int) -> Iterator[int]:
    """The numbers of the bits of a mask, from the lowest."""
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
    """The number of the lowest bit."""
    return (mask & -mask).bit_length() - 1

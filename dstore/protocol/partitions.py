"""Partitions: the fixed parts of the key space, each owned by one Global of a cluster at a time.

Servers and clients have to agree about which partition a key is in. So this is part of the
protocol, and of what a cluster keeps in its database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

from dstore.protocol.keys import to_bytes
from dstore.protocol.messages import Key

PARTITIONS = 256
"""The number of partitions."""
NOBODY = 255
"""Stands in a map for the owner of a partition that nobody owns at present."""
MEMBERS_MAX = 250
"""Members that a map may name. Each has an index of one byte, and one of these is NOBODY."""
BITMAP_BYTES = PARTITIONS // 8


def partition_of(key: Key) -> int:
    """Return the number of the partition that a key is in, from 0 on."""
    return crc32(to_bytes(key)) & (PARTITIONS - 1)


def to_bitmap(numbers: Iterable[int]) -> bytes:
    """Return the bits of some partitions: bit p % 8 of byte p // 8 is set for partition p."""
    bits = bytearray(BITMAP_BYTES)
    for number in numbers:
        bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def from_bitmap(bits: bytes) -> Iterator[int]:
    """Yield the numbers of the partitions whose bits are set, from the lowest on."""
    return (number for number in range(PARTITIONS) if bits[number // 8] >> number % 8 & 1)

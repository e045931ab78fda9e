"""Partitions: which one a key is in, for all programs and for ever."""

from __future__ import annotations

from collections import Counter

import pytest

from dstore.protocol.keys import from_bytes
from dstore.protocol.partitions import PARTITIONS, from_bitmap, partition_of, to_bitmap


@pytest.mark.parametrize(
    ("raw", "partition"),
    [
        (b"k", 0x5D),
        (b"user:1", 0x82),
        ("straße".encode(), 0xCD),
        (b"\xff\x00", 0x8D),
        (b"123456789", 0x26),  # the check value of CRC-32 is CBF43926
    ],
)
def test_a_key_is_in_the_partition_that_its_bytes_say(raw: bytes, partition: int) -> None:
    """A cluster keeps these numbers in its database: they must never change."""
    assert partition_of(from_bytes(raw)) == partition


def test_keys_are_spread_over_all_partitions() -> None:
    counts = Counter(partition_of(f"user:{n}") for n in range(100 * PARTITIONS))
    assert len(counts) == PARTITIONS
    assert max(counts.values()) < 200


def test_the_bits_of_partitions_come_out_as_they_went_in() -> None:
    for numbers in ([], [0], [255], [7, 8, 9], list(range(PARTITIONS))):
        bits = to_bitmap(numbers)
        assert len(bits) == 32
        assert list(from_bitmap(bits)) == numbers
    assert to_bitmap([8, 15]) == b"\x00\x81" + bytes(30)

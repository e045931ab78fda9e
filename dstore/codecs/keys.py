"""Dicts of a stranger's keys, made in a time that grows no faster than they do.

Python randomises the hashes of text and bytes, but not those of numbers and of tuples of them. With
16,384 tuples of the same hash, which anybody can write down, one dict takes 7 seconds; so do keys
with different hashes that are looked for in the same places of its table. The former are counted
beforehand. The latter cannot be known without doing what the table does; so a large dict is made
in parts, and given up if that takes the time that only such keys take.
"""

from __future__ import annotations

from itertools import islice
from operator import eq
from time import thread_time
from typing import Any

FEW = 64
"""Keys that may be what they will."""
SAME_HASH_MAX = 32
"""Keys of one dict with the same hash. Honest ones have a few, since -1 and -2 share theirs: of
tuples of five coordinates, 32.
"""
PART = 4096
"""Keys that are put in before the clock is read again."""
SECONDS_FREE, SECONDS_PER_KEY = 0.05, 1e-5
"""Processor time that a dict may take. A key that does not collide takes some 1e-7 seconds."""


def safe_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict of these. Raises ValueError if its keys collide, TypeError if one cannot be a key."""
    if len(pairs) <= FEW:
        return dict(pairs)
    hashes = sorted([hash(key) for key, _ in pairs if type(key) is not str])
    if any(map(eq, hashes, islice(hashes, SAME_HASH_MAX, None))):
        raise ValueError(f"more than {SAME_HASH_MAX} keys of a dict have the same hash")
    if len(hashes) <= PART:
        return dict(pairs)
    made: dict[Any, Any] = {}
    limit = thread_time() + SECONDS_FREE
    for start in range(0, len(pairs), PART):
        made.update(pairs[start : start + PART])
        if thread_time() > limit + SECONDS_PER_KEY * len(made):
            raise ValueError("the keys of a dict collide")
    return made

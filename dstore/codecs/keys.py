"""Building dicts from untrusted keys, in a time that is linear in their number.

Python randomises the hashes of text and bytes, but not those of numbers and of tuples of them. With
16,384 tuples of the same hash, which anybody can write down, one dict takes 7 seconds. So do keys
with different hashes that collide in its table. Equal hashes are counted beforehand. Collisions in
the table cannot be known without doing what the table does; so a large dict is made in steps, and
refused when a step takes the time that only colliding keys take.
"""

from __future__ import annotations

from itertools import islice
from operator import eq
from time import thread_time
from typing import Any

UNCHECKED_MAX = 64
"""Keys of a dict that is made without checks."""
SAME_HASH_MAX = 32
"""Keys of one dict that may have the same hash. Ordinary keys have a few, since -1 and -2 have the
same one: 32 tuples of five coordinates do.
"""
STEP_KEYS = 4096
"""Keys that are added to a dict before the clock is read again."""
SECONDS_FREE = 0.05
"""Seconds of processor time that any dict may take."""
SECONDS_PER_KEY = 1e-5
"""Seconds that each key may add to that. A key that does not collide takes some 1e-7 seconds."""


def safe_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make a dict. Raises ValueError if its keys collide, TypeError if one cannot be a key."""
    if len(pairs) <= UNCHECKED_MAX:
        return dict(pairs)
    hashes = sorted([hash(key) for key, _ in pairs if type(key) is not str])
    if any(map(eq, hashes, islice(hashes, SAME_HASH_MAX, None))):
        raise ValueError(f"more than {SAME_HASH_MAX} keys of a dict have the same hash")
    if len(hashes) <= STEP_KEYS:
        return dict(pairs)
    made: dict[Any, Any] = {}
    limit = thread_time() + SECONDS_FREE
    for start in range(0, len(pairs), STEP_KEYS):
        made.update(pairs[start : start + STEP_KEYS])
        if thread_time() > limit + SECONDS_PER_KEY * len(made):
            raise ValueError("the keys of a dict collide")
    return made

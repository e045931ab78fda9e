"""Which member is to own which partition: rendezvous hashing.

Each member has a score for each partition, and the highest one wins (D. Thaler and C. Ravishankar,
"Using name-based mappings to increase hit rates", 1998). All who know the same members come to the
same result, and a member that comes or goes moves only the partitions that it gets or had.

The result decides nothing by itself: two members that know different members may both claim a
partition, and one of them does not get it.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=16)
def assignment(members: tuple[bytes, ...], partitions: int) -> tuple[bytes | None, ...]:
    """Return the member that is to own each partition; None for all if there are no members."""
    return tuple(
        max(members, key=lambda member: _score(member, number), default=None)
        for number in range(partitions)
    )


def _score(member: bytes, number: int) -> tuple[bytes, bytes]:
    hashed = blake2b(member, digest_size=8, salt=number.to_bytes(2, "big"))
    return hashed.digest(), member

"""What tests of keys with a time to live have in common."""

from __future__ import annotations

from dstore.protocol.messages import SetStatus
from tests.unit.core.world import World

TTL = 10.0
OCCUPIED, STORED, REPLACED = SetStatus.OCCUPIED, SetStatus.STORED, SetStatus.REPLACED


def bound(world: World, key: str = "k") -> bool:
    return world.engine.read(key) is not None

"""A Global that is a member of a cluster, and keys by their partitions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from dstore.core.authority.partitions import Partitions
from dstore.protocol.messages import Key
from dstore.protocol.partitions import partition_of
from tests.unit.core.world import World

OWNED = range(128)
"""The partitions that a :func:`member` owns."""
OWNERSHIP = 100.0
"""Seconds until its ownership lease ends."""


def key_in(partitions: Iterable[int], nth: int = 0) -> Key:
    """The nth key, in some order, of those that are in one of these partitions."""
    wanted = set(partitions)
    keys = (key for key in map("k{}".format, itertools.count()) if partition_of(key) in wanted)
    return next(itertools.islice(keys, nth, None))


MINE, OTHERS = key_in(OWNED), key_in(set(range(256)) - set(OWNED))
"""A key that such a member owns, and one that it does not own."""


def member(owned: Iterable[int] = OWNED, **settings: Any) -> World:
    """A World whose Global owns some partitions, none of them quiet."""
    world = World(partitions=Partitions(0.0), **settings)
    begin_epoch(world, owned)
    return world


def begin_epoch(world: World, owned: Iterable[int] = OWNED) -> Partitions:
    """Global begins another epoch, with an ownership lease from now and these partitions."""
    partitions = world.partitions = Partitions(world.now + OWNERSHIP)
    world.start_global()
    gain(world, owned)
    return partitions


def gain(world: World, numbers: Iterable[int], quiet: float = 0.0, deadlines: Any = ()) -> None:
    """Global gains partitions, which are quiet for some seconds."""
    world._perform(world.state.gain(numbers, deadlines, world.now + quiet, world.now))

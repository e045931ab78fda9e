"""The peers, one adapter for each, in the order in which reports name them."""

from __future__ import annotations

from benchmarks.peers.base import Client, Peer, connected
from benchmarks.peers.echo import Echo
from benchmarks.peers.in_process import Cachetools, Dict, LruCache
from benchmarks.peers.manager import Manager
from benchmarks.peers.on_disk import Diskcache, Fdatasync
from benchmarks.peers.ours import Ours, OursDurable, OursKeyed, OursPure
from benchmarks.peers.over_nats import Nats, NatsDurable
from benchmarks.peers.over_ray import Ray
from benchmarks.peers.over_redis import (
    ProxyStore,
    RedisCached,
    RedisDurable,
    RedisPipelined,
    RedisPlain,
)

PEERS: tuple[Peer, ...] = (
    Ours(),
    OursPure(),
    Dict(),
    LruCache(),
    Cachetools(),
    Echo(),
    RedisPlain(),
    RedisPipelined(),
    RedisCached(),
    ProxyStore(),
    Manager(),
    Nats(),
    Ray(),
    OursKeyed(),
    OursDurable(),
    Fdatasync(),
    RedisDurable(),
    NatsDurable(),
    Diskcache(),
)
BY_NAME = {peer.name: peer for peer in PEERS}
OURS, PURE, DURABLE, KEYED = (
    BY_NAME[each.name] for each in (Ours, OursPure, OursDurable, OursKeyed)
)
ECHO, FDATASYNC = (BY_NAME[each.name] for each in (Echo, Fdatasync))
REDIS_DURABLE = BY_NAME[RedisDurable.name]

__all__ = [
    "BY_NAME", "DURABLE", "ECHO", "FDATASYNC", "KEYED", "OURS", "PEERS", "PURE", "REDIS_DURABLE",
    "Client", "Peer", "connected",
]  # fmt: skip

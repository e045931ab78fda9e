"""The peers, one adapter for each, in the order in which reports name them."""

from __future__ import annotations

from benchmarks.peers.base import Client, Peer, connected
from benchmarks.peers.echo import Echo
from benchmarks.peers.in_process import Cachetools, Dict, LruCache
from benchmarks.peers.manager import Manager
from benchmarks.peers.ours import Ours, OursPure
from benchmarks.peers.over_nats import Nats
from benchmarks.peers.over_ray import Ray
from benchmarks.peers.over_redis import ProxyStore, RedisCached, RedisPipelined, RedisPlain

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
)
BY_NAME = {peer.name: peer for peer in PEERS}
OURS, PURE, ECHO = (BY_NAME[name] for name in (Ours.name, OursPure.name, Echo.name))

__all__ = ["BY_NAME", "ECHO", "OURS", "PEERS", "PURE", "Client", "Peer", "connected"]

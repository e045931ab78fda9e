"""The peers, one adapter for each, in the order in which reports name them."""

from __future__ import annotations

from benchmarks.peers.base import Client, Peer, connected
from benchmarks.peers.echo import Echo
from benchmarks.peers.in_process import Cachetools, Dict, LruCache
from benchmarks.peers.manager import Manager
from benchmarks.peers.ours import Ours
from benchmarks.peers.over_nats import Nats
from benchmarks.peers.over_ray import Ray
from benchmarks.peers.over_redis import ProxyStore, RedisCached, RedisPipelined, RedisPlain

PEERS: tuple[Peer, ...] = (
    Ours(),
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
OURS, ECHO = PEERS[0], PEERS[4]
BY_NAME = {peer.name: peer for peer in PEERS}

__all__ = ["BY_NAME", "ECHO", "OURS", "PEERS", "Client", "Peer", "connected"]

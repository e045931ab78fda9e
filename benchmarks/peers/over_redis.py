"""Peers that keep their values in Redis: redis-py in four ways, and ProxyStore."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.disk import data_folder, no_disk
from benchmarks.peers.base import Client, Peer, module, wanting
from benchmarks.processes import POLL_SECONDS, Place, program

SERVER = (
    "redis-server", "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{folder}",
    "--save", "", "--appendonly", "no", "--protected-mode", "no",
)  # fmt: skip
DURABLE_SERVER = (
    "redis-server", "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{folder}",
    "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--protected-mode", "no",
)  # fmt: skip
LOAD = 5_000
ROOM = 1 << 21
"""Entries of a client's cache: more than any workload has."""
TRACKING_SINCE = "6.0.0"
"""The first Redis that sends invalidations. redis-py's cache demands 7.4; that is relaxed."""


class RedisClient(Client):
    def __init__(self, place: Place, **options: Any) -> None:
        self.redis = module("redis").Redis(host=place.host, port=place.port, **options)
        self.redis.ping()
        self.get = self.redis.get

    def load(self, items: Mapping[str, bytes]) -> None:
        names = list(items)
        for start in range(0, len(names), LOAD):
            self.redis.mset({name: items[name] for name in names[start : start + LOAD]})

    def set(self, key: Any, value: bytes) -> object:
        return self.redis.set(key, value)

    def get_many(self, keys: Sequence[Any]) -> object:
        return self.redis.mget(keys)

    def delete(self, key: Any) -> object:
        return self.redis.delete(key)

    def rebind(self, key: Any, value: bytes) -> None:
        self.redis.delete(key)
        self.redis.set(key, value)

    def bytes_sent(self) -> int:
        return int(self.redis.info("stats")["total_net_output_bytes"])

    def close(self) -> None:
        self.redis.close()


class RedisPlain(Peer):
    name = "redis-py"
    workloads = frozenset(
        {
            "hit", "miss", "clients", "get_many", "host_first", "host_many", "mixed", "delete",
            "join", "answer", "memory_server",
        }
    )  # fmt: skip

    def missing(self) -> str:
        return wanting(["redis"], ["redis-server"])

    def serve(self) -> AbstractContextManager[Place]:
        return program(SERVER)

    def preload(self) -> None:
        module("redis")

    def client(self, place: Place) -> Client:
        return RedisClient(place)


class RedisDurable(RedisPlain):
    """Redis that syncs its log before it answers a write."""

    name = "redis-py, appendfsync always"
    workloads = frozenset({"durable_set", "durable_writers", "durable_start"})

    def missing(self) -> str:
        return super().missing() or no_disk()

    def serve(self) -> AbstractContextManager[Place]:
        return program(DURABLE_SERVER, base=data_folder())

    def client(self, place: Place) -> Client:
        busy = module("redis.exceptions").BusyLoadingError
        while True:
            try:
                return RedisClient(place)
            except busy:
                time.sleep(POLL_SECONDS)


class _PipelinedClient(RedisClient):
    def get_many(self, keys: Sequence[Any]) -> object:
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(key)
            return pipeline.execute()


class RedisPipelined(RedisPlain):
    name = "redis-py, pipelined"
    workloads = frozenset({"get_many"})

    def client(self, place: Place) -> Client:
        return _PipelinedClient(place)


class RedisCached(RedisPlain):
    name = "redis-py, client-side cache"
    caches = True
    workloads = frozenset({"hit", "miss", "mixed", "delete", "join", "memory"})

    def client(self, place: Place) -> Client:
        connections = module("redis.connection")
        connections.CacheProxyConnection.MIN_ALLOWED_VERSION = TRACKING_SINCE
        config = module("redis.cache").CacheConfig(max_size=ROOM)
        return RedisClient(place, protocol=3, cache_config=config)


class _ProxyStoreClient(Client):
    """A Store with its cache, over its connector to Redis. Keys are created in advance."""

    def __init__(self, place: Place) -> None:
        connectors = module("proxystore.connectors.redis")
        self._make_key = connectors.RedisKey
        self._connector = connectors.RedisConnector(place.host, place.port)
        self._store = module("proxystore.store.base").Store(
            "benchmark", self._connector, cache_size=ROOM
        )
        self._redis = module("redis").Redis(host=place.host, port=place.port)
        self.get = self._store.get

    def key(self, name: str) -> Any:
        return self._make_key(redis_key=name)

    def load(self, items: Mapping[str, bytes]) -> None:
        # As its connector binds many values, but with keys of our own.
        serializer, names = self._store.serializer, list(items)
        for start in range(0, len(names), LOAD):
            part = names[start : start + LOAD]
            self._redis.mset({name: bytes(serializer(items[name])) for name in part})

    def delete(self, key: Any) -> object:
        return self._store.evict(key)

    def close(self) -> None:
        self._store.close()
        self._redis.close()


class ProxyStore(RedisPlain):
    name = "ProxyStore over Redis"
    # Not "memory": its cache searches a list, which takes minutes with this number of entries.
    workloads = frozenset({"hit", "miss", "mixed", "join"})
    caches = True
    deletes = False

    def missing(self) -> str:
        return wanting(["proxystore", "redis"], ["redis-server"])

    def client(self, place: Place) -> Client:
        return _ProxyStoreClient(place)

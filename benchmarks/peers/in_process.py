"""Caches of one process, which know of no other process: the least that a hit can cost."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.base import Client, Peer, module, wanting
from benchmarks.processes import Place
from benchmarks.settings import VALUE

ROOM = 1 << 21
"""More entries than any workload has."""


class _DictClient(Client):
    def __init__(self, values: Any) -> None:
        self.get = values.get
        self._values = values

    def load(self, items: Mapping[str, bytes]) -> None:
        self._values.update(items)


class Dict(Peer):
    name = "dict"
    workloads = frozenset({"hit", "memory"})

    def client(self, place: Place) -> Client:
        return _DictClient({})


class _LruClient(Client):
    """A function whose results are remembered, as programs use it."""

    def __init__(self) -> None:
        self.get = functools.lru_cache(maxsize=ROOM)(_computed)

    def load(self, items: Mapping[str, bytes]) -> None:
        for name in items:
            self.get(name)


def _computed(name: str) -> bytes:
    return bytes(bytearray(VALUE))  # a value of its own for each key, as the others have


class LruCache(Peer):
    name = "functools.lru_cache"
    workloads = frozenset({"hit", "memory"})

    def client(self, place: Place) -> Client:
        return _LruClient()


class Cachetools(Peer):
    name = "cachetools.LRUCache"
    workloads = frozenset({"hit", "memory"})

    def missing(self) -> str:
        return wanting(["cachetools"])

    def client(self, place: Place) -> Client:
        return _DictClient(module("cachetools").LRUCache(maxsize=ROOM))

"""Ray's object store. An object is named by its reference; another process, an actor, puts it.

Ray starts some ten processes, which are busy even when they are idle, so it is measured after the
others. It belongs to one process, the harness, and takes part in the workloads of one process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.peers.base import NOWHERE, Client, Peer, module, wanting
from benchmarks.processes import Place
from benchmarks.settings import MIB

STORE_BYTES = 1 << 30
_references: dict[str, Any] = {}
_holders: list[Any] = []
"""Two actors: one has put all objects, which live as long as it does, and the other one reads."""


class _Holder:
    """An actor, in a process of its own: it puts values, and reads those of others."""

    def put(self, values: list[bytes]) -> list[Any]:
        ray = module("ray")
        return [ray.put(_array(value)) for value in values]

    def seconds_to_read(self, wrapped: list[Any]) -> float:
        start = time.perf_counter()
        module("ray").get(wrapped[0])
        return time.perf_counter() - start


def _array(value: bytes) -> Any:
    """Return large bytes as an array, which Ray hands out without a copy; bytes it copies."""
    return value if len(value) < MIB else module("numpy").frombuffer(value, "uint8")


@contextmanager
def _running() -> Iterator[Place]:
    ray = module("ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=2,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
        try:
            _holders.extend(ray.remote(_Holder).remote() for _ in range(2))
            ray.get([each.put.remote([bytes(MIB)]) for each in _holders])  # they have all they need
            yield NOWHERE
        finally:
            _references.clear()
            _holders.clear()
            ray.shutdown()


class RayClient(Client):
    def __init__(self) -> None:
        self._ray = module("ray")
        self.get = self._ray.get

    def key(self, name: str) -> Any:
        return _references[name]

    def load(self, items: Mapping[str, bytes]) -> None:
        found = self._ray.get(_holders[0].put.remote(list(items.values())))
        _references.update(zip(items, found))

    def get_many(self, keys: Sequence[Any]) -> object:
        return self._ray.get(list(keys))

    def forget(self, name: str) -> None:
        """Drop the last reference, and with it the object."""
        del _references[name]

    def seconds_elsewhere(self, name: str) -> float:
        """Return how long another process takes to read an object that this one has read."""
        seconds = _holders[1].seconds_to_read.remote([_references[name]])
        return float(self._ray.get(seconds))


class Ray(Peer):
    name = "Ray's object store"
    workloads = frozenset({"hit", "miss", "get_many"})
    quiet = False

    def missing(self) -> str:
        return wanting(["ray"])

    def serve(self) -> AbstractContextManager[Place]:
        return _running()

    def client(self, place: Place) -> RayClient:
        return RayClient()

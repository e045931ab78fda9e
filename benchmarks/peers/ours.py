"""dstore itself."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dstore
from benchmarks.disk import data_folder, no_disk
from benchmarks.machine import compiled, why_pure
from benchmarks.peers.base import Client, Peer
from benchmarks.processes import Place, hosts, server, temporary_folder

LOAD = 5_000
"""Keys in one call, while loading."""
CACHE_BYTES = 2 << 30
"""More than any workload fills, so that no eviction is measured."""
MEMORY_LIMIT = 8 << 30
SHARES_MEMBERSHIP = "host" in inspect.signature(dstore.Node).parameters
"""Whether this version of dstore has a membership of the host; one that has none has no setting."""


@contextmanager
def _serve(shm: str) -> Iterator[Place]:
    os.environ["DSTORE_HOST"] = "auto"  # whatever the process that began all this was told
    with dstore.Global("tcp://127.0.0.1:0", shm=shm, memory_limit=MEMORY_LIMIT) as running:
        port = int(running.address.rpartition(":")[2])
        yield Place("127.0.0.1", port, os.getpid(), shm)


def serve(shm: str = "") -> AbstractContextManager[Place]:
    """Run a Global in a process of its own. ``shm`` is the shared memory of its host."""
    return server(_serve, shm)


def address(place: Place) -> str:
    return f"tcp://{place.host}:{place.port}"


@contextmanager
def _serve_durably() -> Iterator[Place]:
    with temporary_folder(data_folder()) as data, dstore.Global(
        "tcp://127.0.0.1:0", shm="", memory_limit=MEMORY_LIMIT, data=data
    ) as running:  # fmt: skip
        port = int(running.address.rpartition(":")[2])
        yield Place("127.0.0.1", port, os.getpid())


@contextmanager
def _serve_keyed(shm: str) -> Iterator[Place]:
    from dstore.access.keys import KeyFolder  # here: an earlier version, to compare with, has none
    from dstore.core.authority.identity import Role

    with temporary_folder() as folder:
        keys, connect = os.path.join(folder, "keys"), os.path.join(folder, "connect")
        made = KeyFolder(keys)
        made.create()
        # Clients are told the real address.
        made.add("bench", Role.WRITE, (), "tcp://127.0.0.1:1").save(connect)
        with dstore.Global(
            "tcp://127.0.0.1:0", shm=shm, memory_limit=MEMORY_LIMIT, keys=keys
        ) as running:
            port = int(running.address.rpartition(":")[2])
            yield Place("127.0.0.1", port, os.getpid(), shm, connect)


def serve_keyed(shm: str = "") -> AbstractContextManager[Place]:
    """Run a Global that asks for keys; what :func:`serve` does otherwise."""
    return server(_serve_keyed, shm)


@contextmanager
def _on_one_host() -> Iterator[Place]:
    with hosts() as host, serve(host("one")) as place:
        yield place


class OurClient(Client):
    """A Node. By default it is on the host of the Place, and has the settings that users have.

    On a Place without shared memory it is a host by itself, with a cache that evicts nothing.
    ``shm`` names the shared memory of another host.
    """

    def __init__(self, place: Place, shm: str | None = None) -> None:
        settings: dict[str, Any] = {"shm": place.folder if shm is None else shm}
        on_host = shm is None and bool(place.folder)
        if not on_host:
            settings["cache_bytes"] = CACHE_BYTES
        if place.connect:
            settings["connect"] = place.connect
        if SHARES_MEMBERSHIP:
            settings["host"] = "require" if on_host else "auto" if shm else "off"
        self.node = dstore.Node(address(place), **settings)
        self.get = self.node.get

    def load(self, items: Mapping[str, bytes]) -> None:
        names = list(items)
        for start in range(0, len(names), LOAD):
            self.node.set_many({name: items[name] for name in names[start : start + LOAD]})

    def set(self, key: str, value: bytes) -> None:
        self.node.set(key, value)

    def hold(self, names: Sequence[str]) -> None:
        self.node.get_many(names)

    def get_many(self, keys: Sequence[str]) -> object:
        return self.node.get_many(keys)

    def delete(self, key: str) -> dstore.Deletion:
        return self.node.delete(key)

    def rebind(self, key: str, value: bytes) -> None:
        try:
            self.node.delete(key)
        except dstore.KeyMissing:  # another process is about to bind it
            return
        try:
            self.node.set(key, value)
        except dstore.KeyOccupied:  # another process was faster
            pass

    def bytes_sent(self) -> int:
        return int(self.node.global_stats()["bytes_out"])

    def close(self) -> None:
        self.node.close()


class Ours(Peer):
    name = "dstore"
    caches = True
    workloads = frozenset(
        {
            "hit", "miss", "clients", "get_many", "host_first", "host_many", "mixed", "delete",
            "join", "answer", "memory", "durable_set", "durable_writers", "keyed_hit",
            "keyed_miss",
        }
    )  # fmt: skip

    def serve(self) -> AbstractContextManager[Place]:
        return serve()

    def serve_on_host(self) -> AbstractContextManager[Place]:
        return _on_one_host()

    def client(self, place: Place) -> OurClient:
        return OurClient(place)


class OursPure(Ours):
    """dstore in pure Python, beside a compiled one."""

    name = "dstore, pure"
    workloads = frozenset({"hit", "host_first", "host_many", "memory"})
    pure = True

    def missing(self) -> str:
        return "" if compiled() else f"a compiled dstore beside it, and {why_pure()}"


class OursDurable(Ours):
    """dstore with a data folder."""

    name = "dstore, durable"
    workloads = frozenset({"durable_set", "durable_writers", "durable_start"})

    def missing(self) -> str:
        return no_disk()

    def serve(self) -> AbstractContextManager[Place]:
        return server(_serve_durably)


class OursKeyed(Ours):
    """dstore with keys: all that travels is encrypted."""

    name = "dstore, with keys"
    workloads = frozenset({"keyed_hit", "keyed_miss"})

    def serve(self) -> AbstractContextManager[Place]:
        return serve_keyed()

"""The key-value store of NATS JetStream, in memory, and on a disk.

Its client is for asyncio. A block of operations runs in one coroutine, so that entering the event
loop takes no time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.disk import data_folder, no_disk
from benchmarks.machine import versions
from benchmarks.peers.base import Client, Peer, module, wanting
from benchmarks.processes import Place, program, temporary_folder

SERVER = ("nats-server", "-a", "127.0.0.1", "-p", "{port}", "-js", "-sd", "{folder}")
BUCKET = "benchmark"
SYNCED = """\
jetstream {{
    store_dir: "{folder}"
    sync_interval: always
}}
"""
SYNCS_SINCE = 2, 10
"""The first version of the server that can sync each write."""
AT_ONCE = 500
"""Requests on their way, while loading."""


class _NatsClient(Client):
    storage = "MEMORY"

    def __init__(self, place: Place) -> None:
        self._loop = asyncio.new_event_loop()
        self._run(self._connect(f"nats://{place.host}:{place.port}"))
        self.get = self._get

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    async def _connect(self, url: str) -> None:
        self._connection = await module("nats").connect(url)
        stream = self._connection.jetstream()
        try:
            self._bucket = await stream.key_value(BUCKET)
        except module("nats.js.errors").NotFoundError:
            storage = module("nats.js.api").StorageType[self.storage]
            self._bucket = await stream.create_key_value(
                bucket=BUCKET, storage=storage, direct=True
            )
        self._missing = module("nats.js.errors").KeyNotFoundError

    def load(self, items: Mapping[str, bytes]) -> None:
        async def put() -> None:
            pairs = list(items.items())
            for start in range(0, len(pairs), AT_ONCE):
                part = pairs[start : start + AT_ONCE]
                await asyncio.gather(*(self._bucket.put(key, value) for key, value in part))

        self._run(put())

    def set(self, key: str, value: bytes) -> object:
        return self._run(self._bucket.put(key, value))

    def _get(self, key: str) -> object:
        async def get() -> object:
            try:
                return (await self._bucket.get(key)).value
            except self._missing:
                return None

        return self._run(get())

    def timed(self, keys: Sequence[str]) -> list[float]:
        async def all_of_them() -> list[float]:
            times = []
            for key in keys:
                start = time.perf_counter()
                await self._bucket.get(key)
                times.append(time.perf_counter() - start)
            return times

        found: list[float] = self._run(all_of_them())
        return found

    def mean_time(self, keys: Sequence[str]) -> float:
        return sum(self.timed(keys)) / len(keys)

    def get_many(self, keys: Sequence[str]) -> object:
        async def all_at_once() -> object:
            return await asyncio.gather(*(self._bucket.get(key) for key in keys))

        return self._run(all_at_once())

    def delete(self, key: str) -> object:
        return self._run(self._bucket.delete(key))

    def rebind(self, key: str, value: bytes) -> None:
        self._run(self._bucket.delete(key))
        self._run(self._bucket.put(key, value))

    def close(self) -> None:
        self._run(self._connection.close())
        left = asyncio.all_tasks(self._loop)  # after Ctrl-C
        for task in left:
            task.cancel()
        self._run(_all_of(left))
        self._loop.close()


async def _all_of(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


class Nats(Peer):
    name = "NATS KV"
    workloads = frozenset(
        {"hit", "miss", "clients", "get_many", "mixed", "delete", "join", "memory_server"}
    )

    def missing(self) -> str:
        return wanting(["nats"], ["nats-server"])

    def serve(self) -> AbstractContextManager[Place]:
        return program(SERVER)

    def client(self, place: Place) -> Client:
        return _NatsClient(place)


class _DurableClient(_NatsClient):
    storage = "FILE"


class NatsDurable(Nats):
    """NATS that syncs each write before it confirms it."""

    name = "NATS KV, sync always"
    workloads = frozenset({"durable_set", "durable_writers"})

    def missing(self) -> str:
        if missing := super().missing() or no_disk():
            return missing
        version = versions().get("nats-server", "0")
        if tuple(map(int, version.split(".")[:2])) < SYNCS_SINCE:
            return f"nats-server {SYNCS_SINCE[0]}.{SYNCS_SINCE[1]} or later, and not {version}"
        return ""

    @contextmanager
    def serve(self) -> Iterator[Place]:
        with temporary_folder(data_folder()) as folder:
            settings = Path(folder, "settings")
            settings.write_text(SYNCED.format(folder=folder), encoding="utf-8")
            command = "nats-server", "-a", "127.0.0.1", "-p", "{port}", "-c", str(settings)
            with program(command) as place:
                yield place

    def client(self, place: Place) -> Client:
        return _DurableClient(place)

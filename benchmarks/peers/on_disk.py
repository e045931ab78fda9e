"""Contenders without a server, whose processes write to a disk themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.disk import SyncedFile, data_folder, no_disk
from benchmarks.peers.base import Client, Peer, module, wanting
from benchmarks.processes import Place, temporary_folder

LOCK_TIMEOUT = 60
"""Seconds for which a process waits while others write."""
SYNCHRONOUS_FULL = 2
"""SQLite's setting with which a commit has been synced when it returns."""


@contextmanager
def _folder() -> Iterator[Place]:
    with temporary_folder(data_folder()) as folder:
        yield Place("", 0, 0, folder)


class _FdatasyncClient(Client):
    def __init__(self, place: Place) -> None:
        self._file = SyncedFile(place.folder)

    def set(self, key: object, value: bytes) -> None:
        self._file.write()

    def close(self) -> None:
        self._file.close()


class Fdatasync(Peer):
    """The physical limit: a page is written, and synced."""

    name = "one fdatasync"
    workloads = frozenset({"durable_set"})

    def missing(self) -> str:
        return no_disk()

    def serve(self) -> AbstractContextManager[Place]:
        return _folder()

    def client(self, place: Place) -> Client:
        return _FdatasyncClient(place)


class _DiskcacheClient(Client):
    def __init__(self, place: Place) -> None:
        self._cache = module("diskcache").Cache(
            place.folder, timeout=LOCK_TIMEOUT, sqlite_synchronous=SYNCHRONOUS_FULL
        )
        self.get = self._cache.get

    def load(self, items: Mapping[str, bytes]) -> None:
        with self._cache.transact():
            for name, value in items.items():
                self._cache.set(name, value)

    def set(self, key: Any, value: bytes) -> object:
        return self._cache.set(key, value)

    def close(self) -> None:
        self._cache.close()


class Diskcache(Peer):
    """A cache in SQLite, which each process opens. By default its last writes may be lost."""

    name = "diskcache, synchronous FULL"
    workloads = frozenset({"durable_set", "durable_writers"})

    def missing(self) -> str:
        return wanting(["diskcache"]) or no_disk()

    def serve(self) -> AbstractContextManager[Place]:
        return _folder()

    def client(self, place: Place) -> Client:
        return _DiskcacheClient(place)

"""A dict in the manager process of :mod:`multiprocessing`."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.managers import BaseManager, DictProxy

from benchmarks.peers.base import Client, Peer
from benchmarks.processes import Place, server

AUTHKEY = b"benchmark"
_values: dict[str, bytes] = {}


class _Manager(BaseManager):
    """What ``multiprocessing.Manager`` starts, at an address that other processes can get."""


def _the_dict() -> dict[str, bytes]:
    return _values


_Manager.register("values", _the_dict, DictProxy)


@contextmanager
def _serve() -> Iterator[Place]:
    running = _Manager(authkey=AUTHKEY).get_server()  # at a Unix socket, as by default
    thread = threading.Thread(target=_run, args=(running,), daemon=True)
    thread.start()
    assert isinstance(running.address, str)
    yield Place(running.address, 0, os.getpid())
    running.stop_event.set()  # type: ignore[attr-defined]


def _run(running: object) -> None:
    try:
        running.serve_forever()  # type: ignore[attr-defined]
    except SystemExit:  # how it ends
        pass


class _ManagerClient(Client):
    def __init__(self, place: Place) -> None:
        multiprocessing.current_process().authkey = AUTHKEY
        manager = _Manager(place.host, AUTHKEY)
        manager.connect()
        self._values = manager.values()  # type: ignore[attr-defined]
        self.get = self._values.get

    def load(self, items: Mapping[str, bytes]) -> None:
        self._values.update(items)

    def delete(self, key: str) -> object:
        return self._values.pop(key)

    def rebind(self, key: str, value: bytes) -> None:
        self._values.pop(key, None)
        self._values[key] = value


class Manager(Peer):
    name = "multiprocessing.Manager"
    workloads = frozenset(
        {"hit", "miss", "clients", "get_many", "mixed", "delete", "join", "memory_server"}
    )

    def serve(self) -> AbstractContextManager[Place]:
        return server(_serve)

    def client(self, place: Place) -> Client:
        return _ManagerClient(place)

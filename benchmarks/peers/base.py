"""A peer, as the harness sees it: a server that it starts, and clients of that server."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from benchmarks import measure
from benchmarks.processes import Place

NOWHERE = Place("", 0, 0)


class Client:
    """The access of one process to a peer, with its cache if it has one.

    ``get`` is an attribute, so that it can be the peer's own function without one more call. It
    receives what ``key`` makes of a name.
    """

    get: Callable[[Any], object]
    kept: object = None
    """A value that is to stay in memory for a while."""

    def key(self, name: str) -> Any:
        """Return the key that the peer has for a name."""
        return name

    def load(self, items: Mapping[str, bytes]) -> None:
        """Bind many keys as fast as the peer can."""
        raise NotImplementedError

    def set(self, key: Any, value: bytes) -> object:
        """Bind a key that has no value. Returns when the server has confirmed it."""
        raise NotImplementedError

    def hold(self, names: Sequence[str]) -> None:
        """Read keys, so that they are in the cache."""
        for name in names:
            self.get(self.key(name))

    def get_many(self, keys: Sequence[Any]) -> object:
        for key in keys:
            self.get(key)
        return None

    def delete(self, key: Any) -> object:
        raise NotImplementedError

    def rebind(self, key: Any, value: bytes) -> None:
        """Delete a key and bind it again, while others may do the same."""
        raise NotImplementedError

    def bytes_sent(self) -> int:
        """Return the bytes that the server has sent since it started."""
        raise NotImplementedError

    def close(self) -> None:
        return None

    def timed(self, keys: Sequence[Any]) -> list[float]:
        """Return the seconds of each ``get``."""
        return measure.timed(self.get, keys)

    def mean_time(self, keys: Sequence[Any]) -> float:
        """Return the mean seconds of a ``get``."""
        return measure.mean_time(self.get, keys)


class Peer:
    """A system that a user could take instead of dstore, or a physical limit.

    A peer can be pickled. ``workloads`` are the names of the workloads in which it takes part. A
    peer that is not ``quiet`` disturbs others even when it is idle, and is measured after them.
    """

    name: str
    workloads: frozenset[str]
    quiet: bool = True
    caches: bool = False
    """Whether a client caches what it has read."""
    pure: bool = False
    """Whether its client runs in a process in which dstore has no compiled part."""
    deletes: bool = True
    """Whether a deletion reaches the caches of other processes."""

    def missing(self) -> str:
        """Return what has to be installed first, or an empty text."""
        return ""

    def serve(self) -> AbstractContextManager[Place]:
        return nullcontext(NOWHERE)

    def serve_on_host(self) -> AbstractContextManager[Place]:
        """Serve clients on the server's own host, with all that processes of a host can share."""
        return self.serve()

    def preload(self) -> None:
        """Import what a client needs."""

    def client(self, place: Place) -> Client:
        raise NotImplementedError


@contextmanager
def connected(peer: Peer, place: Place, *_: object) -> Iterator[Client]:
    """Yield a client of a peer, and close it at the end."""
    client = peer.client(place)
    try:
        yield client
    finally:
        client.close()


def module(name: str) -> Any:
    """Import a module that may not be installed where types are checked."""
    return importlib.import_module(name)


def wanting(packages: Sequence[str] = (), programs: Sequence[str] = ()) -> str:
    """Return which packages and programs are missing, and how to get them."""
    lines = [
        f"the package {name} (pip install {name.replace('nats', 'nats-py')})"
        for name in packages
        if importlib.util.find_spec(name) is None
    ]
    lines += [
        f"the program {name} (from the system: apt-get install {name})"
        for name in programs
        if shutil.which(name) is None
    ]
    return " and ".join(lines)

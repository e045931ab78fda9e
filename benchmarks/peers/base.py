"""What a peer is to the harness: a server that it starts, and clients of it."""

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
    """One process's access to a peer, with its cache if it has one.

    ``get`` is an attribute, so that a peer's own function can stand there and nothing comes on top.
    It is given what ``key`` makes of a name.
    """

    get: Callable[[Any], object]
    kept: object = None
    """What is to stay in memory for a while."""

    def key(self, name: str) -> Any:
        return name

    def load(self, items: Mapping[str, bytes]) -> None:
        """Bind many keys, as fast as the peer can."""
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
        """Delete a key and bind it anew; others may be doing the same."""
        raise NotImplementedError

    def bytes_sent(self) -> int:
        """By the server, since it began."""
        raise NotImplementedError

    def close(self) -> None:
        return None

    def timed(self, keys: Sequence[Any]) -> list[float]:
        """The seconds of each ``get``."""
        return measure.timed(self.get, keys)

    def mean_time(self, keys: Sequence[Any]) -> float:
        """The mean seconds of a ``get``."""
        return measure.mean_time(self.get, keys)


class Peer:
    """Something that a user could take instead of dstore, or a physical limit.

    It may be sent to other processes. ``workloads`` are the names of those that make sense for it.
    One that is not ``quiet`` disturbs others by merely being there, and is measured after them.
    """

    name: str
    workloads: frozenset[str]
    quiet: bool = True
    caches: bool = False
    """Whether a client holds what it has read."""
    deletes: bool = True
    """Whether its users can rely on a deletion: caches of other processes learn of it."""

    def lacks(self) -> str:
        """What has to be installed before it can take part; empty if nothing."""
        return ""

    def serve(self) -> AbstractContextManager[Place]:
        return nullcontext(NOWHERE)

    def client(self, place: Place) -> Client:
        raise NotImplementedError


@contextmanager
def connected(peer: Peer, place: Place, *_: object) -> Iterator[Client]:
    """A client, closed in the end."""
    client = peer.client(place)
    try:
        yield client
    finally:
        client.close()


def module(name: str) -> Any:
    """A module that may not be installed where types are checked."""
    return importlib.import_module(name)


def wanting(packages: Sequence[str] = (), programs: Sequence[str] = ()) -> str:
    """What is missing, and how to get it."""
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

"""Members of a cluster without a database: Globals in threads, whose partitions a test moves.

A :class:`Member` has real sockets and the real core. It ends its epoch, gives partitions up, gains
them, and learns of a map only when the test says so: every race is in the order of the test.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from dstore import config
from dstore.core.authority.effects import GlobalEffect, Publish, Send
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.protocol import wire
from dstore.protocol.messages import Key, Stored
from dstore.protocol.partitions import NOBODY, PARTITIONS, partition_of
from dstore.runtime import clock
from dstore.server.engines.memory import MemoryEngine
from dstore.shm import bulk_for
from dstore.transport.router import Router

LEASE = 0.3
CLUSTER = b"cluster of tests"
"""The id of the cluster of all members."""
FOREVER = 1e12
ANY_PORT = "tcp://127.0.0.1:0"
ALL = range(PARTITIONS)


def key_in(numbers: Iterable[int], name: str = "k") -> Key:
    """Return a key whose partition is one of these."""
    wanted = set(numbers)
    return next(key for n in range(100_000) if partition_of(key := f"{name}{n}") in wanted)


class Member:
    """One Global. ``deaf``: what arrives is not answered, as if its process were stopped."""

    def __init__(
        self, numbers: Iterable[int], address: str = ANY_PORT, lease: float = LEASE
    ) -> None:
        self.router = Router(address, None if address == ANY_PORT else ANY_PORT)
        self.address = self.router.address
        self.engine = MemoryEngine()
        self.deaf = False
        self.seen: list[str] = []  # the names of the messages that have arrived
        self.state: GlobalState
        self.partitions = Partitions(FOREVER, CLUSTER)
        self._lease = lease
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._bulks: list[Any] = []
        self._begin(numbers)
        self._thread = threading.Thread(target=self._serve, name="test-member")
        self._thread.start()

    def _begin(self, numbers: Iterable[int]) -> None:
        """Begin a new epoch, which owns these partitions."""
        epoch = secrets.randbits(63) | 1
        self._bulks.append(bulk_for(epoch, "", None))
        former, self.partitions = self.partitions, Partitions(FOREVER, CLUSTER)
        self.partitions.gain(numbers, 0.0)
        self.partitions.map = former.map
        self.state = GlobalState(
            self.engine,
            self._bulks[-1],
            epoch=epoch,
            publisher=self.router.advertised,
            lease=self._lease,
            log_length=config.LOG_LENGTH_DEFAULT,
            value_limit=config.VALUE_LIMIT_DEFAULT,
            large_from=config.LARGE_FROM_DEFAULT,
            random63=partial(secrets.randbits, 63),
            wall=time.time,
            partitions=self.partitions,
        )

    def _serve(self) -> None:
        while True:
            arrived = self.router.receive(min(self.state.wake_at - clock.now(), 1.0))
            if arrived is not None:
                route, frame, data, identity = arrived
                message = wire.decode_to_global(frame, data)
                self.seen.append(type(message).__name__)
                if not self.deaf:
                    now = clock.now()
                    self._perform(self.state.receive(route, message, now, identity))
            if not self.deaf and clock.now() >= self.state.wake_at:
                self._perform(self.state.tick(clock.now()))
            while not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    return
                job()

    def _perform(self, effects: list[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                message = effect.message
                self.router.send(effect.route, wire.encode(message), wire.data_of(message))
            else:
                assert isinstance(effect, Publish)
                self.router.publish(wire.encode(effect.message))

    def do(self, job: Callable[[], Any]) -> Any:
        """Have a function called in the thread that serves, and return its result."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put(lambda: done.put(job()))
        self.router.wake()
        return done.get(timeout=10)

    def give_up(self, numbers: Iterable[int] = ()) -> dict[Key, Stored]:
        """End the epoch, and begin one without these partitions. Returns what is in them."""

        def job() -> dict[Key, Stored]:
            lost = set(numbers)
            kept = [n for n in ALL if n not in lost and self.partitions._quiet[n] is not None]
            self._perform(self.state.end())
            rows = {}
            for key in self.engine.scan("", "", 1 << 30):
                if partition_of(key) in lost:
                    stored = self.engine.read(key)
                    assert stored is not None
                    rows[key] = stored
                    self.engine.remove(key, stored.token)
            self._begin(kept)
            return rows

        rows: dict[Key, Stored] = self.do(job)
        return rows

    def gain(self, numbers: Iterable[int], rows: dict[Key, Stored], quiet: float = 0.0) -> None:
        """Serve these partitions, in which the rows are."""

        def job() -> None:
            for key, stored in rows.items():
                self.engine.bind(key, stored)
            now = clock.now()
            self._perform(self.state.gain(numbers, [], now + quiet, now))

        self.do(job)

    def owned(self) -> list[int]:
        return [n for n in ALL if self.partitions._quiet[n] is not None]

    def close(self) -> None:
        self._jobs.put(None)
        self.router.wake()
        self._thread.join()
        self.router.close()
        for bulk in self._bulks:
            bulk.close()


class Cluster:
    """Some members. ``publish`` lets them know of the present map."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.version = 0
        self.publish()

    @property
    def address(self) -> str:
        """The addresses of all members."""
        return ",".join(each.address for each in self.members)

    def owner(self, key: Key) -> Member:
        return next(each for each in self.members if each.partitions.owns(key))

    def publish(self, *told: Member) -> None:
        """Let members, by default all, know who owns what at present."""
        self.version += 1
        owners = bytearray([NOBODY] * PARTITIONS)
        for index, member in enumerate(self.members):
            for number in member.owned():
                owners[number] = index
        found = (self.version, [each.address for each in self.members], bytes(owners))
        for member in told or self.members:
            member.partitions.map = found

    def move(self, numbers: Iterable[int], source: Member, target: Member) -> None:
        """Move partitions, with all that follows from it."""
        target.gain(numbers, source.give_up(numbers), quiet=source._lease)
        self.publish()


@contextmanager
def cluster_of(count: int, **settings: Any) -> Iterator[Cluster]:
    """Run members, each with an equal part of the partitions."""
    with ExitStack() as stack:
        members = []
        for index in range(count):
            members.append(Member(range(index, PARTITIONS, count), **settings))
            stack.callback(members[-1].close)
        yield Cluster(members)

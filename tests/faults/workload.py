"""A client process: ``python -m tests.faults.workload SETTINGS``. It ends when its stdin does.

- A *worker* keeps one Node, for a thread that mixes all operations and one that reads in bursts,
  and perhaps for one that watches and one that waits (:mod:`tests.faults.watching`). Those go on
  when it was asked to be quiet, by any byte on its stdin. A file NAME.quiet says that it is.
- A *reader* keeps one Node, and only reads in bursts.
- A *guest* repeatedly makes a Node, uses it for a moment, and closes it.
- A *flooder* sets thousands of keys, waits until they have been read, stops another process (its
  *victim*), deletes most of the keys in small calls, so that the broadcasts to the victim overflow,
  continues the victim, and deletes the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import zmq

import dstore
from tests.faults.broken_client import BROKEN_CLIENTS, NOTHING
from tests.faults.client import OF_SEVERAL, OPERATIONS, Client, Keys, now
from tests.faults.records import Recorder
from tests.faults.tasks import TaskNode
from tests.faults.tether import tether
from tests.faults.watching import Waiter, Watcher, round_of

PAUSE_MAX = 0.006
"""Seconds between two operations of a thread."""
READER_PAUSE_MAX = 0.02
"""Seconds between two bursts of reads."""
GUEST_OPERATIONS = 10
"""Operations of one visit of a guest."""
METRICS_EVERY = 10
"""Turns after which the metrics of the Node are recorded."""
FLOOD_SET = 500
"""Keys that a flood sets in one call: one message, so that none is bound if the call is refused."""
FLOOD_CALL = 3
"""Keys that a flood deletes in one call."""
FLOOD_DELETES = 0.03
"""Ordinary deletions for each call of a flood."""
FLOOD_READ_SECONDS = 0.5
"""Seconds in which other clients may read the keys of a flood."""
FLOOD_AFTER = 1200
"""Keys of a flood that are deleted after its victim continues."""
FLOOD_CONFIRMED = 300
"""Those of them that are deleted in one call at the end, with confirmation."""
COUNTED = ("drops", "flushes", "gaps", "joins", "fills", "evictions", "hits", "host_hits", "misses")


@dataclass(frozen=True)
class Settings:
    """The settings of a client process. ``begin`` is when the first round began, in ns.

    ``shm`` is the folder of its "host", and ``host`` whether it shares the membership of that.
    ``large`` is the part of the values that are large. ``pause`` is the longest pause between two
    operations, in seconds. A client of several Globals binds its sockets to ``source``, an address
    by which the relay tells it from others.

    ``connect`` is its connect file if Global asks for keys. With ``tasks`` it has an AsyncNode,
    with ``watches`` it watches and waits, too, with ``called_back`` its Node has ``on_deletion``.
    ``place`` is whose page the "host" has, for the counts. ``broken`` is the rule that the process
    breaks; see :mod:`tests.faults.broken_client`.
    """

    name: str
    role: str
    address: str
    folder: str
    seed: int
    begin: int
    round_ns: int
    timeout: float
    cache_bytes: int
    hot: int = 4
    cold: int = 150
    flood: int = 6000
    victim: int = 0
    shm: str | None = None
    host: str = "off"
    large: float = 0.0
    pause: float = PAUSE_MAX
    source: str = ""
    connect: str = ""
    tasks: bool = False
    watches: bool = False
    called_back: bool = False
    place: str = ""
    broken: str = NOTHING

    def dump(self) -> str:
        return json.dumps(asdict(self))


class Process:
    """What one client process does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        """Set when it is to be quiet, that is, to write and read nothing more."""
        self.over = threading.Event()
        """Set when it is to end."""
        self._deleted: deque[tuple[str, int]] = deque()  # what on_deletion was called with

    def keys(self) -> Keys:
        """The keys of the present round."""
        mine = self.settings
        return Keys((now() - mine.begin) // mine.round_ns, mine.hot, mine.cold, mine.flood)

    def node(self) -> dstore.Node:
        mine = self.settings

        def called(key: str | bytes) -> None:
            self._deleted.append((str(key), now()))

        settings: dict[str, Any] = {
            "connect": mine.connect or None,
            "timeout": mine.timeout,
            "cache_bytes": mine.cache_bytes,
            "label": mine.name,
            "shm": mine.shm,
            "host": mine.host,
            "on_deletion": called if mine.called_back else None,
        }
        if mine.tasks:
            made = TaskNode(lambda: dstore.AsyncNode(mine.address, **settings))
            return cast(dstore.Node, made)
        return dstore.Node(mine.address, **settings)

    def run(self) -> None:
        getattr(self, self.settings.role)()

    # ---- roles ----------------------------------------------------------------------------

    def worker(self) -> None:
        with self.node() as node:
            threads = [
                threading.Thread(target=partial(self._record, name, node, turn))
                for name, turn in (("mixer", self._mix), ("reader", self._read))
            ]
            watcher = threading.Thread(target=self._watch, args=(node,))
            waiter = threading.Thread(target=self._wait, args=(node,))
            others = [watcher, waiter] if self.settings.watches else []
            for thread in (*threads, *others):
                thread.start()
            for thread in threads:
                thread.join()
            (Path(self.settings.folder) / f"{self.settings.name}.quiet").touch()
            self.over.wait()
            if others:
                watcher.join()
                node.close()
                waiter.join()

    def reader(self) -> None:
        with self.node() as node:
            self._record("reader", node, self._read)

    def guest(self) -> None:
        visits = 0
        while not self.stopping.is_set():
            visits += 1
            with self.node() as node:
                self._record(f"visit{visits}", node, self._mix, GUEST_OPERATIONS)

    def flooder(self) -> None:
        with self.node() as node:
            self._record("flood", node, self._flood, 1)

    # ---- watching and waiting -------------------------------------------------------------

    def _watch(self, node: dstore.Node) -> None:
        process = f"{self.settings.name}.watcher"
        rng = random.Random(f"{self.settings.seed} {process}")
        folder = Path(self.settings.folder)
        with Recorder(folder, process) as recorder:
            recorder.enter(self.keys().number)
            watcher = Watcher(node, recorder, folder, process, rng, self.keys)
            self._guarded(recorder, watcher.run)

    def _wait(self, node: dstore.Node) -> None:
        process = f"{self.settings.name}.waiter"
        rng = random.Random(f"{self.settings.seed} {process}")
        with Recorder(Path(self.settings.folder), process) as recorder:
            recorder.enter(self.keys().number)
            client = Client(node, recorder, rng, process, several=True)
            waiter = Waiter(client, recorder, rng, self.settings.timeout, self.keys)
            self._guarded(recorder, waiter.run)

    def _guarded(self, recorder: Recorder, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self.over)
        except Exception:
            recorder.surprise(traceback.format_exc())

    def _record_deleted(self, recorder: Recorder) -> None:
        """Record what ``on_deletion`` was called with."""
        while self._deleted:
            key, at = self._deleted.popleft()
            if (number := round_of(key)) is not None:
                recorder.enter(number)
                recorder.notice(key, at, False)

    # ---- turns ----------------------------------------------------------------------------

    def _mix(self, client: Client, keys: Keys, rng: random.Random) -> None:
        frequencies = OF_SEVERAL if self.settings.source else OPERATIONS
        (operation,) = rng.choices(list(frequencies), list(frequencies.values()))
        operation(client, keys)

    def _read(self, client: Client, keys: Keys, rng: random.Random) -> None:
        client.burst(keys.loose(rng) if rng.random() < 0.2 else keys.any(rng))

    def _flood(self, client: Client, keys: Keys, rng: random.Random) -> None:
        names = list(map(keys.flooded, range(keys.flood)))
        for at in range(0, len(names), FLOOD_SET):
            if self.stopping.is_set():
                return
            client.bind_many(names[at : at + FLOOD_SET])
        rng.shuffle(names)
        self.stopping.wait(FLOOD_READ_SECONDS)
        os.kill(self.settings.victim, signal.SIGSTOP)
        try:
            self._delete(client, keys, rng, names[FLOOD_AFTER:])
        finally:
            os.kill(self.settings.victim, signal.SIGCONT)
        self._delete(client, keys, rng, names[FLOOD_CONFIRMED:FLOOD_AFTER])
        client.remove_many(names[:FLOOD_CONFIRMED], wait=True)

    def _delete(self, client: Client, keys: Keys, rng: random.Random, names: list[str]) -> None:
        for at in range(0, len(names), FLOOD_CALL):
            if self.stopping.is_set():
                return
            client.remove_many(names[at : at + FLOOD_CALL], wait=False)
            if rng.random() < FLOOD_DELETES:
                client.delete(keys)

    def _record(
        self,
        name: str,
        node: dstore.Node,
        turn: Callable[[Client, Keys, random.Random], None],
        turns: int = sys.maxsize,
    ) -> None:
        """Take ``turns`` turns, or until the process is to end, and record them."""
        mine = self.settings
        process = f"{mine.name}.{name}"
        rng = random.Random(f"{mine.seed} {process}")
        with Recorder(Path(mine.folder), process) as recorder:
            client = Client(node, recorder, rng, process, mine.large, bool(mine.source))
            metrics = _Metrics(node, recorder, mine.place)
            number = 0
            while number < turns and not self.stopping.is_set():
                number += 1
                keys = self.keys()  # an operation and its keys belong to one round
                recorder.enter(keys.number)
                try:
                    turn(client, keys, rng)
                except Exception:
                    recorder.surprise(traceback.format_exc())
                    return
                if name != "reader":
                    self._record_deleted(recorder)
                if name != "reader" and number % METRICS_EVERY == 0:
                    metrics.note()
                longest = READER_PAUSE_MAX if name == "reader" else mine.pause
                time.sleep(rng.random() * longest)


class _Metrics:
    """Records what the Node has counted since the last time."""

    def __init__(self, node: dstore.Node, recorder: Recorder, place: str) -> None:
        self._node = node
        self._recorder = recorder
        self._place = place
        self._before: Counter[str] = Counter()

    def note(self) -> None:
        stats = self._node.stats()
        metrics = Counter({name: stats[name] for name in COUNTED})
        if news := metrics - self._before:
            if self._place:
                news[f"host_hits {self._place}"] = news["host_hits"]
            self._recorder.count(news)
        self._before = metrics


def connect_from(source: str) -> None:
    """Bind all sockets of this process that connect to a Global to an address of this machine."""

    def bound(method: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def call(sock: Any, address: str) -> Any:
            return method(sock, address.replace("tcp://", f"tcp://{source}:0;", 1))

        return call

    # ZeroMQ knows a connection by the very address that it was given.
    zmq.Socket.connect = bound(zmq.Socket.connect)  # type: ignore[assignment, method-assign]
    zmq.Socket.disconnect = bound(  # type: ignore[assignment, method-assign]
        zmq.Socket.disconnect
    )


def main() -> None:
    process = Process(Settings(**json.loads(sys.argv[1])))
    BROKEN_CLIENTS[process.settings.broken]()
    if process.settings.source:
        connect_from(process.settings.source)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tether()

    def wait_for_the_end() -> None:
        while os.read(sys.stdin.fileno(), 1):
            process.stopping.set()
        process.stopping.set()
        process.over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    process.run()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

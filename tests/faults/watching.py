"""The threads of a worker that watch and wait, as a program would, and record what they see.

A :class:`Watcher` follows all keys. It keeps a copy of some of them, and reads a key again when its
watch says that it was deleted, or all of them after a resync. What it has in the end, when nobody
has written for a while, is recorded as if it was read then: a copy that an event should have
changed is a stale read. A :class:`Waiter` waits for keys.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dstore
from tests.faults.client import Client, Keys, now
from tests.faults.records import Recorder, WatchRecorder

TAKE_SECONDS = 0.1
"""Seconds for which a watcher waits for an event before it does something else."""
COPIED = 12
"""Keys of each round that a watcher keeps a copy of."""
COPIED_AT_ONCE = 64
"""Keys that it reads again in one call."""
HELD_SECONDS = 2.0
"""Seconds by which a copy may be late while there is no fault."""
WAITS = (0.3, 30.0)
"""Seconds for which a waiter waits: less than most faults last, and more."""
AWAITED_PART = 0.7
"""The part of the waits that are for keys which are never deleted."""
WAIT_GRACE = 10.0
"""Seconds by which a wait may take longer than its own time and that of its Node."""
WAIT_PAUSE = 0.3
"""Longest pause between two waits, in seconds."""


class Watcher:
    """Watches all keys. ``present`` returns the keys of the present round. For one thread."""

    def __init__(
        self,
        node: dstore.Node,
        recorder: Recorder,
        folder: Path,
        process: str,
        rng: random.Random,
        present: Callable[[], Keys],
    ) -> None:
        self._node = node
        self._recorder = recorder
        self._client = Client(node, recorder, rng, process, several=True)
        self._folder = folder
        self._process = process
        self._rng = rng
        self._present = present
        self._events: queue.SimpleQueue[tuple[dstore.Event, int]] = queue.SimpleQueue()
        self._copy: dict[str, str] = {}
        self._due: dict[str, None] = {}  # keys that are to be read again, in order
        self._chosen: set[str] = set()

    def run(self, over: threading.Event) -> None:
        """Watch until ``over`` is set. There must have been no write and no fault for a while."""
        watch = self._node.watch()
        watched = WatchRecorder(self._folder, self._process, now())
        taker = threading.Thread(target=self._take_all, args=(watch,))
        taker.start()
        try:
            while not over.is_set():
                self._note_all(watched)
                self._choose()
                self._read_due()
            self._note_all(watched)
            self._read_due()
            end = now()
            watched.end(end)
        finally:
            watch.close()
            taker.join()
            watched.close()
        self._hold(end)

    def _take_all(self, watch: dstore.Watch) -> None:
        """Take the events as they come, while the other thread reads. In a thread of its own."""
        over = False
        while not over:
            with contextlib.suppress(dstore.WrongServer):  # in place of a member
                for event in watch:
                    self._events.put((event, now()))
                over = True

    def _note_all(self, watched: WatchRecorder) -> None:
        """Take note of the events that have come, or come soon."""
        with contextlib.suppress(queue.Empty):
            self._note(*self._events.get(timeout=TAKE_SECONDS), watched)
            for _ in range(self._events.qsize()):
                self._note(*self._events.get_nowait(), watched)

    def _note(self, event: dstore.Event, at: int, watched: WatchRecorder) -> None:
        if event.key is None:
            watched.resync(at)
            self._recorder.enter(self._present().number)
            self._recorder.count({"resyncs": 1})
            self._due |= dict.fromkeys(self._copy)
        elif isinstance(event.key, str) and (number := round_of(event.key)) is not None:
            self._recorder.enter(number)
            self._recorder.notice(event.key, at, True)
            if event.key in self._chosen:
                self._due[event.key] = None

    def _choose(self) -> None:
        """Choose a key of the present round to keep a copy of, now and then.

        When there are enough it is one of these: if it was missing, it may be there by now.
        """
        if self._rng.random() < 0.5:
            return
        keys = self._present()
        mine = sorted(key for key in self._chosen if round_of(key) == keys.number)
        key = keys.any(self._rng) if len(mine) < COPIED else self._rng.choice(mine)
        if key not in self._copy:
            self._chosen.add(key)
            self._due[key] = None

    def _read_due(self) -> None:
        """Read the newest of the keys that are due. Those that cannot be read stay due."""
        wanted = list(self._due)[-COPIED_AT_ONCE:]
        if not wanted:
            return
        before = {key: self._copy.pop(key, None) for key in wanted}
        self._recorder.enter(self._present().number)
        answer = self._client.values_of(wanted)
        if answer is None:
            return
        values, start, end = answer
        for key, value in values.items():
            del self._due[key]
            number = round_of(key)
            assert number is not None
            if value != before[key]:
                self._recorder.enter(number)
                self._recorder.read("get", {key: value}, start, end, None)
            if value is not None:
                self._copy[key] = value

    def _hold(self, end: int) -> None:
        """Record what the copy has."""
        for key, value in self._copy.items():
            number = round_of(key)
            assert number is not None
            self._recorder.enter(number)
            start = end - int(HELD_SECONDS * 1e9)
            self._recorder.read("held", {key: value}, start, end, None)
            self._recorder.count({"copies": 1})


class Waiter:
    """Waits for keys, one after the other. For one thread. It ends when the Node is closed."""

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        rng: random.Random,
        timeout: float,
        present: Callable[[], Keys],
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._rng = rng
        self._timeout = timeout
        self._present = present

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            keys = self._present()
            self._recorder.enter(keys.number)
            awaited = self._rng.random() < AWAITED_PART
            key = keys.awaited(self._rng) if awaited else keys.any(self._rng)
            timeout = self._rng.choice(WAITS)
            self._client.wait(key, timeout, timeout + self._timeout + WAIT_GRACE)
            time.sleep(self._rng.random() * WAIT_PAUSE)


def round_of(key: str) -> int | None:
    """Return the round of a key; None if it is of no round."""
    number = key.partition(".")[0]
    return int(number) if number.isdigit() else None

"""What happens in the demo, phase by phase, told by the parent process.

It loads the files, has the workers read them, deletes and replaces some under their eyes, and
judges what they saw.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from dstore import Deletion, DstoreError, Node, ValueTooLarge
from dstore.cli.demo.corpus import Corpus, CorpusError, Key, address_of, find_files, replacement_of
from dstore.cli.demo.processes import Crew, ProcessFailed, global_process
from dstore.cli.demo.screen import Screen
from dstore.cli.demo.verdict import Change, Fault, Write, judge
from dstore.cli.demo.worker import Done, Entry, Joined, Order, Report

PASSES = 2
PART = 5
"""One file in so many is deleted, and another one is replaced."""
CHANGE_SECONDS_MAX = 7.0
"""Deleting stops after this time, and so does replacing, so that a slow machine is done too."""
OWN_CACHE_BYTES = 1 << 20
"""The parent writes, and hardly reads: it has no use for a large cache."""
SEED = 1


@dataclass
class Run:
    """What the parent did to the store, and what the workers reported."""

    entries: list[Entry] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def faults(self, workers: int) -> list[Fault]:
        keys = [key for entry in self.entries for key in (entry.key, entry.address)]
        sightings = [sighting for report in self.reports for sighting in report.sightings]
        return judge(keys, self.writes, sightings, range(1, workers + 1))


def tell(folder: str | None, workers: int, screen: Screen) -> list[Fault]:
    """Run the whole demo; return the faults found, after having shown them.

    Raises CorpusError for arguments that cannot be used. Leaves no process behind.
    """
    if workers < 1:
        raise CorpusError(f"there must be at least one worker, not {workers}")
    corpus = find_files(folder)
    run = Run()
    try:
        _play(corpus, workers, run, screen)
        faults = run.faults(workers)
    except (DstoreError, ProcessFailed) as error:
        faults = [Fault(str(error))]
    if run.reports:
        screen.tables(run.reports, run.writes)
    screen.verdict(faults, run.reports, run.writes)
    return faults


def _play(corpus: Corpus, workers: int, run: Run, screen: Screen) -> None:
    with _house() as house:
        address = house.enter_context(global_process())
        crew = house.enter_context(Crew())
        crew.start(workers, address)
        node = house.enter_context(Node(address, label="demo", cache_bytes=OWN_CACHE_BYTES))
        screen.say(f"Global listens on {address}; {workers} workers: processes {crew.pids}")
        _load(node, corpus, run, screen)
        crew.gather(Joined)
        crew.tell(run.entries)
        for number in range(1, PASSES + 1):
            _read_all(crew, number, len(run.entries), screen)
        _change_while_they_read(crew, node, run, screen)
        crew.tell(Order.REPORT)
        run.reports = crew.gather(Report)


@contextmanager
def _house() -> Iterator[ExitStack]:
    """What is entered here is left in order, and no second Ctrl-C disturbs that."""
    with ExitStack() as stack:
        try:
            yield stack
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)


def _load(node: Node, corpus: Corpus, run: Run, screen: Screen) -> None:
    """Store each file under its path and its content address, in an order for all that follows."""
    size = 0
    with screen.phase("loading", len(corpus.files)) as phase:
        for key, content in corpus.contents():
            phase.advance(1)
            try:
                node.set(key, content)
            except ValueTooLarge:
                corpus.skipped["too large"] += 1
                continue
            address = address_of(content)
            if node.put(content) != address:
                raise ProcessFailed(f"the content address of {key!r} is not its BLAKE3 hash")
            run.entries.append(Entry(key, address, address_of(replacement_of(content))))
            size += len(content)
        mib = f"{size / 2**20:,.1f} MiB"
        phase.result = f"loaded {len(run.entries):,} files ({mib}) by path and by content"
    for reason, count in sorted(corpus.skipped.items()):
        screen.say(f"skipped {count:,} {'file' if count == 1 else 'files'}: {reason}")
    if not run.entries:
        raise CorpusError(f"{corpus.folder} has no file that can be read")
    random.Random(SEED).shuffle(run.entries)


def _read_all(crew: Crew, number: int, files: int, screen: Screen) -> None:
    with screen.phase(f"reading, pass {number}", files * len(crew.numbers)) as phase:
        crew.tell(Order.READ_ALL)
        crew.gather(Done, on_progress=phase.advance)
        phase.result = f"pass {number}: each worker has read each file by path and by content"


def _change_while_they_read(crew: Crew, node: Node, run: Run, screen: Screen) -> None:
    part = max(1, len(run.entries) // PART)
    deleted, replaced = run.entries[:part], run.entries[part : 2 * part]
    crew.tell(Order.KEEP_READING)
    crew.gather(Done)  # from here on, each worker reads each file over and over
    with screen.phase("deleting", len(deleted)) as phase:
        for entry in _for_a_while(deleted, crew):
            run.writes.append(_delete(node, entry.key))
            phase.advance(1)
        phase.result = f"deleted {len(run.writes):,} files while the workers kept reading"
    before = len(run.writes)
    with screen.phase("replacing", len(replaced)) as phase:
        for entry in _for_a_while(replaced, crew):
            run.writes.append(_replace(node, entry.key))
            phase.advance(1)
        phase.result = f"replaced {len(run.writes) - before:,} files while the workers kept reading"
    crew.tell(Order.ENOUGH)
    crew.gather(Done)


def _for_a_while(entries: list[Entry], crew: Crew) -> Iterator[Entry]:
    """Yield the entries until time is up; raise ProcessFailed if a worker has died."""
    end = time.monotonic() + CHANGE_SECONDS_MAX
    for entry in entries:
        if time.monotonic() > end:
            return
        crew.check()
        yield entry
    crew.check()


def _delete(node: Node, key: Key) -> Write:
    return _timed(Change.DELETED, key, lambda: node.delete(key))


def _replace(node: Node, key: Key) -> Write:
    content = node.get(key)
    if not isinstance(content, bytes):
        raise ProcessFailed(f"{key!r} was stored as bytes and came back as {type(content)}")
    new = replacement_of(content)
    return _timed(Change.REPLACED, key, lambda: node.set(key, new, replace=True))


def _timed(change: Change, key: Key, write: Callable[[], Deletion | None]) -> Write:
    called = time.monotonic_ns()
    answer = write()
    returned = time.monotonic_ns()
    if answer is None:
        return Write(key, change, called, returned)
    if answer.pending:
        raise ProcessFailed(f"the deletion of {key!r} was answered before it was confirmed")
    return Write(key, change, called, returned, answer.confirmed, answer.expired)

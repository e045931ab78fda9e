"""Hits that take no lock, step by step: the functions of :mod:`dstore.client.hits` as they are.

What such a function reads is wrapped, so that before each read the thread may stand still, alone or
with its whole process, while others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from dstore.client import hits, host_reader
from dstore.client.host_reader import PureHostReader
from dstore.core.local.membership import Entry
from dstore.core.local.shared import Record
from dstore.protocol.messages import Key
from tests.simulation.local import LocalProcess
from tests.simulation.loop import Died
from tests.simulation.pages import NS, ReadPage
from tests.simulation.stepping import Steps

MISSED: Any = object()
READING: tuple[Any, ...] = (hits, host_reader)
"""The modules that read the clock."""


class Hit(NamedTuple):
    """What a hit has found, and the epoch of its membership."""

    entry: Entry
    epoch: int


class _Node(hits.PureHits):
    """A Node of which only the hit is there."""

    __slots__ = ()

    def __init__(self, state: Any) -> None:
        self._state = state
        self._hits = 0

    def _get_missed(self, key: str, default: Any) -> Any:
        return MISSED

    def _opened(self, entry: Entry) -> Any:
        return entry


def hit(local: LocalProcess, key: Key) -> Hit | None:
    """Return what a thread of a Local finds without a lock, as a Node looks for it."""
    steps = Steps(lambda: _between(local))
    with _clock(local, steps):
        return _hit(local, key, steps)


def _hit(local: LocalProcess, key: Key, steps: Steps) -> Hit | None:
    state: Any = steps.wrap(local.state)
    if local.loop.dice.random() < 0.5:
        entry = _Node(state).get(key)
    else:
        entry = hits.pure_find(state, key) or MISSED
    if entry is not MISSED:
        assert steps.membership is not None
        if steps.membership.words is not None:
            local.loop.counts["hits of shared entries"] += 1
        return Hit(entry, steps.membership.epoch)
    return _hit_on_host(local, key, steps)


def _hit_on_host(local: LocalProcess, key: Key, steps: Steps) -> Hit | None:
    """Do what ``Node._find_on_host`` does."""
    state = local.state
    page, membership = state.page, state.membership
    if not isinstance(page, ReadPage) or membership.words is not page._vector.words:
        return None
    found = _reader(page, steps).read(steps.wrap(membership), key)
    if found is None:
        return None
    local.loop.counts["host hits"] += 1
    hashed, record = found
    entry = None
    if state.seen_again(hashed):
        entry = _promote(local, page, key, hashed, record)
    bucket = hashed % local.scenario.buckets
    return Hit(entry or state.cache.made(key, *record, bucket), page.epoch)


def _reader(page: ReadPage, steps: Steps) -> PureHostReader:
    table = page.page.table
    find = (lambda key, hashed: None) if table is None else table.find
    stepped: Any = SimpleNamespace(find=steps.wrap(find))
    return PureHostReader(page.page.hash_key, stepped)


def _promote(
    local: LocalProcess, page: ReadPage, key: Key, hashed: int, record: Record
) -> Entry | None:
    if not local.frozen:
        _between(local)
    # Frozen: another thread has the lock.
    entry = None if local.frozen else local.state.promote(page.shared, key, hashed, record)
    local.loop.counts["promotions"] += entry is not None
    return entry


def hit_many(local: LocalProcess, keys: list[Key]) -> tuple[dict[Key, bytes], int]:
    """Return what a thread finds in the host cache, as a Node looks for many keys; the epoch."""
    state = local.state
    page, membership = state.page, state.membership
    found: dict[Key, bytes] = {}
    if not isinstance(page, ReadPage) or membership.words is not page._vector.words:
        return found, 0
    steps = Steps(lambda: _between(local))
    with _clock(local, steps):
        reader = _reader(page, steps)
        _, again, read = reader.collect(steps.wrap(membership), keys, found, state.seen.slots)
    local.loop.counts["host hits of many"] += read
    for each in again:
        _promote(local, page, *each)
    return found, page.epoch


@contextmanager
def _clock(local: LocalProcess, steps: Steps) -> Iterator[None]:
    """Let hits read the clock of a Local, as a step."""
    former = [(module, module.clock) for module in READING]
    clock = _Clock(local, steps)
    try:
        for module in READING:
            module.clock = clock
        yield
    finally:
        for module, its in former:
            module.clock = its


class _Clock(SimpleNamespace):
    """The clock of the process, the reading of which is a step."""

    def __init__(self, local: LocalProcess, steps: Steps) -> None:
        super().__init__(
            now=lambda: steps.read(local.clock),
            now_ns=lambda: steps.read(lambda: int(local.clock() * NS)),
        )


def _between(local: LocalProcess) -> None:
    """Perhaps stand still: the whole process, or this thread alone."""
    dice, scenario = local.loop.dice, local.scenario
    if not scenario.freezes or local.loop.quiet or dice.random() >= scenario.freezes:
        return
    seconds = dice.random() * scenario.pause * dice.random()
    if dice.random() < 0.5:
        local.stand_still(seconds)
        return
    local.loop.counts["threads that stood still"] += 1
    local.loop.stand_still(seconds)
    if not local.alive:
        raise Died

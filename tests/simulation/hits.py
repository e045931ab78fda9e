"""Hits that take no lock, step by step: the functions of :mod:`dstore.client.hits` as they are.

What such a function reads is wrapped, so that before each read the thread may stand still, alone or
with its whole process, while others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from dstore.client import hits
from dstore.core.local.membership import Entry, Membership, lease_word
from dstore.protocol.messages import Key
from tests.simulation.actors import SimLocal
from tests.simulation.loop import Died
from tests.simulation.pages import NS, ReadPage

PLAIN = (int, float, str, bytes, bool, type(None), tuple, Entry)
"""What is not wrapped: it does not change, or it is what a hit returns."""
MISSED: Any = object()


class Hit(NamedTuple):
    """What a hit has found, and the epoch of its membership."""

    entry: Entry
    epoch: int


class Stepped:
    """An object whose attributes and items are read in steps."""

    def __init__(self, real: Any, steps: Steps) -> None:
        self._real = real
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        real = self._real
        if name == "lease" and not hasattr(real, name):
            real = _Lease(real)
        return self._steps.read(lambda: getattr(real, name))

    def __getitem__(self, index: Any) -> Any:
        return self._steps.read(lambda: self._real[index])

    def __call__(self, *arguments: Any) -> Any:
        return self._steps.read(lambda: self._real(*arguments))


class _Lease:
    """The lease word of a compiled membership, which names only its value."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    @property
    def lease(self) -> _Lease:
        return self

    def __getitem__(self, index: int) -> int:
        return lease_word(self._membership.lease_end)


class Steps:
    """The steps of one hit. ``between`` is called before each; the same object looks the same."""

    def __init__(self, between: Callable[[], None]) -> None:
        self._between = between
        self._wrapped: dict[int, Stepped] = {}
        self.membership: Membership | None = None

    def read(self, what: Callable[[], Any]) -> Any:
        self._between()
        return self.wrap(what())

    def wrap(self, value: Any) -> Any:
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, Membership):
            self.membership = value
        if isinstance(value, ReadPage):  # what it has, without the steps of calls under the lock
            value = _Bare.of(value)
        return self._wrapped.setdefault(id(value), Stepped(value, self))


class _Bare:
    """A page without steps of its own, always the same object for the same page."""

    def __init__(self, page: ReadPage) -> None:
        self.vector = page._vector
        self.lease_word = page._lease_word
        table = page.page.table
        self.find = (lambda key, hashed: None) if table is None else table.find

    @classmethod
    def of(cls, page: ReadPage) -> _Bare:
        bare: _Bare | None = vars(page).get("bare")
        if bare is None:
            bare = vars(page)["bare"] = cls(page)
        return bare


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


def hit(local: SimLocal, key: Key) -> Hit | None:
    """Return what a thread of a Local finds without a lock, as a Node looks for it."""
    steps = Steps(lambda: _between(local))
    former = hits.clock
    clock = _Clock(local, steps)
    try:
        hits.clock = clock  # type: ignore[assignment]
        return _hit(local, key, steps, clock)
    finally:
        hits.clock = former


def _hit(local: SimLocal, key: Key, steps: Steps, clock: Any) -> Hit | None:
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
    return _hit_on_host(local, key, state)


def _hit_on_host(local: SimLocal, key: Key, stepped: Any) -> Hit | None:
    """Do what ``Node._find_on_host`` does."""
    state, page = local.state, local.state.page
    if page is None:
        return None
    _between(local)
    found = hits.pure_find_on_host(stepped, key)
    if found is None:
        return None
    local.loop.counts["host hits"] += 1
    hashed, record = found
    entry = None
    if state.seen_again(hashed):
        _between(local)
        entry = state.promote(page, key, hashed, record)
        local.loop.counts["promotions"] += entry is not None
    bucket = hashed % local.scenario.buckets
    return Hit(entry or state.cache.made(key, *record, bucket), page.epoch)


class _Clock(SimpleNamespace):
    """The clock of the process, the reading of which is a step."""

    def __init__(self, local: SimLocal, steps: Steps) -> None:
        super().__init__(
            now=lambda: steps.read(local.clock),
            now_ns=lambda: steps.read(lambda: int(local.clock() * NS)),
        )


def _between(local: SimLocal) -> None:
    """Perhaps stand still: the whole process, or this thread alone."""
    dice, scenario = local.loop.dice, local.scenario
    if not scenario.freezes or local.loop.quiet or dice.random() >= scenario.freezes:
        return
    seconds = dice.random() * scenario.pause * dice.random()
    if dice.random() < 0.5:
        local.stand_still(seconds)
        return
    former = hits.clock
    local.loop.counts["threads that stood still"] += 1
    local.loop.stand_still(seconds)
    assert hits.clock is former
    if not local.alive:
        raise Died

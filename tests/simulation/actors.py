"""The simulated process of a Local, around the real core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dstore.core.local.cache import ENTRY_OVERHEAD, MappedBody
from dstore.core.local.effects import (
    Announce,
    Dropped,
    LocalEffect,
    Look,
    TakeBack,
    TakenBack,
    Tell,
)
from dstore.core.local.membership import Entry, Membership
from dstore.core.local.shared import SharedPage
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Key, Welcome
from tests.simulation.authority import SimGlobal
from tests.simulation.host import SimHost
from tests.simulation.loop import Loop
from tests.simulation.network import Connection
from tests.simulation.pages import ReadPage
from tests.simulation.process import Process
from tests.simulation.scenario import Scenario
from tests.simulation.trace import short

VALUE_BYTES = 8
"""Bytes of each value."""


class SimState(LocalState):
    """A Local with a vector of its own size: where it is small, keys share buckets.

    It counts in ``noted`` what happens with pages.
    """

    def __init__(self, buckets: int, noted: Callable[[str], None], **settings: Any) -> None:
        self.buckets = buckets
        self.noted = noted
        super().__init__(**settings)

    def attach(self, page: SharedPage, now: float) -> None:
        super().attach(page, now)
        if self.page is page:
            self.noted("attaches")

    def detach(self, now: float) -> None:
        self.noted("detaches")
        super().detach(now)

    def _on_welcome(self, message: Welcome, now: float) -> list[LocalEffect]:
        bridging, session = self.bridging, self.session
        effects = super()._on_welcome(message, now)
        if bridging and self.session != session:
            self.noted("private fallbacks")
        return effects


class WordState(SimState):
    """A Local whose hits compare words, as those of a shared membership do. It drops no entry."""

    def _words_of_hits(self) -> memoryview:
        return self.vector.words

    def _invalidate(self, key: Key, seq: int) -> None:
        pass


class Caller(Protocol):
    """A thread of a simulated process, which runs operations one after the other.

    ``line`` names it among the connections, timers and threads of its process.
    """

    local: SimLocal
    loop: Loop
    line: str
    channel: Connection

    def look(self) -> None:
        """The state of the Local may have changed."""

    def give_up(self) -> None:
        """Stop what it does."""


class SimLocal(Process):
    """A process with a Local and some threads. A private one has a clock with a rate of its own.

    ``parent`` is the process of which it is a forked child.
    """

    def __init__(
        self,
        loop: Loop,
        scenario: Scenario,
        authority: SimGlobal,
        host: SimHost,
        name: str,
        parent: SimLocal | None = None,
    ) -> None:
        super().__init__(loop, scenario, authority, host, name)
        self.authority = authority
        self.identity = authority.identities.admit(name, parent.name if parent else None)
        self.clients: list[Caller] = []
        self.going = False  # whether its background thread has begun
        self.announced = 0  # seq of the last deletion that watchers know of
        self._attaching: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        sharing = parent is not None or loop.dice.random() < scenario.sharing
        self.state = self._sharing() if sharing else self._private()
        if loop.dice.random() < scenario.watchers:
            self.go()
            self.state.watch(1, self.clock())
        if sharing:
            self._start(parent)
        if self.state.page is None or self.state.observing:
            self.go()

    def _private(self) -> SimState:
        dice, scenario = self.loop.dice, self.scenario
        self.rate = 1 + dice.uniform(-scenario.drift, scenario.drift)
        self.offset = dice.uniform(0, 1000)
        return self._made(WordState if dice.random() < scenario.words else SimState)

    def _sharing(self) -> SimState:
        dice = self.loop.dice
        return self._made(
            SimState,
            looking=True,
            joining=dice.random() < 0.9,
            observing=dice.random() < 0.2,
        )

    def _made(self, kind: type[SimState], **settings: bool) -> SimState:
        scenario = self.scenario
        return kind(
            scenario.buckets,
            self._noted,
            random16=self.loop.random16,
            label=self.name,
            cache_bytes=scenario.cache_entries * (ENTRY_OVERHEAD + VALUE_BYTES + 2),
            reorder_keys_max=scenario.reorder_keys,
            **settings,
        )

    def _noted(self, what: str) -> None:
        self.loop.counts[what] += 1
        self.loop.log(self.name, what)

    def go(self) -> None:
        """Begin to talk to Global, unless it has begun."""
        if not self.going:
            self.going = True
            self.touched()

    def of_global(self, token: bytes) -> bytes | None:
        """A value in Global's own files, if Global runs on the same host."""
        if self.host is not self.authority.host:
            return None
        body = self.authority.bulk.read(token, 0, VALUE_BYTES)
        return None if body is None else bytes(body)

    # ---- the page of its host -------------------------------------------------------------

    def _start(self, parent: SimLocal | None) -> None:
        """Use the page of the host, if there is one, and in a forked child the parent's entries."""
        found, now = self.host.find(0), self.clock()
        if found is None:
            return
        page = ReadPage(found, self)
        inherited = parent.state.page if parent is not None else None
        if (
            parent is not None
            and isinstance(inherited, ReadPage)
            and inherited.page is found
            and found.lease_word[0]
        ):
            membership = _copied(parent.state.membership, inherited)
            digests = dict(parent.state.cache.digests)
            self.state.inherit(page.shared, membership, now, digests)
            self._noted("inheritances")
        else:
            self.state.attach(page.shared, now)

    def _look(self, epoch: int) -> None:
        """Look for a page. The background thread does nothing else until it has attached."""
        found = self.host.find(epoch)
        if found is not None and self._attaching is None:
            self._attaching = []
            self.loop.later(self.loop.dice.random() * 0.002, self._attach, ReadPage(found, self))

    def _attach(self, page: ReadPage) -> None:
        if not self.alive or self.held_up("attach", self._attach, page):
            return
        delayed, self._attaching = self._attaching or [], None
        if not self.state.closing:
            self.state.attach(page.shared, self.clock())
        for what, arguments in delayed:
            self.loop.at(self.loop.now, what, *arguments)
        self.touched()

    def busy(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        if self.alive and self._attaching is not None:
            self._attaching.append((again, arguments))
            return True
        return super().busy(line, again, *arguments) or not self.going

    # ---- effects --------------------------------------------------------------------------

    def perform(self, effects: Iterable[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.loop.log(self.name, f"-> {short(effect.message)}")
                self.control.send_up(effect.message)
            elif isinstance(effect, Look):
                self._look(effect.epoch)
            elif isinstance(effect, Dropped):
                self.loop.log(self.name, f"drops {effect.keys}")
                for token in effect.tokens:
                    self.host.copies.pop(token, None)
            elif isinstance(effect, Announce):
                self._announce(effect)
            elif isinstance(effect, TakeBack):
                for value in effect.values:
                    pause = self.loop.dice.random() * 0.01
                    self.loop.later(pause, self._take_back, effect.membership, value)
        self.touched()

    def _take_back(self, membership: Membership, value: TakenBack) -> None:
        """Find a large value of the former session in the memory of the host, and store it."""
        if self.busy("files", self._take_back, membership, value):
            return
        token, copies = value.found.stored.token, self.host.copies
        body = copies.get(token) or self.of_global(token) or copies.get(value.former.token)
        if body is None:
            self._noted("large values that were gone")
            return
        self._noted("large values taken back")
        copies.setdefault(token, body)
        mapped = MappedBody(memoryview(body), shared=True)
        self.state.taken_back(membership, value.key, value.found, mapped)
        self.touched()

    def _announce(self, effect: Announce) -> None:
        """Check that announced deletions are committed, and that none is left out."""
        for removal in effect.removals:
            missed = self.authority.deletions[self.announced : removal.seq - 1]
            told = any(self.identity.sees(key) for key, _ in missed)
            if removal.key is not None and (removal.seq <= self.announced or told):
                self.loop.violation(f"{self.name} announces {removal} after {self.announced}")
            self.announced = removal.seq
        if self.state.joined.epoch == self.authority.epoch:
            committed = self.authority.state._invalidations.committed
            if self.announced > committed:
                self.loop.violation(
                    f"{self.name} announces {effect} and only {committed} are committed"
                )

    def touched(self) -> None:
        """The state may have changed: let the threads look, and set the timer."""
        for client in list(self.clients):
            client.look()
        if self.going:
            super().touched()

    # ---- end ------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """End the session and give up what its threads do."""
        if self.alive and not self.state.closing:
            self.loop.log(self.name, "goodbye")
            for client in self.clients:
                client.give_up()
            self.state.goodbye(self.clock())
            self.touched()

    def crash(self) -> None:
        """End without a message."""
        self.loop.log(self.name, "dies")
        self.alive = False
        for client in self.clients:
            client.give_up()
        self.disconnect(*(each.channel for each in self.clients))


def _copied(membership: Membership, page: ReadPage) -> Membership:
    """Return the copy of a membership that a forked child has."""
    entries: dict[Key, Entry] = {}
    for key, entry in membership.entries.items():
        copy = entries[key] = Entry(
            key, entry.value, entry.seq, entry.size, entry.shared, entry.bucket
        )
        copy.since, copy.sound, copy.visited = entry.since, entry.sound, entry.visited
    child = Membership(entries, page._vector.words, page._lease_word)
    child.epoch, child.session = membership.epoch, membership.session
    child.applied = membership.applied
    return child

"""The simulated process of a Local, around the real core, with or without the page of its host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from dstore.core.local.membership import Membership
from dstore.core.local.shared import SharedPage
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Key, Welcome
from tests.simulation.host import SimBulk, SimHost
from tests.simulation.loop import Loop
from tests.simulation.network import Connection
from tests.simulation.pages import ReadPage
from tests.simulation.process import Authority, Process
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


class Thread(Protocol):
    """A thread of a simulated process, which runs operations one after the other."""

    channel: Connection

    def look(self) -> None:
        """The state of the Local may have changed."""


class OneGlobal(Authority, Protocol):
    """A Global, and what its own host has of it."""

    host: SimHost

    @property
    def held(self) -> SimBulk:
        """The large values in the memory of its host."""


class LocalProcess(Process):
    """A process with a Local and some threads."""

    state: SimState

    def __init__(
        self, loop: Loop, scenario: Scenario, authority: OneGlobal, host: SimHost, name: str
    ) -> None:
        super().__init__(loop, scenario, authority, host, name)
        self._global = authority
        self.going = False  # whether its background thread has begun
        self._attaching: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None

    def threads(self) -> Sequence[Thread]:
        """Return the threads that may wait for a change of the state."""
        raise NotImplementedError

    def sharing(self) -> SimState:
        """Make a state that uses the page of its host."""
        dice = self.loop.dice
        return self.made(
            SimState,
            looking=True,
            joining=dice.random() < 0.9,
            observing=dice.random() < 0.2,
        )

    def made(self, kind: type[SimState], **settings: bool) -> SimState:
        scenario = self.scenario
        return kind(
            scenario.buckets,
            self.noted,
            random16=self.loop.random16,
            label=self.name,
            cache_bytes=scenario.cache_entries * (ENTRY_OVERHEAD + VALUE_BYTES + 2),
            reorder_keys_max=scenario.reorder_keys,
            **settings,
        )

    def noted(self, what: str) -> None:
        self.loop.counts[what] += 1
        self.loop.log(self.name, what)

    def go(self) -> None:
        """Begin to talk to Global, unless it has begun."""
        if not self.going:
            self.going = True
            self.touched()

    def of_global(self, token: bytes) -> bytes | None:
        """A value in Global's own files, if Global runs on the same host."""
        if self.host is not self._global.host:
            return None
        body = self._global.held.read(token, 0, VALUE_BYTES)
        return None if body is None else bytes(body)

    # ---- the page of its host -------------------------------------------------------------

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
                self.announce(effect)
            elif isinstance(effect, TakeBack):
                for value in effect.values:
                    pause = self.loop.dice.random() * 0.01
                    self.loop.later(pause, self._take_back, effect.membership, value)
        self.touched()

    def announce(self, effect: Announce) -> None:
        """Tell those who watch about deletions. Here nobody does."""

    def _take_back(self, membership: Membership, value: TakenBack) -> None:
        """Find a large value of the former session in the memory of the host, and store it."""
        if self.busy("files", self._take_back, membership, value):
            return
        token, copies = value.found.stored.token, self.host.copies
        body = copies.get(token) or self.of_global(token) or copies.get(value.former.token)
        if body is None:
            self.noted("large values that were gone")
            return
        self.noted("large values taken back")
        copies.setdefault(token, body)
        mapped = MappedBody(memoryview(body), shared=True)
        self.state.taken_back(membership, value.key, value.found, mapped)
        self.touched()

    def cut(self) -> None:
        """Cut some of its connections: what is under way on them is lost."""
        kind = self.loop.dice.choice(("control", "sub", "requests"))
        if kind == "control":
            self.control.cut(self.reconnected)
        elif kind == "sub":
            self.sub.cut(self.reconnected)
        else:
            for thread in self.threads():
                thread.channel.cut(lambda: None)

    def touched(self) -> None:
        """The state may have changed: let the threads look, and set the timer."""
        for thread in list(self.threads()):
            thread.look()
        if self.going:
            super().touched()

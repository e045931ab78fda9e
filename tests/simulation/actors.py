"""The simulated process of a Local of one Global."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dstore.core.local.effects import Announce
from dstore.core.local.membership import Entry, Membership
from dstore.protocol.messages import Key
from tests.simulation.authority import SimGlobal
from tests.simulation.host import SimHost
from tests.simulation.local import LocalProcess, SimState, Thread, WordState
from tests.simulation.loop import Loop
from tests.simulation.pages import ReadPage
from tests.simulation.scenario import Scenario


class Caller(Thread, Protocol):
    """A thread that can be stopped."""

    def give_up(self) -> None:
        """Stop what it does."""


class SimLocal(LocalProcess):
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
        self.announced = 0  # seq of the last deletion that watchers know of
        sharing = parent is not None or loop.dice.random() < scenario.sharing
        self.state = self.sharing() if sharing else self._private()
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
        return self.made(WordState if dice.random() < scenario.words else SimState)

    def threads(self) -> Sequence[Thread]:
        return self.clients

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
            self.noted("inheritances")
        else:
            self.state.attach(page.shared, now)

    # ---- effects --------------------------------------------------------------------------

    def announce(self, effect: Announce) -> None:
        """Check that announced deletions are committed, and that none is left out."""
        same_epoch = self.state.joined.epoch == self.authority.epoch
        for removal in effect.removals:
            missed = self.authority.deletions[self.announced : removal.seq - 1]
            told = same_epoch and any(self.identity.sees(key) for key, _ in missed)
            if removal.key is not None and (removal.seq <= self.announced or told):
                self.loop.violation(f"{self.name} announces {removal} after {self.announced}")
            self.announced = removal.seq
        if same_epoch:
            committed = self.authority.state._invalidations.committed
            if self.announced > committed:
                self.loop.violation(
                    f"{self.name} announces {effect} and only {committed} are committed"
                )

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

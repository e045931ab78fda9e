"""Random courses of events at Global and its host: no process there ever has an outdated value.

Pages fail in all ways, sessions follow each other, replies are late, and a Local elsewhere is slow
to acknowledge. After each event, what a process answers by itself is what the engine has.
"""

from __future__ import annotations

import random

import pytest

from dstore.protocol.messages import (
    NO_SESSION,
    Del,
    Found,
    Get,
    GetReply,
    Hello,
    Kind,
    Set,
    SetReply,
    Stored,
    Welcome,
)
from tests.unit.core.host_page import FakePage, Process
from tests.unit.core.world import LEASE, World, item

KEYS = ("k", "l")
EVENTS = 120
FAILURES = ("note", "void", "renew")


class Course:
    """One course of events. ``processes`` has those of all sessions that Global's host had."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World()
        (self.slow,) = self.world.joined("slow")
        self.world.members.clear()
        hello = Hello(self.world.random16(), 0, NO_SESSION, "w", Kind.WRITER)
        self.world.deliver(b"w", hello)
        welcome = self.world.inboxes[b"w"].pop()
        assert isinstance(welcome, Welcome)
        self.writer = welcome.session
        self.processes: list[Process] = []
        self.late: list[tuple[Process, str, GetReply]] = []
        self.writes = self.values = 0
        self.new_page()

    def play(self) -> None:
        events = (
            *((self.fill,) * 6 + (self.fill_late,) * 2 + (self.arrive,) * 3),
            *((self.set,) * 4 + (self.replace,) * 4 + (self.delete,) * 4),
            *((self.hold,) * 2 + (self.acknowledge,) * 2 + (self.advance,) * 3),
            *(self.fail, self.new_page, self.close),
        )
        for _ in range(EVENTS):
            event = self.dice.choice(events)
            event()
            self.check(event.__name__)
        self.settle()

    def check(self, event: str) -> None:
        for process in self.processes:
            for key in KEYS:
                stored = self.world.engine.read(key)
                now = None if stored is None else stored.body
                assert process.hit(key) in (None, now), f"{event}: {process.page.__dict__}"

    def settle(self) -> None:
        """Nothing is pending for longer than the lease of the slow Local and then one of a page."""
        for _ in range(2):
            self.world.advance(LEASE)
            self.world.tick()
        assert not self.world.state._invalidations.pending
        self.check("settled")

    # ---- events ---------------------------------------------------------------------------

    def any_process(self) -> Process:
        return self.dice.choice(self.processes[-3:])

    def fill(self) -> None:
        self.any_process().fill(self.dice.choice(KEYS))

    def fill_late(self) -> None:
        process, key = self.any_process(), self.dice.choice(KEYS)
        reply = process.ask(Get(self.world.epoch, process.session, 1, [key]))
        if isinstance(reply, GetReply):
            self.late.append((process, key, reply))

    def arrive(self) -> None:
        if self.late:
            process, key, reply = self.late.pop(self.dice.randrange(len(self.late)))
            (found,) = reply.items
            if isinstance(found, Found) and found.cacheable:
                assert isinstance(found.stored, Stored)
                process.keep(key, found.seq, found.stored.body)  # type: ignore[arg-type]

    def set(self) -> None:
        self.write(replace=False)

    def replace(self) -> None:
        self.write(replace=True)

    def write(self, replace: bool) -> None:
        """The reply may come at once; a later one is not received."""
        process, key = self.any_process(), self.dice.choice(KEYS)
        self.writes += 1
        self.values += 1
        value = b"%d" % self.values
        envelope = (self.world.epoch, self.writer, self.writes)
        items = [item(self.world, key, value)]
        self.world.deliver(b"w", Set(*envelope, self.writes, 0, replace, items, process.session))
        inbox = self.world.inboxes.get(b"w")
        for reply in inbox or ():
            ours = isinstance(reply, SetReply) and reply.request == self.writes
            if ours and reply.items[0].cacheable:  # type: ignore[union-attr]
                process.keep(key, reply.items[0].seq, value)  # type: ignore[union-attr]
        if inbox:
            inbox.clear()

    def delete(self) -> None:
        self.writes += 1
        keys = self.dice.sample(KEYS, self.dice.randint(1, len(KEYS)))
        envelope = (self.world.epoch, self.writer, self.writes)
        wait = self.dice.random() < 0.7
        self.world.deliver(b"w", Del(*envelope, self.writes, 0, wait, keys))

    def hold(self) -> None:
        """A Local elsewhere reads a key, so that deletions of it wait."""
        key = self.dice.choice(KEYS)
        state = self.slow.state
        self.world.deliver(b"s", Get(state.epoch, state.session, 1, [key]))

    def acknowledge(self) -> None:
        self.slow.turn()

    def advance(self) -> None:
        self.world.advance(self.dice.choice((0.01, 0.2, 0.9, 2.5)))
        if self.dice.random() < 0.8:
            self.world.tick()

    def fail(self) -> None:
        page = self.processes[-1].page
        page.failing = {each for each in FAILURES if self.dice.random() < 0.5}
        page.half = self.dice.random() < 0.5

    def new_page(self) -> None:
        session = self.world.state.open_host(self.world.now, "host")
        page = FakePage(self.world, *(("renew",) if self.dice.random() < 0.1 else ()))
        self.world.state.share(page, self.world.now)
        self.processes += [Process(self.world, page, session) for _ in range(2)]

    def close(self) -> None:
        self.world.state.close_host(self.world.now)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_no_process_of_the_host_answers_with_what_the_engine_does_not_have(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            Course(seed).play()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error

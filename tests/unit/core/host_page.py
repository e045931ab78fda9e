"""A page as the processes of Global's host see it, and one such process."""

from __future__ import annotations

from typing import Any

from dstore.protocol.messages import (
    Found,
    Get,
    GetReply,
    Key,
    Refused,
    Set,
    SetReply,
    SetResult,
)
from tests.unit.core.world import World, item


class FakePage:
    """A page in memory. What is in ``failing`` raises; ``half`` of a failing renewal is done."""

    def __init__(self, world: World, *failing: str, half: bool = False) -> None:
        self.world = world
        self.failing = set(failing)
        self.half = half
        self.words: dict[Key, int] = {}
        self.noted: list[tuple[Key, int]] = []
        self.table: dict[Key, Found] = {}
        self.in_engine: list[bool] = []  # whether the engine had the key when it was noted
        self.end = 0.0

    def note(self, key: Key, seq: int) -> None:
        self._fail("note")
        self.noted.append((key, seq))
        self.in_engine.append(self.world.engine.read(key) is not None)
        self.words[key] = max(seq, self.words.get(key, 0))

    def renew(self, end: float) -> None:
        if "renew" in self.failing and self.half:
            self.end = end
        self._fail("renew")
        self.end = end

    def void(self) -> None:
        self._fail("void")
        self.end = 0.0

    def put(self, key: Key, found: Found) -> bool:
        self._fail("put")
        self.table[key] = found
        return True

    def values(self) -> list[tuple[Key, str, bytes]]:
        self._fail("values")
        return [
            (key, found.stored.codec, bytes(found.stored.body))  # type: ignore[arg-type]
            for key, found in self.table.items()
        ]

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise OSError(f"{name}: no such page")


class Process:
    """A process of Global's host: it asks in the name of the shared session and trusts the page."""

    def __init__(self, world: World, page: FakePage, session: int) -> None:
        self.world, self.page, self.session = world, page, session
        self.entries: dict[Key, tuple[int, bytes]] = {}

    def ask(self, message: Any) -> Any:
        """The answer, or None while there is none."""
        route = b"process"
        self.world.deliver(route, message)
        inbox = self.world.inboxes.get(route)
        return inbox.popleft() if inbox else None

    def fill(self, key: Key) -> bytes | None:
        """Ask for a value, and cache it if the reply allows that."""
        reply = self.ask(Get(self.world.epoch, self.session, 1, [key]))
        if isinstance(reply, Refused):
            return None
        assert isinstance(reply, GetReply)
        found = reply.items[0]
        if not isinstance(found, Found):
            return None
        if found.cacheable:
            self.keep(key, found.seq, bytes(found.stored.body))  # type: ignore[arg-type]
        return bytes(found.stored.body)  # type: ignore[arg-type]

    def set(self, writer: int, write: int, key: Key, value: bytes, replace: bool) -> SetResult:
        items = [item(self.world, key, value)]
        envelope = (self.world.epoch, writer, write)
        reply = self.ask(Set(*envelope, write, write, replace, items, self.session))
        assert isinstance(reply, SetReply)
        result = reply.items[0]
        if result.cacheable:
            self.keep(key, result.seq, value)
        return result

    def keep(self, key: Key, seq: int, value: bytes) -> None:
        self.entries[key] = seq, value

    def hit(self, key: Key) -> bytes | None:
        """What the process answers now, by itself."""
        end = self.page.end
        seq, value = self.entries.get(key, (-1, b""))
        valid = self.page.words.get(key, 0) <= seq and self.world.now < end
        return value if valid else None


def shared(world: World, *failing: str) -> tuple[FakePage, Process]:
    """Global's host has a page, and a process that uses it."""
    session = world.state.open_host(world.now, "host")
    page = FakePage(world)
    world.state.share(page, world.now)
    page.failing = set(failing)
    return page, Process(world, page, session)

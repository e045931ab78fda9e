"""Messages in the name of an identity, for tests of what is done for each of them."""

from __future__ import annotations

from collections import deque
from typing import Any

from dstore.core.authority.identity import Identity, Role
from dstore.protocol import content
from dstore.protocol.messages import (
    Hello,
    Kind,
    Large,
    Set,
    SetItem,
    SetStatus,
    Stage,
    Stored,
    ToGlobal,
    Wait,
    Welcome,
)
from tests.unit.core.test_strangers import BODY
from tests.unit.core.world import Member, World

READER = Role.READ
WRITER = Role.WRITE


def writer(name: str, *prefixes: str) -> Identity:
    return Identity(name, WRITER, prefixes)


def ask(world: World, identity: Identity, message: ToGlobal, route: bytes = b"r") -> Any:
    """The answer to a message of an identity; None if there is none."""
    inbox = world.inboxes.setdefault(route, deque())
    inbox.clear()
    world.deliver(route, message, identity)
    return inbox[-1] if inbox else None


def hello(world: World, identity: Identity, kind: Kind = Kind.MEMBER) -> Welcome:
    nonce = world.random16()
    welcome = ask(world, identity, Hello(nonce, 0, 0, identity.name, kind), nonce)
    assert isinstance(welcome, Welcome)
    return welcome


def item(world: World, key: str, body: bytes = b"v") -> SetItem:
    return SetItem(key, Stored(world.random16(), "bytes", body))


def large(world: World, body: bytes = BODY) -> Stored:
    return Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))


def bound_large(world: World, identity: Identity, key: str, body: bytes = BODY) -> Stored:
    """A large value that this identity has uploaded and bound."""
    session, stored = hello(world, identity).session, large(world, body)
    ask(world, identity, Stage(world.epoch, session, 1, stored, 0, body))
    reply = ask(world, identity, Set(world.epoch, session, 2, 1, 0, False, [SetItem(key, stored)]))
    assert reply.items[0].status is SetStatus.STORED
    return stored


def lively() -> tuple[World, Member, bytes, Identity]:
    """A session of one identity, with a deletion that waits for it, an upload, a write, a wait."""
    world, mine = World(), writer("mine")
    (a,) = world.joined("a", identity=mine)
    (b,) = world.joined("b", identity=mine)
    for key in ("k", "held"):
        b.set(key, b"v")
        a.get(key)
    stored = large(world)
    world.deliver(b"x", Stage(a.state.epoch, a.state.session, 1, stored, 0, BODY[:4]), mine)
    wait = Wait(a.state.epoch, a.state.session, 2, "waited for", 50.0)
    world.deliver(b"x", wait, mine)
    b.begin_delete("k").send()
    return world, a, stored.token, mine

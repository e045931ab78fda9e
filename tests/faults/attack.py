"""The frame of an attack on Global: a target, and the list in which each attack is registered."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dstore
from tests.faults.raw_curve import RawKeys
from tests.faults.raw_peer import RawPeer

MIB = 1 << 20
DELAY_MAX = 5.0
"""Seconds that an honest call may take while Global is attacked: a Node's usual timeout."""
ATTACK_SECONDS = 20.0
"""After this time an attack sends no more."""


class Target:
    """A Global to be attacked: where it is, and how much is sent to it.

    ``keys`` returns the keys of the attackers' next connection, or None for one without.
    ``connect`` is the connect file of an honest Node that prepares an attack, if keys are needed.
    """

    def __init__(
        self,
        address: str,
        pid: int,
        dice: random.Random,
        scale: float,
        source: str,
        keys: Callable[[], RawKeys | None] = lambda: None,
        connect: str | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.publisher = f"{host}:{int(port) + 1}"
        self.pid = pid
        self.dice = dice
        self.scale = scale
        self._keys = keys
        self._connect = connect
        self.source = source  # the attackers' own address, since Global bans one for a while
        self.until = time.monotonic() + ATTACK_SECONDS

    def count(self, number: int) -> int:
        """Return the given number in a full run, and less in a short one."""
        return max(1, int(number * self.scale))

    def turns(self, number: int) -> Iterator[int]:
        """Count from 0 to :meth:`count`, or until the time of the attack is over."""
        for turn in range(self.count(number)):
            if self.over:
                return
            yield turn

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def peer(self, kind: str = "DEALER", identity: bytes = b"", *, shake: bool = True) -> RawPeer:
        where = self.publisher if kind == "SUB" else self.address
        keys = self._keys()
        return RawPeer(where, kind, identity, shake=shake, source=self.source, keys=keys)

    def joined(self) -> RawPeer:
        peer = self.peer()
        peer.join()
        return peer

    def node(self, **settings: Any) -> dstore.Node:
        """Return a Node that may do all, to prepare an attack or to clean up after it."""
        return dstore.Node(self.address, connect=self._connect, **settings)


class Attack(NamedTuple):
    """A registered attack. ``bound`` is how many bytes Global's memory may grow by meanwhile."""

    name: str
    bound: int
    run: Callable[[Target], str]


ATTACKS: list[Attack] = []


def attack(bound: int) -> Callable[[Callable[[Target], str]], Callable[[Target], str]]:
    """Register an attack: a function that returns in a few words what it did or was refused."""

    def register(run: Callable[[Target], str]) -> Callable[[Target], str]:
        ATTACKS.append(Attack(run.__name__.replace("_", " "), bound, run))
        return run

    return register


@contextlib.contextmanager
def until_cut() -> Iterator[None]:
    """Let Global cut the connection in this block, which then ends."""
    with contextlib.suppress(OSError):
        yield

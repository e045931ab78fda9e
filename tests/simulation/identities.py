"""The identities of simulated Locals, and what each may do."""

from __future__ import annotations

from dstore.core.authority.identity import ANYONE, Identity, Role
from tests.simulation.loop import Loop
from tests.simulation.scenario import Scenario

LOCALS, OWNERS = (3, 2, 5), (2, 2, 6)
"""How many of ten processes write all keys, read them, and write some; the same of owners."""


class Identities:
    """The identities of a run, and that of each process by its name.

    One writes all keys, one reads them, and one writes only those with even numbers. A scenario
    without keys has none of them.
    """

    def __init__(self, loop: Loop, scenario: Scenario) -> None:
        self._loop = loop
        self._keyed = scenario.keyed
        even = tuple(f"k{number}" for number in range(0, scenario.keys, 2))
        self._present = [
            Identity("writer", Role.WRITE),
            Identity("reader", Role.READ),
            Identity("even", Role.WRITE, even),
        ]
        self._of: dict[str, Identity] = {}

    def admit(self, name: str, parent: str | None = None, owner: bool = False) -> Identity:
        """Give a process an identity, or that of its parent."""
        identity = ANYONE
        if parent is not None:
            identity = self._of[parent]
        elif self._keyed:
            identity = self._loop.dice.choices(self._present, OWNERS if owner else LOCALS)[0]
        self._of[name] = identity
        return identity

    def of_route(self, route: bytes) -> Identity:
        """Return the identity of the process to which a connection belongs."""
        return self._of.get(route.decode().partition(".")[0], ANYONE)

    def revoke(self) -> Identity:
        """Return one that is to be revoked; another one takes its place."""
        place = self._loop.dice.randrange(len(self._present))
        gone = self._present[place]
        self._present[place] = Identity(gone.name, gone.role, gone.prefixes)
        return gone

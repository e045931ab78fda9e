"""The addresses of a run with several Globals, and the relay on the way between each pair.

All are loopback addresses of one network, 127.A.B.0/24, which is the run's own. Each Global listens
at an address and advertises another, at which the relay listens. Each has addresses of its own for
the database. Each client binds its sockets to an address of its own. So a path between any two of
them can be disturbed by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.faults.proxy import EVERY, PATHS, Relay, Route, Rule
from tests.postgres import Server

PORT = 50051
DATABASE_PORT = 15432
MEMBERS_MAX = 30
CLIENTS_MAX = 100
_LISTENS, _ADVERTISES, _DATABASE, _CLIENTS = 10, 50, 90, 130
"""The last byte of the first address of each sort."""


class Links:
    """The relay of a run, and the addresses. ``servers`` are the places of the database."""

    def __init__(self, members: int, servers: Sequence[Server]) -> None:
        assert members <= MEMBERS_MAX
        chosen = random.SystemRandom()
        self._network = f"127.{chosen.randrange(1, 255)}.{chosen.randrange(1, 255)}"
        self._servers = servers
        self.relay = Relay([route for number in range(members) for route in self._routes(number)])

    def _routes(self, number: int) -> list[Route]:
        there, here = self._host(_ADVERTISES, number), self._host(_LISTENS, number)
        routes = [Route(there, path, PORT + at, here, PORT + at) for at, path in enumerate(PATHS)]
        there = self._host(_DATABASE, number)
        for at, server in enumerate(self._servers):
            path = self._place(at)
            routes.append(Route(there, path, DATABASE_PORT + at, server.host, server.port))
        return routes

    def _host(self, first: int, number: int) -> str:
        return f"{self._network}.{first + number}"

    def _place(self, at: int) -> str:
        return f"database {at}"

    # ---- addresses ------------------------------------------------------------------------

    def listens(self, member: int) -> str:
        """The address that a Global binds."""
        return f"tcp://{self._host(_LISTENS, member)}:{PORT}"

    def advertises(self, member: int) -> str:
        """The address of a Global for clients."""
        return f"tcp://{self._host(_ADVERTISES, member)}:{PORT}"

    def databases(self, member: int) -> list[str]:
        """The addresses of the places of the database for a Global."""
        host = self._host(_DATABASE, member)
        return [f"{host}:{DATABASE_PORT + at}" for at in range(len(self._servers))]

    def source(self, client: int) -> str:
        """The address that a client binds its sockets to."""
        assert client < CLIENTS_MAX
        return self._host(_CLIENTS, client)

    # ---- disturbing -----------------------------------------------------------------------

    def disturb_database(self, member: int, rule: Rule) -> None:
        """Put a rule on all connections of a Global to the database."""
        for at in range(len(self._servers)):
            self.relay.disturb(self._host(_DATABASE, member), self._place(at), rule)

    def disturb_client(
        self, member: int, rule: Rule, paths: Sequence[str] = PATHS, source: str = EVERY
    ) -> None:
        """Put a rule on connections to a Global: of one client, or of all."""
        for path in paths:
            self.relay.disturb(self._host(_ADVERTISES, member), path, rule, source)

"""A small TCP relay between Locals and Global that cuts, stalls, delays or throttles.

It gives Global further addresses of this machine: 127.0.0.2, 127.0.0.3, … with the same two ports
that Global has on 127.0.0.1. A Local that reaches Global at one of these receives broadcasts there
too. The two paths, *requests* and *deletions*, can be disturbed independently.

More generally it has *routes*, each from an address of its own to another. A rule for a route
applies to all its connections, or to those from one *source* alone, an address of this machine that
a client has bound its socket to.

It runs as a process (``python -m tests.faults.proxy ROUTES``), takes rules as JSON lines on
standard input, and ends when that is closed. :class:`Relay` starts and controls one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.ending import Closing, kill
from tests.integration.processes import PATIENCE, ROOT

GLOBAL_HOST = "127.0.0.1"
PATHS = ("requests", "deletions")
KINDS = ("cut", "stall", "delay", "throttle")
WAYS = ("both", "to_global", "to_local")
EVERY = ""
"""Stands for all sources."""
CHUNK = 4096
"""Bytes that are relayed at a time."""
SOCKET_BYTES = 16_384
"""Bytes of the kernel's buffers: few, so that a writer soon notices a peer that reads nothing."""


class Route(NamedTuple):
    """Connections to ``port`` at ``host`` are passed on; ``path`` names the route at this host."""

    host: str
    path: str
    port: int
    to_host: str
    to_port: int


class Rule(NamedTuple):
    """A disturbance of a path. ``way`` is one direction, or both.

    cut: connections are closed, new ones too. stall: they stay open, and no byte passes.
    delay: each chunk passes ``amount`` seconds late. throttle: ``amount`` bytes a second pass.
    """

    kind: str = ""
    amount: float = 0.0
    way: str = "both"


# ---- within the process of the relay ----------------------------------------------------------


class Path:
    """The listening port of a route, and all its connections."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._rules = {EVERY: Rule()}
        self._changed = asyncio.Event()
        self._open: dict[asyncio.StreamWriter, str] = {}  # and the source of their connections

    async def listen(self) -> asyncio.Server:
        listener = _socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._route.host, self._route.port))
        return await asyncio.start_server(self._relay, sock=listener, limit=CHUNK)

    def apply(self, source: str, rule: Rule) -> None:
        if source == EVERY or rule.kind:
            self._rules[source] = rule
        else:
            self._rules.pop(source, None)
        self._changed.set()
        self._changed = asyncio.Event()
        for writer, origin in self._open.items():
            if self._rule(origin).kind == "cut":
                writer.transport.abort()

    def _rule(self, source: str) -> Rule:
        """The rule for connections from a source: one for all of them comes first."""
        every = self._rules[EVERY]
        return every if every.kind else self._rules.get(source, every)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        if self._rule(source).kind == "cut":
            writer.transport.abort()
            return
        near = _socket()
        near.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(near, self._route[-2:])
        except OSError:  # nobody listens there
            near.close()
            writer.transport.abort()
            return
        there, to_there = await asyncio.open_connection(sock=near, limit=CHUNK)
        for each in (writer, to_there):
            each.transport.set_write_buffer_limits(CHUNK)
        self._open |= {writer: source, to_there: source}
        if self._rule(source).kind == "cut":  # it came while this connection was made
            writer.transport.abort()
        pumps = [
            asyncio.ensure_future(self._pump(source, reader, to_there, "to_global")),
            asyncio.ensure_future(self._pump(source, there, writer, "to_local")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for each in (writer, to_there):
                del self._open[each]
                each.transport.abort()

    async def _pump(
        self, source: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._hold(source, way, len(data))
                writer.write(data)
                await writer.drain()

    async def _hold(self, source: str, way: str, size: int) -> None:
        """Wait as long as the rule demands, but not longer than the rule is in force."""
        while (rule := self._rule(source)).way in ("both", way):
            changed = self._changed
            pause = None
            if rule.kind == "delay":
                pause = rule.amount
            elif rule.kind == "throttle":
                pause = size / rule.amount
            elif rule.kind != "stall":
                return
            try:
                await asyncio.wait_for(changed.wait(), pause)
            except asyncio.TimeoutError:
                return


def _socket() -> socket.socket:
    sock = socket.socket(proto=socket.IPPROTO_TCP)  # named, so that asyncio switches Nagle off
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    return sock


async def _serve(routes: list[Route]) -> None:
    paths = {(route.host, route.path): Path(route) for route in routes}
    servers = [await path.listen() for path in paths.values()]
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    print("ready", flush=True)
    while line := await orders.readline():
        host, name, source, *rule = json.loads(line)
        paths[host, name].apply(source, Rule(*rule))
        print("done", flush=True)
    for server in servers:
        server.close()


# ---- seen from outside ------------------------------------------------------------------------


class Relay(Closing):
    """The relay's process. Raises OSError if it cannot listen at an address of a route."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy", json.dumps(routes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C does not reach it: it ends with its input
        )
        if (said := self._read_line()) != "ready":
            self.close()
            where = ", ".join(f"{route.host}:{route.port}" for route in routes)
            raise OSError(f"the relay cannot listen at {where}: {said}")

    def disturb(self, host: str, path: str, rule: Rule, source: str = EVERY) -> None:
        """Put a rule on a path, in place of the former one for this source."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([host, path, source, *rule]) + "\n")
        self._process.stdin.flush()
        if self._read_line() != "done":
            raise OSError("the relay has ended")

    def restore(self, host: str, path: str, source: str = EVERY) -> None:
        """Let everything through again."""
        self.disturb(host, path, Rule(), source)

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            kill(self._process)


class Proxy(Relay):
    """A relay to one Global. It listens at the addresses ``hosts``; ``port`` is Global's port."""

    def __init__(self, port: int, hosts: list[str]) -> None:
        self.hosts = hosts
        self.port = port
        super().__init__(
            [
                Route(host, path, port + at, GLOBAL_HOST, port + at)
                for host in hosts
                for at, path in enumerate(PATHS)
            ]
        )

    def address(self, host: str) -> str:
        """The address of Global through ``host``."""
        return f"tcp://{host}:{self.port}"


if __name__ == "__main__":
    try:
        asyncio.run(_serve([Route(*route) for route in json.loads(sys.argv[1])]))
    except OSError as error:
        print(error, flush=True)
    except KeyboardInterrupt:
        pass

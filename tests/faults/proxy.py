"""A small TCP relay between Locals and Global that cuts, stalls, delays or throttles.

It gives Global further addresses of this machine: 127.0.0.2, 127.0.0.3, … with the same two ports
that Global has on 127.0.0.1. A Local that reaches Global at one of these receives broadcasts there
too. The two paths, *requests* and *deletions*, can be disturbed independently.

It runs as a process (``python -m tests.faults.proxy PORT HOST ...``), takes rules as JSON lines on
standard input, and ends when that is closed. :class:`Proxy` starts and controls one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from types import TracebackType
from typing import NamedTuple

from tests.integration.processes import PATIENCE, ROOT

GLOBAL_HOST = "127.0.0.1"
PATHS = ("requests", "deletions")
KINDS = ("cut", "stall", "delay", "throttle")
WAYS = ("both", "to_global", "to_local")
CHUNK = 4096
"""Bytes that are relayed at a time."""
SOCKET_BYTES = 16_384
"""Bytes of the kernel's buffers: few, so that a writer soon notices a peer that reads nothing."""


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
    """One listening port and all its connections to one port of Global."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._rule = Rule()
        self._changed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> asyncio.Server:
        listener = _socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self._port))
        return await asyncio.start_server(self._relay, sock=listener, limit=CHUNK)

    def apply(self, rule: Rule) -> None:
        self._rule = rule
        self._changed.set()
        self._changed = asyncio.Event()
        if rule.kind == "cut":
            for writer in self._open:
                writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._rule.kind == "cut":
            writer.transport.abort()
            return
        near = _socket()
        near.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(near, (GLOBAL_HOST, self._port))
        except OSError:  # Global is not there
            near.close()
            writer.transport.abort()
            return
        there, to_there = await asyncio.open_connection(sock=near, limit=CHUNK)
        for each in (writer, to_there):
            each.transport.set_write_buffer_limits(CHUNK)
        self._open |= {writer, to_there}
        pumps = [
            asyncio.ensure_future(self._pump(reader, to_there, "to_global")),
            asyncio.ensure_future(self._pump(there, writer, "to_local")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._open -= {writer, to_there}
            for each in (writer, to_there):
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._hold(way, len(data))
                writer.write(data)
                await writer.drain()

    async def _hold(self, way: str, size: int) -> None:
        """Wait as long as the rule demands, but not longer than the rule is in force."""
        while self._rule.way in ("both", way):
            rule, changed = self._rule, self._changed
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


async def _serve(port: int, hosts: list[str]) -> None:
    paths = {(host, name): Path(host, port + at) for host in hosts for at, name in enumerate(PATHS)}
    servers = [await path.listen() for path in paths.values()]
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    print("ready", flush=True)
    while line := await orders.readline():
        host, name, *rule = json.loads(line)
        paths[host, name].apply(Rule(*rule))
        print("done", flush=True)
    for server in servers:
        server.close()


# ---- seen from outside ------------------------------------------------------------------------


class Proxy:
    """The relay's process. It listens at the addresses ``hosts``; ``port`` is Global's port."""

    def __init__(self, port: int, hosts: list[str]) -> None:
        self.hosts = hosts
        self.port = port
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy", str(port), *hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if (said := self._read_line()) != "ready":
            self.close()
            raise OSError(f"the relay cannot listen at {', '.join(hosts)}, port {port}: {said}")

    def address(self, host: str) -> str:
        """The address of Global through ``host``."""
        return f"tcp://{host}:{self.port}"

    def disturb(self, host: str, path: str, rule: Rule) -> None:
        """Put a rule on a path, in place of the former one."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([host, path, *rule]) + "\n")
        self._process.stdin.flush()
        if self._read_line() != "done":
            raise OSError("the relay has ended")

    def restore(self, host: str, path: str) -> None:
        """Let everything through again."""
        self.disturb(host, path, Rule())

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
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


if __name__ == "__main__":
    try:
        asyncio.run(_serve(int(sys.argv[1]), sys.argv[2:]))
    except OSError as error:
        print(error, flush=True)
    except KeyboardInterrupt:
        pass

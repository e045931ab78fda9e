"""Real processes for tests: a Global of its own, workers that embed a Node, and a raw client."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

import dstore
from dstore import config
from dstore.protocol import wire
from dstore.protocol.messages import NO_SESSION, Hello, ToGlobal, ToLocal, Welcome
from dstore.testing import start_global
from tests.ending import Closing, join, kill

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""


def free_port() -> int:
    """Find a port that is free, and the next one too, and that the system gives to nothing else.

    It is below the range from which systems choose ports for outgoing connections.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a child; if it is to stop, wait until all its threads have."""
    os.kill(pid, number)
    if number is signal.SIGSTOP:
        os.waitid(os.P_PID, pid, os.WSTOPPED)


def other_sessions(node: dstore.Node) -> int:
    """How many sessions Global has, of any kind, besides those of this Node and of Global itself.

    Global itself has one if the processes of its host can share a membership.
    """
    figures = node.global_stats()
    own = bool(node._state.joined.session) + bool(node._state.writer.secret)
    there: int = figures["sessions"] + figures["writers"] + figures["observers"]
    return there - own - int(figures["host_membership"] != "none")


def others_left(node: dstore.Node, expected: int = 0) -> int:
    """Wait until Global has ``expected`` other sessions, or a timeout. Returns how many it has."""
    until = time.monotonic() + PATIENCE
    while (sessions := other_sessions(node)) != expected and time.monotonic() < until:
        time.sleep(0.02)
    return sessions


def start_script(
    body: str, address: str, *warnings: str, stdin: int | None = None
) -> subprocess.Popen[str]:
    """Start a process that runs Python text, and whose Nodes use this address by default.

    There a warning is an error, unless ``warnings`` has a filter for it.
    """
    filters = [word for each in ("error", *warnings) for word in ("-W", each)]
    return subprocess.Popen(
        [sys.executable, *filters, "-c", body],
        env={**os.environ, "PYTHONPATH": str(ROOT), config.ADDRESS_VARIABLE: address},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class GlobalProcess(Closing):
    """``dstore global`` as a process that can be killed and started again, at ``address``."""

    def __init__(self, address: str = "", lease: float = 1.0, options: Sequence[str] = ()) -> None:
        self._options = ("--lease", str(lease), *options)
        self.address = address or f"tcp://127.0.0.1:{free_port()}"
        self.start()

    def start(self) -> None:
        """Start it; after it was killed, again at the same address."""
        self.address, self.process = start_global(*self._options, address=self.address)

    def signal(self, number: signal.Signals) -> None:
        send_signal(self.process.pid, number)

    def kill(self) -> None:
        kill(self.process)

    def stop(self) -> int:
        """Ask it to end. Returns its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.kill()


def _serve(pipe: Connection, address: str, options: dict[str, Any]) -> None:
    with dstore.Node(address, **options) as node:
        while True:
            name, arguments, keywords = pipe.recv()
            if name == "end":
                return
            try:
                pipe.send((True, getattr(node, name)(*arguments, **keywords)))
            except dstore.DstoreError as error:
                pipe.send((False, f"{type(error).__name__}: {error}"))


class Refusal(Exception):
    """An error that the Node of a worker raised."""


class Worker(Closing):
    """A process that embeds a Node: ``worker.call("get", "k")``."""

    serve = staticmethod(_serve)
    """What the process does: it gets a pipe, the address, and options of its Node."""

    def __init__(self, address: str, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.serve, args=(theirs, address, options))
        self.process.start()
        theirs.close()

    def begin(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self._pipe.send((name, arguments, keywords))

    def end(self) -> Any:
        """The result of the call that was begun."""
        assert self._pipe.poll(PATIENCE)
        good, result = self._pipe.recv()
        if not good:
            raise Refusal(result)
        return result

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        self.begin(name, *arguments, **keywords)
        return self.end()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        send_signal(self.process.pid, number)

    def close(self) -> None:
        if self.process.is_alive():
            self.signal(signal.SIGCONT)
            self._pipe.send(("end", (), {}))
        join(self.process)
        self._pipe.close()


class RawClient(Closing):
    """A bare DEALER that sends only what a test tells it to send."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE))
        self.socket.connect(address)
        self.epoch = 0
        self.session = self.secret = NO_SESSION

    def ask(self, message: ToGlobal) -> ToLocal:
        self.socket.send(wire.encode(message))
        return self.receive()

    def receive(self) -> ToLocal:
        return wire.decode_to_local(self.socket.recv())

    def join(self) -> None:
        welcome = self.ask(Hello(os.urandom(16), 0, 0, "raw"))
        assert isinstance(welcome, Welcome)
        self.epoch, self.session, self.secret = welcome.epoch, welcome.session, welcome.secret

    def close(self) -> None:
        self.socket.close()
        self._context.term()

"""Large values between real processes: hosts, processes that read, and what lies in their memory.

A host is a folder in memory here: Nodes with the same folder share, others do not.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.config import CHUNK_BYTES, LARGE_FROM_DEFAULT
from tests.integration.processes import PATIENCE, send_signal

LARGE, CHUNK = LARGE_FROM_DEFAULT, CHUNK_BYTES
Hosts = Callable[[str], str]


def content_of(size: int, seed: int = 0) -> bytes:
    """Bytes in which every place shows."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(host: str) -> list[Path]:
    """The values that lie in the memory of a host, finished or not."""
    return sorted(path for path in Path(host).rglob("*") if path.is_file() and path.name != "lock")


def soon(seen: Callable[[], object]) -> None:
    """Wait until something can be seen."""
    for _ in range(int(PATIENCE / 0.005)):
        if seen():
            return
        signal.sigtimedwait([], 0.005)
    raise AssertionError("that does not come")


@pytest.fixture
def host() -> Iterator[Hosts]:
    """``host("a")`` is the folder of host a, in memory. Nothing may be left in any of them."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="hosts-of-dstore-", dir=base) as folder:

        def named(name: str) -> str:
            path = os.path.join(folder, name)
            os.makedirs(path, exist_ok=True)
            return path

        yield named
        left = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert left == []


@pytest.fixture
def running(host: Hosts) -> Iterator[dstore.Global]:
    """A Global on host ``global``."""
    with dstore.Global("tcp://127.0.0.1:0", lease=1.0, shm=host("global")) as each:
        yield each


def _follow(pipe: Connection, address: str, options: dict[str, Any]) -> None:
    """Call a Node as a pipe says, and say how long the result is, and what hash it has."""
    with dstore.Node(address, **options) as node:
        pipe.send("ready")
        kept = []
        while True:
            name, arguments, keywords = pipe.recv()
            if name == "end":
                return
            try:
                result = getattr(node, name)(*arguments, **keywords)
            except dstore.DstoreError as error:
                pipe.send(f"{type(error).__name__}: {error}")
                continue
            if isinstance(result, (bytes, memoryview)):
                kept.append(result)
                result = (len(result), digest(result))
            pipe.send(result)


class Reader:
    """A process with a Node. It keeps the values that it has read."""

    def __init__(self, address: str, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_follow, args=(theirs, address, options))
        self.process.start()
        theirs.close()
        assert self._hear() == "ready"

    def begin(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self._pipe.send((name, arguments, keywords))

    def end(self) -> Any:
        return self._hear()

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        self.begin(name, *arguments, **keywords)
        return self.end()

    def _hear(self) -> Any:
        assert self._pipe.poll(PATIENCE)
        return self._pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            assert self.process.pid is not None
            send_signal(self.process.pid, signal.SIGCONT)
            self._pipe.send(("end", (), {}))
            self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()

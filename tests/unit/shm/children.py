"""Child processes for the tests of shared memory, each controlled by the test step by step."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dstore.runtime.background import janitor
from dstore.shm import HostMemory, Writer, clean, open_memory
from dstore.shm.folder import Folder
from tests.ending import join

TIMEOUT = 30.0
"""Seconds that a test waits for a child at most."""
EPOCH = 0x1234
SIZE = 3 * 4096 + 5
ROOMY = 1 << 30

Some = TypeVar("Some", bound="Child")


def new_token() -> bytes:
    return os.urandom(16)


def value_of(token: bytes, size: int = SIZE) -> bytes:
    """The value that the tests store for this token."""
    return (token * (size // 16 + 1))[:size]


class Child:
    """A forked process that runs ``body`` and exchanges messages with the test through a pipe.

    To fork takes a millisecond only, and shared memory treats the child like any other process.
    """

    _pipes: ClassVar[set[Connection]] = set()  # children inherit those that tests hold

    def __init__(self, body: Callable[[Connection], object]) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._pipes.add(self._pipe)
        self.process = context.Process(target=self._run, args=(body, theirs))
        self.process.start()
        theirs.close()

    def _run(self, body: Callable[[Connection], object], pipe: Connection) -> None:
        for inherited in self._pipes:
            inherited.close()
        try:
            body(pipe)
        except EOFError:  # the test is over
            pass

    def hear(self) -> Any:
        """Receive its next message. An exception is raised."""
        assert self._pipe.poll(TIMEOUT), "the child says nothing"
        said = self._pipe.recv()
        if isinstance(said, BaseException):
            raise said
        return said

    def tell(self, what: object = "go on") -> None:
        self._pipe.send(what)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it has ended."""
        self.process.kill()
        self.process.join()

    def ends_by(self, number: signal.Signals) -> None:
        """Wait until this signal has ended it."""
        code = join(self.process, TIMEOUT)
        self._pipes.discard(self._pipe)
        self._pipe.close()
        assert code == -number, f"the child ended with {code}"

    def end(self) -> None:
        """Wait until it has ended by itself, with code 0. Idempotent."""
        if self._pipe.closed:
            return
        self._pipes.discard(self._pipe)
        self._pipe.close()
        code = join(self.process, TIMEOUT)
        assert code in (0, -signal.SIGKILL), f"the child ended with {code}"

    def __enter__(self: Some) -> Some:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self._pipe.closed:
            self.kill()
        self.end()


class User(Child):
    """A process that has opened the memory and calls the methods that the test names.

    It sends the bytes of a view. It keeps a Writer and calls its methods, such as ``write``.
    """

    def __init__(self, root: Path, epoch: int = EPOCH, limit: int = ROOMY) -> None:
        self._root, self._epoch, self._limit = str(root), epoch, limit
        super().__init__(self._serve)
        assert self.hear() is True

    def _serve(self, pipe: Connection) -> None:
        memory = open_memory(self._epoch, root=self._root, limit=self._limit)
        pipe.send(memory is not None)
        assert memory is not None
        writer: Writer | None = None
        while True:
            name, arguments, keywords = pipe.recv()
            try:
                owner = writer if hasattr(Writer, name) else memory
                result = getattr(owner, name)(*arguments, **keywords)
            except Exception as error:
                pipe.send(error)
                continue
            if isinstance(result, Writer):
                writer, result = result, True
            pipe.send(bytes(result) if isinstance(result, memoryview) else result)

    def begin_call(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self.tell((name, arguments, keywords))

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        self.begin_call(name, *arguments, **keywords)
        return self.hear()


@contextlib.contextmanager
def opened(root: Path, epoch: int = EPOCH, limit: int = ROOMY) -> Iterator[HostMemory]:
    """The memory opened in this process, and closed at the end of the block."""
    memory = open_memory(epoch, root=str(root), limit=limit)
    assert memory is not None
    try:
        yield memory
    finally:
        memory.close()


def entered(memory: HostMemory) -> Folder:
    """The folder that the memory has entered."""
    folder = memory._folder
    assert folder is not None
    return folder


def begun(
    memory: HostMemory, token: bytes, size: int = SIZE, *, for_global: bool = False
) -> Writer:
    """A Writer of a value that no other process is writing."""
    writer = memory.begin(token, size, for_global=for_global)
    assert writer is not None
    return writer


def stored(memory: HostMemory, size: int = SIZE, *, for_global: bool = False) -> bytes:
    """Store a new value. Returns its token."""
    token = new_token()
    with begun(memory, token, size, for_global=for_global) as writer:
        writer.write(0, value_of(token, size))
        writer.seal()
    return token


def holds(memory: HostMemory, token: bytes, size: int = SIZE) -> bool:
    """Whether the value is found. Its bytes must be right."""
    view = memory.find(token, size)
    assert view is None or bytes(view) == value_of(token, size)
    return view is not None


def cleaned(root: Path) -> list[str]:
    """Clean the root. Returns the files that are left when the janitor has finished."""
    clean(str(root))
    janitor.wait()
    return files(root)


@contextlib.contextmanager
def janitor_held_up() -> Iterator[None]:
    """The janitor does nothing in this block."""
    here, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        here.set()
        go_on.wait(TIMEOUT)

    janitor.do(stand_still)
    assert here.wait(TIMEOUT)
    try:
        yield
    finally:
        go_on.set()
        janitor.wait()


def files(root: Path) -> list[str]:
    """All files and folders below the root."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def folder_of(root: Path, epoch: int = EPOCH) -> Path:
    return root / f"dstore-{os.geteuid()}" / f"{epoch:016x}"

"""Native threads and locks, which gevent and eventlet do not patch.

These two replace what is in Python's modules ``_thread``, ``threading``, ``queue``, ``time`` and
``socket`` while a program runs, and eventlet also exchanges existing locks wherever it finds them.
A thread that became a greenlet would never run beside its waiter, and a lock that switches
greenlets would let two of them into what it guards. So dstore takes all of this from here. It is
built on a second copy of the built-in module ``_thread``, to which no other code has access. That
works the same whether Python's own was patched before dstore was imported, later, or never.
"""

from __future__ import annotations

import _queue
import _socket
import _thread
import contextlib
import importlib.util
import os
import posix
import signal
import threading
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from dstore.runtime import clock


def in_forked_child(function: Callable[[], None]) -> Callable[[], None]:
    """Decorator: have the function called in each forked child."""
    os.register_at_fork(after_in_child=function)
    return function


_sigmask: Callable[..., object] = importlib.import_module("_signal").pthread_sigmask
"""The function of the C module: that of ``signal`` makes an enumeration member of each signal."""
_SIGNALS = [int(each) for each in signal.valid_signals()]


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals in this thread for a while; threads started meanwhile never take any.

    That holds for the threads of ZeroMQ, too. A signal has to interrupt what the main thread waits
    for; taken by another thread it would be noticed only when that wait has ended. Threads inherit
    the mask of the one that starts them, so there is no moment at which they could take a signal.
    Signals that arrive meanwhile are delivered afterwards.
    """
    former = _sigmask(signal.SIG_BLOCK, [])
    try:  # from here on, since the handler of an earlier signal may run within the next call
        _sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        _sigmask(signal.SIG_SETMASK, former)


def _own_copy(module: Any) -> Any:
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


_own = _own_copy(_thread)

if TYPE_CHECKING:
    Lock = threading.Lock
    RLock = threading.RLock
    local = threading.local
else:
    Lock = _own.allocate_lock
    RLock = _own.RLock
    local = _own._local

get_ident: Callable[[], int] = _own.get_ident
"""Returns the number of the calling thread, which all its greenlets share."""
Empty = _queue.Empty
SimpleQueue = _queue.SimpleQueue

sockets = _socket
"""The C module behind Python's ``socket``, whose sockets no patch replaces."""
system = posix
"""The C module behind Python's ``os``; eventlet replaces ``os.read`` and ``os.write``."""
gethostname: Callable[[], str] = _socket.gethostname

WAIT_SLICE = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""


def patched() -> bool:
    """Whether a thread of :mod:`threading` would be a greenlet now."""
    return not isinstance(_thread.start_new_thread, BuiltinFunctionType)


def sleep(seconds: float) -> None:
    """Block this thread, with all its greenlets."""
    ThreadEvent().wait(seconds)


class ThreadEvent:
    """Like ``threading.Event``; a signal handler may call :meth:`set` as well."""

    def __init__(self) -> None:
        self._set = False
        self._gate = Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        with contextlib.suppress(RuntimeError):  # it is set already
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when it is set, or after ``timeout`` seconds. Returns whether it is set."""
        end = float("inf") if timeout is None else clock.now() + timeout
        while not self._set and (left := end - clock.now()) > 0:
            if self._gate.acquire(timeout=min(left, WAIT_SLICE)):
                self._gate.release()  # for the other waiters
        return self._set


class Thread:
    """A native thread that calls ``target``.

    Where threads are not patched it runs inside one of :mod:`threading`, so that debuggers and
    ``threading.enumerate()`` show its name, and Python waits for it at exit unless it is a
    ``daemon``. In a patched process it is always a daemon.
    """

    def __init__(self, target: Callable[[], object], name: str, *, daemon: bool = True) -> None:
        self.name = name
        self.ident: int | None = None
        self.started = False
        self._pid = os.getpid()
        self._target = target
        self._daemon = daemon
        self._over = ThreadEvent()
        self._carrier: threading.Thread | None = None

    def start(self) -> None:
        """Start it, with signals blocked. Raises RuntimeError if there can be no more threads."""
        with signals_blocked():  # Ctrl-C would leave one that counts as started and never runs
            self.started = True  # first, since the thread itself asks is_this()
            try:
                if patched():
                    _own.start_new_thread(self._run, ())
                else:
                    self._carrier = threading.Thread(
                        target=self._run, name=self.name, daemon=self._daemon
                    )
                    self._carrier.start()
            except RuntimeError:
                self.started = False
                raise

    def forget(self) -> None:
        """Let go of the target, which may refer to this: it was not started, and will not be."""
        self._target = int

    def is_this(self) -> bool:
        return self.ident == get_ident() and self.is_alive()

    def is_alive(self) -> bool:
        """Whether it is running. False in a forked child."""
        return self.started and not self._over.is_set() and self._pid == os.getpid()

    def join(self, timeout: float | None = None) -> None:
        """Return when it has ended, or after ``timeout`` seconds."""
        carrier = self._carrier
        if carrier is not None and not patched():
            carrier.join(timeout)
        elif self.is_alive():  # the carrier, if any, may use green locks by now
            self._over.wait(timeout)

    def _run(self) -> None:
        self.ident = get_ident()
        _here.own = True
        try:
            self._target()
        finally:
            del self._target  # it may hold much memory
            self._over.set()
            if self._carrier is not None and patched():
                self._register_again(self._carrier)

    def _register_again(self, carrier: threading.Thread) -> None:
        """Register a thread that began before the patch under its present number.

        Since the patch :mod:`threading` looks for the thread under another number, and would report
        an error at its end.
        """
        known: dict[int, threading.Thread] = getattr(threading, "_active", {})
        known[threading.get_ident()] = carrier
        if self.ident is not None:
            known.pop(self.ident, None)


_here = local()
"""``own`` is set in the threads of dstore."""


def is_own_thread() -> bool:
    """Whether dstore has started the calling thread."""
    return hasattr(_here, "own")


class Waker:
    """A pair of connected sockets. Poll :meth:`fileno`; call :meth:`wake` from any thread."""

    def __init__(self) -> None:
        self._near, self._far = _socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def wake(self) -> None:
        """Make the poll return, or the next one if none is under way."""
        with contextlib.suppress(OSError):  # full: the poll returns anyway; closed: no thread polls
            self._far.send(b"\0")

    def drain(self) -> None:
        """Remove the wake-ups so far."""
        with contextlib.suppress(OSError):
            while self._near.recv(4096):
                pass

    def close(self) -> None:
        self._near.close()
        self._far.close()

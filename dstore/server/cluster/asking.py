"""A thread that carries out what a member asks of its database, one ask at a time.

Global's thread and this one share two queues and nothing else. A database that does not answer
holds up this thread alone; the ownership lease ends meanwhile, and Global's thread sees that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from dstore.core.cluster.messages import Ask, View
from dstore.errors import DstoreError
from dstore.runtime import native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.cluster.storage import LOG_EVERY

log = Log("dstore.global")

Answered: TypeAlias = tuple[Ask, "View | None"]
"""How an ask has ended: its answer, or None if it has failed, or if that is not known."""


class Asking:
    """Carries out asks with ``carry_out``, which returns the answer or raises DstoreError.

    It calls ``wake`` after each. ``news`` is whether :meth:`answered` has anything to return. For
    Global's thread alone.
    """

    def __init__(self, carry_out: Callable[[Ask], View | None], wake: Callable[[], object]) -> None:
        self._carry_out = carry_out
        self._wake = wake
        self._asks: native.SimpleQueue[Ask | None] = native.SimpleQueue()
        self._answered: deque[Answered] = deque()
        self._thread: native.Thread | None = None
        self._log = RateLimitedLog(log, LOG_EVERY)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        thread = native.Thread(self._run, "dstore-directory")
        thread.start()
        self._thread = thread

    def ask(self, ask: Ask) -> None:
        """Have an ask carried out after those before. Returns at once."""
        self._asks.put(ask)

    @property
    def news(self) -> bool:
        """Whether an ask has ended."""
        return bool(self._answered)

    def answered(self) -> list[Answered]:
        """Return the asks that have ended since the last call."""
        ended = []
        while self._answered:
            ended.append(self._answered.popleft())
        return ended

    def stop(self) -> None:
        """Let the thread end after the ask that it is at. Returns at once. Idempotent."""
        self._wake = int
        self._asks.put(None)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, after :meth:`stop`."""
        if self._thread is not None:
            self._thread.join(timeout)

    def forked(self) -> None:
        """In a forked child: there is no thread here."""
        self._thread = None
        self._wake = int

    def _run(self) -> None:
        while (ask := self._asks.get()) is not None:
            answer: View | None = None
            try:
                answer = self._carry_out(ask)
            except DstoreError as error:
                self._log.warning("%s", str(error))
            except Exception:
                log.exception("what the database was asked for failed; it is asked again")
            self._answered.append((ask, answer))
            self._wake()

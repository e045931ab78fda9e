"""A thread that loads the rows of partitions that a member has gained, page by page.

A page is bound by Global's thread in one go; between two pages it answers messages. So a page is
small, and no more than a few of them wait for Global's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dstore.errors import DstoreError
from dstore.runtime import native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.cluster.storage import LOG_EVERY, Rows

log = Log("dstore.global")

PAGES_AHEAD = 4
"""Pages that may wait for Global's thread."""
RETRY_PAUSE = 0.2
"""Seconds after which rows that could not be loaded are loaded again."""


class Page(NamedTuple):
    """Some rows of a load with this number.

    The ``last`` page has no rows. If it has ``failed`` the rows so far count for nothing.
    """

    load: int
    rows: Rows
    last: bool = False
    failed: bool = False


class Taking:
    """Loads rows with ``load``, which yields pages of them or raises DstoreError.

    It calls ``wake`` when there is a page. For Global's thread, and safe from no other one.
    """

    def __init__(
        self,
        load: Callable[[tuple[int, ...]], Iterator[Rows]],
        wake: Callable[[], object],
    ) -> None:
        self._load = load
        self._wake = wake
        self._works: native.SimpleQueue[tuple[int, tuple[int, ...]] | None] = native.SimpleQueue()
        self._pages: deque[Page] = deque()
        self._room: native.SimpleQueue[None] = native.SimpleQueue()  # one for each page of it
        for _ in range(PAGES_AHEAD):
            self._room.put(None)
        self._number = 0
        self._cancelled = 0  # loads up to this one are not wanted
        self._stopped = native.ThreadEvent()
        self._thread: native.Thread | None = None
        self._log = RateLimitedLog(log, LOG_EVERY)

    @property
    def news(self) -> bool:
        """Whether there is a page."""
        return bool(self._pages)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        thread = native.Thread(self._run, "dstore-taking")
        thread.start()
        self._thread = thread

    def take(self, partitions: tuple[int, ...]) -> int:
        """Load the rows of partitions, after the loads before. Returns the number of the load."""
        self._number += 1
        self._works.put((self._number, partitions))
        return self._number

    def cancel(self) -> None:
        """Give up all loads so far: no further page of them comes."""
        self._cancelled = self._number

    def page(self) -> Page | None:
        """Return the next page, or None if there is none at present."""
        while self._pages:
            page = self._pages.popleft()
            self._room.put(None)
            if page.load > self._cancelled:
                return page
        return None

    def stop(self) -> None:
        """Let the thread end soon. Returns at once. Idempotent."""
        self._wake = int
        self.cancel()
        self._stopped.set()
        self._works.put(None)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, after :meth:`stop`."""
        if self._thread is not None:
            self._thread.join(timeout)

    def forked(self) -> None:
        """In a forked child: there is no thread here."""
        self._thread = None
        self._wake = int

    # ---- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            number, partitions = work
            if number <= self._cancelled:
                continue
            try:
                self._carry_out(number, partitions)
            except DstoreError as error:
                self._log.warning("rows cannot be loaded from the database: %s", str(error))
                self._fail(number)
            except Exception:
                log.exception("rows cannot be loaded; it is tried again")
                self._fail(number)

    def _carry_out(self, number: int, partitions: tuple[int, ...]) -> None:
        for rows in self._load(partitions):
            if not self._put(Page(number, rows)):
                return
        self._put(Page(number, None, last=True))

    def _fail(self, number: int) -> None:
        self._stopped.wait(RETRY_PAUSE)
        self._put(Page(number, None, last=True, failed=True))

    def _put(self, page: Page) -> bool:
        """Hand a page over, when there is room for it. Returns whether it is wanted."""
        while page.load > self._cancelled:
            try:
                self._room.get(timeout=native.WAIT_SLICE)
            except native.Empty:
                continue
            self._pages.append(page)
            self._wake()
            return True
        return False

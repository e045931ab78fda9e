"""The key folder of a running Global: what it has loaded, what is new, and what it reports.

A command that changes the folder waits until each running Global has applied the change. So a
Global makes itself known before it reads the folder for the first time. It reports a generation
only when nothing that was revoked in it is answered any more, neither here nor from the caches of
those who had it: their leases have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dstore.access.keys import Changes, KeyFolder, KeyRing, changes
from dstore.access.running import Running, Seen
from dstore.core.authority.identity import Identity
from dstore.errors import KeyFolderError
from dstore.runtime.logs import WARNING, Log

log = Log("dstore.global")

KEYS_CHECK = 0.25
"""Seconds between two looks at whether the key folder has changed."""
REPORT_EVERY = 2.0
"""Seconds between two reports of who was heard, if nothing else has changed."""
PATIENCE = 1.0
"""Seconds for which the folder may be unreadable, as while a command has locked it, before that is
logged.
"""


class _Trouble:
    """Logs what does not work, once for each reason, and when it works again."""

    def __init__(self, again: str) -> None:
        self._again = again
        self._since: float | None = None
        self._logged = ""

    def goes_on(self, error: Exception, consequence: str, now: float) -> None:
        if self._since is None:
            self._since = now
        text = str(error)
        if now - self._since >= PATIENCE and text != self._logged:
            self._logged = text
            log.warning("%s; %s", text, consequence)

    def is_over(self) -> None:
        if self._logged:
            log.log(WARNING, self._again)
        self._since, self._logged = None, ""


class Access:
    """Who may use a Global, by its key folder. For one thread. Raises KeyFolderError.

    ``ring`` is what is applied; set it to a new one when nothing is answered here any more that
    this one does not permit, and add those who were revoked to ``lapsing``. :meth:`look` is due at
    ``check_at``. Add to ``heard`` each identity from which a message has come.
    """

    def __init__(self, path: str) -> None:
        self.check_at = 0.0
        self.heard: set[Identity] = set()
        self.lapsing: list[Identity] = []
        self._folder = KeyFolder(path)
        self._running = Running.open(path)
        try:
            self.ring = self._folder.load()
        except BaseException:
            self._running.close()
            raise
        self._report_from = 0.0
        self._last_seen: dict[Identity, float] = {}
        self._report_at = 0.0
        self._reported = -1  # the generation
        self._reading = _Trouble("the key folder can be read again")
        self._writing = _Trouble("the state of this Global is in the key folder again")

    def look(self, now: float) -> tuple[KeyRing, Changes] | None:
        """Return what the folder has, if that is new, and what is different.

        The former ring stays in use if the folder cannot be read; one line in the log says why.
        """
        self.check_at = now + KEYS_CHECK
        try:
            if self._folder.generation == self.ring.generation:
                self._reading.is_over()
                return None
            ring = self._folder.load(wait=0.0)
        except KeyFolderError as error:
            consequence = "what it had last stays in force, until it can be read"
            self._reading.goes_on(error, consequence, now)
            return None
        self._reading.is_over()
        return ring, changes(self.ring, ring)

    def report_from(self, moment: float) -> None:
        """Report nothing before ``moment``: an epoch has ended.

        Its sessions are not known any more, and until then their leases may run.
        """
        self._report_from = max(self._report_from, moment)

    def report(self, now: float, sessions: Callable[[], Mapping[Identity, int]]) -> None:
        """Write down for the command line what is applied and who was heard, if that is due.

        While a session of somebody who was revoked has a lease, nothing is: its cache may answer.
        A report that failed is tried again at the next look if a command waits for it, since its
        generation was not reported yet; else it is due after ``REPORT_EVERY`` seconds as always.

        ``sessions`` counts the open sessions of each identity, which takes a pass over all of them.
        It is called once, and only if the numbers are needed.
        """
        if now < self._report_from:
            return
        due = self._reported != self.ring.generation or now >= self._report_at
        if not self.lapsing and not due:
            return
        counted = sessions()
        self.lapsing = [each for each in self.lapsing if counted.get(each)]
        if self.lapsing or not due:
            return
        wall = time.time()
        self._last_seen |= dict.fromkeys(self.heard, wall)
        self.heard.clear()
        status = {
            each.name: Seen(self._last_seen.get(each), counted.get(each, 0))
            for each in self.ring.identities
        }
        self._last_seen = {each: seen for each, seen in self._last_seen.items() if not each.revoked}
        self._report_at = now + REPORT_EVERY
        try:
            self._running.report(self.ring.generation, status)
        except KeyFolderError as error:
            self._writing.goes_on(error, "commands wait for this Global in vain", now)
        else:
            self._writing.is_over()
            self._reported = self.ring.generation

    def close(self) -> None:
        """Report nothing any more. Idempotent."""
        self._running.close()

    def forked(self) -> None:
        """In a forked child: leave the folder to the parent."""
        self._running.forked()

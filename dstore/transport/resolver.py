"""Finding the literal address that the sockets of a Local connect to at present.

A host name is looked up, and what it stands for is tried (:mod:`.happy_eyeballs`). Both may take
seconds, so a thread does that, which exists only during a search.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dstore.runtime import native
from dstore.transport import addresses, happy_eyeballs

PAUSE_FIRST = 0.05
"""Seconds before the second attempt; the pause doubles with each further one."""
PAUSE_MAX = 1.0
"""Seconds between two attempts at most."""


class Resolver:
    """Finds the endpoint of one address.

    :attr:`endpoint` is the literal address, or None while it is searched for; sockets keep their
    connection then. :attr:`last_error` says why none has been found yet, or why nothing answers
    there. Both may be read from any thread; the methods are for the thread that owns the sockets.
    ``wake`` is called from the searching thread when either has changed.
    """

    def __init__(self, address: str, wake: Callable[[], None]) -> None:
        self.address = address
        self.literal = addresses.is_literal(address)
        self.endpoint: str | None = address if self.literal else None
        self.last_error = ""
        self._wake = wake
        self._lock = native.Lock()
        self._stopped: native.ThreadEvent | None = None  # set when the search is over
        self._pause = 0.0  # before the next attempt; grows until a connection is up

    def __repr__(self) -> str:
        return f"<Resolver {self.address} endpoint={self.endpoint} error={self.last_error!r}>"

    def search(self) -> bool:
        """Find out what can be reached, unless a search is under way.

        A literal address remains the endpoint; it is tried to learn why it cannot be reached.
        Returns False if no thread can be started.
        """
        if self._stopped is not None and not self._stopped.is_set():
            return True
        stopped = native.ThreadEvent()
        thread = native.Thread(partial(self._search, stopped), "dstore-resolver")
        with self._lock:
            before, self.endpoint = self.endpoint, self.address if self.literal else None
            self._stopped = stopped
        try:
            thread.start()
        except RuntimeError as error:
            stopped.set()
            self.endpoint = before
            self.last_error = f"the system gives no thread to look for it ({error})"
            return False
        return True

    def connected(self) -> None:
        """Note that a connection is up: stop the search and forget the last error."""
        self.stop()
        self.last_error = ""
        self._pause = 0.0

    def stop(self) -> None:
        """Stop the search. The thread may still wait for the system; its result is ignored."""
        with self._lock:
            if self._stopped is not None:
                self._stopped.set()

    def _search(self, stopped: native.ThreadEvent) -> None:
        while not stopped.wait(self._pause):
            self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MAX)
            found, last_error = None, ""
            try:
                candidates = happy_eyeballs.candidates(self.address)
                found, last_error = happy_eyeballs.first_reachable(candidates, stopped.is_set)
            except happy_eyeballs.Unreachable as error:
                last_error = str(error)
            except Exception as error:  # the system is short of something else
                last_error = f"cannot look for it: {error}"
            with self._lock:
                if stopped.is_set():
                    return
                self.last_error = last_error
                if found is not None:
                    self.endpoint = found
                    stopped.set()
            self._wake()


class PublisherEndpoint:
    """The endpoint of an advertised publisher, on the host at which ``resolver`` found Global."""

    def __init__(self, resolver: Resolver, publisher: str) -> None:
        self._resolver = resolver
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"<PublisherEndpoint {self._publisher} endpoint={self.endpoint}>"

    @property
    def endpoint(self) -> str | None:
        at = self._resolver.endpoint
        return None if at is None else addresses.resolved(self._publisher, at)

"""The way to an address: which literal address the sockets of a Local connect to at present.

For a name that is found by looking it up and trying what it stands for (:mod:`.reach`). Both may
take seconds, so a thread of its own does that, which is there only while it seeks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread
from dstore.transport import addresses, reach

PAUSE_FIRST, PAUSE_MAX = 0.05, 1.0
"""Seconds between two attempts, doubling."""


class Beside:
    """The way to an advertised publisher, on the host that ``route`` leads to."""

    def __init__(self, route: Route, publisher: str) -> None:
        self._route = route
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"<Beside {self._publisher} endpoint={self.endpoint}>"

    @property
    def endpoint(self) -> str | None:
        at = self._route.endpoint
        return None if at is None else addresses.resolved(self._publisher, at)


class Route:
    """Of one address. :attr:`endpoint` and :attr:`trouble` may be read from any thread, the
    methods are for the thread that owns the sockets.

    ``endpoint`` is None while it is sought; sockets stay where they are then. ``trouble`` says why
    it has not been found yet, or why nothing answers there.
    """

    def __init__(self, address: str, wake: Callable[[], None]) -> None:
        self.address = address
        self.literal = addresses.is_literal(address)
        self.endpoint: str | None = address if self.literal else None
        self.trouble = ""
        self._wake = wake
        self._lock = native.Lock()
        self._seeking: native.Event | None = None  # set: nobody wants to know any more
        self._pause = 0.0  # before the next attempt; it grows until a connection is up

    def __repr__(self) -> str:
        return f"<Route {self.address} endpoint={self.endpoint} trouble={self.trouble!r}>"

    def seek(self) -> bool:
        """Find out what can be reached, unless that is under way. False if there is no thread to
        be had. When it is found, ``wake`` is called.

        A literal address stays the endpoint; it is tried to learn what the trouble is.
        """
        if self._seeking is not None and not self._seeking.is_set():
            return True
        over = native.Event()
        thread = native.Thread(partial(self._seek, over), "dstore-route")
        with self._lock:
            before, self.endpoint = self.endpoint, self.address if self.literal else None
            self._seeking = over
        try:
            with signals_left_to_this_thread():
                thread.start()
        except RuntimeError as error:
            over.set()
            self.endpoint = before
            self.trouble = f"the system gives no thread to look for it ({error})"
            return False
        return True

    def arrived(self) -> None:
        """The connection is up."""
        self.stop()
        self.trouble = ""
        self._pause = 0.0

    def stop(self) -> None:
        """Seek no more. What the thread is still waiting for is of no consequence."""
        with self._lock:
            if self._seeking is not None:
                self._seeking.set()

    def _seek(self, over: native.Event) -> None:
        while not over.wait(self._pause):
            self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MAX)
            found, trouble = None, ""
            try:
                found, trouble = reach.race(reach.candidates(self.address), over.is_set)
            except reach.Unreached as error:
                trouble = str(error)
            except Exception as error:  # a system that is short of something else
                trouble = f"cannot look for it: {error}"
            with self._lock:
                if over.is_set():
                    return
                self.trouble = trouble
                if found is not None:
                    self.endpoint = found
                    over.set()
            self._wake()

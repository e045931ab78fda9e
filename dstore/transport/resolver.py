"""Finding the literal address that the sockets of a Local connect to at present.

A name may have addresses of both families, and Global may listen on one of them. ZeroMQ tries
one address only. So dstore tries them with plain connections, as browsers do ("Happy Eyeballs",
RFC 8305): one after the other, each for a moment before the next one is tried as well. That and
the look-up may take seconds, so a thread does them, which exists only during a search.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import zmq

from dstore.errors import AddressError
from dstore.runtime import native
from dstore.runtime.native import sockets
from dstore.transport import addresses
from dstore.transport.binding import error_text

CANDIDATES_MAX = 16
"""Addresses of one name that are tried."""
STAGGER = 0.25
"""Seconds until the next candidate is tried as well, while earlier ones are connecting."""
CONNECT_TIMEOUT = 3.0
"""Seconds for one candidate to accept the connection."""
GREETING_TIMEOUT = 1.0
"""Seconds for the first byte of what listens there."""
POLL_PAUSE = 0.1
"""Seconds between two looks at whether the search was stopped."""
GREETING = b"\xff"
"""The first byte that ZeroMQ sends on a connection, without being asked."""
OWN_GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"
"""What a peer of version 3 of the protocol sends first. Then ZeroMQ sends the rest of its greeting.
"""
REST_OF_GREETING = 64
"""Bytes of a greeting that are read at once after the mechanism."""
MECHANISM_AT = slice(12, 32)
"""Where a greeting names the mechanism: NULL, or CURVE for what asks for keys."""
WITH_KEYS = "CURVE"
"""The name of the mechanism of what asks for keys."""
LEFT_OPEN_FOR = 0.4
"""Seconds for which what asks for keys has to leave a connection open after its greeting. A Global
that has room waits longer for a handshake. One that has none cuts the connection at its next check,
a tenth of a second later or, if it has much to do, a little more.
"""
NO_ROOM = "Global accepts no further connections just now"
"""What is wrong where a connection is ended after the greeting, or in the middle of it."""
ANY_MECHANISM = "any"
"""Stands for the mechanism of what greets as ZeroMQ does and does not name one in time."""
NAMED_MAX = 4
"""Addresses that an error message names for one reason."""
PAUSE_FIRST = 0.05
"""Seconds before the second attempt; the pause doubles with each further one."""
PAUSE_MAX = 1.0
"""Seconds between two attempts at most."""

_CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class Unreachable(Exception):
    """No candidate can be reached; the text says why."""


class Candidate(NamedTuple):
    """One literal address, and the socket address to which a plain socket connects."""

    endpoint: str
    family: int
    sockaddr: Any


def candidates(address: str) -> list[Candidate]:
    """The literal addresses that an address stands for, in the order in which to try them.

    May block for many seconds if a name has to be looked up. Raises Unreachable.
    """
    path = addresses.ipc_path(address)
    if path is not None:
        abstract = path.startswith("@")
        return [Candidate(address, sockets.AF_UNIX, "\0" + path[1:] if abstract else path)]
    host, port = addresses.split_tcp(address) or ("", 0)
    try:
        found = addresses.look_up(host, port, numeric=addresses.is_literal(address))
    except AddressError as error:
        raise Unreachable(str(error)) from None
    each: dict[str, Candidate] = {}
    for family, sockaddr in found:
        endpoint = addresses.endpoint(sockaddr)
        each.setdefault(endpoint, Candidate(endpoint, family, sockaddr))
    return _alternating(list(each.values()))[:CANDIDATES_MAX]


def _alternating(found: list[Candidate]) -> list[Candidate]:
    """Sort candidates so that the families take turns and neither delays the other for long."""
    first = [each for each in found if each.family == found[0].family]
    others = [each for each in found if each.family != found[0].family]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


class Reached(NamedTuple):
    """The endpoint of the candidate that answers first, and an error message if none answered well.

    ``mechanism`` is that of the one that answered well, if it was asked for.
    """

    endpoint: str
    last_error: str = ""
    mechanism: str = ""


def first_reachable(
    found: Iterable[Candidate], stopped: Callable[[], bool], *, asking: bool = False
) -> Reached:
    """Return which candidate answers first; with ``asking`` also the mechanism that it names.

    One that accepts connections and sends nothing is the last choice, with a message: it may be a
    Global that is stopped, or a proxy with nothing behind it. So is one that ends the connection
    after its greeting: a Global that has as many as it accepts. Raises Unreachable, also if
    ``stopped``.
    """
    to_try = deque(found)
    running: list[_Attempt] = []
    silent: list[str] = []
    reasons: dict[str, list[str]] = {}
    next_at = float("-inf")
    try:
        while (to_try or running) and not stopped():
            now = time.monotonic()
            answered = any(attempt.answered for attempt in running)
            if to_try and (not running or now >= next_at) and not answered:
                running.append(_Attempt(to_try.popleft(), now, asking=asking))
                next_at = now + STAGGER
            _wait(running, POLL_PAUSE)
            for attempt in running:
                attempt.update(time.monotonic())
                if attempt.failure:
                    attempt.close()
                    endpoint = attempt.candidate.endpoint
                    reasons.setdefault(attempt.failure, []).append(endpoint)
                    if attempt.silent:
                        silent.append(endpoint)
                    next_at = float("-inf")
            running = [each for each in running if not each.failure]
            # None of the others while it is open whether one that has answered has room.
            first = next((each for each in running if each.answered), None)
            if first is not None and first.greeted:
                return Reached(first.candidate.endpoint, "", first.mechanism)
    finally:
        for each in running:
            each.close()
    if silent:
        return Reached(silent[0], _message(reasons))
    raise Unreachable(_message(reasons))


def _message(reasons: dict[str, list[str]]) -> str:
    parts = []
    for why, where in reasons.items():
        named = [each.removeprefix("tcp://") for each in where[:NAMED_MAX]]
        more = f" and {len(where) - NAMED_MAX} more" if len(where) > NAMED_MAX else ""
        parts.append(f"{why} at {', '.join(named)}{more}")
    return ", ".join(parts)


def _wait(running: list[_Attempt], seconds: float) -> None:
    poller = zmq.Poller()
    for attempt in running:
        if attempt.sock is not None and not attempt.failure and not attempt.greeted:
            poller.register(attempt.sock.fileno(), zmq.POLLIN if attempt.connected else zmq.POLLOUT)
    if poller.sockets:
        poller.poll(int(seconds * 1000))


class _Attempt:
    """One candidate: connecting, then waiting for a greeting, then ``greeted`` or a failure.

    With ``asking`` it waits for the greeting as far as to the mechanism, and, if that asks for
    keys, to see whether the connection is left open.
    """

    def __init__(self, candidate: Candidate, now: float, *, asking: bool) -> None:
        self.candidate = candidate
        self.mechanism = ""
        self._asking = asking
        self._greeting = b""
        self.sock: sockets.socket | None = None
        self.connected = False
        self.greeted = False
        self.silent = False
        self.failure = ""
        self._until = now + CONNECT_TIMEOUT
        try:
            self.sock = sockets.socket(candidate.family, sockets.SOCK_STREAM)
            self.sock.setblocking(False)
            code = self.sock.connect_ex(candidate.sockaddr)
        except OSError as error:
            code = error.errno or errno.EIO
        if code == errno.EAGAIN and candidate.family == sockets.AF_UNIX:  # its backlog is full
            self.failure, self.silent = "nothing accepts the connection", True
        elif code not in _CONNECTING:
            self.failure = error_text(code)

    @property
    def answered(self) -> bool:
        """Whether it has greeted, or has only to show that it leaves the connection open."""
        return self.greeted or bool(self.mechanism)

    def update(self, now: float) -> None:
        if self.sock is None or self.failure or self.greeted:
            return
        try:
            if not self.connected:
                self._update_connecting(self.sock, now)
            else:
                self._update_greeting(self.sock, now)
        except BlockingIOError:
            if now >= self._until:
                self._update_late()
        except OSError as error:
            self._ended(error_text(error.errno or errno.EIO))

    def _update_greeting(self, sock: sockets.socket, now: float) -> None:
        wanted = MECHANISM_AT.stop - len(self._greeting) if self._asking else 1
        received = sock.recv(wanted or REST_OF_GREETING)
        if not received:
            self._ended("connection closed")
            return
        if not wanted:  # it was the rest of the greeting, which says nothing
            if now >= self._until:
                self._update_late()
            return
        self._greeting += received
        if not self._greeting.startswith(GREETING):
            self.failure = "what listens is not Global"
        elif not self._asking:
            self.greeted = True
        elif len(self._greeting) == MECHANISM_AT.stop:
            self.mechanism = self._greeting[MECHANISM_AT].rstrip(b"\0").decode("ascii", "replace")
            self.greeted = self.mechanism != WITH_KEYS
            self._until = now + LEFT_OPEN_FOR

    def _update_late(self) -> None:
        """Conclude from what has come, since the time is up and the connection is open."""
        if self._greeting:
            self.greeted, self.mechanism = True, self.mechanism or ANY_MECHANISM
        else:
            self.failure, self.silent = "what listens sends nothing", True

    def _ended(self, failure: str) -> None:
        """Conclude from what has come before what listens has ended the connection."""
        if self._greeting:
            self.failure, self.silent = NO_ROOM, True
        else:
            self.failure = failure

    def _update_connecting(self, sock: sockets.socket, now: float) -> None:
        code = sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR)
        if code:
            self.failure = error_text(code)
            return
        try:
            peer = sock.getpeername()
        except OSError:  # still connecting
            self.failure = "no answer" if now >= self._until else ""
            return
        if self.candidate.family != sockets.AF_UNIX and peer == sock.getsockname():
            # The system gave this end the port that it connects to, so it is connected to itself.
            self.failure = error_text(errno.ECONNREFUSED)
        self.connected, self._until = True, now + GREETING_TIMEOUT
        if self._asking:
            sock.send(OWN_GREETING)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


class Resolver:
    """Finds the endpoint of one address.

    :attr:`endpoint` is the literal address, or None while it is searched for; sockets keep their
    connection then. :attr:`last_error` says why none has been found yet, or why nothing answers
    there. :attr:`mechanism` is that of what was found last: "" if it does not greet as ZeroMQ does
    or has no room, None during a search that has not found out. All may be read from any thread;
    the methods are for the thread that owns the sockets. ``wake`` is called from the searching
    thread when one has changed.
    """

    def __init__(self, address: str, wake: Callable[[], None]) -> None:
        self.address = address
        self.literal = addresses.is_literal(address)
        self.endpoint: str | None = address if self.literal else None
        self.last_error = ""
        self.mechanism: str | None = None
        self._wake = wake
        self._lock = native.Lock()
        self._stopped: native.ThreadEvent | None = None  # set when the search is over
        self._asking = False  # whether the search is to find out the mechanism
        self._pause = 0.0  # before the next attempt; grows until a connection is up

    def search(self, *, asking: bool = False) -> bool:
        """Find out what can be reached, unless a search is under way; if ``asking``, by what means.

        A literal address remains the endpoint; it is tried to learn why it cannot be reached.
        Returns False if no thread can be started.
        """
        if self._stopped is not None and not self._stopped.is_set():
            self._asking |= asking
            return True
        self._asking = asking
        stopped = native.ThreadEvent()
        thread = native.Thread(partial(self._search, stopped), "dstore-resolver")
        with self._lock:
            before, self.endpoint = self.endpoint, self.address if self.literal else None
            self.mechanism = None
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
            asking = self._asking
            try:
                tried = candidates(self.address)
                found = first_reachable(tried, stopped.is_set, asking=asking)
                last_error = found.last_error
            except Unreachable as error:
                last_error = str(error)
            except Exception as error:  # the system is short of something else
                last_error = f"cannot look for it: {error}"
            with self._lock:
                if stopped.is_set():
                    return
                self.last_error = last_error
                if found is None or last_error:
                    self.mechanism = ""
                elif asking:
                    self.mechanism = found.mechanism
                if found is not None:
                    self.endpoint = found.endpoint
                    stopped.set()
            self._wake()


class PublisherEndpoint(NamedTuple):
    """The endpoint of an advertised publisher, on the host at which ``resolver`` found Global."""

    resolver: Resolver
    publisher: str

    @property
    def endpoint(self) -> str | None:
        at = self.resolver.endpoint
        return None if at is None else addresses.resolved(self.publisher, at)

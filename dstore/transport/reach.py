"""Which of the addresses that a name has can be reached now.

A name may have addresses of both families, and Global may listen on one of them. ZeroMQ tries
one address only. So these are tried here, with plain connections, as browsers do ("Happy
Eyeballs", RFC 8305): one after the other, each for a moment before the next one joins in.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import zmq

from dstore.errors import AddressError
from dstore.runtime.native import sockets
from dstore.transport import addresses

CANDIDATES_MAX = 16
"""Addresses of one name that are tried."""
STAGGER = 0.25
"""Seconds until the next candidate is tried as well, while the former ones are under way."""
CONNECT_MAX = 3.0
"""Seconds for which one candidate may be connecting."""
GREETING_MAX = 1.0
"""Seconds for the first byte of what listens there."""
LOOK_EVERY = 0.1
"""Seconds between two looks at whether anybody still wants to know."""
GREETING = b"\xff"
"""What ZeroMQ says first, without having been asked."""
TOLD_MAX = 4
"""Addresses that are named for one reason."""

_PENDING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class Unreached(Exception):
    """None can be reached, and why."""


class Candidate(NamedTuple):
    """One literal address, and how a plain socket names it."""

    endpoint: str
    family: int
    sockaddr: Any


def candidates(address: str) -> list[Candidate]:
    """What an address stands for, in the order in which to try. May block for many seconds if a
    name is to be looked up. Raises Unreached.
    """
    path = addresses.ipc_path(address)
    if path is not None:
        abstract = path.startswith("@")
        return [Candidate(address, sockets.AF_UNIX, "\0" + path[1:] if abstract else path)]
    host, port = addresses.split_tcp(address) or ("", 0)
    try:
        found = addresses.look_up(host, port, numeric=addresses.is_literal(address))
    except AddressError as error:
        raise Unreached(str(error)) from None
    each: dict[str, Candidate] = {}
    for family, sockaddr in found:
        endpoint = addresses.endpoint(sockaddr)
        each.setdefault(endpoint, Candidate(endpoint, family, sockaddr))
    return _alternating(list(each.values()))[:CANDIDATES_MAX]


def _alternating(found: list[Candidate]) -> list[Candidate]:
    """The families in turn, the first one first: neither is to delay the other for long."""
    first = [each for each in found if each.family == found[0].family]
    others = [each for each in found if each.family != found[0].family]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


def race(found: Iterable[Candidate], given_up: Callable[[], bool]) -> tuple[str, str]:
    """The endpoint of the candidate that answers first, and what is to be said against it.

    One that accepts connections and is silent is the last choice: it may be a Global that stands
    still, or a proxy with nothing behind it. Raises Unreached, also if given up.
    """
    to_try = deque(found)
    running: list[_Attempt] = []
    silent: list[str] = []
    reasons: dict[str, list[str]] = {}
    next_at = float("-inf")
    try:
        while (to_try or running) and not given_up():
            now = time.monotonic()
            if to_try and (not running or now >= next_at):
                running.append(_Attempt(to_try.popleft(), now))
                next_at = now + STAGGER
            _wait(running, LOOK_EVERY)
            for attempt in running:
                attempt.look(time.monotonic())
                if attempt.greeted:
                    return attempt.candidate.endpoint, ""
                if attempt.failure:
                    attempt.close()
                    endpoint = attempt.candidate.endpoint
                    reasons.setdefault(attempt.failure, []).append(endpoint)
                    if attempt.silent:
                        silent.append(endpoint)
                    next_at = float("-inf")
            running = [each for each in running if not each.failure]
    finally:
        for each in running:
            each.close()
    if silent:
        return silent[0], _told(reasons)
    raise Unreached(_told(reasons))


def _told(reasons: dict[str, list[str]]) -> str:
    parts = []
    for why, where in reasons.items():
        named = [each.removeprefix("tcp://") for each in where[:TOLD_MAX]]
        more = f" and {len(where) - TOLD_MAX} more" if len(where) > TOLD_MAX else ""
        parts.append(f"{why} at {', '.join(named)}{more}")
    return ", ".join(parts)


def _wait(running: list[_Attempt], seconds: float) -> None:
    poller = zmq.Poller()
    for attempt in running:
        if attempt.sock is not None and not attempt.failure:
            poller.register(attempt.sock.fileno(), zmq.POLLIN if attempt.up else zmq.POLLOUT)
    if poller.sockets:
        poller.poll(int(seconds * 1000))


class _Attempt:
    """One candidate: connecting, then waiting for a greeting, then ``greeted`` or a failure."""

    def __init__(self, candidate: Candidate, now: float) -> None:
        self.candidate = candidate
        self.sock: sockets.socket | None = None
        self.up = False
        self.greeted = False
        self.silent = False
        self.failure = ""
        self._until = now + CONNECT_MAX
        try:
            self.sock = sockets.socket(candidate.family, sockets.SOCK_STREAM)
            self.sock.setblocking(False)
            code = self.sock.connect_ex(candidate.sockaddr)
        except OSError as error:
            code = error.errno or errno.EIO
        if code == errno.EAGAIN and candidate.family == sockets.AF_UNIX:  # its backlog is full
            self.failure, self.silent = "nothing accepts the connection", True
        elif code not in _PENDING:
            self.failure = addresses.reason(code)

    def look(self, now: float) -> None:
        """See what has come of it so far."""
        if self.sock is None or self.failure:
            return
        try:
            if not self.up:
                self._look_up(self.sock, now)
            elif (greeting := self.sock.recv(1)) == GREETING:
                self.greeted = True
            else:
                self.failure = "what listens is not Global" if greeting else "connection closed"
        except BlockingIOError:
            self.silent = now >= self._until
            self.failure = "no word from what listens" if self.silent else ""
        except OSError as error:
            self.failure = addresses.reason(error.errno or errno.EIO)

    def _look_up(self, sock: sockets.socket, now: float) -> None:
        code = sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR)
        if code:
            self.failure = addresses.reason(code)
            return
        try:
            peer = sock.getpeername()
        except OSError:  # still connecting
            self.failure = "no answer" if now >= self._until else ""
            return
        if self.candidate.family != sockets.AF_UNIX and peer == sock.getsockname():
            # The system gave this end the very port that it connects to: it has met itself.
            self.failure = addresses.reason(errno.ECONNREFUSED)
        self.up, self._until = True, now + GREETING_MAX

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()

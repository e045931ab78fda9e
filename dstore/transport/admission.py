"""Whether Global lets a Local in, decided from what the handshake of its control connection says.

ZeroMQ reports a failed handshake on the monitor of a socket. What it reports, and what it means:

- *AUTH*, with the code 400 of Global: the client's key is not admitted.
- *PROTOCOL*, mechanism mismatch: one side uses keys and the other one does not. Cryptographic:
  Global cannot prove that it has the key that is expected.
- *NO_DETAIL*: the connection ended in the middle of the handshake. A Global whose key is another
  one does that, since it cannot read the client's first message. But so does a Global that dies at
  that moment, one that has as many connections as it accepts, and a proxy without a Global behind
  it. So it means another key only if every key has failed twice in a row, what listens there
  greets as ZeroMQ does and then leaves a connection open, and every key fails once more after that:
  behind a proxy, a Global may have been started between the failures and the greeting.

After a failed handshake ZeroMQ does not connect again (``RECONNECT_STOP_HANDSHAKE_FAILED``): it
would do that several times a second. The control connection is tried again after a pause that
grows, and no other connection is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum

import zmq

from dstore.errors import AccessDenied, DstoreError, WrongServer
from dstore.transport import curve
from dstore.transport.curve import ClientKeys

HANDSHAKE_PAUSE_FIRST = 0.1
"""Seconds before a connection whose handshake has failed is tried again, as long as it is open why
it has failed.
"""
HANDSHAKE_PAUSE = 1.0
"""The same once that is known; the pause doubles with each further failure."""
HANDSHAKE_PAUSE_MAX = 5.0
"""Seconds between two such attempts at most."""
FAILURES_PER_KEY = 2
"""Handshakes in a row that have to fail, for each server key, before it counts as a wrong one."""
NEVER = float("inf")
_NOT_ADMITTED = 400
"""The status code with which Global's side refuses a client's key."""
_WITHOUT_KEYS, _WITH_KEYS = "NULL", "CURVE"
"""Names of mechanisms."""
_FOREIGN_KEY = zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
_OTHER_MECHANISM = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH


class Event(Enum):
    """An event of a connection."""

    UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
    RETRIED = zmq.EVENT_CONNECT_RETRIED
    AUTH = zmq.EVENT_HANDSHAKE_FAILED_AUTH
    PROTOCOL = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    NO_DETAIL = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

    @property
    def failed(self) -> bool:
        """Whether a handshake has failed, so that ZeroMQ does not connect again by itself."""
        return self not in (Event.UP, Event.RETRIED)


EVENTS = sum(event.value for event in Event)
"""All of them, for a monitor."""


class Admission:
    """The keys of one Link, and whether Global admits it with them.

    ``keys`` is None for a client without keys; ``reread`` returns those of the connect file as it
    is now, and may raise any exception. ``address`` is for messages.

    ``denied`` is why Global does not let this client in, None if it does or if that is not known.
    ``up``: the control connection is up. ``generation`` changes whenever other connections have to
    be made again: their keys are others, or their handshakes may have failed. These three may be
    read from any thread; the rest is for the thread that owns the control connection.
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys | None = None,
        reread: Callable[[], ClientKeys] | None = None,
    ) -> None:
        self._address = address.removeprefix("tcp://")
        self._reread = reread
        self.denied: DstoreError | None = None
        self.up = False
        self.generation = 0
        self.retry_at = NEVER
        self.doubted = False
        self._pause = HANDSHAKE_PAUSE
        self._failures = 0  # in a row
        self._greets = False  # whether what listens there has greeted since the failures before
        self._suspect = False  # whether a handshake has failed since the last one that succeeded
        self._keys = keys
        self._server_key = keys.server_keys[0] if keys is not None else ""
        self._options: dict[zmq.SocketOption, str] = {}
        if keys is not None:
            self._use(keys, self._server_key)
        self._proven = self._options

    def __repr__(self) -> str:
        state = "up" if self.up else "not up"
        return f"<Admission {self._address} {state} denied={self.denied!r}>"

    def options(self, *, trying: bool) -> dict[zmq.SocketOption, str]:
        """Return the socket options with the keys: with those that are to be tried now, or with
        those that Global has accepted last (or the first ones).
        """
        return self._options if trying else self._proven

    # ---- events of the control connection -----------------------------------------------------

    def succeeded(self) -> bool:
        """Note that the control connection is up. Returns whether it had failed before."""
        suspect, self._suspect = self._suspect, False
        if suspect:
            self._proven = self._options
            self.generation += 1
        self.up, self.denied = True, None
        self.retry_at, self.doubted = NEVER, False
        self._pause, self._failures, self._greets = HANDSHAKE_PAUSE, 0, False
        return suspect

    def lost(self) -> None:
        """Note that nothing accepts the control connection; ZeroMQ goes on to try."""
        self.up, self.denied = False, None
        self.retry_at, self.doubted = NEVER, False
        self._failures, self._greets = 0, False

    def try_again(self) -> None:
        """Note that the control connection is about to be tried again, with the present keys."""
        self.retry_at = NEVER
        self._read_again()

    def failed(self, event: Event, value: int, now: float) -> None:
        """Note that the handshake of the control connection has failed, and when to try again.

        If :attr:`doubted` is True after that, the caller has to find out what listens there, and to
        call :meth:`judge`.
        """
        self.up, self._suspect = False, True
        self._failures += 1
        if event is Event.AUTH and value == _NOT_ADMITTED:
            self._deny(AccessDenied(self._why_not_admitted()), now)
        elif event is Event.PROTOCOL and value == _OTHER_MECHANISM:
            self._other_mechanism(now)
        elif isinstance(self.denied, WrongServer):
            self._deny(self.denied, now)  # most likely for the same reason
            self._next_server_key()
        else:
            self._doubt(event, value, now)

    def _doubt(self, event: Event, value: int, now: float) -> None:
        """Go on, with another key if there is one, while it is open what the failure means."""
        self._read_again()
        keys = max(1, self._next_server_key())
        self.retry_at = now + HANDSHAKE_PAUSE_FIRST
        if self._failures < (keys if self._greets else FAILURES_PER_KEY * keys):
            return
        if self._greets or (event is Event.PROTOCOL and value == _FOREIGN_KEY):
            self._wrong_key(now)
            return
        self.retry_at = now + HANDSHAKE_PAUSE
        self.doubted = True

    def judge(self, mechanism: str, now: float) -> None:
        """Take the mechanism that what listens there names; "" if it does not greet as ZeroMQ does,
        or does not leave the connection open.

        Where the two sides have different mechanisms each ends the connection, so that either of
        them may learn only that it has ended.
        """
        self.doubted = False
        if mechanism == (_WITHOUT_KEYS if self._keys is not None else _WITH_KEYS):
            self._other_mechanism(now)
            return
        # Without a greeting it is no Global, has no room, or ends connections for another reason.
        self._failures, self._greets = 0, bool(mechanism) and self._keys is not None
        if self._greets:
            self.retry_at = now + HANDSHAKE_PAUSE_FIRST

    def _other_mechanism(self, now: float) -> None:
        if self._keys is None:
            text = (
                f"Global at {self._address} asks for keys, and this client has none; name a "
                "connect file with connect=, --connect or $DSTORE_CONNECT"
            )
        else:
            text = (
                f"what listens at {self._address} does not use keys, and this client has a connect "
                "file; is it the right address, and was Global started with --keys?"
            )
        self._deny(WrongServer(text), now)

    def _deny(self, error: DstoreError, now: float) -> None:
        if self.denied is None or str(self.denied) != str(error):
            self.denied = error
            self._pause = HANDSHAKE_PAUSE
        self.doubted = False
        self.retry_at = now + self._pause
        self._pause = min(2 * self._pause, HANDSHAKE_PAUSE_MAX)

    def _read_again(self) -> None:
        """Take the keys of the connect file as it is now, if it can be read."""
        if self._reread is None:
            return
        with contextlib.suppress(Exception):  # it is being replaced, say; those here may do
            self._use(self._reread(), self._server_key)

    def _next_server_key(self) -> int:
        """Take the next server key of the connect file. Returns how many there are."""
        if self._keys is None:
            return 0
        server_keys = list(self._keys.server_keys)
        place = server_keys.index(self._server_key) + 1
        self._use(self._keys, server_keys[place % len(server_keys)])
        return len(server_keys)

    def _use(self, keys: ClientKeys, server_key: str) -> None:
        if server_key not in keys.server_keys:
            server_key = keys.server_keys[0]
        self._keys, self._server_key = keys, server_key
        self._options = curve.options(keys, server_key)

    def _why_not_admitted(self) -> str:
        if self._keys is None:
            return f"Global at {self._address} does not admit this client"
        return (
            f"Global at {self._address} does not admit {self._keys.name!r}: its key was revoked, "
            "or was never added there; ask for a new connect file (dstore access add)"
        )

    def _wrong_key(self, now: float) -> None:
        text = (
            f"what listens at {self._address} does not have the server key of the connect file; is "
            "it the right address, and is the file that of this Global?"
        )
        self._greets = False
        self._deny(WrongServer(text), now)
        self._next_server_key()

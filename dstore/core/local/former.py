"""What a Local had cached in a session that has ended, offered to Global in the next one.

So a restart of a durable Global, or a lost session, moves no data that is still the same: Global
names the values that are bound unchanged, and each of them is an ordinary fill of the new session.

One offer is under way at a time, and after each one comes a pause in proportion to the time that it
took, so that Global has most of its time for others while many Locals come back. If an offer is not
answered in time, the rest is forgotten.

A large value is offered by its digest. Where its bytes are is found out when Global has answered:
the processes of a host have them in files, see :mod:`dstore.client.large`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from dstore.core.local.cache import FormerLarge, Value
from dstore.protocol.messages import TOKEN_BYTES, Buffer, Large, Offer, Offered
from dstore.protocol.offers import OFFER_BYTES_MAX, OFFER_KEYS_MAX, digest, weight

PAUSE = 3.0
"""The pause after an offer, in multiples of the time until its answer."""
LARGE_MAX = 8_192
"""Large values that are kept, as many as a cache may have in shared memory."""
NEVER = float("inf")


class Former:
    """The values that are left to be offered. ``due`` is when :meth:`offer` has something to do.

    ``epoch`` is that of their session, 0 if nothing is left.
    """

    def __init__(self) -> None:
        self.due = NEVER
        self.epoch = 0
        self._small: Iterator[Value] = iter(())
        self._large: deque[Value] = deque()
        self._offered: list[Value] = []
        self._again = False
        self._request = 0
        self._sent_at = 0.0

    def __repr__(self) -> str:
        return f"<Former due={self.due} large={len(self._large)} offered={len(self._offered)}>"

    def keep(self, small: Iterable[Value], large: Iterable[Value], epoch: int) -> None:
        """Keep these values, of a session that has ended, until it is known whether Global may have
        them.

        They take the place of others. But of large ones that are left, and whose bytes take no
        memory of this process, ``LARGE_MAX`` are kept as well.
        """
        left = (value for value in (*self._offered, *self._large) if _is_shared(value[2]))
        self._large = deque(islice(chain(large, left), LARGE_MAX))
        self._small, self._offered, self._again = iter(small), [], False
        self.due, self.epoch = NEVER, epoch

    def forget(self) -> None:
        """Keep nothing any more."""
        self._large.clear()
        self._offered.clear()
        self.keep((), (), 0)

    def begin(self, now: float) -> None:
        """A session has begun in which they can be offered."""
        self.due = now if self.epoch else NEVER

    def again(self, now: float) -> None:
        """The offer that is under way may be lost, as with a connection: make it once more."""
        if self._offered:
            self._again, self.due = True, now

    def offer(self, envelope: tuple[int, int, int], patience: float, now: float) -> Offer | None:
        """Return the next offer, to be answered within ``patience`` seconds; None at the end."""
        if not self._again:
            self._offered = [] if self._offered else self._next()
        offered, self._again = self._offered, False
        if not offered:
            self.forget()
            return None
        epoch, session, self._request = envelope
        self._sent_at, self.due = now, now + patience
        digests = [digest(epoch, session, codec, _content(body)) for _, codec, body in offered]
        return Offer(*envelope, [key for key, _, _ in offered], b"".join(digests))

    def taken(self, reply: Offered, now: float) -> Iterator[tuple[bytes, Value]]:
        """Yield the tokens that bound values have now, and the values, by the answer to an offer.

        They are those that are unchanged.
        """
        offered, self._offered = self._offered, []
        if not offered or reply.request != self._request:
            self._offered = offered
            return
        self.due = now + PAUSE * (now - self._sent_at)
        for place, index in enumerate(reply.same):
            if index < len(offered):
                token = reply.tokens[TOKEN_BYTES * place : TOKEN_BYTES * (place + 1)]
                yield token, offered[index]

    def _next(self) -> list[Value]:
        values: list[Value] = []
        room = OFFER_BYTES_MAX
        while self._large and len(values) < OFFER_KEYS_MAX:
            values.append(self._large.popleft())
            room -= weight(_content(values[-1][2]))
        for value in islice(self._small, OFFER_KEYS_MAX - len(values)):
            values.append(value)
            room -= weight(_content(value[2]))
            if room < 0:
                break  # Global does not look at the last one, and it is asked for when needed
        return values


def _content(body: bytes | FormerLarge) -> Buffer | Large:
    """What a body is known by."""
    return body.large if isinstance(body, FormerLarge) else body


def _is_shared(body: bytes | FormerLarge) -> bool:
    return isinstance(body, FormerLarge) and body.view is None

"""What a Local had cached in a session that has ended, offered to Global in the next one.

So a restart of a durable Global, or a lost session, moves no data that is still the same: Global
names the values that are bound unchanged, and each of them is an ordinary fill of the new session.

One offer is under way at a time, and after each one comes a pause in proportion to the time that it
took, so that Global has most of its time for others while many Locals come back. If an offer is not
answered in time, the rest is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from dstore.core.local.cache import FormerLarge, Value
from dstore.protocol.messages import TOKEN_BYTES, Buffer, Large, Offer, Offered
from dstore.protocol.offers import OFFER_BYTES_MAX, OFFER_KEYS_MAX, digest, weight

PAUSE = 3.0
"""The pause after an offer, in multiples of the time until its answer."""
NEVER = float("inf")


class Former:
    """The values that are left to be offered. ``due`` is when :meth:`offer` has something to do.

    ``epoch`` is that of their session, 0 if nothing is left.
    """

    def __init__(self) -> None:
        self.due = NEVER
        self.epoch = 0
        self._values: Iterator[Value] = iter(())
        self._offered: list[Value] = []
        self._request = 0
        self._sent_at = 0.0

    def __repr__(self) -> str:
        return f"<Former due={self.due} offered={len(self._offered)}>"

    def keep(self, values: Iterable[Value], epoch: int) -> None:
        """Keep these values, of a session that has ended, in place of others, until it is known
        whether Global may have them.
        """
        self._values, self._offered, self.due = iter(values), [], NEVER
        self.epoch = epoch

    def forget(self) -> None:
        """Keep nothing any more."""
        self.keep((), 0)

    def forget_small(self) -> None:
        """Keep only the large values."""
        large = (value for value in self._values if isinstance(value[2], FormerLarge))
        self.keep(large, self.epoch)

    def begin(self, now: float) -> None:
        """A session has begun in which they can be offered."""
        self.due = now if self.epoch else NEVER

    def again(self, now: float) -> None:
        """The offer that is under way may be lost, as with a connection: make it once more."""
        if self._offered:
            self.keep(chain(self._offered, self._values), self.epoch)
            self.begin(now)

    def offer(self, envelope: tuple[int, int, int], patience: float, now: float) -> Offer | None:
        """Return the next offer, to be answered within ``patience`` seconds; None at the end."""
        offered = [] if self._offered else self._next()
        if not offered:
            self.forget()
            return None
        epoch, session, self._request = envelope
        self._offered, self._sent_at, self.due = offered, now, now + patience
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
        for value in islice(self._values, OFFER_KEYS_MAX):
            values.append(value)
            room -= weight(_content(value[2]))
            if room < 0:
                break  # Global does not look at the last one, and it is asked for when needed
        return values


def _content(body: bytes | FormerLarge) -> Buffer | Large:
    """What a body is known by."""
    return body.large if isinstance(body, FormerLarge) else body

"""A simulated host: its clock, its shared memory, and Global's large values on its own host."""

from __future__ import annotations

from dstore.protocol import content
from dstore.protocol.messages import Large, Stored
from dstore.shm.bulk import PrivateBulk
from tests.simulation.loop import Loop
from tests.simulation.pages import SimPage


class SimHost:
    """What the processes of one host share.

    There are copies of large values, and which of them are being written; the page under the names
    that processes look for; and the clock, which has a rate of its own.
    """

    def __init__(self, loop: Loop, rate: float = 1.0, offset: float = 0.0) -> None:
        self.loop = loop
        self.rate = rate
        self.offset = offset
        self.copies: dict[bytes, bytes] = {}
        self.writers: dict[bytes, object] = {}
        self.page: SimPage | None = None
        self.pages: list[SimPage] = []  # all that there were

    def clock(self) -> float:
        return self.offset + self.rate * self.loop.now

    def share(self, token: bytes, body: bytes) -> Stored:
        """Put a large value where the other processes of this host find it."""
        self.copies[token] = body
        return Stored(token, "bytes", Large(len(body), content.digest("bytes", body)))

    def find(self, epoch: int) -> SimPage | None:
        """Return the page of an epoch or, if it is 0, the one of Global's address."""
        page = self.page
        if page is None or (epoch and page.epoch != epoch):
            return None
        return page if page.usable(self.clock()) else None

    def publish(self, page: SimPage) -> None:
        self.pages.append(page)
        self.page = page

    def take_names(self) -> None:
        """Void and remove what a former owner has left."""
        if self.page is not None:
            self.page.void()
        self.page = None


class SimBulk(PrivateBulk):
    """Global's large values; it adopts copies on the host where it runs."""

    def __init__(self, host: SimHost) -> None:
        super().__init__()
        self._host = host

    def adopt(self, token: bytes, size: int) -> bool:
        body = self._host.copies.pop(token, None)
        if body is None:
            return False
        self.reserve(token, size)
        self.write(token, 0, body)
        self.seal(token)
        return True

    def tokens(self) -> set[bytes]:
        return {*self._unsealed, *self._sealed}

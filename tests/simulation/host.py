"""The shared memory of a simulated host, and Global's large values on its own host."""

from __future__ import annotations

from dstore.protocol import content
from dstore.protocol.messages import Large, Stored
from dstore.shm.bulk import PrivateBulk


class SimHost:
    """The copies that the processes of one host share, and which of them are being written."""

    def __init__(self) -> None:
        self.copies: dict[bytes, bytes] = {}
        self.writers: dict[bytes, object] = {}

    def share(self, token: bytes, body: bytes) -> Stored:
        """Put a large value where the other processes of this host find it."""
        self.copies[token] = body
        return Stored(token, "bytes", Large(len(body), content.digest("bytes", body)))


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

"""The session in whose name a process writes, and the numbers of its writes.

A write is executed at most once: Global knows a repeat by the session and the number of the write.
So the session belongs to one process. A membership that a process has to itself serves for its
writes, too; a process that shares the membership of its host has a session of the kind WRITER.
"""

from __future__ import annotations

from dstore.protocol.messages import NO_SESSION


class Writer:
    """One such session, ``session`` 0 until it has begun, and the writes that are under way.

    ``secret`` is 0 if the session is that of a membership.
    """

    __slots__ = ("epoch", "newest", "secret", "session", "uploads", "writing")

    def __init__(self, epoch: int = 0, session: int = NO_SESSION, secret: int = NO_SESSION) -> None:
        self.epoch = epoch
        self.session = session
        self.secret = secret
        self.newest = 0
        self.writing: set[int] = set()
        self.uploads = 0  # large values that are being sent, and are to be bound in this session

    def __repr__(self) -> str:
        return f"<Writer open={bool(self.session)} newest={self.newest} writing={self.writing}>"

    @property
    def idle(self) -> bool:
        """Whether the session may end: no write is under way, and no upload waits to be bound."""
        return not self.writing and not self.uploads

    @property
    def next(self) -> int:
        """The number for the next write."""
        return self.newest + 1

    def begin(self, write: int) -> None:
        """Begin the write with this number, the next one.

        It ends when its number leaves ``writing``, answered or abandoned.
        """
        self.writing.add(write)
        self.newest = write

    def reserve(self) -> int:
        """Return the number for a write that is added to ``writing`` next."""
        self.newest += 1
        return self.newest

    @property
    def seen(self) -> int:
        """A number below which every write has ended here."""
        return min(self.writing, default=self.next)

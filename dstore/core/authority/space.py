"""Whether a value may be bound: its limits, and the memory that it will take."""

from __future__ import annotations

from dstore.config import INLINE_BYTES_MAX
from dstore.core.authority.pending import PendingDeletion
from dstore.core.authority.sessions import Session
from dstore.core.authority.stages import Stages
from dstore.core.engine import Bulk, Engine
from dstore.protocol import content
from dstore.protocol.messages import Large, SetItem, SetStatus, Stored


class Space:
    """The memory of the engine, of uploads, and of the replacements that are pending.

    While a replacement is pending both its values are here: ``replacing`` are the bytes of the new
    values, ``growing`` those by which the values will grow. No value may have more than
    ``value_limit`` bytes.
    """

    def __init__(self, engine: Engine, bulk: Bulk, stages: Stages, value_limit: int) -> None:
        self.replacing = 0
        self.growing = 0
        self._engine = engine
        self._bulk = bulk
        self._stages = stages
        self._value_limit = value_limit

    def __repr__(self) -> str:
        return f"<Space replacing={self.replacing} growing={self.growing} room={self.room}>"

    @property
    def room(self) -> int:
        """Bytes that further uploads may take."""
        taken = self._engine.size + self._stages.reserved + self.replacing
        return self._engine.limit - taken

    def claim(self, session: Session, item: SetItem, old: Stored | None) -> SetStatus | None:
        """Claim what is needed to bind a value in place of ``old``.

        Returns why the value cannot be bound, or None if it can. The bytes of a large value are
        then taken from its upload.
        """
        stored = item.stored
        if stored.size > self._value_limit or stored.inline > INLINE_BYTES_MAX:
            return SetStatus.TOO_LARGE
        if not content.matches(item.key, stored):
            return SetStatus.MISMATCH
        if not self._engine.fits(item.key, stored) or not self._will_fit(session, stored, old):
            return SetStatus.FULL
        if type(stored.body) is Large and not self._stages.take(stored, session, self.room):
            return SetStatus.ABSENT
        return None

    def _will_fit(self, session: Session, stored: Stored, old: Stored | None) -> bool:
        """Whether the value also fits when all uploads and replacements have ended."""
        if self._stages.has(stored, session):  # it is one of these uploads
            return True
        coming = self.growing + self._stages.reserved
        growth = stored.size - (old.size if old is not None else 0)
        return self._engine.size + coming + growth <= self._engine.limit or growth <= 0

    def release(self, stored: Stored) -> None:
        """Drop the bytes of a claimed value that could not be bound."""
        if type(stored.body) is Large:
            self._bulk.drop(stored.token)

    def begin_replacement(self, pending: PendingDeletion, new: Stored) -> None:
        """A replacement becomes pending, with this new value."""
        pending.replacement = new
        self.replacing += new.size
        self.growing += new.size - pending.size

    def end_replacement(self, pending: PendingDeletion, new: Stored) -> None:
        """A replacement is committed or has failed."""
        self.replacing -= new.size
        self.growing -= new.size - pending.size

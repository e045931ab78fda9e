"""What a member of a cluster keeps in PostgreSQL, as the Global that it is a part of sees it.

See :class:`dstore.server.cluster.storage.Storage` for what each method is for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from dstore.core.cluster.messages import Ask, View
from dstore.core.engine import Bulk, Change, Outcome
from dstore.protocol.messages import Key
from dstore.server.postgres.engine import StoredEngine
from dstore.server.postgres.loading import Row


class Store:
    """The database of a cluster, and what this process has in memory of it.

    Global's thread calls all methods, except that one other thread calls :meth:`carry_out`, and one
    other :meth:`load`. Raises DataError in all methods.
    """

    def __init__(self, url: str, *, memory_limit: int, patience: float) -> None: ...

    @property
    def engine(self) -> StoredEngine:
        """The keys of the partitions that are owned. Another object after :meth:`reset`."""

    @property
    def news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""

    def begin(self, me: bytes, wake: Callable[[], object]) -> None:
        """Take the id of the member and what wakes Global's thread, and start the threads."""

    def carry_out(self, ask: Ask) -> View | None:
        """Carry out an ask. None if it is not known what has become of it, or raises DataError."""

    def load(self, numbers: Collection[int]) -> Iterator[list[Row]]:
        """Load the rows of partitions that are owned, page by page."""

    def bulk(self, inner: Bulk) -> Bulk:
        """Return the place for large values of an epoch: in ``inner``, and in the database."""

    def own(self, fences: Mapping[int, int]) -> None:
        """Note partitions that are owned from now on, with their fences."""

    def bind(self, rows: Collection[Row]) -> list[tuple[Key, bytes, float]]:
        """Bind a page of rows. Returns the deadlines: keys, tokens, times of the wall clock."""

    def forget(self, numbers: Collection[int]) -> None:
        """Remove from memory what was bound of partitions, which stay owned."""

    def disown(self, numbers: Collection[int]) -> None:
        """Note that partitions are not owned any more, and forget them."""

    def commit(self, number: int, changes: list[Change]) -> None:
        """Take a batch of changes; returns at once."""

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended. Raises DataError if nothing more can be committed."""

    def reset(self) -> None:
        """Own nothing any more and forget all. Returns at once."""

    def figures(self) -> dict[str, object]:
        """Return metrics by name."""

    def close(self) -> None:
        """Close the connections and end the threads, in bounded time. Idempotent."""

    def forked(self) -> None:
        """In a forked child: leave everything to the parent."""

"""What a member keeps in the database of its cluster, as the member sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from dstore.core.cluster.messages import Ask, View
from dstore.core.engine import Bulk, Change, LoadingEngine, Outcome
from dstore.protocol.messages import Key

LOG_EVERY = 10.0
"""Seconds between two lines of the log about a database that does not answer, at least."""
Deadline: TypeAlias = tuple[Key, bytes, float]
"""A key that expires, the token of its value, and a time of the wall clock."""
Rows: TypeAlias = Any
"""A page of rows, as :meth:`Storage.load` returns them and :meth:`Storage.bind` takes them."""


class Storage(Protocol):
    """The database, and what this process has in memory of it.

    Only Global's thread calls it, except for :meth:`carry_out` and :meth:`load`, each of which one
    other thread calls. What cannot be done because of the database raises DataError, in every
    method.
    """

    @property
    def engine(self) -> LoadingEngine:
        """The keys of the partitions that are owned. Another one after :meth:`reset`."""

    @property
    def fences(self) -> Mapping[int, int]:
        """The partitions that are owned, with the newest fences that are known."""

    @property
    def news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""

    @property
    def cluster(self) -> bytes:
        """The id of the cluster; no bytes until the database has answered for the first time."""

    def begin(self, me: bytes, wake: Callable[[], object]) -> None:
        """Take the id of the member, in whose name all is done, and what wakes Global's thread."""

    def carry_out(self, ask: Ask) -> View | None:
        """Ask the database, and wait for the answer. None if what has become of it is unknown."""

    def load(self, numbers: Collection[int]) -> Iterator[Rows]:
        """Load the rows of partitions that are owned, page by page."""

    def bulk(self, inner: Bulk) -> Bulk:
        """Return the place for large values: in ``inner``, and in the database."""

    def own(self, fences: Mapping[int, int]) -> None:
        """Take note of partitions that are owned from now on, with their fences."""

    def bind(self, rows: Rows) -> list[Deadline]:
        """Bind rows of :meth:`load` in the engine. Returns their deadlines."""

    def forget(self, numbers: Collection[int]) -> Iterator[None]:
        """Remove from the engine what was bound of partitions, some of it at each step.

        That is, each time that the result is advanced. Nothing else is bound in these partitions
        before its end.
        """

    def disown(self, numbers: Collection[int]) -> None:
        """Take note that partitions are not owned any more. :meth:`forget` is to follow.

        No change of theirs is under way.
        """

    def commit(self, number: int, changes: list[Change]) -> None:
        """Take a batch of changes; see :class:`~dstore.core.engine.Journal`."""

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended; see :class:`~dstore.core.engine.Journal`."""

    def reset(self) -> None:
        """Own nothing any more, and forget all. Batches that are under way may commit or not.

        Returns at once, also if the database does not answer.
        """

    def figures(self) -> dict[str, object]:
        """Return metrics, by name."""

    def close(self) -> None:
        """Close the connections and end the threads, in bounded time. Idempotent."""

    def forked(self) -> None:
        """In a forked child: leave everything to the parent."""

"""Changes on their way to the disk: applied to the engine when they are durable, and not before.

Without a journal a change is durable at once, and what follows from it happens in the same step.
With one, the changes of an event leave together as one :class:`~.effects.Commit`; the host hands
that to the journal and reports each batch to :meth:`Changes.committed` when it has ended. Memory,
numbers, holders and answers change only then. So no answer of any kind (bound, occupied, missing,
a scan, a wait, a repeat) can show what a crash takes back, no read waits for a disk, and a change
that fails leaves nothing to undo.

Meanwhile a key that is being bound is *busy*: further writes of it queue, as they do behind a
pending deletion. A removal or a replacement is still a pending deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from dstore.core.authority.effects import Commit, Outbox
from dstore.core.engine import Change, ChangeKind, Outcome
from dstore.protocol.messages import Key

Then: TypeAlias = Callable[[Outcome, float], None]
"""What follows from a change: called with its outcome and the time, when it has ended."""
Execute: TypeAlias = Callable[[float], None]
"""A write that queues: called with the time when its key is free for it."""

BIND_BYTES = 4_000
"""What the engine takes at most for a key that is bound, beside its value."""


class Changes:
    """The changes that are not durable yet. Without a journal there are none: ``durable`` False."""

    def __init__(self, out: Outbox, durable: bool) -> None:
        self.durable = durable
        self.bytes = 0  # what the values that are being bound will take in the engine
        self.busy: dict[Key, list[Execute]] = {}  # the keys being bound, and the writes that queue
        self._out = out
        self._number = 0
        self._gathered: list[tuple[Change, Then]] = []  # in this event
        self._under_way: dict[int, list[tuple[Change, Then]]] = {}  # by number of the batch

    def __repr__(self) -> str:
        return f"<Changes durable={self.durable} under_way={len(self)} busy={len(self.busy)}>"

    def __len__(self) -> int:
        """Return how many changes are not durable yet."""
        return len(self._gathered) + sum(map(len, self._under_way.values()))

    def submit(self, change: Change, then: Then, now: float) -> None:
        """Make a change durable, then call ``then``; at once if there is no journal."""
        if not self.durable:
            then(Outcome.DONE, now)
            return
        if change.kind is ChangeKind.BIND:
            self.busy[change.key] = []
            self.bytes += _cost(change)
        self._gathered.append((change, then))

    def emit(self) -> None:
        """Hand the changes of this event to the host, as one batch."""
        if self._gathered:
            self._number += 1
            batch, self._gathered = self._gathered, []
            self._under_way[self._number] = batch
            self._out.commit(Commit(self._number, [change for change, _ in batch]))

    def committed(self, number: int, outcomes: Iterable[Outcome], now: float) -> None:
        """Take the outcomes of a batch: what follows from each change happens now.

        The writes that queued behind a key that was being bound are executed after that.
        """
        for (change, then), outcome in zip(self._under_way.pop(number), outcomes):
            queued: list[Execute] = []
            if change.kind is ChangeKind.BIND:
                queued = self.busy.pop(change.key)
                self.bytes -= _cost(change)
            then(outcome, now)
            for execute in queued:
                execute(now)


def _cost(change: Change) -> int:
    assert change.stored is not None
    return BIND_BYTES + change.stored.size

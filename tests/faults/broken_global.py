"""``dstore global`` for crash tests: ``python -m tests.faults.broken_global NAME ARGUMENTS``.

Its log is short, so that kills meet checkpoints, too. NAME is a rule of durability that it breaks,
or ``nothing``. A crash test that does not notice a broken rule proves nothing.

The writing to the disk itself cannot be broken in this way: a process that is killed leaves to the
system what it has written, so that a missing sync shows only when the power fails.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from dstore import cli
from dstore.core.authority.changes import Changes, Then
from dstore.core.authority.effects import NEVER
from dstore.core.authority.state import GlobalState
from dstore.core.authority.writes import PASSED
from dstore.core.engine import Change, ChangeKind, Outcome
from dstore.server import durable
from dstore.server.data import open_data
from dstore.server.data.database import Database
from dstore.server.data.durable_bulk import DurableBulk
from dstore.server.durable import Durable

LOG_BYTES = 64 << 10
"""Bytes of the log from which on a checkpoint is made."""
DISK_SECONDS = 0.02
"""Seconds that each commit takes longer where writes are answered too early."""


def _nothing(outcome: Outcome, now: float) -> None:
    pass


def nothing() -> None:
    """All rules are kept."""


def answer_early() -> None:
    """Writes are answered before they are durable."""
    submit, apply = Changes.submit, Database.apply

    def submit_and_answer(
        self: Changes, change: Change, then: Then, now: float, *, busy: bool = False
    ) -> None:
        submit(self, change, _nothing, now, busy=busy)
        then(Outcome.DONE, now)

    def apply_slowly(self: Database, changes: Sequence[Change]) -> list[Outcome]:
        time.sleep(DISK_SECONDS)
        return apply(self, changes)

    Changes.submit = submit_and_answer  # type: ignore[method-assign]
    Database.apply = apply_slowly  # type: ignore[method-assign]


def no_quiet_period() -> None:
    """The leases of the former life are not waited for."""
    begin = Durable.__init__

    def begin_at_once(self: Durable, path: str, lease: float) -> None:
        begin(self, path, lease)
        self.quiet_until, self._settle_at = 0.0, NEVER

    Durable.__init__ = begin_at_once  # type: ignore[method-assign]


def forget_large_values() -> None:
    """Large values stay in memory."""
    DurableBulk.keep = lambda self, stored: None  # type: ignore[method-assign]


def forget_deletions() -> None:
    """A deletion that is not waited for is answered without a record of it."""
    submit = Changes.submit

    def submit_others(
        self: Changes, change: Change, then: Then, now: float, *, busy: bool = False
    ) -> None:
        if change.kind is ChangeKind.DEADLINE and change.deadline == PASSED:
            then(Outcome.DONE, now)
        else:
            submit(self, change, then, now, busy=busy)

    Changes.submit = submit_others  # type: ignore[method-assign]


def no_recovery() -> None:
    """Deletions that were not waited for do not go on after a restart."""
    GlobalState.recover = lambda self, deadlines, now: None  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        nothing,
        answer_early,
        no_quiet_period,
        forget_large_values,
        forget_deletions,
        no_recovery,
    )
}
"""The ways in which a Global can be broken, by name."""


if __name__ == "__main__":
    durable.open_data = partial(open_data, log_bytes=LOG_BYTES)  # type: ignore[attr-defined]
    BROKEN[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))

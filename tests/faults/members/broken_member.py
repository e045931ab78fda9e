"""``dstore global`` for runs with several Globals, which may break a rule.

``python -m tests.faults.members.broken_member PID NAME ARGUMENTS`` runs ``dstore ARGUMENTS`` as a
child of the process PID (see :mod:`tests.faults.tether`). NAME is the rule that it breaks, or
``nothing``. A run that does not notice a broken rule proves nothing.

Most rules need an order of events that is rare among real processes. All of them are broken in the
simulation; here are those that faults of this kind show soon.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from dstore import cli
from dstore.core.authority.changes import Changes, Then
from dstore.core.authority.identity import Identity
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.reads import Reads, Waits
from dstore.core.authority.sessions import Session
from dstore.core.cluster.messages import Event
from dstore.core.cluster.ownership import Ownership
from dstore.core.engine import Change, Outcome
from dstore.protocol.messages import Route, Wait
from dstore.server.cluster.member import Member, Service
from dstore.server.postgres import connections
from tests.faults.tether import tether_to


def nothing() -> None:
    """All rules are kept."""


def no_lease() -> None:
    """A member answers for ever, whether the database answers it or not."""

    def note_lease(self: Member, service: Service) -> None:
        self.partitions.ends = float("inf")

    def lapse(self: Ownership, now: float) -> list[Event]:
        return []

    Member._note_lease = note_lease  # type: ignore[method-assign]
    Ownership._lapse = lapse  # type: ignore[method-assign]


def no_quiet() -> None:
    """A new owner removes and replaces at once."""
    Partitions.quiet_until = lambda self, key: 0.0  # type: ignore[method-assign]
    Partitions.all_quiet_until = 0.0  # type: ignore[method-assign, assignment]


def asynchronous() -> None:
    """Commits do not wait for the standby, nor for the disk."""
    broken = connections._SETTINGS.replace("ELSE 'on' END", "ELSE 'off' END")
    assert broken != connections._SETTINGS
    connections._SETTINGS = broken


def answer_early() -> None:
    """Writes are answered before they are committed."""
    submit = Changes.submit

    def submit_and_answer(
        self: Changes, change: Change, then: Then, now: float, *, busy: bool = False
    ) -> None:
        submit(self, change, lambda outcome, now: None, now, busy=busy)
        then(Outcome.DONE, now)

    Changes.submit = submit_and_answer  # type: ignore[method-assign]


def lost_wait() -> None:
    """A Global answers those who wait for a key at the end of their time, not when it is set."""
    wait = Reads.wait

    def wait_once(
        self: Reads,
        session: Session | None,
        route: Route,
        message: Wait,
        now: float,
        identity: Identity,
    ) -> None:
        name = (message.session, message.request, identity)
        if name not in self._waits._by_key.get(message.key, ()):  # else it is a repeat
            wait(self, session, route, message, now, identity)

    Reads.wait = wait_once  # type: ignore[method-assign]
    Waits.bound = lambda self, key: None  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (nothing, no_lease, no_quiet, asynchronous, answer_early, lost_wait)
}
"""The ways in which a Global can be broken, by name."""


def main(arguments: Sequence[str]) -> int:
    pid, broken, *command = arguments
    tether_to(int(pid))
    BROKEN[broken]()
    return cli.main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

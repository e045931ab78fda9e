"""What a running Global reports in its key folder: how often, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dstore.access.keys import KeyFolder
from dstore.access.running import statuses
from dstore.core.authority.identity import Identity, Role
from dstore.core.authority.sessions import Session, Sessions
from dstore.server.access import KEYS_CHECK, REPORT_EVERY, Access
from tests.unit.core.identities import hello
from tests.unit.core.world import World

NAMES = ("alice", "bob", "carol")


class Counted:
    """Counts the sessions of nobody, or of those in ``open``, and how often it was asked."""

    def __init__(self) -> None:
        self.passes = 0
        self.open: dict[Identity, int] = {}

    def __call__(self) -> dict[Identity, int]:
        self.passes += 1
        return self.open


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    """A key folder with a few clients."""
    made = KeyFolder(tmp_path / "keys")
    made.create()
    for name in NAMES:
        made.add(name, Role.WRITE, (), "10.0.0.5:50051", lambda _: None)
    return made


@pytest.fixture
def access(folder: KeyFolder) -> Iterator[Access]:
    made = Access(folder.path)
    yield made
    made.close()


def applied(access: Access, now: float) -> None:
    """Look, and apply what is new, as Global does."""
    found = access.look(now)
    if found is not None:
        ring, changed = found
        access.lapsing += changed.revoked
        access.ring = ring


def reported(folder: KeyFolder) -> int:
    """The generation in the report of the only Global."""
    (status,) = statuses(folder)
    return status.generation


class Broken:
    """Makes reports impossible, and possible again."""

    def __init__(self, folder: KeyFolder) -> None:
        self._place = Path(folder.path) / "running"
        self._away = self._place.with_name("away")
        self._place.rename(self._away)
        self._place.touch(0o600)

    def mend(self) -> None:
        self._place.unlink()
        self._away.rename(self._place)


def test_a_report_passes_over_the_sessions_once(
    folder: KeyFolder, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, passes = World(), 0
    for identity in access.ring.identities:
        for _ in range(2):
            hello(world, identity)
    every = Sessions.__iter__

    def counting(sessions: Sessions) -> Iterator[Session]:
        nonlocal passes
        passes += 1
        return every(sessions)

    monkeypatch.setattr(Sessions, "__iter__", counting)
    access.report(0.0, world.state.sessions_by_identity)
    assert passes == 1
    (status,) = statuses(folder)
    assert {name: seen.sessions for name, seen in status.clients.items()} == dict.fromkeys(NAMES, 2)


def test_without_a_report_that_is_due_no_sessions_are_counted(access: Access) -> None:
    sessions = Counted()
    access.report(0.0, sessions)
    for now in (KEYS_CHECK, 2 * KEYS_CHECK, REPORT_EVERY - KEYS_CHECK):
        access.report(now, sessions)
    assert sessions.passes == 1
    access.report(REPORT_EVERY, sessions)
    assert sessions.passes == 2


def test_those_who_were_revoked_are_counted_together(folder: KeyFolder, access: Access) -> None:
    sessions = Counted()
    access.report(0.0, sessions)
    former = folder.generation
    sessions.open = dict.fromkeys(access.ring.identities, 1)
    for name in NAMES:
        folder.revoke(name)
    applied(access, KEYS_CHECK)
    assert len(access.lapsing) == len(NAMES)
    access.report(KEYS_CHECK, sessions)
    assert (sessions.passes, reported(folder)) == (2, former)
    sessions.open = {}
    access.report(2 * KEYS_CHECK, sessions)
    assert (sessions.passes, reported(folder)) == (3, folder.generation)


def test_nothing_is_reported_while_leases_of_a_former_epoch_may_run(
    folder: KeyFolder, access: Access
) -> None:
    """Its sessions are not known any more: one of them may be of somebody who was revoked."""
    sessions = Counted()
    access.report(0.0, sessions)
    former = folder.generation
    access.report_from(10.0)
    folder.revoke(NAMES[0])
    applied(access, KEYS_CHECK)
    access.report(9.0, sessions)
    assert reported(folder) == former
    access.report(10.0, sessions)
    assert reported(folder) == folder.generation


def test_a_generation_is_reported_at_the_first_look_at_which_that_works(
    folder: KeyFolder, access: Access
) -> None:
    sessions, broken = Counted(), Broken(folder)
    looks = 3
    for look in range(looks):
        access.report(look * KEYS_CHECK, sessions)
        assert sessions.passes == look + 1
    broken.mend()
    access.report(looks * KEYS_CHECK, sessions)
    assert reported(folder) == folder.generation
    access.report((looks + 1) * KEYS_CHECK, sessions)
    assert sessions.passes == looks + 1


def test_a_failed_report_of_who_was_heard_waits_for_its_turn(
    folder: KeyFolder, access: Access
) -> None:
    sessions = Counted()
    access.report(0.0, sessions)
    access.heard.add(access.ring.identities[0])
    broken = Broken(folder)
    access.report(REPORT_EVERY, sessions)
    assert sessions.passes == 2
    broken.mend()
    access.report(REPORT_EVERY + KEYS_CHECK, sessions)
    access.report(2 * REPORT_EVERY - KEYS_CHECK, sessions)
    assert sessions.passes == 2
    access.report(2 * REPORT_EVERY, sessions)
    (status,) = statuses(folder)
    assert sum(seen.last_seen is not None for seen in status.clients.values()) == 1

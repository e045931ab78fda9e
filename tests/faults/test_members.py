"""Several Globals over PostgreSQL keep the promise, with real processes under faults."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

import dstore
from dstore.testing import running_global
from tests.faults.injector import Fault
from tests.faults.members import keys
from tests.faults.members.broken_member import BROKEN
from tests.faults.members.nemesis import ESSENTIAL, GLOBAL_KILLED, PRIMARY_LONG_AWAY
from tests.faults.members.probes import NO_FAULT, SEVERAL, Probe, longest
from tests.faults.members.report import Report
from tests.faults.members.run import Plan, Run
from tests.integration.processes import free_port
from tests.leaks import Footprint, left_behind
from tests.postgres import missing

SECOND = 1_000_000_000

needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())


def run(plan: Plan, folder: Path) -> Report:
    before = Footprint()
    print(f"seed {plan.seed}")
    report = Run(plan, folder).run()
    print(*report.lines(), sep="\n")
    assert left_behind(before) == []
    return report


@needs_postgres
def test_a_killed_global_takes_nothing_with_it(tmp_path: Path) -> None:
    plan = Plan(
        0.0,
        secrets.randbits(32),
        members=2,
        workers=2,
        probed=2,
        lease=1.0,
        cache_lease=0.5,
        faults=(GLOBAL_KILLED,),
        extended=10.0,
        quiet=1.0,
        standby=False,
        hosts=False,
        keys=False,
    )
    report = run(plan, tmp_path)
    assert report.wrong == [], f"seed {plan.seed}, histories in {tmp_path}"
    assert report.faults[GLOBAL_KILLED]
    assert report.verdict.operations


@needs_postgres
@pytest.mark.long
@pytest.mark.timeout(180)
def test_no_promise_is_broken_under_faults(tmp_path: Path) -> None:
    plan = Plan(
        12.0,
        secrets.randbits(32),
        workers=4,
        probed=4,
        lease=1.5,
        cache_lease=2.0,  # so that caches are still valid when another Global takes over
        faults=ESSENTIAL,
        overlap=True,
        extended=30.0,
    )
    report = run(plan, tmp_path)
    assert report.wrong == [], f"seed {plan.seed}, histories in {tmp_path}"
    assert all(report.faults[fault] for fault in ESSENTIAL)
    assert report.verdict.counts["resyncs"]  # watches have taken part
    assert report.verdict.counts["acknowledged"]


@needs_postgres
@pytest.mark.long
@pytest.mark.timeout(180)
def test_globals_that_answer_too_early_are_noticed(tmp_path: Path) -> None:
    """The other ways to break them need longer runs: ``scripts/cluster --broken``."""
    assert "answer-early" in BROKEN
    plan = Plan(
        6.0,
        secrets.randbits(32),
        members=2,
        workers=3,
        probed=1,
        lease=1.0,
        cache_lease=0.5,
        faults=(PRIMARY_LONG_AWAY,),
        extended=10.0,
        broken="answer-early",
    )
    assert any("no order explains" in each for each in run(plan, tmp_path).wrong)


def test_a_global_that_admits_clients_without_keys_is_noticed(tmp_path: Path) -> None:
    folder, address = keys.Keys(tmp_path), f"tcp://127.0.0.1:{free_port()}"
    folder.make(address)
    with running_global(address, keys=str(folder.path)):
        assert not keys.admits_all(address)
        for name in keys.ROLES:
            with dstore.Node(connect=folder.connect(name), host="off") as node:
                node.join()
    with running_global(address):
        assert keys.admits_all(address)


def test_the_longest_times_are_those_of_the_fault_that_was_there_alone() -> None:
    def probe(kind: str, begin: float, end: float) -> Probe:
        return Probe(kind, "k", int(begin * SECOND), int(end * SECOND))

    faults = [
        Fault("cut", 10 * SECOND, 12 * SECOND),
        Fault("killed", 20 * SECOND, 21 * SECOND),
        Fault("stopped", 22 * SECOND, None),
    ]
    probes = [
        probe("read", 1, 2),
        probe("read", 9, 11),
        probe("read", 11, 12.5),
        probe("set", 12.5, 13.5),  # within the time in which all settles
        probe("read", 13, 14),
        probe("read", 19, 21.5),
        probe("read", 21, 24),
        probe("delete", 40, 41),
    ]
    assert longest(probes, faults, SECOND) == {
        NO_FAULT: {"read": 1.0, "set": 0.0, "delete": 0.0},
        "cut": {"read": 2.0, "set": 1.0, "delete": 0.0},
        "killed": {"read": 2.5, "set": 0.0, "delete": 0.0},
        "stopped": {"read": 0.0, "set": 0.0, "delete": 1.0},
        SEVERAL: {"read": 3.0, "set": 0.0, "delete": 0.0},
    }

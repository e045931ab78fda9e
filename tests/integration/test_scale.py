"""``benchmarks.scale`` runs, and counts what the protocol promises. Times are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import experiments, several
from benchmarks.scale.cluster import LATENCY, Prices
from benchmarks.scale.member import Database, Member, members, owned
from dstore.core.local.state import RENEW
from dstore.protocol.partitions import PARTITIONS, partition_of

ROOT = Path(__file__).resolve().parents[2]
SIZES = (10, 40)


@pytest.mark.long
def test_the_report_is_complete(tmp_path: Path) -> None:
    options = ["--quick", "--locals", *map(str, SIZES), "--out", str(tmp_path / "scale")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.scale", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "scale.json").read_text())
    assert set(results["sockets"]["prices"]) == set(Prices._fields)
    for size in SIZES:
        assert all(us > 0 for us in results["core"]["us_by_sessions"][str(size)].values())
        check_counts(size, results["counts"][str(size)])
        shares = [each["holding"] for each in results["counts"][str(size)]["dels"]]
        for kind in ("dels", "dels_alone"):
            costs = results["costs"][str(size)][kind]
            assert [each["holding"] for each in costs] == shares
            assert all(each["busy_s"] > 0 for each in costs)
        assert results["memory"]["session_bytes"][str(size)] > 0
    conclusions = results["conclusions"]
    assert len(conclusions["dels"]) == sum(len(results["counts"][str(n)]["dels"]) for n in SIZES)
    assert all(each["per_second"] > 0 for each in conclusions["dels"])
    assert {each["locals"] for each in conclusions["renewals"]} == set(SIZES)
    assert {each["locals"] for each in conclusions["memory"]} == set(SIZES)
    assert results["reality"]["real"].keys() == results["reality"]["derived"].keys()
    assert "What one DEL says" in done.stdout


@pytest.mark.parametrize("size", [1, 3, 200])
def test_counts_are_what_the_protocol_promises(size: int) -> None:
    counts = experiments.counts(size)
    check_counts(size, counts)
    assert experiments.counts(size) == counts, "the same in every run"


def check_counts(size: int, counts: Mapping[str, Any]) -> None:
    """A miss is a request and its reply, a renewal too.

    A DEL is one request, one reply, and for each holder a push and its acknowledgement; the others
    hear of it later, by a publication, and acknowledge with their next renewal, which costs nothing
    more for it. If most are holders it is one publication, which all acknowledge.
    """
    count = counts["misses"]["count"]
    renewals = {"Sync": size, "Synced": size}
    assert counts["misses"]["messages"] == {"Get": count, "GetReply": count}
    assert counts["leases"]["messages"] == renewals
    assert [each["holding"] for each in counts["dels"]] == experiments.shares(size)
    for each in counts["dels"]:
        holding = each["holding"]
        asked, everybody = {"Del": 1, "DelReply": 1}, {"Broadcast": size}
        many = 2 * holding > size
        pushed = {"Synced": holding, "Ack": holding} if holding else {}
        assert each["messages"] == asked | (everybody | {"Ack": size} if many else pushed)
        assert each["later"]["messages"] == ({} if many else everybody)
        assert (each["confirmed"], each["expired"], each["reminders"]) == (holding, 0, 0)
        assert each["behind"] == (0 if many else size - holding)
        assert each["renewals"] == renewals
        assert each["behind_after_renewal"] == 0


# ---- several Globals --------------------------------------------------------------------------


@pytest.mark.long
def test_the_report_of_several_globals_is_complete(tmp_path: Path) -> None:
    options = ["--quick", "--locals", "40", "--out", str(tmp_path / "several")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.scale.several", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "several.json").read_text())
    check_derived(results, locals_=40)
    assert "One delete_many of 100 keys" in done.stdout


def test_the_published_figures_of_several_globals_are_those_of_the_model() -> None:
    results = json.loads((ROOT / "docs" / "scale-globals.json").read_text())
    check_derived(results, locals_=10_000)


def check_derived(results: Mapping[str, Any], locals_: int) -> None:
    """What does not depend on the machine, for each number of Globals."""
    assert [each["globals"] for each in results["globals"]] == list(several.GLOBALS)
    rows = [{**each, "leases": {}} for each in results["globals"]]
    ping = results["sockets"]["ping_io_us"] * 1e-6
    again = several.derive(rows, locals_, ping, Database(**results["database"]))
    assert again == results["globals"]
    for each in results["globals"]:
        count = each["globals"]
        parts = owned(members(count))
        assert each["partitions"] == [len(part) for part in parts]
        assert each["sessions"] == locals_ * count
        for lease, found in each["leases"].items():
            assert found["renewals_each"] == pytest.approx(locals_ / (RENEW * float(lease)))
            assert found["renewals"] == pytest.approx(count * found["renewals_each"])
            assert found["misses"] > 0
            assert found["sets"] <= found["sets_by_globals"]
        # A tenth holds the keys: each Global that has some of them asks it to confirm.
        asked = len({member_of(key, parts) for key in several.MANY})
        assert each["delete_many"]["members"] == asked
        assert each["delete_many"]["messages"] == part_of_delete_many(asked, locals_ // 10)


def member_of(key: str, parts: Sequence[Sequence[int]]) -> int:
    (owner,) = (index for index, part in enumerate(parts) if partition_of(key) in part)
    return owner


def part_of_delete_many(asked: int, holding: int) -> dict[str, int]:
    return {"Del": asked, "DelReply": asked, "Synced": asked * holding, "Ack": asked * holding}


def test_what_grows_with_the_number_of_globals() -> None:
    size, times = 40, 5
    found = several.simulate(size, (1, 2, 5), Database(), times)
    assert several.simulate(size, (1, 2, 5), Database(), times) == found
    for count, all_of in found.items():
        parts = owned(members(count))
        assert sorted(number for part in parts for number in part) == list(range(PARTITIONS))
        assert [each["partitions"] for each in all_of] == [len(part) for part in parts]
        for each in all_of:  # nothing of this falls with the number of Globals
            assert each["sessions"] == size
            assert each["leases"]["messages"] == {"Sync": size, "Synced": size}
            assert each["misses"]["messages"] == {"Get": times, "GetReply": times}
            assert each["sets"]["messages"] == {"Set": times, "SetReply": times}
            for name, holding in (("del_1", 1), ("del_tenth", size // 10)):
                assert each[name]["messages"] == part_of_delete_many(1, holding)
                assert each[name]["later"]["messages"] == {"Broadcast": size}
                assert (each[name]["confirmed"], each[name]["expired"]) == (holding, 0)
        asked = len({member_of(key, parts) for key in several.MANY})
        assert several.total(all_of, "delete_many") == part_of_delete_many(asked, size // 10)


def test_partitions_are_only_gained_as_members_leave() -> None:
    for few, many in zip(several.GLOBALS, several.GLOBALS[1:]):
        for before, after in zip(owned(members(many)), owned(members(few))):
            assert set(before) <= set(after)


def test_a_write_takes_the_round_trip_of_the_database_and_writes_that_wait_share_one() -> None:
    database = Database(round_trip=0.25, row=0.5)
    member = Member(3, range(PARTITIONS), database, at_once=True)
    member.renewing = False
    keys = [member.next_key() for _ in range(3)]
    began = member.now
    for worker, key in zip(member.workers, keys):
        worker.set(key, began)
    first, *others = member.workers
    member.run_until(lambda: bool(first.written))
    assert member.now - began == pytest.approx(0.25 + 0.5 + 2 * LATENCY)
    assert not any(each.written for each in others)
    member.run_until(lambda: all(each.written for each in others))
    assert member.now - began == pytest.approx(0.75 + 0.25 + 2 * 0.5 + 2 * LATENCY)
    assert member.groups == 2


def test_a_member_refuses_a_key_of_another_one() -> None:
    mine, others = owned(members(2))
    member = Member(1, mine, Database(), at_once=True)
    key = next(key for key in several.MANY if partition_of(key) in others)
    member.workers[0].delete([key], member.now)
    member.run(4 * LATENCY)
    assert member.traffic.messages["Refused"] == 1
    assert not member.workers[0].deleted

"""``benchmarks.scale`` runs, and counts what the protocol promises. Times are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import experiments
from benchmarks.scale.cluster import Prices

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

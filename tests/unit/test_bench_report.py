"""The report of the benchmarks: numbers, tables, what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import report
from benchmarks.goals import judged
from benchmarks.measure import summarise
from benchmarks.report import against, digits, quantity, ranking
from benchmarks.results import Measurement, Results, Skip
from benchmarks.workloads import NAMES

ASIDE = ("host_requests", "host_sessions", "memory_server", "peak")
"""What workloads record under names of their own."""

ABOUT: dict[str, Any] = {
    "date": "2026-01-02 03:04 UTC",
    "revision": "abcdef",
    "hit": "pure Python, since $DSTORE_PURE is set",
    "machine": {
        "cpu": "a processor",
        "cores": 2,
        "memory_gib": 8.0,
        "kernel": "Linux 1",
        "architecture": "x86_64",
        "load_before": 0.1,
    },
    "versions": {"dstore": "0.1.0"},
}


def measured(
    workload: str, who: str, value: float, unit: str = "s", **at: float | str
) -> Measurement:
    return Measurement(workload, who, unit, summarise([value]), at)


def results() -> Results:
    found = Results("tiny", ABOUT, seconds=61.0)
    found.measurements = [
        measured("hit", "dict", 5e-8),
        measured("hit", "dstore", 2e-7),
        measured("hit", "redis-py", 9e-5),
        measured("get_many", "dstore", 40_000, "1/s"),
        measured("get_many", "redis-py", 80_000, "1/s"),
        *(
            measured("mixed", who, rate * count, "1/s", processes=count, deletions=0.1)
            for who, rate in (("dstore", 1000.0), ("redis-py", 500.0))
            for count in (1, 2)
        ),
        measured("delete", "dstore", 2e-4, holders=1, bystanders=0),
        measured("delete", "dstore", 3e-4, holders=1, bystanders=64),
        measured("delete", "bare echo", 1e-4, holders=1, bystanders=0),
        measured("host_first", "dstore", 1e-6),
        measured("host_many", "dstore", 1e6, "1/s"),
        measured("host_requests", "dstore", 0.0, "keys", what="host_first"),
        measured("host_delete", "dstore", 1e-4, nodes=8),
        measured("host_sessions", "sessions at Global", 2.0, "sessions", nodes=64),
        measured("answer", "dstore, key in the host cache", 1e-3),
        measured("fork", "dstore", 1e-5, keys=500),
        measured("host_memory", "dstore", 9e7, "bytes", processes=8),
        measured("large", "dstore, another host", 0.02, bytes=64 << 20, step="first"),
        measured(
            "sharing", "dstore", 7e5, "bytes", bytes=64 << 20, processes=8, what="private memory"
        ),
        measured("peak", "Global", 3 << 20, "bytes", bytes=1 << 30),
        measured("moving", "download", 1e-4, bytes=1 << 30),
        measured("join", "dstore", 3e-3, newcomers=1),
        measured("memory", "dstore", 180.0, "bytes", counted="by Python"),
        measured("memory_server", "dstore", 400.0, "bytes"),
        measured("growth_keys", "hit", 2e-7, keys=1000),
        measured("growth_locals", "hit", 2e-7, locals=1),
    ]
    found.goals = [
        judged("hit-pure", [3.9, 4.0, 4.1], [2e-7], [5e-8], fastest=3.8),
        judged("miss", [2.0], [1e-4], [5e-5]),
        judged("delete", [1.5], [1.5e-4], [1e-4]),
        replace(judged("mixed-redis", [0.5], [1e4], [2e4], "1/s"), where="processes 8"),
        judged("large-second", [0.001, 0.002], [0.001]),
    ]
    found.skips = [
        Skip("hit", "Ray's object store", "needs the package ray"),
        Skip("miss", "Ray's object store", "needs the package ray"),
    ]
    return found


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123, "s", "12.3 ms"),
        (1.234e-5, "s", "12.3 µs"),
        (4e-10, "s", "0.4 ns"),
        (123_456.0, "1/s", "123,000 /s"),
        (-12.0, "bytes", "-12 bytes"),
        (3 << 20, "bytes", "3 MiB"),
    ],
)
def test_a_quantity_has_three_digits_and_a_unit(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_digits_of_large_numbers_are_rounded() -> None:
    assert [digits(value) for value in (0.0, 99.96, 100.4, 1_999.0)] == ["0", "100", "100", "2,000"]


def test_a_peer_is_faster_or_slower_smaller_or_larger() -> None:
    ours, fast = measured("hit", "dstore", 2.0), measured("hit", "dict", 0.5)
    assert against(fast, ours) == "4 times faster"
    assert against(measured("get_many", "x", 2.0, "1/s"), ours) == "1 times faster"
    assert against(measured("memory", "x", 4.0, "bytes"), ours) == "2 times larger"
    assert against(measured("memory", "x", -4.0, "bytes"), ours) == ""
    assert against(ours, ours) == against(fast, None) == ""


def test_the_best_comes_first_also_where_more_is_better() -> None:
    rows = ranking(results().of("get_many")).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:4]] == ["| redis-py", "| **dstore**"]


def test_the_report_says_what_was_reached_and_what_was_not() -> None:
    text = report.render(results())
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert rows["| hit, pure, 10,000 keys"].endswith(
        "| 4.00 times (3.9 … 4.1) | 3.8 | 200 ns | 50 ns | reached |"
    )
    assert rows["| DEL that nobody holds"].endswith(
        "| shown | 1.50 times |  | 150 µs | 100 µs |  |"
    )
    assert rows["| miss, 100 B, one client"].endswith("| **not reached** |")
    assert "| 1.5 ms (1 ms … 2 ms) |" in rows["| 64 MiB value, second process on that host"]
    assert " | redis-py | at least its rate | 0.50 times its rate at processes 8 | " in text
    assert "not measured" in rows["| cache overhead per entry"]


def test_the_report_says_whether_the_hit_is_compiled() -> None:
    assert "- **Hit of `dstore`:** pure Python, since" in report.render(results())


def test_the_report_says_where_others_are_ahead_and_who_was_left_out() -> None:
    text = report.render(results())
    assert "- `hit`: dict (4 times faster)\n" in text
    assert "- `get_many`: redis-py (2 times faster)\n" in text
    assert "`delete`" not in text  # the bare echo is a limit, and not a peer
    assert "- Ray's object store, in `hit`, `miss`: needs the package ray\n" in text


def test_every_workload_has_its_section() -> None:
    headings = [line for line in report.render(results()).splitlines() if line.startswith("## ")]
    assert headings[:3] == [
        "## Goals",
        "## Where others are ahead of dstore",
        "## A key that this process has read before",
    ]
    assert headings[-1] == "## Left out"
    measured_workloads = {each.workload for each in results().measurements}
    assert len(headings) == 3 + len(measured_workloads)
    assert set(report.SECTIONS) == {*NAMES, *ASIDE}


def test_several_places_are_a_grid() -> None:
    text = report.render(results())
    assert "|  | dstore | redis-py |\n" in text
    assert "\n| processes 2, deletions 0.1 | 2,000 /s | 1,000 /s |\n" in text


def test_an_empty_run_has_a_report() -> None:
    text = report.render(Results("tiny", ABOUT))
    assert "Nowhere in this run." in text
    assert text.endswith("## Left out\n\nNothing.\n")


def test_the_json_has_all_numbers_as_plain_numbers() -> None:
    found = json.loads(results().to_json())
    assert found["measurements"][0]["summary"] == {"n": 1, "median": 5e-8, "p25": 5e-8, "p75": 5e-8}
    assert len(found["measurements"]) == len(results().measurements)
    assert found["goals"][0]["reached"] is True
    assert found["about"] == ABOUT
    assert Results.from_json(results().to_json()) == results()

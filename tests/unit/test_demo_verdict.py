"""The demo's verdict, on good records and on bad ones: a check that cannot fail is worthless."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dstore.cli.demo.verdict import Change, Seen, Sighting, Write, judge

DELETED = Write("d", Change.DELETED, called=100, returned=200)
REPLACED = Write("r", Change.REPLACED, called=300, returned=400)
KEYS = ("d", "r", "u")


def seen(worker: int, key: str, what: Seen, *, end_first: int, start_last: int) -> Sighting:
    return Sighting(worker, key, what, 1, end_first, start_last)


def good_records(worker: int) -> list[Sighting]:
    """What a worker sees at most: the old content up to the very end of each write."""
    return [
        seen(worker, "u", Seen.FILE, end_first=10, start_last=500),
        seen(worker, "d", Seen.FILE, end_first=20, start_last=120),
        seen(worker, "d", Seen.NOTHING, end_first=130, start_last=500),
        seen(worker, "r", Seen.FILE, end_first=30, start_last=320),
        seen(worker, "r", Seen.REPLACEMENT, end_first=330, start_last=500),
    ]


def faults_of(sightings: Sequence[Sighting], *, workers: Sequence[int] = (1, 2)) -> list[str]:
    return [str(fault) for fault in judge(KEYS, [DELETED, REPLACED], sightings, workers)]


def test_good_records_have_no_fault() -> None:
    assert faults_of(good_records(1) + good_records(2)) == []


def test_a_read_under_way_when_the_write_returns_may_give_the_old_content() -> None:
    slow = [
        seen(1, "u", Seen.FILE, end_first=10, start_last=500),
        seen(1, "d", Seen.FILE, end_first=20, start_last=200),
        seen(1, "d", Seen.NOTHING, end_first=250, start_last=500),
        seen(1, "r", Seen.FILE, end_first=30, start_last=400),
        seen(1, "r", Seen.REPLACEMENT, end_first=450, start_last=500),
    ]
    assert faults_of(slow, workers=[1]) == []


def doctored(bad: Sighting) -> list[str]:
    """Two good workers, and one record of worker 1 exchanged for a bad one."""
    kept = [s for s in good_records(1) if (s.key, s.seen) != (bad.key, bad.seen)]
    return faults_of([*kept, bad, *good_records(2)])


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (seen(1, "d", Seen.FILE, end_first=20, start_last=201), "stale: worker 1"),
        (seen(1, "r", Seen.FILE, end_first=30, start_last=401), "stale: worker 1"),
        (seen(1, "d", Seen.NOTHING, end_first=99, start_last=500), "before it was deleted"),
        (seen(1, "r", Seen.REPLACEMENT, end_first=299, start_last=500), "before it was replaced"),
        (seen(1, "d", Seen.FILE, end_first=20, start_last=131), "backwards: worker 1"),
        (seen(1, "r", Seen.FILE, end_first=30, start_last=331), "backwards: worker 1"),
        (seen(1, "u", Seen.OTHER, end_first=10, start_last=20), "got bytes that are neither"),
        (seen(1, "d", Seen.OTHER, end_first=10, start_last=20), "got bytes that are neither"),
        (seen(1, "u", Seen.NOTHING, end_first=10, start_last=20), "got nothing"),
        (seen(1, "u", Seen.REPLACEMENT, end_first=10, start_last=20), "got the new content"),
        (seen(1, "d", Seen.REPLACEMENT, end_first=110, start_last=150), "got the new content"),
        (seen(1, "r", Seen.NOTHING, end_first=310, start_last=350), "got nothing"),
        (seen(1, "d", Seen.NOTHING, end_first=130, start_last=200), "never read 'd' after it was"),
        (seen(1, "x", Seen.FILE, end_first=10, start_last=20), "worker 2 never read 'x'"),
    ],
)
def test_one_bad_record_is_found(bad: Sighting, complaint: str) -> None:
    faults = doctored(bad)
    assert any(complaint in fault for fault in faults), faults


def test_a_read_of_one_worker_convicts_another() -> None:
    """Worker 2 saw the key gone; worker 1, later, still reads the value, before DEL returns."""
    late = seen(1, "d", Seen.FILE, end_first=20, start_last=180)
    first = seen(1, "d", Seen.NOTHING, end_first=195, start_last=500)
    others = [s for s in good_records(1) if s.key != "d"]
    (fault,) = faults_of([*others, late, first, *good_records(2)])
    assert "backwards: worker 1 got the file's content of 'd'" in fault
    assert "after worker 2 had got nothing" in fault


def test_a_worker_without_records_is_a_fault() -> None:
    assert "worker 2 never read 'd'" in faults_of(good_records(1))


def test_nothing_to_judge_is_a_fault() -> None:
    assert judge([], [], [], [1])
    assert judge(KEYS, [], [], [])


def test_a_second_write_of_one_key_is_a_fault() -> None:
    records = good_records(1)
    assert judge(KEYS, [DELETED, DELETED, REPLACED], records, [1])
    assert judge(["r", "u"], [DELETED, REPLACED], records, [1])

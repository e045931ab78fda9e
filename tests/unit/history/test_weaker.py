"""The checker of weaker guarantees: deletions with ``wait=False``, and stale reads."""

from __future__ import annotations

from random import Random

import pytest

from tests.history.operations import Kind, Operation, Result
from tests.history.weaker import check_pending, check_stale
from tests.unit.history.histories import history, simulated

LEASE, SLACK = 2.0, 0.5

PENDING_GOOD = {
    "nothing": "",
    "no deletion": "A 0 1 set v -> stored\nB 50 51 get -> v",
    "read within the lease": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 5.5 9 get -> v
        C 10 11 get -> missing""",
    "a value bound since": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 8 9 set w -> stored
        C 50 51 get -> w""",
    "a value that may have been bound after the deletion": """
        A 0 4 set v -> stored
        B 2 3 delete -> missing
        C 2 3 set u -> occupied
        B 2.5 3.5 delete -> pending
        D 50 51 get -> v""",
    "an unknown write that took effect after the deletion": """
        A 0 1 set u -> stored
        A 0 ? set v -> unknown
        B 2 3 delete -> pending
        C 50 51 get -> v""",
    "deletions that were waited for are not judged here": """
        A 0 1 set v -> stored
        B 2 3 delete -> deleted
        C 50 51 get -> v""",
    "a stale read is not judged here": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 50 51 stale -> v""",
    "unknown deletions promise nothing": """
        A 0 1 set v -> stored
        B 2 ? delete -> unknown
        C 50 51 get -> v""",
}

PENDING_BAD = {
    "read after the lease": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 5.6 9 get -> v""",
    "occupied by it after the lease": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 5.6 9 set w -> occupied v""",
    "read after the lease of the first of two deletions": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 4 5 delete -> pending
        D 6 7 get -> v""",
    "the deletion that started later has the earlier deadline": """
        A 0 1 set v -> stored
        B 2 30 delete -> pending
        C 4 5 delete -> pending
        D 8 9 get -> v""",
    "an unknown write that was seen before the deletion": """
        A 0 ? set v -> unknown
        B 1 2 get -> v
        B 3 4 delete -> pending
        C 50 51 get -> v""",
    "a value bound by a replacement": """
        A 0 1 replace v -> written
        B 2 3 delete -> pending
        C 50 51 get -> v""",
    "a stale read proves that it was bound": """
        A 0 ? set v -> unknown
        B 1 2 stale -> v
        B 3 4 delete -> pending
        C 50 51 get -> v""",
}

STALE_GOOD = {
    "nothing": "",
    "the current value": "A 0 1 set v -> stored\nB 2 3 stale -> v",
    "a value deleted long ago": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        B 900 901 stale -> v""",
    "old after new": """
        A 0 1 set v -> stored
        A 2 3 replace w -> replaced
        B 4 5 stale -> w
        B 6 7 stale -> v""",
    "missing": "A 0 1 set v -> stored\nB 2 3 stale -> missing",
    "a write under way": "A 0 9 set v -> stored\nB 1 2 stale -> v",
    "an unknown write": "A 0 ? set v -> unknown\nB 1 2 stale -> v",
    "a value of the future, read by an ordinary read": "A 0 1 get -> v\nB 2 3 set v -> stored",
    "no answer": "A 0 ? stale -> unknown",
}

STALE_BAD = {
    "never written": ("A 0 1 set v -> stored\nB 2 3 stale -> x", "no operation wrote"),
    "refused": (
        "A 0 1 set v -> stored\nA 2 3 set w -> occupied\nB 4 5 stale -> w",
        "was refused",
    ),
    "written only later": ("A 0 1 stale -> v\nB 2 3 set v -> stored", "only later"),
    "unknown, but begun only later": ("A 0 1 stale -> v\nB 2 ? set v -> unknown", "only later"),
}


@pytest.mark.parametrize("name", PENDING_GOOD)
def test_a_deletion_without_waiting_good(name: str) -> None:
    verdict = check_pending(history(PENDING_GOOD[name]), LEASE, SLACK)
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", PENDING_BAD)
def test_a_deletion_without_waiting_bad(name: str) -> None:
    (violation,) = check_pending(history(PENDING_BAD[name]), LEASE, SLACK).violations
    kinds = [each.result for each in violation.operations]
    assert Result.PENDING in kinds and len(kinds) == 3
    assert "is read for too long" in str(violation)


@pytest.mark.parametrize("name", STALE_GOOD)
def test_stale_reads_good(name: str) -> None:
    verdict = check_stale(history(STALE_GOOD[name]))
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", STALE_BAD)
def test_stale_reads_bad(name: str) -> None:
    text, complaint = STALE_BAD[name]
    (violation,) = check_stale(history(text)).violations
    assert complaint in str(violation)


def made_stale(random: Random, operations: list[Operation]) -> list[Operation]:
    """Some GETs return, as stale reads, any value whose write has begun and was not refused."""
    changed = []
    begun: dict[str, list[Operation]] = {}
    for each in operations:  # in the order of their starts
        values = begun.setdefault(each.key, [])
        if each.result in (Result.STORED, Result.REPLACED):
            values.append(each)
        if each.kind is Kind.GET and each.end is not None and values and random.random() < 0.3:
            seen = random.choice(values).value
            changed.append(each._replace(result=Result.VALUE, seen=seen, stale_ok=True))
        else:
            changed.append(each)
    return changed


@pytest.mark.parametrize("seed", range(20))
def test_simulated_histories_pass(seed: int) -> None:
    random = Random(seed)
    operations = simulated(random, 500, keys=3, unknown=0.05, pending=0.5, lease=LEASE)
    assert any(each.result is Result.PENDING for each in operations)
    assert (verdict := check_pending(operations, LEASE)).ok, verdict
    assert (verdict := check_stale(made_stale(random, operations))).ok, verdict


def test_a_large_history_and_one_read_that_comes_too_late() -> None:
    large = simulated(Random(5), 30_000, keys=15, pending=0.3, lease=LEASE)
    assert check_pending(large, LEASE).ok and check_stale(large).ok
    deletion = [each for each in large if each.result is Result.PENDING][-1]
    read = next(each for each in large if each.key == deletion.key and each.result is Result.VALUE)
    assert read.end is not None and read.end < deletion.start
    last = max(each.end for each in large if each.end is not None)
    late = read._replace(start=last + 2 * LEASE, end=last + 3 * LEASE)
    (violation,) = check_pending([*large, late], LEASE).violations
    assert violation.operations[-1] == late

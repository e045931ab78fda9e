"""The checkers of keys that expire, on good histories and on bad ones."""

from __future__ import annotations

from random import Random

import pytest

from tests.history.expiry import check_expired, expires_from
from tests.history.linearizability import check_linearizable
from tests.history.operations import Kind
from tests.unit.history.histories import history, simulated, some_order_explains

WITHIN = 2.5

GOOD = {
    "a value that goes when its time has passed": """
        A 0 1 set v for 5 -> stored
        B 4 4.9 get -> v
        B 7 8 get -> missing
        B 9 10 set w -> stored""",
    "a value that goes a little later": """
        A 0 1 set v for 5 -> stored
        B 8 9 get -> v
        B 8.4 10 get -> missing""",
    "a deadline that is counted from the start": """
        A 0 9 set v for 5 -> stored
        B 6 7 get -> missing""",
    "a deadline that is counted from the end": """
        A 0 9 set v for 5 -> stored
        B 16 17 get -> v""",
    "a value that lives longer": """
        A 0 1 set v for 5 -> stored
        A 2 3 expire for 20 -> changed
        B 20 21 get -> v""",
    "a value that lives for ever": """
        A 0 1 set v for 5 -> stored
        A 2 3 expire -> changed
        B 90 91 get -> v""",
    "a value that lives shorter": """
        A 0 1 set v -> stored
        A 2 3 expire for 4 -> changed
        B 6.5 7 get -> missing""",
    "an EXPIRE at the deadline may come too late": """
        A 0 1 set v for 5 -> stored
        A 4 7 expire for 20 -> missing
        B 8 9 get -> missing""",
    "an EXPIRE without an answer may have been executed": """
        A 0 1 set v for 5 -> stored
        A 2 ? expire for 1 -> unknown
        B 3.5 4 get -> missing""",
    "an EXPIRE without an answer may be executed late": """
        A 0 1 set v for 5 -> stored
        A 2 ? expire for 20 -> unknown
        B 90 91 get -> v""",
    "a value that is deleted before": """
        A 0 1 set v for 5 -> stored
        A 2 3 delete -> deleted
        B 4 5 get -> missing
        B 6 7 set w -> stored
        B 90 91 get -> w""",
    "a replacement without a deadline": """
        A 0 1 set v for 5 -> stored
        A 2 3 replace w -> replaced
        B 90 91 get -> w""",
    "an unknown SET": """
        A 0 ? set v for 5 -> unknown
        B 40 41 get -> v
        B 42 43 get -> missing""",
}
VANISHED = {
    "a value that goes too early": """
        A 0 1 set v for 5 -> stored
        B 3 4 get -> missing""",
    "a value that was never read goes too early": """
        A 0 1 set v for 5 -> stored
        B 2 3 set w -> stored""",
    "a value without a deadline": """
        A 0 1 set v -> stored
        B 90 91 get -> missing""",
    "the expiry of another value": """
        A 0 1 set v for 5 -> stored
        A 2 3 replace w -> replaced
        B 90 91 get -> missing""",
    "a stale deadline": """
        A 0 1 set v for 5 -> stored
        A 2 3 expire for 20 -> changed
        B 8 9 get -> missing""",
    "a stale deadline of an EXPIRE": """
        A 0 1 set v -> stored
        A 2 3 expire for 5 -> changed
        A 4 5 expire -> changed
        B 8 9 get -> missing""",
    "an EXPIRE of a value that had gone": """
        A 0 1 set v for 5 -> stored
        A 2 3 delete -> deleted
        A 4 5 expire for 3 -> changed""",
    "an expired value that comes back": """
        A 0 1 set v for 5 -> stored
        B 6 7 get -> missing
        B 8 9 get -> v""",
}
OUTLIVED = {
    "a value that is read for too long": """
        A 0 1 set v for 5 -> stored
        B 8.6 9 get -> v""",
    "a value that is seen for too long": """
        A 0 1 set v for 5 -> stored
        B 8.6 9 set w -> occupied v""",
    "a value that lives shorter": """
        A 0 1 set v -> stored
        A 2 3 expire for 4 -> changed
        B 9.6 11 get -> v""",
    "a value that lives shorter than before": """
        A 0 1 set v for 50 -> stored
        A 2 3 expire for 4 -> changed
        B 9.6 11 get -> v""",
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert (verdict := check_linearizable(history(GOOD[name]))).ok, verdict
    assert (verdict := check_expired(history(GOOD[name]), WITHIN)).ok, verdict
    assert some_order_explains(history(GOOD[name]))


@pytest.mark.parametrize("name", VANISHED)
def test_a_value_that_is_missing_without_a_reason(name: str) -> None:
    verdict = check_linearizable(history(VANISHED[name]))
    assert not verdict.ok
    assert not some_order_explains(history(VANISHED[name]))
    (violation,) = verdict.violations
    assert str(violation).count("<--") == 1


@pytest.mark.parametrize("name", OUTLIVED)
def test_a_value_that_is_there_for_too_long(name: str) -> None:
    assert not check_expired(history(OUTLIVED[name]), WITHIN).ok
    assert check_expired(history(OUTLIVED[name]), 2 * WITHIN).ok


@pytest.mark.parametrize("part", range(4))
def test_simulated_histories_pass(part: int) -> None:
    expiries = 0
    for seed in range(100 * part, 100 * (part + 1)):
        random = Random(seed)
        operations = simulated(
            random,
            60,
            processes=random.randint(1, 6),
            unknown=random.choice((0, 0.1)),
            lateness=5,
            pending=random.choice((0, 0.2)),
            ttl=0.7,
        )
        verdict = check_linearizable(operations, pending_within=2.0)
        assert verdict.ok, f"seed {seed}: {verdict}"
        verdict = check_expired(operations, 2.0)
        assert verdict.ok, f"seed {seed}: {verdict}"
        unlimited = [each._replace(ttl=None) for each in operations]
        expiries += not check_linearizable(unlimited, pending_within=2.0).ok
    assert expiries > 50, "without their deadlines many of these are wrong"


def test_the_earliest_deadline_that_may_have_been_in_force() -> None:
    write, *expires = history(
        """
        A 0 1 set v for 5 -> stored
        A 2 3 expire for 50 -> changed
        A 2.5 4 expire for 20 -> changed
        A 7 8 expire for 1 -> missing"""
    )
    assert expires_from(write, expires) == pytest.approx(22.5)
    assert expires_from(write, []) == pytest.approx(5)
    assert expires_from(write._replace(ttl=None), []) == float("inf")
    assert [each.kind for each in expires] == [Kind.EXPIRE] * 3

"""The linearizability checker, on good histories and on bad ones, and against brute force."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history import sweep
from tests.history.linearizability import EXPLAINED_MAX, check_linearizable
from tests.history.operations import Kind, Operation, Result
from tests.history.sweep import (
    ABSENT,
    LOOKS,
    NEVER,
    UNSEEN,
    Configuration,
    Spent,
    Step,
    Undecided,
    _covers,
    stuck_at,
)
from tests.unit.history.examples import BAD, GOOD
from tests.unit.history.histories import (
    KINDS,
    corrupted,
    history,
    simulated,
    some_order_explains,
)


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    verdict = check_linearizable(history(GOOD[name]))
    assert verdict.ok, verdict
    assert some_order_explains(history(GOOD[name]))


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    verdict = check_linearizable(history(BAD[name]))
    assert not verdict.ok
    assert not some_order_explains(history(BAD[name]))
    (violation,) = verdict.violations
    assert violation.key == "k" and str(violation).count("<--") == 1


# ---- against brute force ----------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_simulated_histories_pass_and_corrupted_ones_as_brute_force_says(part: int) -> None:
    """The checker refuses exactly the histories for which brute force finds no order."""
    refused = 0
    for seed in range(1000 * part, 1000 * (part + 1)):
        random = Random(seed)
        within = random.choice((None, 2.0))
        operations = simulated(
            random,
            random.randint(2, 7),
            processes=random.randint(1, 6),
            unknown=random.choice((0, 0.1, 0.4)),
            lateness=5,
            pending=random.choice((0, 0.5)),
            ttl=random.choice((0, 0.5)),
            whole=random.random() < 0.5,
        )
        verdict = check_linearizable(operations, pending_within=within)
        assert verdict.ok, f"seed {seed}: {verdict}"
        for _ in range(random.randint(1, 3)):
            operations = corrupted(random, operations)
        verdict = check_linearizable(operations, pending_within=within)
        text = "\n".join(map(str, operations))
        assert verdict.ok == some_order_explains(operations, within), f"seed {seed}:\n{text}"
        refused += not verdict.ok
    assert 300 < refused < 700


RESULTS_OF = {
    Kind.GET: {Result.VALUE, Result.MISSING},
    Kind.SET: {Result.STORED, Result.OCCUPIED, Result.UNKNOWN},
    Kind.REPLACE: {Result.STORED, Result.REPLACED, Result.WRITTEN, Result.UNKNOWN},
    Kind.DELETE: {Result.DELETED, Result.MISSING, Result.PENDING, Result.UNKNOWN},
}


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """A strategy for histories of any operations with any results."""
    operations = []
    values = st.sampled_from(["v0", "v1", "v2", "x"])
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(KINDS))
        result = draw(st.sampled_from(sorted(RESULTS_OF[kind], key=str)))
        start = draw(st.integers(0, 6))
        end = None if result is Result.UNKNOWN else start + draw(st.integers(0, 4))
        seen = draw(values) if result in (Result.VALUE, Result.OCCUPIED) else None
        value = f"v{number}" if kind in (Kind.SET, Kind.REPLACE) else None
        operations.append(Operation(number, "k", kind, start, end, result, value, seen))
    return operations


@given(histories())
def test_any_history_is_judged_as_by_brute_force(operations: list[Operation]) -> None:
    assert check_linearizable(operations).ok == some_order_explains(operations)


# ---- large ------------------------------------------------------------------------------------


def with_a_stale_read(operations: list[Operation]) -> list[Operation]:
    """Replace a late read by one of a value that was read long ago."""
    late = next(
        index
        for index in range(len(operations) * 3 // 4, len(operations))
        if operations[index].result is Result.VALUE
    )
    early = next(
        each
        for each in operations[: late // 2][::-1]
        if each.key == operations[late].key and each.result is Result.VALUE
    )
    return [*operations[:late], operations[late]._replace(seen=early.seen), *operations[late + 1 :]]


@pytest.mark.parametrize(
    ("operations", "keys", "unknown", "lateness"),
    [
        (30_000, 15, 0.005, 50.0),  # a hundred and fifty unknown outcomes
        (5_000, 1, 0.02, 50.0),  # one hot key
        (5_000, 1, 0.02, 5000.0),  # writes that take effect long after they started
    ],
)
def test_a_large_history(operations: int, keys: int, unknown: float, lateness: float) -> None:
    large = simulated(Random(7), operations, keys=keys, unknown=unknown, lateness=lateness)
    verdict = check_linearizable(large)
    assert verdict.ok and (verdict.operations, verdict.keys) == (operations, keys)
    verdict = check_linearizable(with_a_stale_read(large))
    (violation,) = verdict.violations
    assert len(violation.operations) < 10, verdict


def test_hundreds_of_writes_that_never_end_cost_little() -> None:
    """Each of them may take effect at any later moment."""
    lost = [
        Operation(f"lost {n}", "k", kind, 0.0, None, Result.UNKNOWN, f"lost {n}" if n % 3 else None)
        for n, kind in enumerate([Kind.DELETE, Kind.SET, Kind.REPLACE] * 200)
    ]
    alive = simulated(Random(3), 5000, unknown=0.0)
    alive = [each._replace(key="k") for each in alive]
    verdict = check_linearizable(lost + alive)
    assert verdict.ok, verdict
    assert not check_linearizable(lost + with_a_stale_read(alive)).ok


def test_a_history_that_overlaps_too_much_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "CONFIGURATIONS_MAX", 1000)
    writes = [Operation(n, "k", Kind.REPLACE, 0.0, 9.0, Result.WRITTEN, f"v{n}") for n in range(20)]
    reads = [Operation(n, "k", Kind.GET, 0.0, 9.0, Result.VALUE, seen=f"v{n}") for n in range(20)]
    with pytest.raises(Undecided, match="'k'"):
        check_linearizable([*writes, *reads, *history("A 1 2 delete -> deleted")])


# ---- the account ------------------------------------------------------------------------------


def test_the_description_has_only_what_matters() -> None:
    operations = simulated(Random(1), 300, unknown=0.0)
    end = max(each.end for each in operations if each.end is not None)
    bad = """
        A 3 4 replace v -> written
        B 5 6 get -> v
        C 7 8 delete -> deleted
        C 9 10 get -> missing
        B 11 12 get -> v"""
    for each in history(bad):
        assert each.end is not None
        operations.append(each._replace(key="k0", start=each.start + end, end=each.end + end))
    (violation,) = check_linearizable(operations).violations
    shown = [(each.process, each.kind, each.result) for each in violation.operations]
    assert shown == [
        ("A", Kind.REPLACE, Result.WRITTEN),
        ("C", Kind.GET, Result.MISSING),
        ("B", Kind.GET, Result.VALUE),
    ]
    assert violation.lines[-1].endswith("B: get -> 'v'  <-- does not fit with the rest")


@pytest.mark.parametrize(
    ("name", "lines", "reason"),
    [
        ("read of a value never written", 1, "no operation wrote this value"),
        ("read of a value whose SET was refused", 2, "the SET of this value was refused"),
        ("read before the write started", 2, "this value was written only later"),
        ("stale read after a confirmed deletion", 3, "does not fit with the rest"),
    ],
)
def test_the_description_gives_a_reason(name: str, lines: int, reason: str) -> None:
    (violation,) = check_linearizable(history(BAD[name])).violations
    assert len(violation.operations) == lines
    assert sum(line.endswith(f"<-- {reason}") for line in violation.lines) == 1


def test_the_description_is_of_the_first_moment_that_cannot_be_explained() -> None:
    text = BAD["stale read after a confirmed deletion"] + BAD["missing while bound"].replace(
        "v", "w"
    ).replace("A 0 1", "A 20 21").replace("B 2 3", "B 22 23")
    (violation,) = check_linearizable(history(text)).violations
    assert max(each.start for each in violation.operations) == 4


def test_all_bad_keys_are_reported_and_only_some_in_detail() -> None:
    bad = history(BAD["stale read after a confirmed deletion"])
    keys = [f"k{number}" for number in range(EXPLAINED_MAX + 2)]
    operations = [each._replace(key=key) for key in keys for each in bad]
    verdict = check_linearizable([*operations, *history(GOOD["one life of a value"])])
    assert [violation.key for violation in verdict.violations] == keys
    assert str(verdict).startswith(f"{3 * len(keys) + 7} operations on {len(keys) + 1} keys: ")


# ---- deletions with a deadline ----------------------------------------------------------------


@pytest.mark.parametrize(("within", "ok"), [(None, True), (5.0, True), (3.5, True), (0.5, False)])
def test_a_pending_deletion_may_be_given_a_deadline(within: float | None, ok: bool) -> None:
    operations = history("""
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 4 5 get -> v
        C 6 7 get -> v
        C 8 9 get -> missing""")
    assert check_linearizable(operations, pending_within=within).ok is ok


# ---- histories that cannot be judged ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("A 0 1 set v -> stored\nB 2 3 replace v -> replaced", "same value"),
        ("A 0 1 set v -> stored\nB 2 3 set v -> occupied", "same value"),
        ("A 0 1 set v -> deleted", "never answered"),
        ("A 0 1 get -> stored", "never answered"),
        ("A 0 ? set v -> stored", "an end without a result"),
        ("A 0 1 set v -> unknown", "an end without a result"),
        ("A 2 1 get -> missing", "ends before it starts"),
        ("A 0 nan get -> missing", "ends before it starts"),
        ("A 0 1 set -> stored", "has a value"),
        ("A 0 1 get v -> missing", "has a value"),
        ("A 0 1 delete -> deleted v", "sees no value"),
    ],
)
def test_a_history_that_contradicts_itself_is_an_error(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_linearizable(history(text))


def test_a_value_that_was_read_has_to_be_named() -> None:
    (read,) = history("A 0 1 get -> v")
    with pytest.raises(ValueError, match="not which one"):
        check_linearizable([read._replace(seen=None)])


def test_only_a_get_may_be_stale() -> None:
    (deletion,) = history("A 0 1 delete -> missing")
    with pytest.raises(ValueError, match="stale"):
        check_linearizable([deletion._replace(stale_ok=True)])


def test_the_same_value_under_two_keys_is_fine() -> None:
    (first,) = history("A 0 1 set v -> stored")
    assert check_linearizable([first, first._replace(key="other")]).ok


# ---- steps ------------------------------------------------------------------------------------


def test_a_step_that_ends_never_need_not_happen() -> None:
    look = Step(5, 6, ABSENT, LOOKS)
    assert stuck_at([Step(0, NEVER, ABSENT, 2), look, Step(7, 8, 2, LOOKS)]) is None
    assert stuck_at([Step(0, 1, ABSENT, 2), look]) is look


@pytest.mark.parametrize(
    ("better", "worse", "both_ways"),
    [
        ((0, 0, 0), (0, 0, 0), True),
        ((0, 0, 0), (1, 0, 0), False),
        ((0, 0, 0), (0, 0, 1), False),
        ((1, 0, 0), (0, 1, 0), False),  # the replacement that is left can do what a SET can
        ((3, 0, 2), (0, 3, 2), False),
    ],
)
def test_having_used_less_is_better(better: Spent, worse: Spent, both_ways: bool) -> None:
    a, b = Configuration(UNSEEN, 0, 0, better), Configuration(UNSEEN, 0, 0, worse)
    assert _covers(a, b)
    assert _covers(b, a) is both_ways
    assert not _covers(a, b._replace(looks=1))


def test_what_was_used_may_not_compare() -> None:
    for one, other in [((1, 0, 1), (0, 1, 0)), ((2, 0, 0), (0, 1, 0))]:
        a, b = Configuration(UNSEEN, 0, 0, one), Configuration(UNSEEN, 0, 0, other)
        assert not _covers(a, b) and not _covers(b, a)


# ---- text -------------------------------------------------------------------------------------


def test_an_operation_without_an_end_as_text() -> None:
    operation = Operation("A", "k", Kind.SET, 1.0, None, Result.UNKNOWN, "v")
    assert str(operation) == "[1.000000, ...]                 A: set 'v' -> unknown"

"""The arithmetic of the benchmarks: medians, ratios, turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.goals import GOALS, judged
from benchmarks.measure import (
    Contender,
    Summary,
    fastest,
    mean_time,
    p99,
    paired,
    percentile,
    summarise,
    take_turns,
    timed,
)
from benchmarks.peers import BY_NAME
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.settings import SCALES, TINY
from benchmarks.workloads import NAMES
from benchmarks.workloads.host_deletions import shares
from benchmarks.workloads.loops import compare_worst


def test_a_summary_has_the_median_and_the_quarter_points() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert summarise(samples) == Summary(100, 50.5, 26.0, 76.0)
    assert summarise(samples, tail=True).p99 == 100.0
    assert summarise([7.0], tail=True) == Summary(1, 7.0, 7.0, 7.0, 7.0)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        summarise([])


def test_a_percentile_is_one_of_the_samples() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert p99([float(number) for number in range(200)]) == 198.0


def test_a_ratio_is_of_the_same_round() -> None:
    # Everybody is ten times slower in the second round: the ratio does not change.
    ours, theirs = [[2.0, 3.0, 4.0], [30.0]], [[1.0, 1.0, 9.0], [10.0]]
    assert paired(ours, theirs) == [3.0, 3.0]
    assert paired(ours, theirs, max) == [4.0 / 9.0, 3.0]


def test_the_fastest_blocks_are_the_tenth_with_the_least_times_or_the_highest_rates() -> None:
    blocks = [[float(number), 100.0, 0.0] for number in range(1, 21)]
    assert fastest(blocks) == 3.0
    assert fastest(blocks, rates=True) == 18.0
    assert fastest([[7.0]]) == 7.0


def recorder(log: list[str], name: str, fail_at: int = -1) -> Contender:
    def block(number: int) -> list[float]:
        if number == fail_at:
            raise OSError("it  has\nfallen over")
        log.append(f"{name}{number}")
        return [float(number)]

    return Contender(name, block)


def test_contenders_take_turns_in_an_order_that_rotates() -> None:
    log: list[str] = []
    found = take_turns([recorder(log, name) for name in "abc"], 3)
    assert log == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2", "a3", "b3", "c3"]
    assert found.blocks == {name: [[1.0], [2.0], [3.0]] for name in "abc"}  # without the warm-up
    assert found.failed == {}


def test_one_that_fails_leaves_and_the_others_go_on() -> None:
    log: list[str] = []
    found = take_turns([recorder(log, "a"), recorder(log, "b", fail_at=2)], 3)
    assert found.blocks == {"a": [[1.0], [2.0], [3.0]]}
    assert found.failed == {"b": "OSError: it has fallen over"}
    assert take_turns([recorder(log, "c", fail_at=0)], 2).blocks == {}


@pytest.mark.parametrize("measure", [lambda *of: sum(timed(*of)), mean_time])
def test_each_key_is_used_once(measure: Callable[..., float]) -> None:
    log: list[str] = []
    assert isinstance(measure(log.append, ["k", "l"]), float)
    assert log == ["k", "l"]


def test_a_goal_is_judged_by_the_median_ratio() -> None:
    assert judged("miss", [1.0, 1.1, 9.0], [1.0]).reached
    assert not judged("miss", [1.0, 1.4, 1.5], [1.0]).reached
    assert judged("clients", [0.1, 0.9, 1.0], [1.0], [1.0], "1/s").reached
    assert not judged("clients", [0.1, 0.7, 1.0], [1.0], [1.0], "1/s").reached


def test_a_goal_without_a_limit_is_shown_and_not_judged() -> None:
    assert judged("delete", [9.0], [1.0], [1.0]).reached is None


@pytest.mark.parametrize(
    ("goal", "unit", "ratio"),
    [("miss", "s", 0.5), ("hit-redis", "s", 2.0), ("large", "s", 2.0), ("clients", "1/s", 0.5)],
)
def test_a_ratio_is_the_one_that_the_goal_limits(goal: str, unit: str, ratio: float) -> None:
    """dstore has half of the reference: times are inverted if the goal is a least speed."""
    run = Run(TINY, Results("tiny", {}), say=lambda _: None)
    run.compare(goal, {"dstore": [[1.0]], "other": [[2.0]]}, "other", unit)
    run.compare(goal, {"dstore": [[1.0]]}, "other", unit)
    (result,) = run.results.goals
    assert (result.name, result.ratio.median, result.fastest) == (goal, ratio, ratio)


def test_every_goal_has_a_name_of_its_own() -> None:
    assert len({goal.name for goal in GOALS}) == len(GOALS) == 38


def test_every_scale_names_workloads_and_peers_that_exist() -> None:
    for scale in SCALES.values():
        assert set(scale.only) <= set(NAMES)
        assert set(scale.without) <= set(BY_NAME)
        for workload, peer in scale.besides:
            assert workload in BY_NAME[peer].workloads and peer in scale.without


def test_a_scale_leaves_a_peer_out_except_where_a_goal_refers_to_it() -> None:
    run = Run(SCALES["goals"], Results("goals", {}), say=lambda _: None)
    manager = BY_NAME["multiprocessing.Manager"]
    assert manager in run.peers("mixed")
    assert manager not in run.peers("miss")
    unwanted = Run(run.scale, run.results, run.say, without=frozenset({manager.name}))
    assert manager not in unwanted.peers("mixed")


def test_a_goal_for_all_cells_is_judged_by_the_worst_of_those_that_both_have() -> None:
    run = Run(TINY, Results("tiny", {}), say=lambda _: None)
    cells = {
        "one": {"dstore": [[3.0]], "redis-py": [[1.0]]},
        "two": {"dstore": [[1.0], [4.0]], "redis-py": [[2.0], [5.0]]},
        "three": {"redis-py": [[9.0]]},
    }
    compare_worst(run, "mixed-redis", cells, "redis-py")
    compare_worst(run, "mixed-manager", cells, "multiprocessing.Manager")
    (result,) = run.results.goals
    assert (result.name, result.where, result.reached) == ("mixed-redis", "two", False)
    assert result.ratio.median == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("nodes", "processes", "counts"),
    [(8, 8, [1] * 8), (64, 8, [8] * 8), (5, 2, [2, 3]), (2, 8, [1, 1])],
)
def test_the_nodes_of_a_host_are_spread_over_its_processes(
    nodes: int, processes: int, counts: list[int]
) -> None:
    assert shares(nodes, processes) == counts

"""The table of a comparison: the median of the turns, for each goal and source tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.goals import judged
from benchmarks.results import Results


def results(miss: float, revision: str) -> Results:
    found = Results("goals", {"revision": revision, "hit": "compiled"})
    found.goals = [judged("miss", [miss], [miss * 1e-4], [1e-4], fastest=miss - 0.5)]
    return found


def test_a_row_has_the_median_of_the_turns_and_their_range() -> None:
    before = [results(ratio, "one") for ratio in (2.0, 3.0, 1.6)]
    after = [results(1.2, "two")]
    after[0].goals.append(judged("entry", [150.0], [150.0], unit="bytes"))
    *about, table = compare.render({"a": before, "b": after})
    assert about == ["1: a, revision one; hit: compiled", "2: b, revision two; hit: compiled"]
    miss, entry = table.splitlines()[2:]
    assert miss.endswith(
        "| 2.00 times (1.6 … 3); fastest 1.5 | 200 µs | 1.20 times; fastest 0.7 | 120 µs |"
    )
    assert entry.endswith("|  |  | 150 | 150 bytes |")  # of the second tree alone


def test_files_of_results_are_shown_and_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for number, path in enumerate(paths, 1):
        path.write_text(results(float(number), "one").to_json(), encoding="utf-8")
    assert compare.main([str(path) for path in paths]) == 0
    assert (
        "| 1.00 times; fastest 0.5 | 100 µs | 2.00 times; fastest 1.5 |" in capsys.readouterr().out
    )


def test_trees_take_turns_and_every_second_turn_is_in_the_opposite_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measured(tree: Path, folder: Path, options: list[str], pure: bool) -> None:
        seen.append((tree.name, options, pure))
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(results(1.0, tree.name).to_json(), encoding="utf-8")

    monkeypatch.setattr(compare, "measure", measured)
    trees = [tmp_path / name for name in ("a", "b")]
    for tree in trees:
        tree.mkdir()
    options = ["--only", "miss", "--pure", "--out", str(tmp_path / "out")]
    assert compare.main([*map(str, trees), *options]) == 0
    assert [name for name, _, _ in seen] == ["a", "b", "b", "a"]
    assert seen[0][1:] == (["--scale", "goals", "--only", "miss"], True)

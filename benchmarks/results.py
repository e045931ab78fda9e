"""The results of a run, and their form as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Summary

At = Mapping[str, float | str]
"""The settings of a measurement: ``{"processes": 8, "deletions": 0.1}``."""


@dataclass(frozen=True)
class Measurement:
    """What one contender reached in one workload. ``unit`` is s, 1/s or bytes."""

    workload: str
    who: str
    unit: str
    summary: Summary
    at: At = field(default_factory=dict)


@dataclass(frozen=True)
class GoalResult:
    """How far one goal was reached. ``ratio`` is the ratio, or the number, that the goal limits.

    ``reached`` is None if the goal has no limit. ``fastest`` is the ratio of the fastest tenth of
    the blocks, see :func:`benchmarks.measure.fastest`. ``where`` names the settings, if a goal for
    several was judged by the worst of them.
    """

    name: str
    ratio: Summary
    ours: Summary
    theirs: Summary | None
    unit: str
    reached: bool | None
    fastest: float | None = None
    where: str = ""


@dataclass(frozen=True)
class Skip:
    """A contender, or a workload, that was not measured, and why, in one line."""

    workload: str
    who: str
    why: str


@dataclass
class Results:
    """All results of a run. ``about`` comes from :mod:`benchmarks.machine`."""

    scale: str
    about: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    goals: list[GoalResult] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, workload: str) -> list[Measurement]:
        return [each for each in self.measurements if each.workload == workload]

    def to_json(self) -> str:
        """Return the results as JSON, one item on each line, so that changes are easy to see."""
        parts = []
        for name, part in _plain(asdict(self)).items():
            lines = part if isinstance(part, list) else [part]
            text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
            parts.append(f'"{name}": ' + (f"[\n{text}\n]" if part is lines else text))
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Return the results that :meth:`to_json` has written."""
        found = json.loads(text)
        measurements = [
            Measurement(**{**each, "summary": Summary(**each["summary"])})
            for each in found["measurements"]
        ]
        goals = [GoalResult(**{**each, **_summaries(each)}) for each in found["goals"]]
        skips = [Skip(**each) for each in found["skips"]]
        return cls(found["scale"], found["about"], measurements, goals, skips, found["seconds"])


def _summaries(row: dict[str, Any]) -> dict[str, Summary | None]:
    return {
        name: Summary(**row[name]) if row[name] else None for name in ("ratio", "ours", "theirs")
    }


def _plain(value: Any) -> Any:
    """Return a value with Summaries as objects and numbers rounded to six digits."""
    if isinstance(value, Summary):
        return {name: _plain(each) for name, each in value._asdict().items() if each is not None}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

"""What a run has found, and its form as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Summary

At = Mapping[str, float | str]
"""Where on its axes a figure was measured: ``{"processes": 8, "deletions": 0.1}``."""


@dataclass(frozen=True)
class Figure:
    """One contender in one workload. ``unit`` is s, 1/s or bytes."""

    workload: str
    who: str
    unit: str
    summary: Summary
    at: At = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of the Speed table. ``ratio`` is of what the goal speaks of."""

    name: str
    ratio: Summary
    ours: Summary
    theirs: Summary | None
    unit: str
    reached: bool


@dataclass(frozen=True)
class Skip:
    """Somebody or something that was not measured, and why, in one line."""

    workload: str
    who: str
    why: str


@dataclass
class Results:
    """All of a run. ``about`` is what :mod:`benchmarks.machine` tells."""

    scale: str
    about: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, workload: str) -> list[Figure]:
        return [figure for figure in self.figures if figure.workload == workload]

    def to_json(self) -> str:
        """One line for each thing, so that changes are easy to see."""
        parts = []
        for name, part in _plain(asdict(self)).items():
            lines = part if isinstance(part, list) else [part]
            text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
            parts.append(f'"{name}": ' + (f"[\n{text}\n]" if part is lines else text))
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """What :meth:`to_json` has written."""
        found = json.loads(text)
        figures = [
            Figure(**{**each, "summary": Summary(**each["summary"])}) for each in found["figures"]
        ]
        rows = [Row(**{**each, **_summaries(each)}) for each in found["rows"]]
        skips = [Skip(**each) for each in found["skips"]]
        return cls(found["scale"], found["about"], figures, rows, skips, found["seconds"])


def _summaries(row: dict[str, Any]) -> dict[str, Summary | None]:
    return {
        name: Summary(**row[name]) if row[name] else None for name in ("ratio", "ours", "theirs")
    }


def _plain(value: Any) -> Any:
    """With Summaries as objects, and numbers rounded to what they are good for."""
    if isinstance(value, Summary):
        return {name: _plain(each) for name, each in value._asdict().items() if each is not None}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

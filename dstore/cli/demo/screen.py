"""All that a person sees of the demo: progress, tables, and the verdict."""

from __future__ import annotations

import math
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from dstore.cli.demo.verdict import Change, Fault, Write
from dstore.cli.demo.worker import Report
from dstore.quoting import visible

FAULTS_SHOWN_MAX = 10
WIDTH_OF_A_FILE = 120
"""How wide the tables are when the output goes to a file or a pipe, and COLUMNS does not say."""
WIDTH_OF_A_TERMINAL = 80
"""The same of a terminal that does not tell its width."""
BAR_MAX = 40
"""Columns of a bar."""
TITLE = 16
"""Columns of what stands before a bar."""

GAP = "  "
"""Between two columns."""

Column: TypeAlias = "tuple[str, list[str]]"
"""A heading, whose lines are to stay lines, and a cell for each row."""


class Phase:
    """One phase under way. Its ``result`` is the line that stays."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.result = ""

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


class Screen:
    """A terminal gets a moving bar for each phase; a file or a pipe gets the lines alone.

    Lines and tables are fitted into the width that there is, without cutting a number or a name.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False)

    def _width(self) -> int:
        """Columns; asked for each time, since a terminal may be resized. COLUMNS goes first."""
        at_terminal = self._console.is_terminal
        fallback = WIDTH_OF_A_TERMINAL if at_terminal else WIDTH_OF_A_FILE
        return shutil.get_terminal_size((fallback, 0)).columns

    def say(self, line: str) -> None:
        """Show a line; a terminal gets it broken between words."""
        line = visible(line)
        if self._console.is_terminal:
            line = textwrap.fill(line, self._width(), break_on_hyphens=False)
        self._show(line)

    def _show(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)  # rich would end us if a pipe breaks

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        """Show a bar while the body runs, and then the phase's result with the time it took."""
        room = self._width() - TITLE - len(f" {total}/{total} ") - 1
        columns = (
            TextColumn(f"{{task.description:<{TITLE}}}"),
            *([BarColumn(min(BAR_MAX, room))] if room > 0 else []),
            MofNCompleteColumn(),
        )
        start = time.monotonic()
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            phase = Phase(progress, progress.add_task(title, total=total))
            yield phase
        self.say(f"{phase.result} ({time.monotonic() - start:.1f} s)")

    def tables(self, reports: Sequence[Report], writes: Sequence[Write]) -> None:
        self._table(
            "What each worker read",
            _columns_of_workers(reports),
            "hit: answered by the worker's own Local",
            "miss: Global was asked (missing: it had none)",
            "times in microseconds, measured in the two passes over all files",
        )
        self._table(
            "How long it took until all had confirmed",
            _columns_of_writes(writes),
            "times in milliseconds, while all workers kept reading",
            "holders: the Locals that Global had handed the value to",
        )
        self._show("")

    def _table(self, title: str, columns: Sequence[Column], *notes: str) -> None:
        self._show("")
        self.say(title)
        for block in fitting(columns, self._width()):
            self._show("\n".join(["", *table_lines(block)]))
        self._show("")
        for note in notes:
            self.say(f"  {note}")

    def verdict(
        self, faults: Sequence[Fault], reports: Sequence[Report], writes: Sequence[Write]
    ) -> None:
        if faults:
            for fault in faults[:FAULTS_SHOWN_MAX]:
                self.say(f"  {fault}")
            if len(faults) > FAULTS_SHOWN_MAX:
                self.say(f"  ... and {len(faults) - FAULTS_SHOWN_MAX:,} more")
            self.say(f"verdict: BAD: {len(faults):,} {'fault' if len(faults) == 1 else 'faults'}")
            return
        reads = sum(report.reads for report in reports)
        self.say(
            f"verdict: good: {reads:,} reads, every byte equal to the file; "
            f"{len(writes):,} deletions and replacements, no stale read after any was confirmed"
        )


def percentile(values: Sequence[int], fraction: float) -> float:
    """Return the nearest-rank percentile, or NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def _columns_of_workers(reports: Sequence[Report]) -> list[Column]:
    def counts(of: Callable[[Report], int]) -> list[str]:
        return [f"{of(report):,}" for report in reports]

    def times(of: Callable[[Report], Sequence[int]], fraction: float) -> list[str]:
        return [f"{percentile(of(report), fraction) / 1e3:,.1f}" for report in reports]

    return [
        ("worker", counts(lambda report: report.worker)),
        ("reads", counts(lambda report: report.reads)),
        ("hits", counts(lambda report: report.hits)),
        ("misses", counts(lambda report: report.misses)),
        ("of these\nmissing", counts(lambda report: report.missing)),
        ("deletions\nheard", counts(lambda report: report.deletions_heard)),
        ("hit\nmedian", times(lambda report: report.hit_ns, 0.5)),
        ("hit\np99", times(lambda report: report.hit_ns, 0.99)),
        ("miss\nmedian", times(lambda report: report.miss_ns, 0.5)),
        ("miss\np99", times(lambda report: report.miss_ns, 0.99)),
    ]


def _columns_of_writes(writes: Sequence[Write]) -> list[Column]:
    rows = []
    for change, name in ((Change.DELETED, "DEL"), (Change.REPLACED, "replace")):
        done = [write for write in writes if write.change is change]
        if not done:
            continue
        took = [write.returned - write.called for write in done]
        times = [f"{percentile(took, fraction) / 1e6:,.2f}" for fraction in (0.5, 0.99, 1.0)]
        rows.append([name, f"{len(done):,}", *times, *_holders(change, done)])
    headings = ["write", "done", "median", "p99", "longest"]
    headings += ["holders\nconfirmed", "leases\nexpired"]
    return [(heading, [row[number] for row in rows]) for number, heading in enumerate(headings)]


def fitting(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """The columns in as few blocks as fit into the width, each with the first column before it."""
    first, *others = columns
    block = [first]
    for column in others:
        if len(block) > 1 and len(table_lines([*block, column])[-1]) > width:
            yield block
            block = [first]
        block.append(column)
    yield block


def table_lines(columns: Sequence[Column]) -> list[str]:
    """A table, line by line, all of them equally long."""
    tall = max(heading.count("\n") for heading, _ in columns) + 1
    padded = []
    for heading, cells in columns:
        lines = heading.split("\n")
        lines = [""] * (tall - len(lines)) + lines
        wide = max(map(len, lines + cells))
        padded.append([line.rjust(wide) for line in [*lines, "-" * wide, *cells]])
    return [GAP.join(line) for line in zip(*padded)]


def _holders(change: Change, done: Sequence[Write]) -> tuple[str, str]:
    """The answer to a DEL says who confirmed; the answer to a replace does not."""
    if change is Change.REPLACED:
        return "", ""
    confirmed = sum(write.confirmed for write in done)
    return f"{confirmed:,}", f"{sum(write.expired for write in done):,}"

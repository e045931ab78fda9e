"""All that a person sees of the demo: progress, tables, and the verdict."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from dstore.demo.verdict import Change, Fault, Write
from dstore.demo.worker import Report

FAULTS_SHOWN_MAX = 10
WIDTH_OF_A_FILE = 120
"""How wide the tables are when the output goes to a file or a pipe."""


class Phase:
    """One phase under way. Its ``result`` is the line that stays."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.result = ""

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


class Screen:
    """A terminal gets a moving bar for each phase; a file or a pipe gets the lines alone."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, WIDTH_OF_A_FILE)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
        self._console.file.flush()

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        """Show a bar while the body runs, and then the phase's result with the time it took."""
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn())
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
        self._console.print(_table_of_workers(reports))
        self._console.print(_table_of_writes(writes))

    def verdict(
        self, faults: Sequence[Fault], reports: Sequence[Report], writes: Sequence[Write]
    ) -> None:
        if faults:
            for fault in faults[:FAULTS_SHOWN_MAX]:
                self.say(f"  {fault}")
            if len(faults) > FAULTS_SHOWN_MAX:
                self.say(f"  … and {len(faults) - FAULTS_SHOWN_MAX:,} more")
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


def _table_of_workers(reports: Sequence[Report]) -> Table:
    table = _table(
        "What each worker read",
        "hit: answered by the worker's own Local; miss: Global was asked (missing: it had none)\n"
        "times in µs, measured in the two passes over all files",
        ["worker", "reads", "hits", "misses", "of these\nmissing"],
        ["hit\nmedian", "hit\np99", "miss\nmedian", "miss\np99", "deletions\nheard"],
    )
    for report in reports:
        times = [
            f"{percentile(sample, fraction) / 1e3:,.1f}"
            for sample in (report.hit_ns, report.miss_ns)
            for fraction in (0.5, 0.99)
        ]
        counts = (report.worker, report.reads, report.hits, report.misses, report.missing)
        heard = f"{report.deletions_heard:,}"
        table.add_row(*(f"{count:,}" for count in counts), *times, heard)
    return table


def _table_of_writes(writes: Sequence[Write]) -> Table:
    table = _table(
        "How long it took until all had confirmed",
        "times in ms, while all workers kept reading\n"
        "holders: the Locals that Global had handed the value to",
        ["write", "done", "median", "p99", "longest"],
        ["holders that\nconfirmed", "leases that\nran out"],
    )
    for change, name in ((Change.DELETED, "DEL"), (Change.REPLACED, "replace")):
        done = [write for write in writes if write.change is change]
        if not done:
            continue
        took = [write.returned - write.called for write in done]
        times = [f"{percentile(took, fraction) / 1e6:,.2f}" for fraction in (0.5, 0.99, 1.0)]
        table.add_row(name, f"{len(done):,}", *times, *_holders(change, done))
    return table


def _table(title: str, caption: str, *headings: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in itertools.chain(*headings):
        table.add_column(heading, justify="right")
    return table


def _holders(change: Change, done: Sequence[Write]) -> tuple[str, str]:
    """The answer to a DEL says who confirmed; the answer to a replace does not."""
    if change is Change.REPLACED:
        return "", ""
    confirmed = sum(write.confirmed for write in done)
    return f"{confirmed:,}", f"{sum(write.expired for write in done):,}"
